//! What a cell has outside of Kubernetes: schemas and roles in PostgreSQL, topics in Kafka, a formed Redis cluster.
//!
//! Each `ensure` looks first and writes only what is missing, so that a reconcile that finds no drift writes nothing.

pub mod data_home;
mod error;
pub mod kafka;
pub mod patroni;
pub mod postgres;
pub mod redis;

pub use error::{Foreign, Result, StoreError};
