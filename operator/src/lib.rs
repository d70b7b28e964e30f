//! The operator of Titan Cells: it observes, plans, commits and executes.
//!
//! Planning is in `titan-planner` and pure; this crate is the I/O around it.

pub mod attempt;
pub mod cell;
pub mod cluster;
pub mod context;
mod detect;
pub mod echoes;
mod finalizer;
pub mod fleet;
mod gather;
pub mod http;
mod lead;
pub mod leader;
pub mod ledger;
pub mod metrics;
pub mod operate;
pub mod stores;
pub mod tables;
