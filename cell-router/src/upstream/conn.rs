//! One connection to a pod.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::pool::Pod;
use crate::body::RequestBody;
use crate::config::{Config, Protocol};

/// How much of one answer is taken in before the client takes it.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The same of all answers of a connection: enough that clients that take nothing do not stop the answers of others
/// who share it. Nothing is set aside for it; what counts is the window of each stream.
const CONNECTION_WINDOW: u32 = 512 * STREAM_WINDOW;

/// Runs tasks on the thread they were made on.
#[derive(Clone, Copy, Debug)]
pub struct LocalExec;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

enum Sender {
    H2(http2::SendRequest<RequestBody>),
    H1(RefCell<http1::SendRequest<RequestBody>>),
}

/// A connection and what it carries.
pub struct Conn {
    sender: Sender,
    pod: Weak<Pod>,
    in_flight: Cell<usize>,
    closed: Cell<bool>,
    idle_since_ms: Cell<u64>,
}

/// Why a request got no answer.
pub struct SendError {
    /// What happened.
    pub error: hyper::Error,
    /// The request, when none of it was sent.
    pub unsent: Option<Box<Request<RequestBody>>>,
}

impl SendError {
    /// Whether the pod certainly did nothing with the request.
    #[must_use]
    pub fn not_processed(&self) -> bool {
        if self.unsent.is_some() {
            return true;
        }
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&self.error);
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                return (error.is_go_away() && error.is_remote())
                    || error.reason() == Some(h2::Reason::REFUSED_STREAM);
            }
            source = error.source();
        }
        false
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
        let io = TokioIo::new(stream);
        let failed = |error: hyper::Error| format!("handshake with {address} failed: {error}");
        let conn = match protocol {
            Protocol::H2 => {
                let (sender, connection) = http2::Builder::new(LocalExec)
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .max_header_list_size(64 * 1024)
                    .max_send_buf_size(128 * 1024)
                    .keep_alive_interval(config.upstream.keep_alive.0)
                    .keep_alive_timeout(Duration::from_secs(5))
                    .handshake(io)
                    .await
                    .map_err(failed)?;
                let conn = Self::new(Sender::H2(sender), pod);
                // Weak: a connection that nobody holds any more closes by itself.
                let watched = Rc::downgrade(&conn);
                tokio::task::spawn_local(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%address, %error, "connection to a pod ended");
                    }
                    if let Some(conn) = watched.upgrade() {
                        conn.close();
                    }
                });
                conn
            }
            Protocol::H1 => {
                let (sender, connection) = http1::handshake(io).await.map_err(failed)?;
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

    fn new(sender: Sender, pod: &Rc<Pod>) -> Rc<Self> {
        Rc::new(Conn {
            sender,
            pod: Rc::downgrade(pod),
            in_flight: Cell::new(0),
            closed: Cell::new(false),
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
                Sender::H2(sender) => sender.is_ready(),
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

    /// When it was first seen without requests, in milliseconds since start; 0 when it is busy.
    pub(super) fn idle_since(&self, now_ms: u64) -> u64 {
        if self.in_flight.get() > 0 {
            self.idle_since_ms.set(0);
        } else if self.idle_since_ms.get() == 0 {
            self.idle_since_ms.set(now_ms);
        }
        self.idle_since_ms.get()
    }

    /// Sends a request and waits for the head of the answer.
    ///
    /// # Errors
    /// When the connection broke or refused the request.
    pub async fn send(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SendError> {
        let result = match &self.sender {
            Sender::H2(sender) => sender.clone().try_send_request(request).await,
            Sender::H1(sender) => {
                let sending = Box::pin(sender.borrow_mut().try_send_request(request));
                sending.await
            }
        };
        result.map_err(|mut error| SendError {
            unsent: error.take_message().map(Box::new),
            error: error.into_error(),
        })
    }
}
