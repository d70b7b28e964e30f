//! What the pods of services and migrations read: one ConfigMap for the cell and a Secret for each service.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, ConfigMapEnvSource, EnvFromSource, EnvVar, Secret};
use titan_crds::RedisTopology;

use super::Objects;
use super::pod::{Checksum, secret_variable, variable};
use crate::cell::connections::POOL;
use crate::cell::model::{
    Credentials, Invalid, PostgresPlan, RedisPlan, ServerCredentials, ValidatedCell,
    ValidatedService,
};
use crate::cell::names::{
    CELL_ENVIRONMENT, CHECKSUM_SALT, Component, METRICS_PORT, POSTGRES, POSTGRES_PORT, REDIS,
    REDIS_PORT, REGISTRY_PORT, ROUTER, ROUTER_PORT, SALT, SYSTEM_NAMESPACE, cell_labels, meta,
    part_labels,
};
use crate::object::{Kind, Stage};

pub(super) const STATE_DIRECTORY: &str = "/var/lib/titan";

pub(super) struct Environment {
    shared: BTreeMap<String, String>,
    secrets: BTreeMap<String, BTreeMap<String, String>>,
    salt: String,
}

/// Where something listens.
struct Address {
    host: String,
    port: String,
}

impl Environment {
    pub(super) fn new(cell: &ValidatedCell, credentials: &Credentials) -> Self {
        let Credentials {
            postgres,
            redis,
            replication_password: _,
            rest_password: _,
            services,
            salt,
            pull_secrets: _,
        } = credentials;
        Environment {
            shared: shared(cell, postgres, redis),
            secrets: cell
                .services
                .iter()
                .map(|service| {
                    let mut secret = BTreeMap::new();
                    if service.stores.postgres
                        && let Some(password) = services.get(&service.name)
                    {
                        secret.insert("PGPASSWORD".to_owned(), password.clone());
                    }
                    if service.stores.redis && !redis.password.is_empty() {
                        secret.insert("REDIS_PASSWORD".to_owned(), redis.password.clone());
                    }
                    (service.name.clone(), secret)
                })
                .collect(),
            salt: salt.clone(),
        }
    }

    pub(super) fn build(&self, cell: &ValidatedCell, objects: &mut Objects) -> Result<(), Invalid> {
        objects.add(
            Kind::ConfigMap,
            Stage::Foundation,
            &ConfigMap {
                metadata: meta(cell, CELL_ENVIRONMENT, cell_labels(cell)),
                data: Some(self.shared.clone()),
                ..ConfigMap::default()
            },
        )?;
        let salt = BTreeMap::from([(SALT.to_owned(), self.salt.clone())]);
        objects.add(
            Kind::Secret,
            Stage::Foundation,
            &Secret {
                metadata: meta(cell, CHECKSUM_SALT, cell_labels(cell)),
                ..opaque(cell, CHECKSUM_SALT, "", Component::Service, salt)
            },
        )?;
        for service in &cell.services {
            let secret = self.secret(service);
            if !secret.is_empty() {
                // No data: a role gets another password at any time.
                objects.add(
                    Kind::Secret,
                    Stage::Foundation,
                    &opaque(
                        cell,
                        service.credentials_secret(),
                        &service.name,
                        Component::Service,
                        secret,
                    ),
                )?;
            }
        }
        Ok(())
    }

    fn secret(&self, service: &ValidatedService) -> BTreeMap<String, String> {
        self.secrets.get(&service.name).cloned().unwrap_or_default()
    }

    /// Where all variables come from that are the same for every service.
    pub(super) fn sources() -> Vec<EnvFromSource> {
        vec![EnvFromSource {
            config_map_ref: Some(ConfigMapEnvSource {
                name: CELL_ENVIRONMENT.to_owned(),
                optional: None,
            }),
            prefix: None,
            secret_ref: None,
        }]
    }

    /// The variables of one service, sorted by name.
    pub(super) fn variables(
        &self,
        cell: &ValidatedCell,
        service: &ValidatedService,
    ) -> Vec<EnvVar> {
        let mut variables: Vec<EnvVar> = service
            .env
            .iter()
            .map(|(name, value)| variable(name, value))
            .collect();
        variables.extend([
            variable("TITAN_SERVICE", &service.name),
            variable("TITAN_RELEASE", &service.release),
            variable("TITAN_GRPC_PORT", service.port.to_string()),
        ]);
        if let Some(schema) = cell.schema_of(&service.name) {
            variables.extend([
                variable("PGUSER", &schema.role),
                variable("TITAN_DB_SCHEMA", &schema.schema),
            ]);
        }
        let secret = service.credentials_secret();
        variables.extend(
            self.secret(service)
                .keys()
                .map(|key| secret_variable(key, &secret, key)),
        );
        variables.sort_by(|a, b| a.name.cmp(&b.name));
        variables
    }

