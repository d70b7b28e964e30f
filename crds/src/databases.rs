//! The stores of a cell, as a profile sets them and a cell may override them.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Resources, quantity};

/// The stores of a cell. In a Cell, what is left out comes from its profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Databases {
    /// The cell's PostgreSQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<Postgres>,
    /// The cell's Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
}

/// PostgreSQL: a Patroni cluster in the cell's namespace, or a server that exists already.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.external) || !(has(self.members) || has(self.storage) || has(self.resources) || has(self.synchronous))").message("external excludes members, storage, resources and synchronous: those belong to the external server"))]
pub struct Postgres {
    /// How many members: `1`, or `3` with automatic failover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [1, 3]))]
    pub members: Option<i32>,
    /// Whether a commit waits for a second member. True by default with 3 members: no acknowledged write is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synchronous: Option<bool>,
    /// Where the data lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// CPU and memory of each member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Use this server instead of running one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalServer>,
}

/// Redis: run in the cell's namespace, or a server that exists already.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.external) || !(has(self.topology) || has(self.storage) || has(self.resources))").message("external excludes topology, storage and resources: those belong to the external server"))]
pub struct Redis {
    /// One server, or a cluster of three masters with a replica each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<RedisTopology>,
    /// Where the data lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// CPU and memory of each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Use this server instead of running one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalServer>,
}

/// The shape of a cell's Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RedisTopology {
    /// One server.
    Single,
    /// Three masters with a replica each, in cluster mode.
    Cluster,
}

impl RedisTopology {
    /// The number of pods.
    #[must_use]
    pub const fn count(self) -> i32 {
        match self {
            Self::Single => 1,
            Self::Cluster => 6,
        }
    }
}

/// A server that the operator uses but does not run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalServer {
    /// A Secret in the operator's namespace with `host`, `port` and, where the server wants them, `username`,
    /// `password`, `sslmode` and `ca.crt`. Its annotation `titan.dev/for-cells` names the cells that may use it.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// Where a store keeps its data: exactly one of the two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.ephemeral) != has(self.persistent)").message("set exactly one of ephemeral and persistent"))]
pub struct Storage {
    /// In the pod: gone with it. Replicas make up for it where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralStorage>,
    /// On a PersistentVolumeClaim a member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent: Option<PersistentStorage>,
}

/// Storage that lives as long as its pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralStorage {
    /// The most the pod may write, for example `2Gi`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "quantity::optional"
    )]
    #[schemars(schema_with = "quantity::schema")]
    pub size_limit: Option<String>,
}

/// Storage that outlives its pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PersistentStorage {
    /// The size of each volume, for example `20Gi`.
    #[serde(deserialize_with = "quantity::required")]
    #[schemars(schema_with = "quantity::schema")]
    pub size: String,
    /// The StorageClass; the cluster's default when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
}
