//! The ServiceProfile resource.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Databases, Resources};

/// Which services a cell runs, and their sizes, stores and topics.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "titan.dev",
    version = "v1alpha1",
    kind = "ServiceProfile",
    plural = "serviceprofiles",
    shortname = "tsp",
    category = "titan",
    derive = "PartialEq",
    derive = "Default",
    doc = "Which services a cell runs, and their sizes, stores and topics.",
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ServiceProfileSpec {
    /// The stores of each cell, where the Cell does not say otherwise.
    #[serde(default)]
    pub databases: Databases,
    /// The services.
    #[schemars(length(min = 1, max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub services: Vec<ServiceEntry>,
}

/// One service of a profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    /// The name: of the Deployment, the Service, the image and the schema.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    )]
    #[x_kube(validation = Rule::new("!(self in ['postgres', 'redis', 'titan', 'public', 'information-schema', 'default'] || self.startsWith('postgres-') || self.startsWith('redis-') || self.startsWith('pg-'))").message("every cell uses this name for something else: a store, a schema or an account"))]
    pub name: String,
    /// The gRPC port. Two services of a profile cannot share one, and 9090 is for metrics and health.
    #[schemars(range(min = 1024, max = 65535))]
    #[x_kube(validation = Rule::new("self != 9090").message("port 9090 is for metrics and health"))]
    pub port: i32,
    /// How many pods, where `autoscaling` does not decide.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: i32,
    /// CPU and memory of each pod.
    #[serde(default)]
    pub resources: Resources,
    /// The services that this one calls. Only these are opened to it. No cycles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    pub depends_on: Vec<String>,
    /// The stores it uses.
    #[serde(default)]
    pub stores: Stores,
    /// The topics it writes; each cell has its own, `titan.<cell>.<name>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub topics: Vec<Topic>,
    /// Let a HorizontalPodAutoscaler choose the number of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Environment variables beyond the ones that every service gets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[A-Za-z_][A-Za-z0-9_]*$') && !name.startsWith('TITAN_') && !name.startsWith('PG'))").message("a variable's name is letters, digits and _; names that start with TITAN_ or PG are the operator's"))]
    pub env: BTreeMap<String, String>,
    /// Seconds that a pod gets to finish its requests when it is stopped.
    #[serde(default = "thirty")]
    #[schemars(range(min = 1, max = 3600))]
    pub termination_grace_period_seconds: i64,
}

fn one() -> i32 {
    1
}

fn thirty() -> i64 {
    30
}

/// The stores that a service uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stores {
    /// A schema and a login role of its own in the cell's PostgreSQL; its migrations run before each release.
    #[serde(default)]
    pub postgres: bool,
    /// The cell's Redis.
    #[serde(default)]
    pub redis: bool,
    /// Kafka, to write its topics or to read others.
    #[serde(default)]
    pub kafka: bool,
}

/// A Kafka topic of each cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Topic {
    /// The name after `titan.<cell>.`, for example `order.events`.
    #[schemars(length(min = 1, max = 100), regex(pattern = r"^[a-z0-9][a-z0-9._-]*$"))]
    pub name: String,
    /// How many partitions. Grown when raised, never shrunk.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 1000))]
    pub partitions: i32,
    /// Hours that events are kept; forever when left out of a compacted topic, 168 otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 87600))]
    pub retention_hours: Option<i64>,
    /// What happens to old events.
    #[serde(default)]
    pub cleanup_policy: CleanupPolicy,
}

fn three() -> i32 {
    3
}

/// What happens to old events of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CleanupPolicy {
    /// Deleted after the retention.
    #[default]
    Delete,
    /// The last event of each key is kept.
    Compact,
}

/// When and how far a service is scaled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas").message("minReplicas must not be larger than maxReplicas"))]
pub struct Autoscaling {
    /// The fewest pods.
    #[schemars(range(min = 1, max = 100))]
    pub min_replicas: i32,
    /// The most pods.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// The average CPU use to aim for, in percent of the request.
    #[serde(default = "seventy")]
    #[schemars(range(min = 1, max = 100))]
    pub target_cpu_percent: i32,
}

fn seventy() -> i32 {
    70
}
