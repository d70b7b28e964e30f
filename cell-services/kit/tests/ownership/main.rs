//! Ownership of keys in a data home: the guard, the fence and all that changes rows, in PostgreSQL.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod failpoint;
mod fence;
mod guard;
mod home;
mod retry;
mod stress;
mod upgrade;
