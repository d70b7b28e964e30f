//! What comes in from a client or a pod: bodies of HTTP/1.1 by hyper, and streams of HTTP/2 straight from h2.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::AbortHandle;

use crate::body::BoxError;

/// For how long what is left of a request that was answered may come in.
const LINGER: Duration = Duration::from_secs(1);

/// A body that comes in.
pub enum Inbound {
    /// Over HTTP/1.1.
    H1(Incoming),
    /// Over HTTP/2.
    H2(Stream),
}

/// The body of one stream of HTTP/2.
pub struct Stream {
    /// There until it is dropped.
    receive: Option<RecvStream>,
    /// Whether a client sends it.
    request: bool,
    data_done: bool,
    /// Whether nothing more comes, once somebody asked since the last frame: asking takes a lock.
    ended: Cell<Option<bool>>,
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
    /// The body of a request with these headers.
    #[must_use]
    pub fn request(receive: RecvStream, headers: &HeaderMap) -> Self {
        Self::h2(receive, true, headers, None)
    }

    /// The body of an answer with these headers.
    #[must_use]
    pub fn answer(receive: RecvStream, headers: &HeaderMap, upload: Option<Upload>) -> Self {
        Self::h2(receive, false, headers, upload)
    }

    fn h2(receive: RecvStream, request: bool, headers: &HeaderMap, upload: Option<Upload>) -> Self {
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        Inbound::H2(Stream {
            receive: Some(receive),
            request,
            data_done: false,
            ended: Cell::new(None),
            announced,
            _upload: upload,
        })
    }
}

impl Stream {
    fn has_ended(&self) -> bool {
        let ended = self
            .ended
            .get()
            .unwrap_or_else(|| self.receive.as_ref().is_none_or(RecvStream::is_end_stream));
        self.ended.set(Some(ended));
        ended
    }

    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.ended.set(None);
        let Some(receive) = &mut self.receive else {
            return Poll::Ready(None);
        };
        if !self.data_done {
            match ready!(receive.poll_data(context)) {
                Some(Ok(data)) => {
                    // The next is polled for only when there is room to pass it on.
                    let _ = receive.flow_control().release_capacity(data.len());
                    if let Some(announced) = &mut self.announced {
                        *announced = announced.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => {
                    self.data_done = true;
                    // A peer that has all it wants says so like this; what came until then is the body.
                    if error.reason() == Some(Reason::NO_ERROR) {
                        return Poll::Ready(None);
                    }
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => self.data_done = true,
            }
        }
        let trailers = ready!(receive.poll_trailers(context));
        Poll::Ready(match trailers {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) if error.reason() == Some(Reason::NO_ERROR) => None,
            Err(error) => Some(Err(error.into())),
        })
    }
}

/// A request that was answered without its whole body lets the client send the rest for a moment. Most of it is on its way
/// already, and resetting the stream would not only cost a frame: once more streams were reset than h2 remembers, it counts
/// what still comes in as the client's fault and ends the connection.
impl Drop for Stream {
    fn drop(&mut self) {
        if !self.request || self.has_ended() {
            return;
        }
        let Some(mut receive) = self.receive.take() else {
            return;
        };
        tokio::task::spawn_local(async move {
            // No window is given back: what comes is at most a stream's.
            let rest = async { while let Some(Ok(_)) = receive.data().await {} };
            let _ = tokio::time::timeout(LINGER, rest).await;
        });
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Inbound::H1(body) => Pin::new(body).poll_frame(context).map_err(BoxError::from),
            Inbound::H2(stream) => stream.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Inbound::H1(body) => body.is_end_stream(),
            Inbound::H2(stream) => stream.has_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Inbound::H1(body) => body.size_hint(),
            Inbound::H2(stream) => match stream.announced {
                Some(announced) => SizeHint::with_exact(announced),
                None if stream.has_ended() => SizeHint::with_exact(0),
                None => SizeHint::default(),
            },
        }
    }
}
