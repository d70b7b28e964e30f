//! One cell: from its spec to everything it consists of.

mod build;
mod connections;
mod model;
pub mod names;
pub mod quantity;
mod render;
mod server;
mod validate;

pub use build::{
    MIGRATION_SECONDS, PATRONI_STORE, build, build_namespace, patroni_dynamic_configuration,
    patroni_reconfiguration,
};
pub use model::{
    Credentials, Desired, Invalid, KafkaTopic, PostgresPlan, RedisPlan, ServerCredentials,
    ServiceSchema, StoreStorage, ValidatedCell, ValidatedService,
};
pub use render::{render, render_objects};
pub use server::{FOR_CELLS, Permission, Product, permission, read_server};
pub use validate::{ExternalDatabase, NotValid, external_database, key_range, validate};

pub use crate::object::{covers, drift};
