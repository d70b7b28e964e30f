//! Clients that speak HTTP/2: their streams, each answered by a task of its own.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use titan_http2::Limits;
use titan_http2::hpack::token;
use tokio::io::{AsyncRead, AsyncWrite};

use super::client::{Busy, Client, Watched};
use crate::body::Body as _;
use crate::body::answer::Answer;
use crate::config::Config;
use crate::http2::{Driver, KeepAlive, Link, Sender};
use crate::identity::Peer;
use crate::inbound::{Inbound, STREAM_WINDOW};
use crate::outbound::Outbound;
use crate::proxy::{self, Request};
use crate::worker::Worker;

/// A client that does not answer a ping for so long is gone.
const PING_PATIENCE: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(30);
/// An idle or stalled client may not even read that it is told to leave.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Serves a connection to its end, or until it is told to leave and its last stream ended.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    worker: &Rc<Worker>,
    config: &Config,
    client: Rc<Client>,
    peer: Rc<Peer>,
    stream: S,
) {
    let limits = &config.limits;
    let link = Link::server(Limits {
        streams: limits.streams_per_connection as usize,
        header_bytes: limits.header_bytes as usize,
        stream_window: u32::try_from(STREAM_WINDOW).unwrap_or(65_535),
        window: connection_window(limits.streams_per_connection),
    });
    let mut driver = Driver::new(&link, stream, KeepAlive::new(PING_EVERY, PING_PATIENCE));
    let mut accept = |head, receiver, sender| {
        let body = Inbound::h2(receiver, &head, None);
        let request = Request {
            head,
            body,
            upgrade: None,
        };
        // Boxed, because the future of a task is moved around until it is in its place.
        let response = Box::pin(proxy::handle(Rc::clone(worker), Rc::clone(&peer), request));
        let busy = Client::busy(&client);
        tokio::task::spawn_local(answer(busy, response, sender));
    };
    let mut ended = poll_fn(|context| {
        let polled = driver.poll(context, &mut accept, || true);
        client.amid_head(driver.is_amid_head());
        polled
    });
    let lost = tokio::select! {
        biased;
        lost = &mut ended => lost,
        () = client.left() => {
            link.drain();
            if client.was_reaped() {
                match tokio::time::timeout(LAST_WORDS, ended).await {
                    Ok(lost) => lost,
                    Err(_) => return,
                }
            } else {
                ended.await
            }
        }
    };
    tracing::debug!(%lost, "a client's connection ended");
}

/// What all streams of a connection may have in the router at once: enough that streams to a cell that takes nothing
/// do not stop the others.
fn connection_window(streams: u32) -> u32 {
    let window = u32::try_from(STREAM_WINDOW).unwrap_or(65_535);
    streams.saturating_mul(window).clamp(1024 * 1024, 1 << 30)
}

/// Answers one stream, unless its client leaves it first.
async fn answer(busy: Busy, mut response: Pin<Box<impl Future<Output = Answer>>>, sender: Sender) {
    let answered = poll_fn(|context| {
        // First, so that no pod hears of a request that was reset as soon as it was made.
        if sender.poll_broken(context).is_ready() {
            return Poll::Ready(None);
        }
        response.as_mut().poll(context).map(Some)
    })
    .await;
    drop(response);
    let Some(response) = answered else { return };
    let Answer { mut head, body } = response;
    let ends = body.is_end();
    if !ends
        && let Some(length) = body.length()
        && head.get(token::CONTENT_LENGTH).is_none()
    {
        head.push(b"content-length", length.to_string().as_bytes());
    }
    let sent = match sender.answer(&head, ends) {
        Ok(()) if !ends => Outbound::new(Watched::new(body, busy), sender)
            .await
            .map_err(|error| error.to_string()),
        sent => sent.map_err(|broken| broken.to_string()),
    };
    if let Err(error) = sent {
        tracing::debug!(error, "an answer was not sent to its end");
    }
}
