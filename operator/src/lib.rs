//! The operator of Titan Cells: it observes, plans, commits and executes.
//!
//! Planning is in `titan-planner` and pure; this crate is the I/O around it.

pub mod ledger;
pub mod stores;
