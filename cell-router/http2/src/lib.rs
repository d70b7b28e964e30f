//! HTTP/2 ([RFC 9113]) and HPACK ([RFC 7541]) for a proxy, without input or output of its own.
//!
//! A [`Connection`] is one end of a connection. Bytes that came in are given to [`Connection::read`], which says what
//! they mean as [`Event`]s; what is to be sent is appended to [`Connection::out`]. Sockets, time and the streams'
//! bodies are the caller's, so that the protocol can be tested byte by byte and costs no task, no lock and no copy
//! that the caller does not choose.
//!
//! It is one half of a proxy and no more than that needs: a server never pushes, a client never lets itself be pushed
//! to, priorities are read over, strings are not Huffman coded when written, and no frame is sent whose payload is
//! larger than 16,384 bytes.
//!
//! [RFC 9113]: https://www.rfc-editor.org/rfc/rfc9113
//! [RFC 7541]: https://www.rfc-editor.org/rfc/rfc7541

pub mod connection;
pub mod frame;
pub mod hpack;
pub mod message;

pub use connection::{Connection, Event, Limits, Role, Stream, StreamKey};
pub use frame::Code;
