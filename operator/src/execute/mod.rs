//! What a plan asks for, done: idempotent writes to the apiserver and to the stores of cells.

pub mod apply;
pub mod cell;
mod finalizer;
pub mod fleet;
mod status;
