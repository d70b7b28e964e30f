//! One connection to a pod.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use titan_http2::Limits;
use tokio::net::TcpStream;
use tokio::sync::futures::OwnedNotified;

use super::pool::Pod;
use crate::body::request::RequestBody;
use crate::body::{Body as _, BoxError};
use crate::config::{Config, Protocol};
use crate::h1;
use crate::http2::{Broken, Driver, KeepAlive, Link, Receiver};
use crate::inbound::{Inbound, Response, Upload};
use crate::outbound::Outbound;
use crate::outgoing::Outgoing;
use crate::rejection::Rejection;
use crate::upgrade::Upgrade;

/// A pod that does not answer a ping for so long is gone.
const PING_PATIENCE: Duration = Duration::from_secs(5);
/// How much of one answer is taken in before the client takes it.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The same of all answers of a connection: enough that clients that take nothing do not stop the answers of others
/// who share it. Nothing is set aside for it; what counts is the window of each stream.
const CONNECTION_WINDOW: u32 = 512 * STREAM_WINDOW;

enum Sender {
    H2(Rc<Link>),
    H1(RefCell<http1::SendRequest<h1::Sent<RequestBody>>>),
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
        let broken = self.error.downcast_ref::<Broken>();
        broken.is_some_and(|broken| broken.not_processed())
    }

    /// Whether a good pod would have taken it. One that leaves says GOAWAY, and a connection may have ended before.
    #[must_use]
    pub fn is_the_pods_fault(&self) -> bool {
        let leaves = |broken: &Broken| *broken == Broken::Unprocessed;
        self.unsent.is_none() && !self.error.downcast_ref::<Broken>().is_some_and(leaves)
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
            Protocol::H2 => Self::h2(pod, address, stream, config),
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

    fn h2(pod: &Rc<Pod>, address: SocketAddr, stream: TcpStream, config: &Config) -> Rc<Conn> {
        let link = Link::client(Limits {
            streams: 0,
            header_bytes: 64 * 1024,
            stream_window: STREAM_WINDOW,
            window: CONNECTION_WINDOW,
        });
        let keepalive = KeepAlive::new(config.upstream.keep_alive.0, PING_PATIENCE);
        let mut driver = Driver::new(&link, stream, keepalive);
        let conn = Self::new(Sender::H2(link), pod);
        let watched = Rc::downgrade(&conn);
        tokio::task::spawn_local(async move {
            let lost = poll_fn(|context| {
                let busy = || watched.upgrade().is_some_and(|conn| conn.in_flight() > 0);
                // Nothing is begun by a server.
                driver.poll(context, &mut |_, _, _| {}, busy)
            })
            .await;
            tracing::debug!(%address, %lost, "a connection to a pod ended");
            if let Some(conn) = watched.upgrade() {
                conn.close();
            }
        });
        conn
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
                Sender::H2(link) => link.is_open(),
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
    /// When the pod's protocol has no way to say it.
    pub fn send<'a>(
        &'a self,
        head: Outgoing<'a>,
        body: RequestBody,
        upgrade: Option<&Upgrade>,
    ) -> Result<Sending<'a>, Rejection> {
        Ok(match &self.sender {
            Sender::H2(link) => Sending::H2(Stage::Opening {
                link,
                head,
                body: Some(body),
                room: None,
            }),
            Sender::H1(sender) => {
                let mut request = h1::request_to(&head, h1::Sent(body))?;
                if let Some(upgrade) = upgrade {
                    upgrade.ask(&mut request);
                }
                let sending = sender.borrow_mut().try_send_request(request);
                Sending::H1(Box::pin(answered_h1(sending)))
            }
        })
    }
}

async fn answered_h1(
    sending: impl Future<Output = Result<http::Response<Incoming>, Unsent>>,
) -> Answered {
    let mut response = sending.await.map_err(|mut error| SendError {
        unsent: error
            .take_message()
            .map(|request| Box::new(request.into_body().0)),
        error: error.into_error().into(),
    })?;
    let taken = (response.status() == StatusCode::SWITCHING_PROTOCOLS)
        .then(|| hyper::upgrade::on(&mut response));
    let (mut parts, body) = response.into_parts();
    Ok(Response {
        head: h1::answer_from(&mut parts),
        body: Inbound::H1(body),
        taken,
    })
}

