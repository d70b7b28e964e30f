//! Replicas of the operator as a whole, as the binary runs them, against a real apiserver.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod proxy;
mod queues;
mod replica;
mod reports;
mod terms;
mod unreadable;
