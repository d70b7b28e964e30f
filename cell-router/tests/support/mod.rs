//! Real sockets on loopback: pods that answer gRPC-shaped requests, a client, a router between them.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

pub mod process;
pub mod tokens;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use cell_router::config::{Config, Protocol, Service, Span, TrustedPeers};
use cell_router::router::{Router, Start};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use titan_routing::client::{RegistryConfig, TableFile};
use titan_routing::{
    Assignment, AssignmentState, CellEndpoint, Epoch, Key, KeyRange, KeyspaceMode, RoutingTable,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How long a test waits for something that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a condition.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, wait).await.is_ok(),
        "waited in vain for: {what}"
    );
}

/// A row of a table under test.
pub fn row(first: u64, last: u64, cell: &str, state: AssignmentState) -> Assignment {
    Assignment {
        range: KeyRange::new(Key::new(first).unwrap(), Key::new(last).unwrap()).unwrap(),
        cell: cell.into(),
        home: cell.into(),
        state,
        epoch: Epoch(1),
    }
}

/// A table: rows, and an endpoint for each cell.
pub fn table(epoch: u64, rows: Vec<Assignment>, cells: &[(&str, &str)]) -> Arc<RoutingTable> {
    let cells = cells
        .iter()
        .map(|(cell, endpoint)| CellEndpoint {
            cell: (*cell).into(),
            region: "here".into(),
            endpoint: (*endpoint).into(),
        })
        .collect();
    Arc::new(RoutingTable::new(Epoch(epoch), KeyspaceMode::UserId, rows, cells, vec![]).unwrap())
}

/// One thread, and a circuit that opens after so many failures and stays so for long.
pub fn touchy(failures: u32) -> Config {
    let mut config = config();
    config.threads = 1;
    config.breaker.consecutive_failures = failures;
    config.breaker.min_span = Span(Duration::ZERO);
    config.breaker.open = Span(Duration::from_mins(1));
    config.breaker.max_open = Span(Duration::from_mins(1));
    config
}

/// A configuration with free ports, two threads, and the service `order`, `cart` and `chat` (HTTP/1.1).
pub fn config() -> Config {
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let service = |protocol| Service { port: 1, protocol };
    let mut config = Config {
        listen: local,
        metrics: local,
        admin: local,
        threads: 2,
        trusted_peers: TrustedPeers::Any,
        services: BTreeMap::from([
            ("order".into(), service(Protocol::H2)),
            ("cart".into(), service(Protocol::H2)),
            ("chat".into(), service(Protocol::H1)),
        ]),
        ..Config::default()
    };
    config.drain.delay = Span(Duration::from_millis(50));
    config.upstream.connect_timeout = Span(Duration::from_millis(500));
    config
}

/// A router without a registry, with a table of its own on disk or handed in later.
pub async fn router(config: Config, table: Option<&RoutingTable>) -> Router {
    let directory = tempfile::tempdir().unwrap();
    if let Some(table) = table {
        TableFile::new(directory.path(), "main")
            .save(table)
            .unwrap();
    }
    let mut registry = RegistryConfig::new("main", "");
    registry.state_dir = Some(directory.path().to_owned());
    // It goes with the runtime, and so with the test.
    tokio::spawn(async move {
        let _directory = directory;
        std::future::pending::<()>().await;
    });
    start(config, registry).await
}

/// A router with a registry.
pub async fn start(config: Config, registry: RegistryConfig) -> Router {
    Router::start(Start {
        config,
        config_file: None,
        registry,
    })
    .await
    .unwrap()
}

/// One HTTP/1.1 exchange, as bytes, to the end of the connection.
pub async fn raw(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer));
    read.await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A page of the router.
pub async fn page(address: SocketAddr, path: &str) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    raw(stream, &request).await
}

