//! Clients that speak HTTP/2: their streams, each answered by a task of its own.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::{Builder, Connection, SendResponse};
use http::{HeaderValue, Request, Response, header};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::STREAM_WINDOW;
use super::client::{Busy, Client, Watched};
use crate::body::ResponseBody;
use crate::config::Config;
use crate::identity::Peer;
use crate::inbound::Inbound;
use crate::keepalive::KeepAlive;
use crate::outbound::Outbound;
use crate::proxy;
use crate::worker::Worker;

/// How many streams that were refused before their body was through are remembered, for a second. What is still on its way
/// for one that is forgotten counts as the client's error, and a connection ends with the sixty-fourth: a burst of refusals
/// must not take the client's other requests along.
const REMEMBERED_RESETS: usize = 1024;

/// A client that does not answer a ping for so long is gone.
const PING_PATIENCE: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(30);

/// Serves a connection to its end, or until it is told to leave and its last stream ended.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    worker: &Rc<Worker>,
    config: &Config,
    client: Rc<Client>,
    peer: Rc<Peer>,
    stream: S,
) {
    let limits = &config.limits;
    let handshake = Builder::new()
        .max_concurrent_streams(limits.streams_per_connection)
        .max_header_list_size(limits.header_bytes)
        .initial_window_size(u32::try_from(STREAM_WINDOW).unwrap_or(65_535))
        .initial_connection_window_size(connection_window(limits.streams_per_connection))
        .max_send_buffer_size(64 * 1024)
        .max_pending_accept_reset_streams(32)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .max_local_error_reset_streams(Some(64))
        .handshake(stream);
    let mut connection = match tokio::time::timeout(limits.header_timeout.0, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no HTTP/2 with a client");
            return;
        }
        Err(_) => {
            worker.metrics.reaped_connections.add(1);
            return;
        }
    };
    let mut keepalive = connection
        .ping_pong()
        .map(|pings| KeepAlive::new(pings, PING_EVERY, PING_PATIENCE));
    let mut accept = async |connection: &mut Connection<S, Bytes>| {
        let streams = Streams {
            worker,
            client: &client,
            peer: &peer,
        };
        streams.accept(connection, keepalive.as_mut()).await;
    };
    tokio::select! {
        biased;
        () = accept(&mut connection) => return,
        () = client.left() => {}
    }
    connection.graceful_shutdown();
    if client.was_reaped() {
        // An idle or stalled client may not even read the GOAWAY.
        let _ = tokio::time::timeout(Duration::from_secs(5), accept(&mut connection)).await;
    } else {
        accept(&mut connection).await;
    }
}

/// What all streams of a connection may have in the router at once: enough that streams to a cell that takes nothing
/// do not stop the others.
fn connection_window(streams: u32) -> u32 {
    let window = u32::try_from(STREAM_WINDOW).unwrap_or(65_535);
    streams.saturating_mul(window).clamp(1024 * 1024, 1 << 30)
}

struct Streams<'a> {
    worker: &'a Rc<Worker>,
    client: &'a Rc<Client>,
    peer: &'a Rc<Peer>,
}

impl Streams<'_> {
    /// Answers streams until the connection ends.
    async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        connection: &mut Connection<S, Bytes>,
        mut keepalive: Option<&mut KeepAlive>,
    ) {
        loop {
            let accepted = poll_fn(|context| {
                let gone = keepalive
                    .as_mut()
                    .is_some_and(|keepalive| keepalive.poll_gone(context, || true).is_ready());
                if gone {
                    return Poll::Ready(None);
                }
                connection.poll_accept(context)
            })
            .await;
            match accepted {
                Some(Ok((request, respond))) => {
                    let (head, receive) = request.into_parts();
                    let body = Inbound::request(receive, &head.headers);
                    let request = Request::from_parts(head, body);
                    // Boxed, because the future of a task is moved around until it is in its place.
                    let response = Box::pin(proxy::handle(
                        Rc::clone(self.worker),
                        Rc::clone(self.peer),
                        request,
                    ));
                    let busy = Client::busy(self.client);
                    tokio::task::spawn_local(answer(busy, response, respond));
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a client's connection ended");
                    return;
                }
                None => return,
            }
        }
    }
}

/// Answers one stream, unless its client leaves it first.
async fn answer(
    busy: Busy,
    mut response: Pin<Box<impl Future<Output = Response<ResponseBody>>>>,
    mut respond: SendResponse<Bytes>,
) {
    let answered = poll_fn(|context| match response.as_mut().poll(context) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending => respond.poll_reset(context).map(|_| None),
    })
    .await;
    drop(response);
    let Some(response) = answered else { return };
    let (mut head, body) = response.into_parts();
    let ends = body.is_end_stream();
    if !ends && let Some(length) = body.size_hint().exact() {
        head.headers
            .entry(header::CONTENT_LENGTH)
            .or_insert_with(|| HeaderValue::from(length));
    }
    match respond.send_response(Response::from_parts(head, ()), ends) {
        Ok(stream) if !ends => {
            if let Err(error) = Outbound::new(Watched::new(body, busy), stream).await {
                tracing::debug!(%error, "an answer was not sent to its end");
            }
        }
        Ok(_) => {}
        Err(error) => {
            tracing::debug!(%error, "an answer was not sent");
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}
