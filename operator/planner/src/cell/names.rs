//! Names, ports and labels that the objects of a cell share.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::model::{ServiceSchema, ValidatedCell, ValidatedService};
use crate::object::{CELL_LABEL, FLEET_LABEL, MANAGED_BY, MANAGER};

/// The label with the name of the service or store.
pub const NAME_LABEL: &str = "app.kubernetes.io/name";
/// The label with what a thing is for: `service`, `postgres`, `redis` or `migration`.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// The label that every namespace has, with its own name.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The label of namespaces whose pods may scrape metrics.
pub const MONITORING_LABEL: &str = "titan.dev/monitoring";
/// The annotation of a pod template with a checksum over the configuration and Secrets that the pod reads.
pub const CONFIG_CHECKSUM: &str = "titan.dev/config-checksum";

/// The namespace of operator, registry and router.
pub const SYSTEM_NAMESPACE: &str = "titan-system";
/// The name label of the router's pods.
pub const ROUTER: &str = "cell-router";
/// The ClusterRole that the operator gets inside each cell's namespace.
pub const OPERATOR_ROLE: &str = "titan-operator-cell";
/// The ClusterRole that Patroni gets inside its namespace.
pub const PATRONI_ROLE: &str = "titan-cell-postgres";

/// The port of metrics and health of every service.
pub const METRICS_PORT: i32 = 9090;
/// The port of PostgreSQL.
pub const POSTGRES_PORT: i32 = 5432;
/// The port of Patroni's REST interface.
pub const PATRONI_PORT: i32 = 8008;
/// The port of Redis.
pub const REDIS_PORT: i32 = 6379;
/// The port over which the nodes of a Redis cluster talk to each other.
pub const REDIS_BUS_PORT: i32 = 16379;
/// The port of the registry.
pub const REGISTRY_PORT: i32 = 50100;
/// The port of the router.
pub const ROUTER_PORT: i32 = 8080;

/// PostgreSQL: StatefulSet, leader Service, Patroni scope and ServiceAccount.
pub const POSTGRES: &str = "postgres";
/// The headless Service of PostgreSQL's members.
pub const POSTGRES_MEMBERS: &str = "postgres-members";
/// The Secret of PostgreSQL's administrator.
pub const POSTGRES_ADMIN: &str = "postgres-admin";
/// The ConfigMap with Patroni's configuration.
pub const POSTGRES_PATRONI: &str = "postgres-patroni";
/// Redis: StatefulSet, client Service and ServiceAccount.
pub const REDIS: &str = "redis";
/// The headless Service of Redis nodes.
pub const REDIS_NODES: &str = "redis-nodes";
/// The Secret with Redis's password.
pub const REDIS_AUTH: &str = "redis-auth";
/// The ConfigMap with Redis's configuration.
pub const REDIS_CONFIG: &str = "redis-config";
/// The Secret with the salt of checksums.
pub const CHECKSUM_SALT: &str = "checksum-salt";
/// The key in it.
pub const SALT: &str = "salt";
/// The ConfigMap with the environment of all services.
pub const CELL_ENVIRONMENT: &str = "cell-environment";

/// The type of Secrets with which nodes log in to a registry of images.
pub const PULL_SECRET_TYPE: &str = "kubernetes.io/dockerconfigjson";
/// The key of such a Secret.
pub const PULL_SECRET_KEY: &str = ".dockerconfigjson";
/// The container of a migration's pod.
pub const MIGRATE: &str = "migrate";

/// What an object or a pod is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Component {
    Service,
    Migration,
    Postgres,
    Redis,
}

impl Component {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Migration => "migration",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        }
    }
}

pub(super) type Labels = BTreeMap<String, String>;

/// A map of strings from pairs.
pub(super) fn strings<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The labels of everything in a cell.
pub(super) fn cell_labels(cell: &ValidatedCell) -> Labels {
    strings([
        (MANAGED_BY, MANAGER),
        (CELL_LABEL, &cell.name),
        (FLEET_LABEL, &cell.fleet),
    ])
}

/// The labels by which pods are selected. Selectors of workloads can never be changed, so this is as little as will do.
pub(super) fn selector_labels(name: &str, component: Component) -> Labels {
    strings([(NAME_LABEL, name), (COMPONENT_LABEL, component.as_str())])
}

/// The labels of one part of a cell.
pub(super) fn part_labels(cell: &ValidatedCell, name: &str, component: Component) -> Labels {
    let mut labels = cell_labels(cell);
    labels.extend(selector_labels(name, component));
    labels
}

pub(super) fn selector(labels: Labels) -> LabelSelector {
    LabelSelector {
        match_expressions: None,
        match_labels: Some(labels),
    }
}

/// The metadata of a namespaced object.
///
/// No object has an owner reference. A Cell could own them, but `kubectl delete --cascade=foreground` would then take
/// the services down before the finalizer has taken their range out of the routing table, a restored Cell (new uid)
/// would have everything under it collected as orphaned, and what `reclaimPolicy: Retain` keeps would go with the
/// Cell. The finalizer deletes in the right order instead.
pub(super) fn meta(cell: &ValidatedCell, name: impl Into<String>, labels: Labels) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some(cell.name.clone()),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}

/// The copy of a Secret for the registry of images in the namespace of a cell. The dot keeps it apart from the Secrets of services,
/// which have none in their names.
pub(crate) fn pull_secret(name: &str) -> String {
    format!("image-pull.{name}")
}

impl ValidatedService {
    /// The schema of the service: its name with `_` for `-`.
    #[must_use]
    pub fn schema(&self) -> String {
        self.name.replace('-', "_")
    }

    /// The Secret with the passwords of the service.
    #[must_use]
    pub fn credentials_secret(&self) -> String {
        format!("{}-credentials", self.name)
    }
}

impl ValidatedCell {
    /// The schema and role of a service; None where it does not use PostgreSQL.
    #[must_use]
    pub fn schema_of(&self, service: &str) -> Option<&ServiceSchema> {
        self.schemas.iter().find(|schema| schema.service == service)
    }
}
