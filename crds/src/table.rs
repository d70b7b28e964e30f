//! The RoutingTable resource.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The committed routing table of a fleet. The operator alone writes it; it has the fleet's name.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "titan.dev",
    version = "v1alpha1",
    kind = "RoutingTable",
    plural = "routingtables",
    shortname = "trt",
    category = "titan",
    derive = "PartialEq",
    doc = "The committed routing table of a fleet: which cell serves which keys. Written by the operator alone; an edit by hand is undone.",
    validation = Rule::new("self.spec.epoch >= oldSelf.spec.epoch").message("the epoch of a routing table never goes back"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".spec.epoch"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RoutingTableSpec {
    /// The CellFleet that the table belongs to.
    pub fleet: String,
    /// The version of the table. It only grows.
    // 2^53: what an edit by hand sets it to, there has to be a larger one to mend it with.
    #[schemars(range(min = 0, max = 9_007_199_254_740_992_u64), extend("format" = "int64"))]
    pub epoch: u64,
    /// How user ids become keys.
    #[serde(default)]
    pub mode: crate::KeyspaceMode,
    /// Which cell serves which keys, sorted by range.
    #[serde(default)]
    pub assignments: Vec<AssignmentRow>,
    /// How to reach each cell, sorted by name.
    #[serde(default)]
    pub cells: Vec<CellRow>,
    /// Keys pinned to a cell, whatever their range says.
    #[serde(default)]
    pub overrides: Vec<OverrideRow>,
    /// Proof that the operator wrote this content: a hash over all of it, in hexadecimal.
    pub checksum: String,
}

/// One row: who serves a range, and where its data lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AssignmentRow {
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
    pub state: AssignmentState,
    /// The epoch in which this row last changed.
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub epoch: u64,
}

/// What may be done with a range at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AssignmentState {
    /// Claimed by a cell that does not serve it yet.
    Pending,
    /// Served by its cell.
    Active,
    /// Being handed to another home.
    Moving,
    /// Refused everywhere until an operation ends.
    Fenced,
}

/// How to reach a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CellRow {
    /// The name of the cell.
    pub name: String,
    /// The region it runs in.
    pub region: String,
    /// The DNS suffix of its services: `order` is at `order.<endpoint>`.
    pub endpoint: String,
}

/// A key pinned to a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OverrideRow {
    /// The key.
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub key: i64,
    /// The cell that serves it.
    pub cell: String,
}
