//! Ownership of keys in a data home: the guard, the fence and all that changes rows, in PostgreSQL.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

mod cost;
mod failpoint;
mod fence;
mod guard;
mod home;
mod retry;
mod stress;
mod upgrade;
