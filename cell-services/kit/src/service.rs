//! The definition of a service: the one place that says what it is and what it needs.

use futures::future::BoxFuture;
use serde::Serialize;
use sqlx::migrate::{Migration, Migrator};
use tonic::service::Routes;

use crate::context::Context;
use crate::error::StartError;

/// A service, as the operator, the mover and the conformance suite see it.
pub struct Service {
    /// Its name, also that of its Kubernetes Service and of its schema.
    pub name: &'static str,
    /// The gRPC port.
    pub port: u16,
    /// The gRPC services that it answers for, by their full names.
    pub grpc: &'static [&'static str],
    /// The encoded file descriptor set of its protocol.
    pub descriptor: &'static [u8],
    /// The schema migrations of its own; the kit adds those of its tables.
    pub migrations: &'static Migrator,
    /// Its tables, those of the kit included.
    pub tables: &'static [Table],
    /// The topics that it publishes to.
    pub topics: &'static [Topic],
    /// The stores that it needs.
    pub stores: &'static [Store],
    /// The tasks that run beside the server.
    pub workers: &'static [&'static str],
    /// Builds the gRPC services.
    pub build: fn(Context) -> BoxFuture<'static, Result<Routes, StartError>>,
}

/// A table and how it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Table {
    /// The name, without the schema.
    pub name: &'static str,
    /// Whose rows it holds.
    pub class: TableClass,
}

/// Whose rows a table holds, which decides what a move does with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TableClass {
    /// Rows of one owner each: they move with their owner, and are guarded.
    Owned,
    /// The same rows in every cell.
    Reference,
    /// Rows that mean something in this data home alone.
    Local,
    /// Rows that the whole fleet shares.
    Global,
}

/// A topic that a service publishes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Topic {
    /// The name without the cell: `order.events` is published as `titan.<cell>.order.events`.
    pub name: &'static str,
    /// How many partitions it starts with.
    pub partitions: i32,
    /// How long events are kept.
    pub retention_hours: u32,
}

/// A kind of store that a service needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// The cell's PostgreSQL.
    Postgres,
    /// The cell's Redis.
    Redis,
    /// The fleet's Kafka.
    Kafka,
}

/// The kit's table of answers to mutations.
pub const IDEMPOTENCY_KEYS: Table = Table {
    name: "idempotency_keys",
    class: TableClass::Owned,
};
/// The kit's table of events on their way to Kafka.
pub const OUTBOX: Table = Table {
    name: "outbox",
    class: TableClass::Local,
};

static KIT_MIGRATIONS: Migrator = sqlx::migrate!("./migrations");
const OUTBOX_MIGRATIONS: [i64; 2] = [2, 3];

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.name)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// The schema that its tables live in, unless the environment names another.
    #[must_use]
    pub fn schema(&self) -> String {
        self.name.replace('-', "_")
    }

    /// The migrations of the kit and of the service. Versions below 1000 are the kit's.
    #[must_use]
    pub fn migrator(&self) -> Migrator {
        let of_kit = KIT_MIGRATIONS.iter().filter(|migration| {
            !OUTBOX_MIGRATIONS.contains(&migration.version) || self.tables.contains(&OUTBOX)
        });
        let all: Vec<Migration> = of_kit.chain(self.migrations.iter()).cloned().collect();
        let mut migrator = Migrator::with_migrations(all);
        // After a rollback the schema is ahead of the binary. It fits all the same: migrations only expand.
        migrator.set_ignore_missing(true);
        migrator
    }

    /// The definition, as `describe` prints it.
    #[must_use]
    pub fn description(&self) -> Description<'_> {
        Description {
            name: self.name,
            port: self.port,
            metrics_port: 9090,
            grpc: self.grpc,
            schema: self.schema(),
            stores: self.stores,
            tables: self.tables,
            topics: self.topics,
            workers: self.workers,
            migrations: self
                .migrator()
                .iter()
                .map(|migration| DescribedMigration {
                    version: migration.version,
                    description: migration.description.to_string(),
                })
                .collect(),
        }
    }
}

/// What `describe` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Description<'a> {
    name: &'a str,
    port: u16,
    metrics_port: u16,
    grpc: &'a [&'a str],
    schema: String,
    stores: &'a [Store],
    tables: &'a [Table],
    topics: &'a [Topic],
    workers: &'a [&'a str],
    migrations: Vec<DescribedMigration>,
}

#[derive(Debug, Serialize)]
struct DescribedMigration {
    version: i64,
    description: String,
}
