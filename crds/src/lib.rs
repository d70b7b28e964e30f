//! The Kubernetes resources of Titan Cells, group `titan.dev/v1alpha1`: types and validation rules, nothing else.
//!
//! The manifests under `crds/manifests` are generated from these types by `crdgen`; the doc comments here are what
//! `kubectl explain` shows. Rules that need only the object itself are CEL rules in the schema, so that the
//! apiserver refuses a mistake at once; rules that need other objects are checked by the planner.

#![allow(
    clippy::duplicated_attributes,
    reason = "clippy takes the keys of one printer column for repetitions of another's"
)]

mod cell;
mod common;
mod databases;
mod fleet;
mod profile;
mod quantity;
mod table;

pub use cell::{
    Cell, CellSpec, CellStatus, Failover, FailoverMode, Placement, RangeStatus, ReclaimPolicy,
    ServiceOverride, ServiceStatus, UserRange,
};
pub use common::{ConditionType, ResourceList, Resources};
pub use databases::{
    Databases, EphemeralStorage, ExternalServer, PersistentStorage, Postgres, Redis, RedisTopology,
    Storage,
};
pub use fleet::{
    CellFleet, CellFleetSpec, CellFleetStatus, CellTemplate, CellTemplateSpec, Dns, Images, Kafka,
    Keyspace, KeyspaceMode, Network, Pods, PullPolicy, UserIds,
};
pub use profile::{
    Autoscaling, CleanupPolicy, ServiceEntry, ServiceProfile, ServiceProfileSpec, Stores, Topic,
};
pub use table::{
    AssignmentRow, AssignmentState, CellRow, OverrideRow, RoutingTable, RoutingTableSpec,
};

/// The API group of all resources.
pub const GROUP: &str = "titan.dev";

/// Every definition, in the order in which they are installed.
#[must_use]
pub fn definitions()
-> [k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition; 4]
{
    use kube::CustomResourceExt;
    [
        common::finish(CellFleet::crd()),
        common::finish(ServiceProfile::crd()),
        common::finish(Cell::crd()),
        common::finish(RoutingTable::crd()),
    ]
}
