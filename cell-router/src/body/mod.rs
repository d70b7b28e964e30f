//! Bodies on their way through: part by part, unparsed.

pub mod answer;
pub mod request;

use std::task::{Context, Poll};

use bytes::Bytes;
use titan_http2::hpack::Block;

/// Any error on the way.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a body is made of.
#[derive(Clone, Debug)]
pub enum Part {
    /// Some of its data.
    Data(Bytes),
    /// Its trailers, which come last.
    Trailers(Block),
}

/// A body on its way.
pub trait Body {
    /// The next part.
    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Part, BoxError>>>;
    /// Whether nothing more comes.
    fn is_end(&self) -> bool;
    /// How much data is still to come, when that is known.
    fn length(&self) -> Option<u64>;
}
