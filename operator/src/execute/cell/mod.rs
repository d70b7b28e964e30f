//! One Cell: dereference, validate, build, apply, update the status; or, when it is deleted, take it apart.

mod cache;
mod controller;
mod credentials;
mod data_home;
mod failures;
mod finalize;
mod identity;
mod migration;
mod namespace;
mod pass_cache;
mod patience;
mod pause;
mod postgres;
mod pull_secrets;
mod reconcile;
mod report;
mod requeue;
mod services;

pub use controller::{Triggers, run};
pub use data_home::open as open_data_home;
pub use pass_cache::PassCache;
pub use reconcile::reconcile;
