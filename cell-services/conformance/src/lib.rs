//! What every service has to pass, run from its definition against real stores.
//!
//! [`Cell`] is one service of one cell: the real server, connected to a database with the ownership schema, a
//! schema and a role as the operator makes them, with a routing table that the test holds in its hand.
//! [`passes`] runs every promise of the kit against it.

mod cell;
mod checks;
pub mod http;
mod proxy;
mod shipped;

pub use cell::{Cell, CellOptions, MINE, OTHERS, fresh, key, last_key, with_key};
pub use checks::{Mutation, passes};
pub use proxy::{Proxy, Way};
