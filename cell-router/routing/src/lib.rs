//! Who owns a key: keys, key ranges, assignments and the routing table.
//!
//! The table is the one thing that the operator, the router and every service agree on. It is a value: built
//! once, validated once, then read without locks. [`RoutingTable::lookup`] is the hot path of the data plane.

mod key;
mod table;

pub use key::{Key, KeyRange, KeyRangeError, KeyspaceMode};
pub use table::{
    Assignment, AssignmentState, CellEndpoint, Epoch, KeyOverride, Lookup, RoutingTable, TableError,
};
