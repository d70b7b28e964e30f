//! Bodies of requests: counted, and kept for a replay while they are small.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use titan_http2::hpack::Block;

use super::{Body, BoxError, Part};
use crate::head;
use crate::inbound::Inbound;

/// Why a client's body did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientFault {
    /// The client reset the stream, or its connection broke.
    Left,
    /// It sent more than `limits.bodyBytes`.
    TooLarge,
}

/// What a part takes beyond its data.
const CHUNK: usize = 2 * size_of::<Bytes>();

/// What was read of a request's body, as long as it is small enough to be sent twice, and how the client takes part.
#[derive(Debug, Default)]
pub struct Recording {
    chunks: RefCell<Vec<Bytes>>,
    trailers: RefCell<Option<Block>>,
    size: Cell<usize>,
    limit: usize,
    overflown: Cell<bool>,
    complete: Cell<bool>,
    fault: Cell<Option<ClientFault>>,
    awaits_client: Cell<bool>,
    /// Whether it matters when the client had sent everything, and when that was if it was not at once.
    timed: Cell<bool>,
    completed: Cell<Option<Instant>>,
}

impl Recording {
    /// A recording of a body up to a size.
    #[must_use]
    pub fn new(limit: usize) -> Rc<Self> {
        Rc::new(Recording {
            limit,
            ..Recording::default()
        })
    }

    fn data(&self, data: &Bytes) {
        if self.overflown.get() {
            return;
        }
        let size = self.size.get() + data.len() + CHUNK;
        if size > self.limit {
            self.overflown.set(true);
            self.chunks.borrow_mut().clear();
            return;
        }
        self.size.set(size);
        self.chunks.borrow_mut().push(data.clone());
    }

    /// What the client did to its own request, if that is how it ended.
    #[must_use]
    pub fn fault(&self) -> Option<ClientFault> {
        self.fault.get()
    }

    /// Whether the rest of the body has to come from the client first.
    #[must_use]
    pub fn awaits_client(&self) -> bool {
        self.awaits_client.get()
    }

    /// It matters when the client has sent everything.
    pub fn time(&self) {
        self.timed.set(true);
    }

    /// When the cell could have the whole request, if it was sent at `sent`. None while the client sends it.
    #[must_use]
    pub fn whole_since(&self, sent: Instant) -> Option<Instant> {
        self.complete
            .get()
            .then(|| self.completed.get().map_or(sent, |then| then.max(sent)))
    }

    fn complete(&self) {
        self.complete.set(true);
        if self.timed.get() && self.completed.get().is_none() {
            self.completed.set(Some(Instant::now()));
        }
    }

    /// Keeps nothing any more: what is under way cannot be replayed.
    pub fn forget(&self) {
        self.overflown.set(true);
        self.chunks.borrow_mut().clear();
    }

    /// The whole body, when it was read to its end and kept.
    #[must_use]
    pub fn replay(&self) -> Option<RequestBody> {
        (self.complete.get() && !self.overflown.get()).then(|| RequestBody {
            source: RequestSource::Replay {
                chunks: self.chunks.borrow().clone().into_iter(),
                trailers: self.trailers.borrow().clone(),
            },
            remaining: u64::MAX,
        })
    }
}

enum RequestSource {
    Client(Inbound, Rc<Recording>),
    Replay {
        chunks: std::vec::IntoIter<Bytes>,
        trailers: Option<Block>,
    },
}

/// The body of a request to a cell.
pub struct RequestBody {
    source: RequestSource,
    remaining: u64,
}

impl RequestBody {
    /// The client's body, kept in `recording` and cut off after `limit` bytes (0: no limit).
    pub fn new(body: Inbound, recording: Rc<Recording>, limit: u64) -> Self {
        if body.is_end() {
            recording.complete.set(true);
        }
        RequestBody {
            source: RequestSource::Client(body, recording),
            remaining: if limit == 0 { u64::MAX } else { limit },
        }
    }
}

impl Recording {
    fn seen(&self, part: &Part, ends: bool, remaining: &mut u64) -> Result<(), BoxError> {
        match part {
            Part::Data(data) => {
                let Some(rest) = remaining.checked_sub(data.len() as u64) else {
                    self.fault.set(Some(ClientFault::TooLarge));
                    return Err(BodyTooLarge.into());
                };
                *remaining = rest;
                self.data(data);
                if ends {
                    self.complete();
                }
            }
            Part::Trailers(trailers) => {
                *self.trailers.borrow_mut() = Some(trailers.clone());
                self.complete();
            }
        }
        Ok(())
    }
}

/// The body of a request is larger than `limits.bodyBytes`.
#[derive(Debug, thiserror::Error)]
#[error("the body of the request is larger than `limits.bodyBytes`")]
pub struct BodyTooLarge;

impl Body for RequestBody {
    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Part, BoxError>>> {
        match &mut self.source {
            RequestSource::Client(body, recording) => {
                let part = body.poll_part(context);
                recording.awaits_client.set(part.is_pending());
                let part = match ready!(part) {
                    Some(Ok(Part::Trailers(mut trailers))) => {
                        head::clean_request(&mut trailers);
                        // They come last: without any, the body ends here.
                        if trailers.fields().is_empty() {
                            recording.complete();
                            return Poll::Ready(None);
                        }
                        Part::Trailers(trailers)
                    }
                    Some(Ok(part)) => part,
                    Some(Err(error)) => {
                        recording.fault.set(Some(ClientFault::Left));
                        return Poll::Ready(Some(Err(error)));
                    }
                    None => {
                        recording.complete();
                        return Poll::Ready(None);
                    }
                };
                let ends = body.is_end();
                let seen = recording.seen(&part, ends, &mut self.remaining);
                Poll::Ready(Some(seen.map(|()| part)))
            }
            RequestSource::Replay { chunks, trailers } => Poll::Ready(
                chunks
                    .next()
                    .map(Part::Data)
                    .or_else(|| trailers.take().map(Part::Trailers))
                    .map(Ok),
            ),
        }
    }

    fn is_end(&self) -> bool {
        match &self.source {
            RequestSource::Client(body, _) => body.is_end(),
            RequestSource::Replay { chunks, trailers } => chunks.len() == 0 && trailers.is_none(),
        }
    }

    fn length(&self) -> Option<u64> {
        match &self.source {
            RequestSource::Client(body, _) => body.length(),
            RequestSource::Replay { chunks, .. } => Some(
                chunks
                    .as_slice()
                    .iter()
                    .map(|chunk| chunk.len() as u64)
                    .sum(),
            ),
        }
    }
}
