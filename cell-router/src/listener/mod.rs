//! Where clients come in: sockets, connections and their limits, and how they are told to leave.

mod client;
mod h2;
mod heads;

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use client::{Client, Watched};
use heads::Heads;
use http::{HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use crate::body::answer::Answer;
use crate::config::Config;
use crate::identity::Peer;
use crate::inbound::Inbound;
use crate::proxy::{self, Request};
use crate::shared::Phase;
use crate::worker::Worker;
use crate::{h1, upgrade};

/// A silent client is asked whether it is still there: a WebSocket can be silent for long.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// While memory is short, connections without requests are closed after this.
const IDLE_WHEN_SHORT: Duration = Duration::from_secs(1);

/// A listening socket that other threads, and the next process, can share the port of.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Accepts and serves until the process drains; then returns when the last connection ended.
pub async fn serve(worker: Rc<Worker>, listener: TcpListener) {
    let clients: Rc<RefCell<Vec<Weak<Client>>>> = Rc::default();
    let housekeeping = tokio::task::spawn_local(keep_house(worker.clone(), clients.clone()));
    let mut phases = worker.shared.phase.subscribe();
    // It may have changed before.
    phases.mark_changed();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phases.changed() => {
                let phase = *phases.borrow_and_update();
                worker.leaving.set(phase > Phase::Serving);
                if phase == Phase::Draining {
                    break;
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, address)) => admit(&worker, &clients, stream, address),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of file descriptors: it gets better when connections end.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    // Connections that the kernel completed already are served, too. The socket itself is asked: the runtime knows only of
    // those that came before its last look, and the others would be reset.
    match listener.into_std() {
        Ok(listener) => {
            while let Some((stream, address)) = completed(&listener) {
                admit(&worker, &clients, stream, address);
            }
        }
        Err(error) => tracing::warn!(%error, "cannot accept the last connections"),
    }
    for client in clients.borrow().iter().filter_map(Weak::upgrade) {
        client.leave();
    }
    while worker.metrics.connections.get() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    housekeeping.abort();
}

/// The next connection that the kernel has completed, if there is one.
fn completed(listener: &std::net::TcpListener) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = listener.accept().and_then(|(stream, address)| {
            stream.set_nonblocking(true)?;
            Ok((TcpStream::from_std(stream)?, address))
        });
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return None,
                // The client left meanwhile; there may be others.
                io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                _ => {
                    tracing::warn!(%error, "cannot accept a connection");
                    return None;
                }
            },
        }
    }
}

fn admit(
    worker: &Rc<Worker>,
    clients: &Rc<RefCell<Vec<Weak<Client>>>>,
    stream: TcpStream,
    address: SocketAddr,
) {
    // A connection keeps the limits that it began with.
    let config = worker.shared.config.load_full();
    worker.metrics.accepted.add(1);
    let most = (config.limits.connections as u64).div_ceil(worker.threads as u64);
    let full = worker.metrics.connections.get() >= most;
    if full || worker.shared.memory_short.load(Relaxed) {
        worker.metrics.refused_connections.add(1);
        return;
    }
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(&stream);
    let _ = socket.set_tcp_user_timeout(Some(config.limits.stalled.0));
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE));
    let client = Rc::new(Client::new(worker.shared.clock));
    clients.borrow_mut().push(Rc::downgrade(&client));
    worker.metrics.connections.add(1);
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        let open = OpenConnection(worker);
        let limit = config.limits.header_timeout.0;
        let ip = address.ip();
        let tls = open.0.shared.tls.load_full();
        let served = match tls {
            Some(tls) => Box::pin(encrypted(&open.0, &config, client, ip, stream, tls)).await,
            None => match tokio::time::timeout(limit, speaks_h2(&stream)).await {
                Ok(Ok(h2)) => {
                    let peer = Rc::new(Peer {
                        ip,
                        certified: false,
                    });
                    serve_protocol(&open.0, &config, client, peer, stream, h2).await;
                    true
                }
                Ok(Err(_)) => true,
                Err(_) => false,
            },
        };
        if !served {
            open.0.metrics.reaped_connections.add(1);
        }
    });
}

