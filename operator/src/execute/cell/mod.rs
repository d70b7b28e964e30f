//! One Cell: dereference, validate, build, apply, update the status; or, when it is deleted, take it apart.

mod cache;
mod controller;
mod credentials;
mod failures;
mod finalize;
mod identity;
mod migration;
mod namespace;
mod pass_cache;
mod patience;
mod pause;
mod postgres;
mod reconcile;
mod report;
mod requeue;
mod services;

pub use controller::{Triggers, run};
pub use pass_cache::PassCache;
pub use reconcile::reconcile;
