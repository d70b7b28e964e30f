//! A replica of the operator: leadership, the controllers of a term, their shared context, and health.

pub mod attempt;
pub mod client;
pub mod context;
mod controllers;
pub mod dependencies;
pub mod health;
pub mod leadership;
pub mod replica;