/// TLS, then what was agreed upon in it. False when the client took too long.
async fn encrypted(
    worker: &Rc<Worker>,
    config: &Config,
    client: Rc<Client>,
    ip: std::net::IpAddr,
    stream: TcpStream,
    tls: Arc<rustls::ServerConfig>,
) -> bool {
    let accepting = tokio_rustls::TlsAcceptor::from(tls).accept(stream);
    let stream = match tokio::time::timeout(config.limits.header_timeout.0, accepting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, %ip, "no TLS with a client");
            return true;
        }
        Err(_) => return false,
    };
    let session = stream.get_ref().1;
    let h2 = session.alpn_protocol() == Some(b"h2");
    let peer = Rc::new(Peer {
        ip,
        certified: session.peer_certificates().is_some(),
    });
    serve_protocol(worker, config, client, peer, stream, h2).await;
    true
}

async fn serve_protocol<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    worker: &Rc<Worker>,
    config: &Config,
    client: Rc<Client>,
    peer: Rc<Peer>,
    stream: S,
    speaks_h2: bool,
) {
    if speaks_h2 {
        h2::serve(worker, config, client, peer, stream).await;
    } else {
        serve_h1(worker, config, client, peer, stream).await;
    }
}

/// Counts a connection until it ends, however it ends.
struct OpenConnection(Rc<Worker>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.metrics.connections.sub(1);
    }
}

/// Whether the client starts with the preface of HTTP/2.
async fn speaks_h2(stream: &TcpStream) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0";
    let mut start = [0; PREFACE.len()];
    loop {
        let read = stream.peek(&mut start).await?;
        let seen = start.get(..read).unwrap_or_default();
        if !PREFACE.starts_with(seen) || read == 0 {
            return Ok(false);
        }
        // `PRI` is enough: no method of HTTP/1 starts like this.
        if read >= 3 {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn serve_h1<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    worker: &Rc<Worker>,
    config: &Config,
    client: Rc<Client>,
    peer: Rc<Peer>,
    stream: S,
) {
    let heads = Heads::new(stream, client.heads(), worker.shared.clock);
    let service = {
        let (worker, client) = (Rc::clone(worker), Rc::clone(&client));
        service_fn(move |request| answer(&worker, &client, &peer, request))
    };
    let connection = http1::Builder::new()
        // Housekeeping tells a head that takes too long from a connection that does nothing.
        .header_read_timeout(None)
        .max_buf_size((config.limits.header_bytes as usize).max(8 * 1024))
        .serve_connection(TokioIo::new(heads), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        result = connection.as_mut() => {
            ended(result);
            return;
        }
        () = client.left() => {}
    }
    connection.as_mut().graceful_shutdown();
    if client.was_reaped() {
        let _ = tokio::time::timeout(Duration::from_secs(5), connection).await;
    } else {
        ended(connection.await);
    }
}

fn ended(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a client's connection ended");
    }
}

fn answer(
    worker: &Rc<Worker>,
    client: &Rc<Client>,
    peer: &Rc<Peer>,
    request: http::Request<Incoming>,
) -> impl Future<Output = Result<http::Response<h1::Sent<Watched>>, Infallible>> + use<> {
    let busy = Client::busy(client);
    let (mut parts, body) = request.into_parts();
    let upgrade = upgrade::wanted(&mut parts);
    let request = Request {
        head: h1::request_from(&mut parts),
        body: Inbound::H1(body),
        upgrade,
    };
    // Boxed once: hyper moves the future a few times.
    let answer = Box::pin(proxy::handle(Rc::clone(worker), Rc::clone(peer), request));
    let worker = Rc::clone(worker);
    async move {
        let Answer { head, body } = answer.await;
        let mut response = h1::answer_to(&head, h1::Sent(Watched::new(body, busy)));
        // So that no request of a client meets the end of its connection: HTTP/1.1 has no other way to say it.
        if worker.leaving.get() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        Ok(response)
    }
}

/// Closes what was idle or stalled for too long, here and towards the pods.
async fn keep_house(worker: Rc<Worker>, clients: Rc<RefCell<Vec<Weak<Client>>>>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let config = worker.shared.config.load_full();
        let limits = &config.limits;
        let short = worker.shared.memory_short.load(Relaxed);
        let idle = |idle: Duration| {
            if short {
                idle.min(IDLE_WHEN_SHORT)
            } else {
                idle
            }
        };
        let idle_clients = idle(limits.idle.0);
        clients.borrow_mut().retain(|client| {
            let Some(client) = client.upgrade() else {
                return false;
            };
            if client.reap(idle_clients, limits.header_timeout.0, limits.stalled.0) {
                worker.metrics.reaped_connections.add(1);
            }
            true
        });
        worker.reap(idle(config.upstream.idle.0));
    }
}
