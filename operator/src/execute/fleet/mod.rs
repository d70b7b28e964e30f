//! One CellFleet: the cells of its template, its routing table, its status.

mod controller;
mod reconcile;

pub use controller::{Triggers, run};
pub use reconcile::reconcile;
