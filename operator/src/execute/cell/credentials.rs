//! The secrets of a cell: read where they exist, made where they do not.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use rand::distr::{Alphanumeric, SampleString};
use serde_json::Value;
use titan_planner::cell::names::{CELL_ENVIRONMENT, CHECKSUM_SALT, SALT};
use titan_planner::cell::{
    Credentials, FOR_CELLS, Permission, PostgresPlan, Product, RedisPlan, ServerCredentials,
    StoreStorage, ValidatedCell, permission, read_server,
};
use titan_planner::object::{CELL_LABEL, Kind, MANAGED_BY, MANAGER};
use titan_planner::status::Step;

use crate::error::ReconcileError;
use crate::execute::apply::LiveObjects;
use crate::execute::cell::identity::quoted;
use crate::execute::cell::postgres::POSTGRES;
use crate::run::context::Context;
use crate::stores::patroni::was_made;

/// 32 letters and digits: 190 bits, and nothing that a connection string would have to escape.
const PASSWORD_LENGTH: usize = 32;

/// The port of PostgreSQL where nothing else is said.
pub(super) const POSTGRES_PORT: u16 = 5432;
/// The Secret of the administrator of a cell's own PostgreSQL, and the keys of its passwords.
pub(super) const ADMIN: &str = "postgres-admin";
pub(super) const ADMIN_PASSWORD: &str = "password";
const REPLICATION_PASSWORD: &str = "replication-password";
/// Patroni's REST interface takes it for changes; members read it at their start, so a new one is as good as the old one.
const REST_PASSWORD: &str = "rest-password";

/// Gathers the cell's credentials. A password that exists in the namespace is kept; one that does not is made, and lives
/// from the moment its Secret is created. The outer error is worth another try, the inner step is for a person to mend.
pub(super) async fn read_or_generate(
    cell: &ValidatedCell,
    live: &LiveObjects,
    context: &Context,
) -> Result<Result<Credentials, Step>, ReconcileError> {
    if let PostgresPlan::Managed { storage, .. } = &cell.postgres
        && let Some(step) = lost_password(&cell.name, storage, live, context).await?
    {
        return Ok(Err(step));
    }
    let keep_or_make =
        |secret: &str, key: &str| secret_value(live, secret, key).unwrap_or_else(password);

    let postgres = match &cell.postgres {
        PostgresPlan::Managed { .. } => ServerCredentials {
            host: format!("postgres.{}", cell.endpoint()),
            port: POSTGRES_PORT,
            username: "postgres".to_owned(),
            password: keep_or_make(ADMIN, ADMIN_PASSWORD),
            sslmode: "disable".to_owned(),
            ca: String::new(),
        },
        PostgresPlan::External { secret_name } => {
            match permitted(context, cell, live, secret_name, Product::Postgres).await? {
                Ok(server) => server,
                Err(step) => return Ok(Err(step)),
            }
        }
    };
    let redis = match &cell.redis {
        RedisPlan::Managed { .. } => ServerCredentials {
            host: format!("redis.{}", cell.endpoint()),
            port: 6379,
            username: String::new(),
            password: keep_or_make("redis-auth", "password"),
            sslmode: "disable".to_owned(),
            ca: String::new(),
        },
        RedisPlan::External { secret_name } => {
            match permitted(context, cell, live, secret_name, Product::Redis).await? {
                Ok(server) => server,
                Err(step) => return Ok(Err(step)),
            }
        }
    };
    let services = cell
        .schemas
        .iter()
        .map(|schema| {
            let secret = format!("{}-credentials", schema.service);
            (schema.service.clone(), keep_or_make(&secret, "PGPASSWORD"))
        })
        .collect();
    Ok(Ok(Credentials {
        postgres,
        redis,
        replication_password: match &cell.postgres {
            PostgresPlan::Managed { .. } => keep_or_make(ADMIN, REPLICATION_PASSWORD),
            PostgresPlan::External { .. } => String::new(),
        },
        services,
        salt: keep_or_make(CHECKSUM_SALT, SALT),
        rest_password: match &cell.postgres {
            PostgresPlan::Managed { .. } => keep_or_make(ADMIN, REST_PASSWORD),
            PostgresPlan::External { .. } => String::new(),
        },
        // They lie in another namespace.
        pull_secrets: BTreeMap::new(),
    }))
}

/// A PostgreSQL that runs knows the passwords that it was made with, and members that were rolled with others could not log
/// in. (Redis takes its password from the Secret at each start, so there a new one is as good.) Where its StatefulSet is gone,
/// too, its volumes may not be, and Patroni remembers that there is a database on them.
async fn lost_password(
    cell: &str,
    storage: &StoreStorage,
    live: &LiveObjects,
    context: &Context,
) -> Result<Option<Step>, ReconcileError> {
    let lost = |key: &&str| secret_value(live, ADMIN, key).is_none();
    let Some(key) = [ADMIN_PASSWORD, REPLICATION_PASSWORD]
        .into_iter()
        .find(lost)
    else {
        return Ok(None);
    };
    let on_volumes = matches!(storage, StoreStorage::Persistent { .. });
    let made = live.get(Kind::StatefulSet, POSTGRES).is_some()
        || on_volumes && was_made(&context.client, cell, POSTGRES).await?;
    if !made {
        return Ok(None);
    }
    Ok(Some(Step::failed(
        "PasswordLost",
        format!(
            "Secret {cell}/{ADMIN} has no {key}, and the PostgreSQL of the cell was made with one that nothing else knows. Read it from a pod that still runs: kubectl -n {cell} exec postgres-0 -- printenv PATRONI_SUPERUSER_PASSWORD PATRONI_REPLICATION_PASSWORD; and put both back as {ADMIN_PASSWORD} and {REPLICATION_PASSWORD}, with the labels {CELL_LABEL}={cell} and {MANAGED_BY}={MANAGER}"
        ),
    )))
}

