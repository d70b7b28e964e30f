//! The data plane of Titan Cells: sends each request to the cell that serves its key.
//!
//! A request comes in at [`listener`], finds its way in [`proxy`] (whose key: [`identity`]; which service:
//! [`services`]; which cell: the table in [`worker::View`]), leaves over [`upstream`], and is counted by its
//! [`exchange`]. HTTP/2 is spoken by [`http2`], HTTP/1.1 by hyper; [`h1`] translates. A head stays the block of fields
//! that HTTP/2 has it in ([`head`], [`outgoing`]); a [`body`] comes in as [`inbound`] and leaves as [`outbound`]. Each
//! thread has its own runtime, connections and counters ([`worker`]); what threads share is in [`shared`]. [`control`]
//! keeps the table and the configuration fresh.

pub mod admin;
pub mod body;
pub mod config;
pub mod control;
pub mod deadline;
pub mod dns;
pub mod exchange;
pub mod h1;
pub mod head;
pub mod http2;
pub mod identity;
pub mod inbound;
pub mod listener;
pub mod metrics;
pub mod outbound;
pub mod outgoing;
pub mod proxy;
pub mod rejection;
pub mod resilience;
pub mod router;
pub mod services;
pub mod shared;
pub mod tls;
pub mod upgrade;
pub mod upstream;
pub mod worker;
