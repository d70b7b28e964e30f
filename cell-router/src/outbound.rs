//! A body on its way out over a stream of HTTP/2, within what the other side is ready to take.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use titan_http2::Code;

use crate::body::{Body, BoxError, Part};
use crate::http2::{Broken, Sender};

/// Sends a body; ready when all of it was handed to the connection.
///
/// A frame is asked of the body when the one before it was handed over, and kept here until there is room for it, so
/// that a receiver that takes nothing holds one frame and no more.
pub struct Outbound<B> {
    body: B,
    sender: Sender,
    waiting: Option<(Bytes, bool)>,
}

/// Why a body was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The receiver reset the stream, or the connection broke.
    #[error("the receiver left: {0}")]
    Receiver(#[from] Broken),
    /// The body itself broke.
    #[error("the body broke: {0}")]
    Body(BoxError),
}

impl<B: Body + Unpin> Outbound<B> {
    /// Sends a body over a stream whose head was sent.
    pub fn new(body: B, sender: Sender) -> Self {
        Outbound {
            body,
            sender,
            waiting: None,
        }
    }

    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<Result<(), OutboundError>> {
        loop {
            if let Some((data, last)) = &mut self.waiting {
                ready!(self.sender.poll_data(context, data, *last))?;
                if *last {
                    return Poll::Ready(Ok(()));
                }
                self.waiting = None;
            }
            let Poll::Ready(part) = self.body.poll_part(context) else {
                // Nothing to send now: hear of a receiver that leaves.
                return self
                    .sender
                    .poll_broken(context)
                    .map(|broken| Err(broken.into()));
            };
            match part {
                Some(Ok(Part::Data(data))) => self.waiting = Some((data, self.body.is_end())),
                Some(Ok(Part::Trailers(fields))) => {
                    return Poll::Ready(self.sender.trailers(&fields).map_err(OutboundError::from));
                }
                Some(Err(error)) => {
                    self.sender.reset(code_of(&error));
                    return Poll::Ready(Err(OutboundError::Body(error)));
                }
                None => self.waiting = Some((Bytes::new(), true)),
            }
        }
    }
}

impl<B: Body + Unpin> Future for Outbound<B> {
    type Output = Result<(), OutboundError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().poll_sent(context)
    }
}

/// What a peer is told about a body that broke: what was told about it.
fn code_of(error: &BoxError) -> Code {
    error
        .downcast_ref::<Broken>()
        .map_or(Code::INTERNAL, |broken| broken.code())
}
