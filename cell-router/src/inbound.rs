//! What comes in from a client or a pod: bodies of HTTP/1.1 by hyper, and streams of HTTP/2.

use std::task::{Context, Poll};

use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use titan_http2::hpack::Block;
use tokio::task::AbortHandle;

use crate::body::{Body, BoxError, Part};
use crate::http2::Receiver;
use crate::{h1, head};

/// How much of a request's body is taken in before a cell takes it.
pub const STREAM_WINDOW: usize = 64 * 1024;

/// A body that comes in.
pub enum Inbound {
    /// Over HTTP/1.1.
    H1(Incoming),
    /// Over HTTP/2.
    H2(Stream),
}

/// The body of one stream of HTTP/2.
pub struct Stream {
    receiver: Receiver,
    /// What the headers announced and did not come yet.
    announced: Option<u64>,
    /// The other direction, when it outlives the head of the answer.
    _upload: Option<Upload>,
}

/// The rest of a request's body on its way to a pod. It ends with the answer.
pub struct Upload(AbortHandle);

impl Upload {
    /// Sends it beside everything else.
    pub fn beside(rest: impl Future<Output = ()> + 'static) -> Self {
        Upload(tokio::task::spawn_local(rest).abort_handle())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Inbound {
    /// The body of a stream with this head.
    #[must_use]
    pub fn h2(receiver: Receiver, head: &Block, upload: Option<Upload>) -> Self {
        Inbound::H2(Stream {
            receiver,
            announced: head::length(head),
            _upload: upload,
        })
    }
}

impl Body for Inbound {
    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Part, BoxError>>> {
        match self {
            Inbound::H1(body) => h1::poll_part(body, context),
            Inbound::H2(stream) => {
                let part = stream.receiver.poll_part(context);
                if let (Poll::Ready(Some(Ok(Part::Data(data)))), Some(announced)) =
                    (&part, &mut stream.announced)
                {
                    *announced = announced.saturating_sub(data.len() as u64);
                }
                part.map_err(BoxError::from)
            }
        }
    }

    fn is_end(&self) -> bool {
        match self {
            Inbound::H1(body) => body.is_end_stream(),
            Inbound::H2(stream) => stream.receiver.is_end(),
        }
    }

    fn length(&self) -> Option<u64> {
        match self {
            Inbound::H1(body) => body.size_hint().exact(),
            Inbound::H2(stream) if stream.receiver.is_end() => Some(0),
            Inbound::H2(stream) => stream.announced,
        }
    }
}

/// An answer of a pod.
pub struct Response {
    /// Its head.
    pub head: Block,
    /// Its body.
    pub body: Inbound,
    /// The connection, when it is taken over.
    pub taken: Option<OnUpgrade>,
}
