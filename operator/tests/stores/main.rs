//! The stores against real servers.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

mod book;
mod kafka;
mod postgres;
mod redis;
