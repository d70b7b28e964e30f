//! Bodies on their way through: forwarded frame by frame, counted, and kept for a replay while they are small.

use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};

use crate::exchange::{Exchange, Outcome};
use crate::inbound::Inbound;

/// Any error on the way.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a client's body did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientFault {
    /// The client reset the stream, or its connection broke.
    Left,
    /// It sent more than `limits.bodyBytes`.
    TooLarge,
}

/// What was read of a request's body, as long as it is small enough to be sent twice, and how the client takes part.
#[derive(Debug, Default)]
pub struct Recording {
    chunks: RefCell<Vec<Bytes>>,
    trailers: RefCell<Option<HeaderMap>>,
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
        let size = self.size.get() + data.len();
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
        trailers: Option<HeaderMap>,
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
        if body.is_end_stream() {
            recording.complete.set(true);
        }
        RequestBody {
            source: RequestSource::Client(body, recording),
            remaining: if limit == 0 { u64::MAX } else { limit },
        }
    }
}

impl Recording {
    fn seen(&self, frame: &Frame<Bytes>, ends: bool, remaining: &mut u64) -> Result<(), BoxError> {
        if let Some(data) = frame.data_ref() {
            let Some(rest) = remaining.checked_sub(data.len() as u64) else {
                self.fault.set(Some(ClientFault::TooLarge));
                return Err(BodyTooLarge.into());
            };
            *remaining = rest;
            self.data(data);
        } else if let Some(trailers) = frame.trailers_ref() {
            *self.trailers.borrow_mut() = Some(trailers.clone());
        }
        if ends || frame.is_trailers() {
            self.complete();
        }
        Ok(())
    }
}

/// The body of a request is larger than `limits.bodyBytes`.
#[derive(Debug, thiserror::Error)]
#[error("the body of the request is larger than `limits.bodyBytes`")]
pub struct BodyTooLarge;

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        match &mut this.source {
            RequestSource::Client(body, recording) => {
                let frame = Pin::new(&mut *body).poll_frame(context);
                recording.awaits_client.set(frame.is_pending());
                let frame = match ready!(frame) {
                    Some(Ok(frame)) => frame,
                    Some(Err(error)) => {
                        recording.fault.set(Some(ClientFault::Left));
                        return Poll::Ready(Some(Err(error)));
                    }
                    None => {
                        recording.complete();
                        return Poll::Ready(None);
                    }
                };
                let ends = body.is_end_stream();
                let seen = recording.seen(&frame, ends, &mut this.remaining);
                Poll::Ready(Some(seen.map(|()| frame)))
            }
            RequestSource::Replay { chunks, trailers } => Poll::Ready(
                chunks
                    .next()
                    .map(Frame::data)
                    .or_else(|| trailers.take().map(Frame::trailers))
                    .map(Ok),
            ),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            RequestSource::Client(body, _) => body.is_end_stream(),
            RequestSource::Replay { chunks, trailers } => chunks.len() == 0 && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            RequestSource::Client(body, _) => body.size_hint(),
            RequestSource::Replay { chunks, .. } => SizeHint::with_exact(
                chunks
                    .as_slice()
                    .iter()
                    .map(|chunk| chunk.len() as u64)
                    .sum(),
            ),
        }
    }
}

/// The body of an answer to a client.
pub struct ResponseBody(Source);

enum Source {
    Empty,
    Full(Option<Bytes>),
    Cell(Box<CellBody>),
}

struct CellBody {
    body: Inbound,
    exchange: Exchange,
    /// Until when the body must have ended.
    until: Option<Instant>,
    alarm: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl ResponseBody {
    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        ResponseBody(Source::Empty)
    }

    /// A body that is here already.
    #[must_use]
    pub fn full(bytes: Bytes) -> Self {
        ResponseBody(Source::Full(Some(bytes)))
    }

    /// A cell's body. The exchange ends with it.
    #[must_use]
    pub fn cell(body: Inbound, mut exchange: Exchange, until: Option<Instant>) -> Self {
        if body.is_end_stream() {
            exchange.finish(Outcome::Answered);
            return Self::empty();
        }
        ResponseBody(Source::Cell(Box::new(CellBody {
            body,
            exchange,
            until,
            alarm: None,
        })))
    }
}

impl CellBody {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            return self.poll_deadline(context);
        };
        match frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.exchange.status_from(trailers);
                    self.exchange.finish(Outcome::Answered);
                } else if self.body.is_end_stream() {
                    self.exchange.finish(Outcome::Answered);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.exchange.finish(Outcome::Broken);
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.exchange.finish(Outcome::Answered);
                Poll::Ready(None)
            }
        }
    }

    /// The client's deadline ends a body that is still under way, with a proper status.
    fn poll_deadline(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(until) = self.until else {
            return Poll::Pending;
        };
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until.into())));
        ready!(alarm.as_mut().poll(context));
        self.until = None;
        self.exchange.finish(Outcome::TimedOut);
        Poll::Ready(Some(Ok(Frame::trailers(deadline_exceeded()))))
    }
}

fn deadline_exceeded() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("4"));
    trailers.insert(
        "grpc-message",
        HeaderValue::from_static("the deadline passed before the answer was complete"),
    );
    trailers
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().0 {
            Source::Empty => Poll::Ready(None),
            Source::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Cell(cell) => cell.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Empty => true,
            Source::Full(bytes) => bytes.is_none(),
            Source::Cell(cell) => cell.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Empty => SizeHint::with_exact(0),
            Source::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Source::Cell(cell) => cell.body.size_hint(),
        }
    }
}
