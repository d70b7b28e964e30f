//! One connection to a pod.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::pool::Pod;
use crate::body::{BoxError, RequestBody};
use crate::config::{Config, Protocol};
use crate::inbound::{Inbound, Upload};
use crate::keepalive::KeepAlive;
use crate::outbound::Outbound;

/// How much of one answer is taken in before the client takes it.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The same of all answers of a connection: enough that clients that take nothing do not stop the answers of others
/// who share it. Nothing is set aside for it; what counts is the window of each stream.
const CONNECTION_WINDOW: u32 = 512 * STREAM_WINDOW;

enum Sender {
    H2(RefCell<h2::client::SendRequest<Bytes>>),
    H1(RefCell<http1::SendRequest<RequestBody>>),
}

/// A connection and what it carries.
pub struct Conn {
    sender: Sender,
    pod: Weak<Pod>,
    in_flight: Cell<usize>,
    closed: Cell<bool>,
    /// Whether its end was counted as a failure of the cell.
    blamed: Cell<bool>,
    idle_since_ms: Cell<u64>,
}

/// Why a request got no answer.
pub struct SendError {
    /// What happened.
    pub error: BoxError,
    /// The body of the request, when nothing of the request was sent.
    pub unsent: Option<Box<RequestBody>>,
}

impl SendError {
    /// Whether the pod certainly did nothing with the request.
    #[must_use]
    pub fn not_processed(&self) -> bool {
        if self.unsent.is_some() {
            return true;
        }
        self.error.downcast_ref::<h2::Error>().is_some_and(|error| {
            (error.is_go_away() && error.is_remote())
                || error.reason() == Some(h2::Reason::REFUSED_STREAM)
        })
    }

    /// Whether a good pod would have taken it. One that leaves says GOAWAY, and a connection may have ended before.
    #[must_use]
    pub fn is_the_pods_fault(&self) -> bool {
        let leaves = |error: &h2::Error| error.is_go_away() && error.is_remote();
        self.unsent.is_none() && !self.error.downcast_ref::<h2::Error>().is_some_and(leaves)
    }
}

