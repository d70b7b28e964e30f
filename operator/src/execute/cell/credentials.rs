//! The secrets of a cell: read where they exist, made where they do not.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rand::distr::{Alphanumeric, SampleString};
use serde_json::Value;
use titan_planner::cell::{
    Credentials, PostgresPlan, RedisPlan, ServerCredentials, StoreStorage, ValidatedCell,
};
use titan_planner::object::{CELL_LABEL, Kind, MANAGED_BY, MANAGER};
use titan_planner::status::Step;

use crate::error::ReconcileError;
use crate::execute::apply::LiveObjects;
use crate::execute::cell::postgres::POSTGRES;
use crate::run::context::Context;
use crate::stores::patroni::was_made;

/// 32 letters and digits: 190 bits, and nothing that a connection string would have to escape.
const PASSWORD_LENGTH: usize = 32;

/// The port of PostgreSQL where nothing else is said.
pub(super) const POSTGRES_PORT: u16 = 5432;
/// The Secret of the administrator of a cell's own PostgreSQL, and the keys of its passwords.
const ADMIN: &str = "postgres-admin";
const ADMIN_PASSWORD: &str = "password";
const REPLICATION_PASSWORD: &str = "replication-password";

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
        },
        PostgresPlan::External { secret_name } => {
            match external(context, secret_name, POSTGRES_PORT).await? {
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
        },
        RedisPlan::External { secret_name } => match external(context, secret_name, 6379).await? {
            Ok(server) => server,
            Err(step) => return Ok(Err(step)),
        },
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

/// Reads the Secret of an external server from the operator's own namespace.
pub(super) async fn external(
    context: &Context,
    name: &str,
    default_port: u16,
) -> Result<Result<ServerCredentials, Step>, ReconcileError> {
    let namespace = &context.system_namespace;
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let Some(secret) = secrets.get_opt(name).await? else {
        return Ok(Err(Step::failed(
            "ExternalSecretNotFound",
            format!(
                "Secret {namespace}/{name} does not exist; create it with host, port, username and password"
            ),
        )));
    };
    let data = secret.data.unwrap_or_default();
    Ok(read_external(&data, default_port).map_err(|problem| {
        Step::failed(
            "ExternalSecretInvalid",
            format!("Secret {namespace}/{name}: {problem}"),
        )
    }))
}

fn read_external(
    data: &BTreeMap<String, ByteString>,
    default_port: u16,
) -> Result<ServerCredentials, String> {
    let text = |key: &str| match data.get(key) {
        None => Ok(None),
        Some(ByteString(bytes)) => String::from_utf8(bytes.clone())
            .map(|text| Some(text.trim_end_matches('\n').to_owned()))
            .map_err(|_| format!("the value of {key} is not text")),
    };
    let host = text("host")?
        .filter(|host| !host.is_empty())
        .ok_or("it has no host; add the server's name or address under host")?;
    let port = match text("port")? {
        None => default_port,
        Some(port) => port
            .parse()
            .map_err(|_| format!("port `{port}` is no port number"))?,
    };
    Ok(ServerCredentials {
        host,
        port,
        username: text("username")?.unwrap_or_default(),
        password: text("password")?.unwrap_or_default(),
        sslmode: text("sslmode")?.unwrap_or_else(|| "prefer".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())))
            .collect()
    }

    #[test]
    fn an_external_server_needs_a_host_and_a_sound_port() {
        let server = read_external(&data(&[("host", "db\n"), ("port", "6432")]), 5432).unwrap();
        assert_eq!((server.host.as_str(), server.port), ("db", 6432));
        let no_host = read_external(&data(&[("port", "1")]), 5432).unwrap_err();
        assert!(no_host.contains("host"), "{no_host}");
        let bad_port = read_external(&data(&[("host", "db"), ("port", "x")]), 5432).unwrap_err();
        assert!(bad_port.contains("`x`"), "{bad_port}");
    }

    #[test]
    fn passwords_are_long_and_differ() {
        assert_eq!(password().len(), PASSWORD_LENGTH);
        assert_ne!(password(), password());
    }
}
