//! HTTP/2 on this side of the sockets: streams that requests are sent and received by, and the task that moves the bytes of
//! a connection.
//!
//! The protocol itself is [`titan_http2`], which has no input or output. A connection and all of its streams live on one
//! thread, so that nothing here takes a lock. A stream is written into the buffer of its connection, and the connection's
//! task, which is woken by that, writes what all of them had to say at once.

mod driver;
mod keepalive;
mod link;
mod stream;

pub use driver::Driver;
pub use keepalive::KeepAlive;
pub use link::Link;
pub use stream::{Broken, Lost, Receiver, Sender};

#[cfg(test)]
mod tests;