    /// Changes whenever something changes that the pods of a service read.
    pub(super) fn checksum(&self, service: &ValidatedService) -> String {
        let mut checksum = Checksum::new(&self.salt);
        for (name, value) in self.shared.iter().chain(&self.secret(service)) {
            checksum.add(name);
            checksum.add(value);
        }
        checksum.finish()
    }

    /// The database that migrations change: another one has to be migrated anew.
    pub(super) fn database(&self) -> Vec<&str> {
        ["PGHOST", "PGPORT", "PGDATABASE"]
            .into_iter()
            .filter_map(|name| self.shared.get(name))
            .map(String::as_str)
            .collect()
    }
}

fn shared(
    cell: &ValidatedCell,
    postgres: &ServerCredentials,
    redis: &ServerCredentials,
) -> BTreeMap<String, String> {
    let system = |service: &str, port: i32| {
        format!(
            "http://{service}.{SYSTEM_NAMESPACE}.svc.{}:{port}",
            cell.cluster_domain
        )
    };
    let (database, sslmode) = match &cell.postgres {
        // Traffic stays inside the namespace, behind its NetworkPolicies; Patroni serves no certificate.
        PostgresPlan::Managed { .. } => (inside(POSTGRES, POSTGRES_PORT), "disable"),
        PostgresPlan::External { .. } => (
            outside(postgres),
            if postgres.sslmode.is_empty() {
                "prefer"
            } else {
                postgres.sslmode.as_str()
            },
        ),
    };
    let (cache, cluster) = match &cell.redis {
        RedisPlan::Managed { topology, .. } => (
            inside(REDIS, REDIS_PORT),
            *topology == RedisTopology::Cluster,
        ),
        RedisPlan::External { .. } => (outside(redis), false),
    };
    let scheme = if redis.demands_tls() {
        "rediss"
    } else {
        "redis"
    };
    // Only where there are any: most cells have their own stores, which have none of it.
    let some = [
        ("TITAN_DB_CA", &postgres.ca),
        ("TITAN_REDIS_CA", &redis.ca),
        ("TITAN_REDIS_USERNAME", &redis.username),
    ];
    let some = some.into_iter().filter(|(_, value)| !value.is_empty());
    [
        ("TITAN_FLEET", cell.fleet.clone()),
        ("TITAN_CELL", cell.name.clone()),
        ("TITAN_REGION", cell.region.clone()),
        ("TITAN_METRICS_PORT", METRICS_PORT.to_string()),
        ("TITAN_REGISTRY", system("titan-registry", REGISTRY_PORT)),
        ("TITAN_ROUTER", system(ROUTER, ROUTER_PORT)),
        ("TITAN_DATA_HOME", cell.name.clone()),
        ("TITAN_STATE_DIR", STATE_DIRECTORY.to_owned()),
        ("TITAN_LOG", "json".to_owned()),
        ("RUST_LOG", "info".to_owned()),
        ("PGHOST", database.host),
        ("PGPORT", database.port),
        ("PGDATABASE", cell.database()),
        ("PGSSLMODE", sslmode.to_owned()),
        // Said rather than left to the services: PostgreSQL's max_connections is counted with it.
        ("TITAN_DB_POOL", POOL.to_string()),
        (
            "TITAN_REDIS_ADDRS",
            format!("{scheme}://{}:{}", bracketed(&cache.host), cache.port),
        ),
        ("TITAN_REDIS_CLUSTER", cluster.to_string()),
        ("TITAN_KAFKA_BOOTSTRAP", cell.kafka_bootstrap.clone()),
    ]
    .into_iter()
    .chain(some.map(|(name, value)| (name, value.clone())))
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// A host as it stands in a URL.
fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

fn inside(host: &str, port: i32) -> Address {
    Address {
        host: host.to_owned(),
        port: port.to_string(),
    }
}

fn outside(server: &ServerCredentials) -> Address {
    Address {
        host: server.host.clone(),
        port: server.port.to_string(),
    }
}

pub(super) fn opaque(
    cell: &ValidatedCell,
    name: impl Into<String>,
    part: &str,
    component: Component,
    data: BTreeMap<String, String>,
) -> Secret {
    Secret {
        metadata: meta(cell, name, part_labels(cell, part, component)),
        type_: Some("Opaque".to_owned()),
        data: Some(
            data.into_iter()
                .map(|(key, value)| (key, ByteString(value.into_bytes())))
                .collect(),
        ),
        ..Secret::default()
    }
}
