//! Who owns a key: keys, key ranges, assignments and the routing table, and how the table travels.
//!
//! The table is the one thing that the operator, the router and every service agree on. It is a value: built
//! once, validated once, then read without locks. [`RoutingTable::lookup`] is the hot path of the data plane.
//!
//! The operator mounts [`server::RegistryService`]; everybody else runs a [`client::RegistryClient`], which keeps
//! the last good table on disk and never goes back to an older epoch.

mod checksum;
pub mod client;
mod delta;
mod key;
pub mod proto;
pub mod server;
mod table;

pub use delta::{Delta, DeltaError};
pub use key::{Key, KeyRange, KeyRangeError, KeyspaceMode};
pub use table::{
    Assignment, AssignmentState, CellEndpoint, Epoch, KeyOverride, Location, Lookup, RoutingTable,
    TableError,
};