/// What an HTTP/2 client says first: the preface and empty settings.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `POST /titan.order.v1.Orders/Get` as HPACK literals, without an end of the headers.
pub fn headers() -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    for (name, value) in [
        (":path", "/titan.order.v1.Orders/Get"),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("x-titan-key", "5"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

type Answer = BoxBody<Bytes, Infallible>;

/// How a pod answers.
pub type Behaviour = Arc<dyn Fn(Request<Bytes>) -> PodAnswer + Send + Sync>;

/// What a pod answers.
pub enum PodAnswer {
    /// A body and trailers with this gRPC status.
    Grpc(u8, HeaderMap),
    /// Trailers alone.
    TrailersOnly(HeaderMap),
    /// These bytes.
    Body(Bytes),
    /// The head at once, and the rest after this time.
    Later(Duration),
    /// Nothing, ever.
    Silence,
}

/// A pod: an HTTP/2 server that says who it is.
pub struct Pod {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
    pub connections: Arc<AtomicUsize>,
    stop: watch::Sender<Stop>,
    /// Closed when the pod does not listen any more.
    listening: watch::Receiver<()>,
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Stop {
    No,
    /// No new connections.
    Accepting,
    Gracefully,
    AtOnce,
}

/// A pod that answers OK and names itself in `x-pod`, with the key and the epoch that it saw.
pub async fn pod(name: &str) -> Pod {
    let name: HeaderValue = name.parse().unwrap();
    pod_with(Arc::new(move |request| {
        let mut headers = HeaderMap::new();
        headers.insert("x-pod", name.clone());
        for (header, seen) in [
            ("x-titan-key", "x-seen-key"),
            ("x-titan-epoch", "x-seen-epoch"),
            ("traceparent", "x-seen-trace"),
            ("grpc-timeout", "x-seen-timeout"),
            ("x-titan-trust", "x-seen-trust"),
        ] {
            if let Some(value) = request.headers().get(header) {
                headers.insert(seen, value.clone());
            }
        }
        PodAnswer::Grpc(0, headers)
    }))
    .await
}

/// A pod with a behaviour of its own.
pub async fn pod_with(behaviour: Behaviour) -> Pod {
    pod_at("127.0.0.1:0".parse().unwrap(), behaviour).await
}

/// The same at an address.
pub async fn pod_at(at: SocketAddr, behaviour: Behaviour) -> Pod {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (requests, connections) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (stop, stopped) = watch::channel(Stop::No);
    let (listens, listening) = watch::channel(());
    let counters = (requests.clone(), connections.clone());
    tokio::spawn(async move {
        let mut stopping = stopped.clone();
        let admit = |stream: TcpStream| {
            stream.set_nodelay(true).unwrap();
            counters.1.fetch_add(1, SeqCst);
            tokio::spawn(serve(
                stream,
                behaviour.clone(),
                counters.0.clone(),
                stopped.clone(),
            ));
        };
        loop {
            tokio::select! {
                accepted = listener.accept() => admit(accepted.unwrap().0),
                _ = stopping.wait_for(|stop| *stop != Stop::No) => break,
            }
        }
        // What the kernel completed already would be reset with the socket.
        let listener = listener.into_std().unwrap();
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            admit(TcpStream::from_std(stream).unwrap());
        }
        drop((listener, listens));
    });
    Pod {
        address,
        requests,
        connections,
        stop,
        listening,
    }
}

async fn serve(
    stream: TcpStream,
    behaviour: Behaviour,
    requests: Arc<AtomicUsize>,
    mut stop: watch::Receiver<Stop>,
) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        requests.fetch_add(1, SeqCst);
        let behaviour = behaviour.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes);
            let request = Request::from_parts(head, body.unwrap_or_default());
            let body = request.body().clone();
            match behaviour(request) {
                PodAnswer::Grpc(status, headers) => {
                    Ok::<_, Infallible>(grpc(status, headers, body))
                }
                PodAnswer::TrailersOnly(headers) => {
                    let mut response = Response::new(Full::default().boxed());
                    *response.headers_mut() = headers;
                    response
                        .headers_mut()
                        .insert("content-type", HeaderValue::from_static("application/grpc"));
                    Ok(response)
                }
                PodAnswer::Body(body) => Ok(grpc(0, HeaderMap::new(), body)),
                PodAnswer::Later(time) => Ok(later(time)),
                PodAnswer::Silence => std::future::pending().await,
            }
        }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // Clients that leave are no attack, however many of them a pod that stalls finds at once.
    builder.max_pending_accept_reset_streams(Some(10_000));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let how = tokio::select! {
        _ = connection.as_mut() => return,
        how = stop.wait_for(|stop| *stop >= Stop::Gracefully) => how.map_or(Stop::AtOnce, |how| *how),
    };
    if how == Stop::Gracefully {
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            _ = connection => {}
            _ = stop.wait_for(|stop| *stop == Stop::AtOnce) => {}
        }
    }
}

fn grpc(status: u8, headers: HeaderMap, body: Bytes) -> Response<Answer> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(u16::from(status)));
    let frames = [Ok(Frame::data(body)), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures::stream::iter(
        frames,
    ))));
    *response.headers_mut() = headers;
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn later(time: Duration) -> Response<Answer> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let end = async move {
        tokio::time::sleep(time).await;
        Ok(Frame::trailers(trailers))
    };
    let body = StreamBody::new(futures::stream::once(Box::pin(end)));
    let mut response = Response::new(BodyExt::boxed(body));
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

impl Pod {
    /// No new connections, GOAWAY, and the end when the last request ended.
    pub async fn stop_gracefully(&self) {
        self.stop.send_replace(Stop::Accepting);
        // Who is told to leave must not find the door open, to be reset behind it.
        let mut listening = self.listening.clone();
        while listening.changed().await.is_ok() {}
        self.stop.send_replace(Stop::Gracefully);
    }

    /// Breaks all connections.
    pub fn kill(&self) {
        self.stop.send_replace(Stop::AtOnce);
    }

    /// The endpoint of a cell that consists of this pod.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    pub fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }
}

/// A client with one HTTP/2 connection.
#[derive(Clone)]
pub struct Client {
    sender: hyper::client::conn::http2::SendRequest<Full<Bytes>>,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Reply {
    /// The gRPC status, wherever it stands.
    pub fn grpc_status(&self) -> Option<u16> {
        let value = self
            .trailers
            .get("grpc-status")
            .or_else(|| self.headers.get("grpc-status"))?;
        value.to_str().ok()?.parse().ok()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub fn pod(&self) -> &str {
        self.header("x-pod")
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).await.unwrap()
    }

    pub async fn try_connect(address: SocketAddr) -> Result<Self, Box<dyn std::error::Error>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream).await?)
    }

    /// Speaks HTTP/2 over something that is connected already.
    pub async fn over<S>(stream: S) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Client { sender })
    }

    /// Calls `Orders/Get` of `order` with a key.
    pub async fn get(&self, key: u64) -> Reply {
        self.call(
            "/titan.order.v1.Orders/Get",
            &[("x-titan-key", &key.to_string())],
        )
        .await
        .unwrap()
    }

    pub async fn call(&self, path: &str, headers: &[(&str, &str)]) -> Result<Reply, hyper::Error> {
        self.call_with(path, headers, Bytes::from_static(b"\0\0\0\0\x05hello"))
            .await
    }

    pub async fn call_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Reply, hyper::Error> {
        let mut request = Request::post(format!("http://router{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).unwrap();
        let response = self.sender.clone().send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        Ok(Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            trailers: body.trailers().cloned().unwrap_or_default(),
            body: body.to_bytes(),
        })
    }

    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
