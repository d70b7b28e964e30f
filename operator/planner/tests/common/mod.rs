//! What the tests of cells share: the examples of the repository, a larger profile, and credentials.
#![allow(dead_code)] // No test uses all of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use titan_crds::{Cell, CellFleet, ServiceProfile};
use titan_planner::Observed;
use titan_planner::cell::{
    Credentials, Invalid, NotValid, ServerCredentials, ValidatedCell, validate,
};

pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// The documents of an example, anchors resolved.
pub fn documents(path: impl AsRef<Path>) -> Vec<Value> {
    let path = examples().join(path);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

pub fn from_yaml<T: for<'de> Deserialize<'de>>(text: &str) -> T {
    serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

pub fn example<T: for<'de> Deserialize<'de>>(path: &str) -> T {
    let mut documents = documents(path);
    assert_eq!(documents.len(), 1, "{path}");
    serde_json::from_value(documents.remove(0)).unwrap()
}

/// A Cell with the profile and fleet it names.
#[derive(Clone)]
pub struct Setup {
    pub cell: Cell,
    pub profile: ServiceProfile,
    pub fleet: CellFleet,
}

impl Setup {
    pub fn quickstart() -> Self {
        let mut cell: Cell = example("quickstart/cell.yaml");
        cell.metadata.uid = Some("00000000-0000-0000-0000-000000000001".to_owned());
        Setup {
            cell,
            profile: example("quickstart/profile.yaml"),
            fleet: example("quickstart/fleet.yaml"),
        }
    }

    pub fn standard() -> Self {
        let mut setup = Self::quickstart();
        setup.profile = example("profiles/standard.yaml");
        setup.cell.spec.profile = "standard".to_owned();
        setup.cell.spec.placement.zones = vec!["zone-b".to_owned(), "zone-a".to_owned()];
        setup
    }

    /// Seven services that depend on each other and use the stores in different ways.
    pub fn web() -> Self {
        let mut setup = Self::quickstart();
        setup.profile = from_yaml(
            "
apiVersion: titan.dev/v1alpha1
kind: ServiceProfile
metadata: { name: web }
spec:
  services:
  - { name: checkout, port: 50004, dependsOn: [order, cart, fraud], stores: { postgres: true } }
  - { name: order, port: 50001, dependsOn: [user], stores: { postgres: true, kafka: true }, topics: [{ name: order.events }] }
  - { name: cart, port: 50003, dependsOn: [user], stores: { postgres: true, redis: true } }
  - { name: user, port: 50020, stores: { postgres: true } }
  - { name: fraud, port: 50061, stores: { redis: true }, env: { OTEL_EXPORTER_OTLP_ENDPOINT: 'http://collector.monitoring:4317' } }
  - { name: feed, port: 50023, stores: { kafka: true } }
  - { name: static-pages, port: 50099 }
",
        );
        setup
    }

    pub fn validate(&self) -> Result<ValidatedCell, NotValid> {
        validate(
            &self.cell,
            Observed::Known(&self.profile),
            Observed::Known(&self.fleet),
        )
    }

    pub fn valid(&self) -> ValidatedCell {
        self.validate().unwrap()
    }

    pub fn refusal(&self) -> Invalid {
        match self.validate() {
            Err(NotValid::Invalid(invalid)) => invalid,
            other => panic!("not refused: {other:?}"),
        }
    }
}

/// Credentials for every service of the cell that needs them.
pub fn credentials(cell: &ValidatedCell) -> Credentials {
    Credentials {
        postgres: ServerCredentials {
            host: "pg.example.com".to_owned(),
            port: 6432,
            username: "admin".to_owned(),
            password: "admin-secret".to_owned(),
            sslmode: "require".to_owned(),
            ca: String::new(),
        },
        redis: ServerCredentials {
            host: "redis.example.com".to_owned(),
            port: 6380,
            username: String::new(),
            password: "redis-secret".to_owned(),
            sslmode: String::new(),
            ca: String::new(),
        },
        replication_password: "replication-secret".to_owned(),
        salt: "salt-secret".to_owned(),
        rest_password: "rest-secret".to_owned(),
        services: cell
            .schemas
            .iter()
            .map(|schema| (schema.service.clone(), format!("{}-secret", schema.service)))
            .collect::<BTreeMap<_, _>>(),
        pull_secrets: cell
            .pull_secrets
            .iter()
            .map(|name| (name.clone(), r#"{"auths":{}}"#.to_owned()))
            .collect(),
    }
}