impl Conn {
    /// Opens a connection to a pod.
    pub(super) async fn dial(
        pod: &Rc<Pod>,
        address: SocketAddr,
        protocol: Protocol,
        config: &Config,
    ) -> Result<Rc<Conn>, String> {
        let limit = config.upstream.connect_timeout.0;
        let stream = tokio::time::timeout(limit, TcpStream::connect(address))
            .await
            .map_err(|_| format!("no connection to {address} within {limit:?}"))?
            .map_err(|error| format!("no connection to {address}: {error}"))?;
        let _ = stream.set_nodelay(true);
        let conn = match protocol {
            Protocol::H2 => Self::handshake_h2(pod, address, stream, config).await?,
            Protocol::H1 => {
                let (sender, connection) = http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| format!("handshake with {address} failed: {error}"))?;
                let conn = Self::new(Sender::H1(RefCell::new(sender)), pod);
                // Weak: a connection that nobody holds any more closes by itself.
                let watched = Rc::downgrade(&conn);
                tokio::task::spawn_local(async move {
                    let _ = connection.with_upgrades().await;
                    if let Some(conn) = watched.upgrade() {
                        conn.close();
                    }
                });
                conn
            }
        };
        Ok(conn)
    }

    async fn handshake_h2(
        pod: &Rc<Pod>,
        address: SocketAddr,
        stream: TcpStream,
        config: &Config,
    ) -> Result<Rc<Conn>, String> {
        let (sender, mut connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(64 * 1024)
            .initial_max_send_streams(100)
            .max_send_buffer_size(128 * 1024)
            .handshake(stream)
            .await
            .map_err(|error| format!("handshake with {address} failed: {error}"))?;
        let mut keepalive = connection.ping_pong().map(|pings| {
            KeepAlive::new(pings, config.upstream.keep_alive.0, Duration::from_secs(5))
        });
        let conn = Self::new(Sender::H2(RefCell::new(sender)), pod);
        // Weak: a connection that nobody holds any more closes by itself.
        let watched = Rc::downgrade(&conn);
        tokio::task::spawn_local(async move {
            let ended = poll_fn(|context| {
                let busy = || watched.upgrade().is_some_and(|conn| conn.in_flight() > 0);
                let gone = keepalive
                    .as_mut()
                    .is_some_and(|keepalive| keepalive.poll_gone(context, busy).is_ready());
                if gone {
                    return Poll::Ready(None);
                }
                Pin::new(&mut connection).poll(context).map(Some)
            })
            .await;
            match ended {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::debug!(%address, %error, "connection to a pod ended"),
                None => tracing::debug!(%address, "a pod does not answer pings"),
            }
            // Before the streams hear of it, so that they do not try this one again.
            if let Some(conn) = watched.upgrade() {
                conn.close();
            }
            drop(connection);
        });
        Ok(conn)
    }

    fn new(sender: Sender, pod: &Rc<Pod>) -> Rc<Self> {
        Rc::new(Conn {
            sender,
            pod: Rc::downgrade(pod),
            in_flight: Cell::new(0),
            closed: Cell::new(false),
            blamed: Cell::new(false),
            idle_since_ms: Cell::new(0),
        })
    }

    /// Requests that it carries.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Whether it takes requests.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.closed.get()
            && match &self.sender {
                Sender::H2(sender) => {
                    // Never pending: requests are sent by clones of it.
                    let mut nobody = Context::from_waker(Waker::noop());
                    let ready = sender.borrow_mut().poll_ready(&mut nobody);
                    !matches!(ready, Poll::Ready(Err(_)))
                }
                Sender::H1(sender) => !sender.borrow().is_closed(),
            }
    }

    /// Whether it can take a request now without making it wait.
    #[must_use]
    pub fn has_room(&self, streams: usize) -> bool {
        match &self.sender {
            Sender::H2(_) => self.in_flight.get() < streams,
            Sender::H1(sender) => self.in_flight.get() == 0 && sender.borrow().is_ready(),
        }
    }

    /// No new requests; it closes when its last request ended.
    pub fn close(&self) {
        self.closed.set(true);
        if let Some(pod) = self.pod.upgrade() {
            pod.forget(self);
        }
    }

    /// Reserves room for a request.
    pub(super) fn reserve(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
        if let Some(pod) = self.pod.upgrade() {
            pod.in_flight.set(pod.in_flight.get() + 1);
        }
    }

    /// A request left it, and that says nothing.
    pub fn released(&self) {
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
        if let Some(pod) = self.pod.upgrade() {
            pod.in_flight.set(pod.in_flight.get().saturating_sub(1));
        }
    }

    /// A request ended, with a verdict on the pod or without one.
    pub fn ended(&self, faulty: Option<bool>) {
        self.released();
        if let (Some(faulty), Some(pod)) = (faulty, self.pod.upgrade()) {
            pod.verdict(faulty);
        }
    }

    /// Whether a request that broke is to be counted: of those that end with their connection, the first.
    #[must_use]
    pub fn blamed_first(&self) -> bool {
        !self.closed.get() || !self.blamed.replace(true)
    }

    /// When it was first seen without requests, in milliseconds since start; 0 when it is busy.
    pub(super) fn idle_since(&self, now_ms: u64) -> u64 {
        if self.in_flight.get() > 0 {
            self.idle_since_ms.set(0);
        } else if self.idle_since_ms.get() == 0 {
            self.idle_since_ms.set(now_ms);
        }
        self.idle_since_ms.get()
    }

    /// Sends a request; what it returns waits for the head of the answer.
    ///
    /// # Errors
    /// When the connection broke before.
    pub fn send(&self, request: Request<RequestBody>) -> Result<Sending, SendError> {
        match &self.sender {
            Sender::H2(sender) => {
                let sender = sender.borrow().clone();
                send_h2(sender, request)
            }
            Sender::H1(sender) => {
                let sending = sender.borrow_mut().try_send_request(request);
                Ok(Sending::H1(Box::pin(async move {
                    let response = sending.await.map_err(|mut error| SendError {
                        unsent: error
                            .take_message()
                            .map(|request| Box::new(request.into_body())),
                        error: error.into_error().into(),
                    })?;
                    Ok(response.map(Inbound::H1))
                })))
            }
        }
    }
}

fn send_h2(
    mut sender: h2::client::SendRequest<Bytes>,
    request: Request<RequestBody>,
) -> Result<Sending, SendError> {
    let (head, body) = request.into_parts();
    let ends = body.is_end_stream();
    match sender.send_request(Request::from_parts(head, ()), ends) {
        Ok((response, stream)) => Ok(Sending::H2 {
            response,
            upload: (!ends).then(|| Outbound::new(body, stream)),
        }),
        Err(error) => Err(SendError {
            error: error.into(),
            unsent: Some(Box::new(body)),
        }),
    }
}

type Answered = Result<Response<Inbound>, SendError>;

/// A request under way. Sends its body and waits for the head of the answer; what is left of the body then goes on
/// beside it.
#[allow(
    clippy::large_enum_variant,
    reason = "almost all requests are of the large kind"
)]
pub enum Sending {
    /// Over HTTP/1.1.
    H1(Pin<Box<dyn Future<Output = Answered>>>),
    /// Over HTTP/2.
    H2 {
        /// The head of the answer to be.
        response: h2::client::ResponseFuture,
        /// The body, until it is sent.
        upload: Option<Outbound<RequestBody>>,
    },
}

impl Future for Sending {
    type Output = Answered;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answered> {
        let (response, upload) = match self.get_mut() {
            Sending::H1(sending) => return sending.as_mut().poll(context),
            Sending::H2 { response, upload } => (response, upload),
        };
        if let Some(body) = upload
            && Pin::new(body).poll(context).is_ready()
        {
            *upload = None;
        }
        let response = ready!(Pin::new(response).poll(context)).map_err(|error| SendError {
            error: error.into(),
            unsent: None,
        })?;
        let upload = upload.take().map(|rest| {
            Upload::beside(async move {
                if let Err(error) = rest.await {
                    tracing::debug!(%error, "the rest of a request's body was not sent");
                }
            })
        });
        let (head, receive) = response.into_parts();
        let body = Inbound::answer(receive, &head.headers, upload);
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }
}
