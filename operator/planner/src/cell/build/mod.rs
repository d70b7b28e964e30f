//! From a validated cell to every object it consists of.
//!
//! A pure function: the same cell and credentials give the same objects, byte for byte, on every replica.

mod environment;
mod migration;
mod namespace;
mod network;
mod patroni;
mod pod;
mod postgres;
mod redis;
mod service;
mod store;

use serde::Serialize;

use super::model::{Credentials, Desired, Invalid, ServerCredentials, ValidatedCell};
use crate::object::{Kind, Object, Stage};

pub use migration::MIGRATION_SECONDS;
pub use patroni::{
    PATRONI_STORE, dynamic_configuration as patroni_dynamic_configuration,
    reconfiguration as patroni_reconfiguration,
};

/// Builds every object of a cell, in the order in which they are applied.
///
/// # Errors
/// When the credentials lack a password that an object needs.
pub fn build(cell: &ValidatedCell, credentials: &Credentials) -> Result<Desired, Invalid> {
    complete(cell, credentials)?;
    let mut objects = Objects::default();
    let environment = environment::Environment::new(cell, credentials);

    namespace::build(cell, &mut objects)?;
    network::build(cell, credentials, &mut objects)?;
    environment.build(cell, &mut objects)?;
    pod::pull_secrets(cell, credentials, &mut objects)?;
    postgres::build(cell, credentials, &mut objects)?;
    redis::build(cell, credentials, &mut objects)?;
    for service in &cell.services {
        migration::build(cell, service, &environment, &mut objects)?;
    }
    for service in &cell.services {
        service::build(cell, service, &environment, &mut objects)?;
    }
    Ok(objects.finish(cell))
}

/// Builds the namespace and the operator's own rights in it: what has to be there before the credentials of the cell, which
/// lie in it, can be read.
///
/// # Errors
/// Never for a validated cell.
pub fn build_namespace(cell: &ValidatedCell) -> Result<Vec<Object>, Invalid> {
    let mut objects = Objects::default();
    namespace::build(cell, &mut objects)?;
    Ok(objects.finish(cell).objects)
}

/// Whether every password is there that some object needs.
fn complete(cell: &ValidatedCell, credentials: &Credentials) -> Result<(), Invalid> {
    let Credentials {
        postgres:
            ServerCredentials {
                host: _,
                port: _,
                username: _,
                password: postgres,
                sslmode: _,
                ca: _,
            },
        redis,
        replication_password,
        rest_password,
        services,
        salt,
        pull_secrets,
    } = credentials;
    let missing = |what: String| Invalid {
        reason: "CredentialsMissing",
        message: format!(
            "the password of {what} in cell {} is missing; the operator makes it before it builds the cell",
            cell.name
        ),
    };
    if matches!(cell.postgres, super::PostgresPlan::Managed { .. }) {
        if postgres.is_empty() {
            return Err(missing("PostgreSQL's administrator".to_owned()));
        }
        if replication_password.is_empty() {
            return Err(missing("PostgreSQL's replication role".to_owned()));
        }
        if rest_password.is_empty() {
            return Err(missing("Patroni's REST interface".to_owned()));
        }
    }
    if matches!(cell.redis, super::RedisPlan::Managed { .. }) && redis.password.is_empty() {
        return Err(missing("Redis".to_owned()));
    }
    if salt.is_empty() {
        return Err(missing("checksums".to_owned()));
    }
    for name in &cell.pull_secrets {
        if !pull_secrets.contains_key(name) {
            return Err(missing(format!("the registry of images (Secret {name})")));
        }
    }
    for schema in &cell.schemas {
        if services.get(&schema.service).is_none_or(String::is_empty) {
            return Err(missing(format!("service {}", schema.service)));
        }
    }
    Ok(())
}

/// The objects built so far.
#[derive(Default)]
struct Objects(Vec<Object>);

impl Objects {
    fn add(&mut self, kind: Kind, stage: Stage, typed: &impl Serialize) -> Result<(), Invalid> {
        self.push(kind, stage, false, typed)
    }

    /// Adds an object that holds data, or without which data could not be reached or would lie open.
    fn add_data(
        &mut self,
        kind: Kind,
        stage: Stage,
        typed: &impl Serialize,
    ) -> Result<(), Invalid> {
        self.push(kind, stage, true, typed)
    }

    fn push(
        &mut self,
        kind: Kind,
        stage: Stage,
        holds_data: bool,
        typed: &impl Serialize,
    ) -> Result<(), Invalid> {
        let object = Object::new(kind, stage, holds_data, typed).map_err(|error| Invalid {
            reason: "BuildFailed",
            message: format!("{error}; this is a defect of the operator"),
        })?;
        self.0.push(object);
        Ok(())
    }

    /// Sorted by stage, services in their order of dependency, then by kind and name.
    fn finish(self, cell: &ValidatedCell) -> Desired {
        let Objects(mut objects) = self;
        let position = |service: &str| {
            cell.services
                .iter()
                .position(|candidate| candidate.name == service)
                .unwrap_or(usize::MAX)
        };
        objects.sort_by_cached_key(|object| {
            let stage = match &object.stage {
                Stage::Namespace => (0, 0),
                Stage::Foundation => (1, 0),
                Stage::Stores => (2, 0),
                Stage::Migration(service) => (3, position(service)),
                Stage::Service(service) => (4, position(service)),
            };
            (stage, object.kind, object.name.clone())
        });
        Desired { objects }
    }
}