fn password() -> String {
    Alphanumeric.sample_string(&mut rand::rng(), PASSWORD_LENGTH)
}

fn secret_value(live: &LiveObjects, secret: &str, key: &str) -> Option<String> {
    let data = live.get(Kind::Secret, secret)?.body();
    let encoded = data.get("data")?.get(key).and_then(Value::as_str)?;
    let value = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    (!value.is_empty()).then_some(value)
}

/// The server that a Secret in the operator's own namespace names, and which cells may use it.
pub(super) struct ExternalServer {
    pub(super) server: ServerCredentials,
    for_cells: Option<String>,
}

impl ExternalServer {
    pub(super) fn permission(&self, cell: &str) -> Permission {
        permission(self.for_cells.as_deref(), cell)
    }
}

/// Reads the Secret of an external server.
pub(super) async fn external(
    context: &Context,
    name: &str,
    product: Product,
) -> Result<Result<ExternalServer, Step>, ReconcileError> {
    let namespace = &context.system_namespace;
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let Some(secret) = secrets.get_opt(name).await? else {
        return Ok(Err(Step::failed(
            "ExternalSecretNotFound",
            format!(
                "Secret {namespace}/{name} does not exist; create it with host, port, username and password, and the annotation {FOR_CELLS}"
            ),
        )));
    };
    let for_cells = secret.annotations().get(FOR_CELLS).cloned();
    let data = secret.data.unwrap_or_default();
    let data = data
        .into_iter()
        .map(|(key, value)| (key, value.0))
        .collect();
    Ok(match read_server(product, &data) {
        Ok(server) => Ok(ExternalServer { server, for_cells }),
        Err(problem) => Err(Step::failed(
            "ExternalSecretInvalid",
            format!("Secret {namespace}/{name}: {problem}"),
        )),
    })
}

/// The external server of a cell that may use it. A Secret from before there was the annotation goes on serving the cells
/// that it serves.
async fn permitted(
    context: &Context,
    cell: &ValidatedCell,
    live: &LiveObjects,
    secret: &str,
    product: Product,
) -> Result<Result<ServerCredentials, Step>, ReconcileError> {
    let external = match external(context, secret, product).await? {
        Ok(external) => external,
        Err(step) => return Ok(Err(step)),
    };
    let granted = match external.permission(&cell.name) {
        Permission::Granted => true,
        Permission::Withheld => false,
        Permission::Unsaid => is_in_use(live, &external.server, product),
    };
    if granted {
        return Ok(Ok(external.server));
    }
    Ok(Err(not_permitted(context, &cell.name, secret, &external)))
}

/// What is said of a server that is not for the cell.
pub(super) fn not_permitted(
    context: &Context,
    cell: &str,
    secret: &str,
    external: &ExternalServer,
) -> Step {
    let namespace = &context.system_namespace;
    let (says, value) = match &external.for_cells {
        None => (format!("has no annotation {FOR_CELLS}"), cell.to_owned()),
        Some(said) => (
            format!("is for other cells, by its annotation {FOR_CELLS}: {said:?}"),
            format!("{said},{cell}"),
        ),
    };
    Step::failed(
        "ExternalSecretNotForCell",
        format!(
            "Secret {namespace}/{secret} {says}; name another, or let cell {cell} use its server: kubectl -n {namespace} annotate --overwrite secret {secret} {FOR_CELLS}={}",
            quoted(&value)
        ),
    )
}

/// Whether the services of the cell have been given this server.
fn is_in_use(live: &LiveObjects, server: &ServerCredentials, product: Product) -> bool {
    let Some(environment) = live.get(Kind::ConfigMap, CELL_ENVIRONMENT) else {
        return false;
    };
    let body = environment.body();
    let says = |name: &str| {
        body.pointer(&format!("/data/{name}"))
            .and_then(Value::as_str)
    };
    let ServerCredentials { host, port, .. } = server;
    match product {
        Product::Postgres => {
            says("PGHOST") == Some(host) && says("PGPORT") == Some(&port.to_string())
        }
        Product::Redis => ["redis", "rediss"]
            .iter()
            .any(|scheme| says("TITAN_REDIS_ADDRS") == Some(&format!("{scheme}://{host}:{port}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_long_and_differ() {
        assert_eq!(password().len(), PASSWORD_LENGTH);
        assert_ne!(password(), password());
    }
}