/// A connection that nobody holds any more closes.
impl Drop for Conn {
    fn drop(&mut self) {
        if let Sender::H2(link) = &self.sender {
            link.drain();
        }
    }
}

type Answered = Result<Response, SendError>;
type Unsent = hyper::client::conn::TrySendError<http::Request<h1::Sent<RequestBody>>>;

/// A request under way. Sends its body and waits for the head of the answer; what is left of the body then goes on
/// beside it.
#[allow(
    clippy::large_enum_variant,
    reason = "almost all requests are of the large kind"
)]
pub enum Sending<'a> {
    /// Over HTTP/1.1.
    H1(Pin<Box<dyn Future<Output = Answered> + 'a>>),
    /// Over HTTP/2.
    H2(Stage<'a>),
}

/// How far a request over HTTP/2 came.
pub enum Stage<'a> {
    /// It waits until the pod takes it, which it almost always does at once.
    Opening {
        /// Over this connection.
        link: &'a Rc<Link>,
        /// Its head.
        head: Outgoing<'a>,
        /// Its body.
        body: Option<RequestBody>,
        /// For the pod to take one more.
        room: Option<Pin<Box<OwnedNotified>>>,
    },
    /// It waits for the head of the answer.
    Sent {
        /// The answer.
        answer: Option<Receiver>,
        /// The body, until it is sent.
        upload: Option<Outbound<RequestBody>>,
    },
}

impl Sending<'_> {
    /// Ready when the pod takes the request, which it almost always does at once.
    ///
    /// # Errors
    /// When the connection ends before.
    pub async fn opened(&mut self) -> Result<(), SendError> {
        match self {
            Sending::H1(_) => Ok(()),
            Sending::H2(stage) => poll_fn(|context| stage.poll_opened(context)).await,
        }
    }
}

impl Future for Sending<'_> {
    type Output = Answered;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answered> {
        match self.get_mut() {
            Sending::H1(sending) => sending.as_mut().poll(context),
            Sending::H2(stage) => stage.poll(context),
        }
    }
}

impl Stage<'_> {
    fn poll_opened(&mut self, context: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Stage::Opening {
            link,
            head,
            body,
            room,
        } = self
        else {
            return Poll::Ready(Ok(()));
        };
        let end = body.as_ref().is_none_or(RequestBody::is_end);
        let opened = loop {
            if let Some(waited) = room {
                ready!(waited.as_mut().poll(context));
            }
            match link.open(end, |encoder, out| head.write(encoder, out)) {
                Ok(None) => *room = Some(Box::pin(link.room())),
                Ok(Some(opened)) => break Ok(opened),
                Err(broken) => break Err(broken),
            }
        };
        let body = body.take();
        let (answer, sender) = match opened {
            Ok(stream) => stream,
            Err(broken) => {
                return Poll::Ready(Err(SendError {
                    error: broken.into(),
                    unsent: body.map(Box::new),
                }));
            }
        };
        let upload = body.filter(|_| !end);
        *self = Stage::Sent {
            answer: Some(answer),
            upload: upload.map(|body| Outbound::new(body, sender)),
        };
        Poll::Ready(Ok(()))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Answered> {
        ready!(self.poll_opened(context))?;
        let Stage::Sent { answer, upload } = self else {
            return Poll::Pending;
        };
        if let Some(body) = upload
            && Pin::new(body).poll(context).is_ready()
        {
            *upload = None;
        }
        let Some(waiting) = answer else {
            return Poll::Pending;
        };
        let head = ready!(waiting.poll_head(context)).map_err(|broken| SendError {
            error: broken.into(),
            unsent: None,
        })?;
        let upload = upload.take().map(|rest| {
            Upload::beside(async move {
                if let Err(error) = rest.await {
                    tracing::debug!(%error, "the rest of a request's body was not sent");
                }
            })
        });
        let Some(answer) = answer.take() else {
            return Poll::Pending;
        };
        let body = Inbound::h2(answer, &head, upload);
        Poll::Ready(Ok(Response {
            head,
            body,
            taken: None,
        }))
    }
}
