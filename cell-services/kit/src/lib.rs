//! What every cell service is built on.
//!
//! A service is a [`Service`] definition and a function that builds its gRPC services from a [`Context`]; its
//! binary is one line, `cell_kit::main(&SERVICE)`. The kit gives it configuration, logs, traces, metrics,
//! health, drain, migrations, and the three promises that make a cell safe:
//!
//! * **ownership**: a request is served only for keys of this cell, and [`Tx`], the only way to write, passes
//!   the guard of the data home in the same transaction;
//! * **idempotency**: [`Database::mutate`] executes a mutation at most once per idempotency key;
//! * **events**: [`Tx::emit`] publishes if, and only if, the transaction commits.

pub mod admin;
pub mod config;
mod context;
pub mod cursor;
mod database;
mod error;
pub mod headers;
pub mod id_text;
mod idempotency;
pub mod metrics;
mod money;
mod outbox;
pub mod ownership;
pub mod redis;
mod registry;
mod request;
mod run;
mod server;
mod service;
pub mod telemetry;
mod tx;
mod wire;

pub use context::Context;
pub use database::{Database, Query};
pub use error::{Failure, StartError};
pub use money::{Currency, Money, MoneyError};
pub use outbox::Event;
pub use request::{Caller, GateLayer};
pub use run::{main, migrate};
pub use server::{Addresses, Server};
pub use service::{
    Description, IDEMPOTENCY_KEYS, OUTBOX, Service, Store, Table, TableClass, Topic,
};
pub use titan_routing::Key;
pub use tx::{Effect, Tx};
pub use wire::{parse_id, timestamp};
