//! Answers to clients, of cells and of the router itself.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::StatusCode;
use titan_http2::hpack::Block;

use super::{Body, BoxError, Part};
use crate::exchange::{Exchange, Outcome};
use crate::head;
use crate::inbound::Inbound;
use crate::rejection::Rejection;

/// An answer to a client.
pub struct Answer {
    /// Its head.
    pub head: Block,
    /// Its body.
    pub body: ResponseBody,
}

impl Answer {
    /// A refusal, in the client's protocol.
    ///
    /// gRPC clients get a trailers-only answer with a status; others get the HTTP status and a JSON body. Both carry
    /// `x-titan-router-error`, so that an answer of the router cannot be taken for one of a service.
    #[must_use]
    pub fn of(rejection: &Rejection, grpc: bool) -> Self {
        let status = if grpc {
            StatusCode::OK
        } else {
            rejection.reason.http_status()
        };
        let mut head = head::own(status);
        let body = if grpc {
            head.push(b"content-type", b"application/grpc");
            head.push(
                b"grpc-status",
                rejection.reason.grpc_status().to_string().as_bytes(),
            );
            head.push(
                b"grpc-message",
                percent_encoded(&rejection.message).as_bytes(),
            );
            ResponseBody::empty()
        } else {
            head.push(b"content-type", b"application/json");
            let body = serde_json::json!({
                "error": rejection.reason.as_str(),
                "message": rejection.message,
            });
            ResponseBody::full(Bytes::from(body.to_string()))
        };
        head.push(
            b"x-titan-router-error",
            rejection.reason.as_str().as_bytes(),
        );
        Answer { head, body }
    }

    /// The head alone, as HEAD is answered (RFC 9110, section 9.3.2): clients of HTTP/2 take a body for a fault.
    #[must_use]
    pub fn without_body(mut self) -> Self {
        if let Some(length) = self.body.length().filter(|length| *length > 0) {
            self.head
                .push(b"content-length", length.to_string().as_bytes());
        }
        self.body = ResponseBody::empty();
        self
    }
}

/// A message as gRPC wants it in `grpc-message`.
fn percent_encoded(message: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
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
        if body.is_end() {
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
    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Part, BoxError>>> {
        let Poll::Ready(part) = self.body.poll_part(context) else {
            return self.poll_deadline(context);
        };
        match &part {
            Some(Ok(Part::Trailers(trailers))) => {
                self.exchange.status_from(trailers);
                self.exchange.finish(Outcome::Answered);
            }
            Some(Ok(Part::Data(_))) => {
                if self.body.is_end() {
                    self.exchange.finish(Outcome::Answered);
                }
            }
            Some(Err(_)) => self.exchange.finish(Outcome::Broken),
            None => self.exchange.finish(Outcome::Answered),
        }
        Poll::Ready(part)
    }

    /// The client's deadline ends a body that is still under way, with a proper status.
    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Part, BoxError>>> {
        let Some(until) = self.until else {
            return Poll::Pending;
        };
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until.into())));
        ready!(alarm.as_mut().poll(context));
        self.until = None;
        self.exchange.finish(Outcome::TimedOut);
        Poll::Ready(Some(Ok(Part::Trailers(deadline_exceeded()))))
    }
}

fn deadline_exceeded() -> Block {
    Block::from_iter([
        ("grpc-status", "4"),
        (
            "grpc-message",
            "the deadline passed before the answer was complete",
        ),
    ])
}

impl Body for ResponseBody {
    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Part, BoxError>>> {
        match &mut self.0 {
            Source::Empty => Poll::Ready(None),
            Source::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Part::Data(bytes)))),
            Source::Cell(cell) => cell.poll_part(context),
        }
    }

    fn is_end(&self) -> bool {
        match &self.0 {
            Source::Empty => true,
            Source::Full(bytes) => bytes.is_none(),
            Source::Cell(cell) => cell.body.is_end(),
        }
    }

    fn length(&self) -> Option<u64> {
        match &self.0 {
            Source::Empty => Some(0),
            Source::Full(bytes) => Some(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Cell(cell) => cell.body.length(),
        }
    }
}
