//! What the operator sees: routing tables, what objects refer to, what routers report, and which events of a watch matter.

mod debounce;
pub mod own_writes;
mod references;
mod router_reports;
pub mod tables;

pub(crate) use debounce::{Debounce, debounce};
pub(crate) use references::{Dereferenced, as_ref, dereference};
pub(crate) use router_reports::{announce, count};
