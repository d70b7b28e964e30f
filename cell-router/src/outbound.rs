//! A body on its way out over a stream of HTTP/2, within what the other side is ready to take.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

use crate::body::BoxError;

/// Sends a body; ready when all of it was handed to the connection.
///
/// A frame is asked of the body when the one before it was handed over, and kept here until there is room for it, so
/// that a receiver that takes nothing holds one frame and no more.
pub struct Outbound<B> {
    body: B,
    stream: SendStream<Bytes>,
    waiting: Option<(Bytes, bool)>,
}

/// Why a body was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The receiver reset the stream, or the connection broke.
    #[error("the receiver left: {0}")]
    Receiver(#[from] h2::Error),
    /// The body itself broke.
    #[error("the body broke: {0}")]
    Body(BoxError),
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Outbound<B> {
    /// Sends a body over a stream whose head was sent.
    pub fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Outbound {
            body,
            stream,
            waiting: None,
        }
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), OutboundError>> {
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(context)) {
                Some(capacity) => capacity?,
                None => return Poll::Ready(Err(h2::Error::from(Reason::STREAM_CLOSED).into())),
            };
        }
        Poll::Ready(Ok(()))
    }

    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<Result<(), OutboundError>> {
        loop {
            if self.waiting.is_some() {
                ready!(self.poll_room(context))?;
                if let Some((data, last)) = self.waiting.take() {
                    self.stream.send_data(data, last)?;
                    if last {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
                // Nothing to send now: hear of a receiver that leaves.
                let reason = ready!(self.stream.poll_reset(context))?;
                return Poll::Ready(Err(h2::Error::from(reason).into()));
            };
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.stream.send_reset(reason_of(&error));
                    return Poll::Ready(Err(OutboundError::Body(error)));
                }
                None => {
                    self.stream.send_data(Bytes::new(), true)?;
                    return Poll::Ready(Ok(()));
                }
            };
            let frame = match frame.into_data() {
                Ok(data) => {
                    let last = self.body.is_end_stream();
                    if data.is_empty() {
                        self.stream.send_data(data, last)?;
                        if last {
                            return Poll::Ready(Ok(()));
                        }
                    } else {
                        // Asked for with the data in hand: room that is only reserved would be missed by others.
                        self.stream.reserve_capacity(1);
                        self.waiting = Some((data, last));
                    }
                    continue;
                }
                Err(frame) => frame,
            };
            if let Ok(trailers) = frame.into_trailers() {
                self.stream.send_trailers(trailers)?;
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Future for Outbound<B> {
    type Output = Result<(), OutboundError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().poll_sent(context)
    }
}

/// What a peer is told about a body that broke: what was told about it.
fn reason_of(error: &BoxError) -> Reason {
    error
        .downcast_ref::<h2::Error>()
        .and_then(h2::Error::reason)
        .unwrap_or(Reason::INTERNAL_ERROR)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use futures::stream::{self, StreamExt as _};
    use h2::{RecvStream, client, server};
    use http::{HeaderMap, HeaderValue, Request, Response};
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::task::LocalSet;

    use super::*;

    type Frames = Vec<Result<Frame<Bytes>, BoxError>>;

    /// Sends frames to a client with a window of so many bytes. What the client has, how the sending ends, and how
    /// many frames were taken so far.
    async fn sent(
        window: u32,
        frames: Frames,
    ) -> (
        Result<RecvStream, h2::Error>,
        tokio::task::JoinHandle<Result<(), OutboundError>>,
        Rc<Cell<usize>>,
    ) {
        let (here, there) = tokio::io::duplex(1 << 20);
        let taken = Rc::new(Cell::new(0));
        let counted = Rc::clone(&taken);
        let sending = tokio::task::spawn_local(async move {
            let mut connection = server::handshake(there).await?;
            let (_request, mut respond) = connection.accept().await.unwrap()?;
            let stream = respond.send_response(Response::new(()), false)?;
            tokio::task::spawn_local(async move { connection.accept().await.is_none() });
            let frames = stream::iter(frames).inspect(move |_| counted.set(counted.get() + 1));
            Outbound::new(StreamBody::new(frames), stream).await
        });
        let (mut sender, connection) = client::Builder::new()
            .initial_window_size(window)
            .handshake::<_, Bytes>(here)
            .await
            .unwrap();
        tokio::task::spawn_local(connection);
        let request = Request::get("http://pod/").body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let body = response.await.map(Response::into_body);
        (body, sending, taken)
    }

    fn data(size: usize) -> Result<Frame<Bytes>, BoxError> {
        Ok(Frame::data(Bytes::from(vec![7; size])))
    }

    #[tokio::test]
    async fn a_body_waits_for_a_slow_receiver_and_arrives_whole() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let mut frames: Frames = (0..20).map(|_| data(100)).collect();
        frames.push(Ok(Frame::trailers(trailers)));
        let test = async {
            let (body, sending, taken) = sent(150, frames).await;
            let mut body = body.unwrap();
            let mut size = 0;
            while size < 150 {
                size += body.data().await.unwrap().unwrap().len();
            }
            // The window is used up: one frame is in it, one half in it, and one may wait.
            assert_eq!(size, 150);
            assert!(taken.get() <= 3, "{} frames were taken", taken.get());
            body.flow_control().release_capacity(size).unwrap();
            while let Some(more) = body.data().await {
                let more = more.unwrap().len();
                size += more;
                body.flow_control().release_capacity(more).unwrap();
            }
            assert_eq!(size, 2_000);
            assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
            sending.await.unwrap().unwrap();
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn a_receiver_that_leaves_ends_the_sending() {
        let test = async {
            let (body, sending, _) = sent(10, vec![data(5), data(50), data(50)]).await;
            let mut body = body.unwrap();
            body.data().await.unwrap().unwrap();
            drop(body);
            let ended = sending.await.unwrap();
            assert!(
                matches!(ended, Err(OutboundError::Receiver(_))),
                "{ended:?}"
            );
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn a_body_that_breaks_resets_the_stream() {
        let test = async {
            let broken = Err(h2::Error::from(Reason::CANCEL).into());
            let (body, sending, _) = sent(1_000, vec![data(5), broken]).await;
            assert_eq!(body.unwrap_err().reason(), Some(Reason::CANCEL));
            assert!(matches!(
                sending.await.unwrap(),
                Err(OutboundError::Body(_))
            ));
        };
        LocalSet::new().run_until(test).await;
    }
}
