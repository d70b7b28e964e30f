//! One Cell: dereference, validate, build, apply, update the status; or, when it is deleted, take it apart.

mod cache;
mod controller;
mod credentials;
mod dereference;
mod error;
mod finalize;
mod identity;
mod migration;
mod namespace;
mod overdue;
mod pause;
mod postgres;
mod reconcile;
mod report;
mod requeue;
mod services;
mod trouble;
mod waiting;

pub use controller::{Triggers, run};
pub use error::ReconcileError;
pub use reconcile::reconcile;
pub use waiting::Waiting;
