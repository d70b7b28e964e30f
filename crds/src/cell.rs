//! The Cell resource.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Databases, Resources};

/// A cell: a complete deployment of the platform's services with its own databases, for one range of users.
///
/// Its namespace has its name.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "titan.dev",
    version = "v1alpha1",
    kind = "Cell",
    plural = "cells",
    shortname = "tc",
    category = "titan",
    status = "CellStatus",
    derive = "PartialEq",
    doc = "A complete deployment of the platform's services with its own databases, for one range of users. Its namespace has its name.",
    selectable = ".spec.fleet",
    selectable = ".spec.profile",
    selectable = ".spec.release",
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')").message("a cell's name becomes a namespace, a database and a topic prefix: at most 40 characters, a to z, 0 to 9 and -, starting with a letter"),
    validation = Rule::new("!(self.metadata.name.startsWith('kube-') || self.metadata.name in ['default', 'titan-system'])").message("this name belongs to a system namespace"),
    // Cells of before this rule can still be deleted.
    validation = Rule::new("oldSelf.hasValue() || !(self.metadata.name.startsWith('pg-') || self.metadata.name in ['postgres', 'template0', 'template1', 'public', 'all', 'replication', 'sameuser', 'samerole', 'samegroup', 'pgbouncer', 'rdsadmin', 'cloudsqladmin', 'azure-maintenance', 'azure-sys', 'defaultdb'])").message("this name is PostgreSQL's own: a cell's name becomes a database").optional_old_self(true),
    validation = Rule::new("has(self.spec.userRange) == has(oldSelf.spec.userRange)").message("userRange is the claim at creation: it cannot be added or removed later; a split or a move gives a living cell other users"),
    printcolumn(name = "First", type_ = "integer", json_path = ".status.ranges[0].first"),
    printcolumn(name = "Last", type_ = "integer", json_path = ".status.ranges[0].last"),
    printcolumn(name = "Release", type_ = "string", json_path = ".status.release"),
    printcolumn(name = "Services", type_ = "string", json_path = ".status.servicesReady"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Fleet", type_ = "string", json_path = ".spec.fleet", priority = 1),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.ranges[0].epoch", priority = 1),
    printcolumn(name = "Home", type_ = "string", json_path = ".status.ranges[0].home", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct CellSpec {
    /// The CellFleet that the cell belongs to. Cannot be changed.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a cell cannot change its fleet: create a cell in the other fleet and move the range"))]
    pub fleet: String,
    /// The users that the cell claims when it is created. A cell without a claim is empty capacity for splits and moves. The
    /// claim is granted once and cannot be changed; which users the cell serves and holds afterwards is in `status.ranges`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a cell's userRange cannot be changed in place: rows of its users would be left behind"))]
    pub user_range: Option<UserRange>,
    /// The ServiceProfile that says which services the cell runs.
    #[schemars(length(min = 1, max = 253))]
    pub profile: String,
    /// The image tag of all services.
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    )]
    pub release: String,
    /// What this cell does differently from its profile, by service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub overrides: BTreeMap<String, ServiceOverride>,
    /// Where the cell runs.
    #[serde(default)]
    pub placement: Placement,
    /// What this cell's stores do differently from the profile.
    #[serde(default)]
    pub databases: Databases,
    /// Who serves the range when this cell's compute fails.
    #[serde(default)]
    pub failover: Failover,
    /// Stop everything but status: no write to the cell until this is false again. Deletion waits too.
    #[serde(default)]
    pub paused: bool,
    /// What happens to data when the Cell is deleted.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
}

/// An inclusive range of keys, `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.first <= self.last").message("userRange is reversed: first must not be larger than last"))]
pub struct UserRange {
    /// The first key, a bigint of 0 or more.
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub first: i64,
    /// The last key, which belongs to the range.
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub last: i64,
}

/// What one service of a cell does differently from its profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceOverride {
    /// The image tag of this service alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    )]
    pub release: Option<String>,
    /// How many pods, where the profile does not autoscale the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub replicas: Option<i32>,
    /// CPU and memory of each pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

/// Where a cell runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// The region, as routers and people call it.
    #[serde(default = "local_region")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub region: String,
    /// Zones to run in, by the node label `topology.kubernetes.io/zone`; any zone when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub zones: Vec<String>,
}

impl Default for Placement {
    fn default() -> Self {
        Placement {
            region: local_region(),
            zones: Vec::new(),
        }
    }
}

fn local_region() -> String {
    "local".to_owned()
}

/// Who serves the range of a cell whose compute fails.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.mode == 'Partner') == has(self.partner)").message("partner goes with mode Partner, and mode Partner needs a partner"))]
pub struct Failover {
    /// How the partner is chosen. This release refuses every mode but None rather than ignore it.
    #[serde(default)]
    pub mode: FailoverMode,
    /// The cell that takes over, with mode Partner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner: Option<String>,
}

/// How a partner is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FailoverMode {
    /// Nobody takes over.
    #[default]
    None,
    /// The operator chooses a healthy cell with room.
    Auto,
    /// The named partner.
    Partner,
}

/// What happens to a cell's data when the Cell is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReclaimPolicy {
    /// Databases, their Secrets, volumes and the topics stay; services and routes go.
    #[default]
    Retain,
    /// Everything goes.
    Delete,
}

/// What the operator last saw and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CellStatus {
    /// The generation of the spec that this status speaks of; -1 before the first look.
    #[serde(default)]
    pub observed_generation: i64,
    /// The revision that this status speaks of: a hash of the objects that spec, profile, fleet and this version of the operator
    /// ask for. A profile that changes gives the cell another revision, but no other generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_revision: Option<String>,
    /// Ready, Reconciling, Stalled, Paused and what they rest on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The ranges that the cell serves or holds, as the routing table has them, sorted by keys. A routing table that is lost is
    /// made again from these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["first"]))]
    pub ranges: Vec<RangeStatus>,
    /// Whether the routing table has granted `spec.userRange`. A claim is granted once: a range that was moved away since is
    /// not claimed back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub claim_granted: bool,
    /// Which PostgreSQL database holds the data of the cell, by the id it was given when it was made. No other one, and no
    /// empty one, is put in its place without a person's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_id: Option<String>,
    /// The release that all services run; empty while they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Services that have their pods, of all services, for example `3/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services_ready: Option<String>,
    /// Each service, so that one need not look into the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub services: Vec<ServiceStatus>,
}

/// One range that a cell serves or holds: a row of the routing table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RangeStatus {
    /// The first key.
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub first: i64,
    /// The last key, which belongs to the range.
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub last: i64,
    /// The cell whose compute serves the range.
    pub cell: String,
    /// The cell whose databases hold it.
    pub home: String,
    /// Whether it is served.
    pub state: crate::AssignmentState,
    /// The epoch of the routing table in which the row last changed.
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub epoch: u64,
}

/// One service of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// The name of the service.
    pub name: String,
    /// The image tag that its Deployment asks for.
    pub release: String,
    /// How many pods it should have.
    pub desired: i32,
    /// How many pods answer their readiness probe.
    pub ready: i32,
    /// What is wrong, in a sentence; absent when nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
