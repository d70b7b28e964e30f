//! Many clients share one connection to a pod. What one of them does with its streams must not end those of the others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use cell_router::config::{Config, Span};
use cell_router::router::Router;
use futures::stream::{FuturesUnordered, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response};
use support::{Client, config, router, row, table, until};
use titan_routing::AssignmentState::Active;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const GET: &str = "/titan.order.v1.Orders/Get";
const WATCH: &str = "/titan.order.v1.Orders/Watch";
const CHAT: &str = "/titan.chat.v1.Chat/Talk";

/// One thread, one connection to a pod, and a circuit that opens after five failures.
fn narrow() -> Config {
    let mut config = config();
    config.threads = 1;
    config.upstream.connections_per_pod = 1;
    config.breaker.consecutive_failures = 5;
    config.breaker.min_span = Span(Duration::ZERO);
    config
}

async fn router_to(config: Config, address: SocketAddr) -> Router {
    let rows = vec![row(0, 9, "cell-001", Active)];
    let table = table(1, rows, &[("cell-001", &address.to_string())]);
    router(config, Some(&table)).await
}

/// A pod of the h2 crate: it answers `Get` at once and `Watch` never.
struct Pod {
    address: SocketAddr,
    /// While this is true, it does not even read.
    paused: watch::Sender<bool>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    watches: AtomicUsize,
    resets: AtomicUsize,
    ended: AtomicUsize,
}

async fn pod(most: Option<u32>) -> Pod {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (paused, pause) = watch::channel(false);
    let seen = Arc::<Seen>::default();
    let counts = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counts.connections.fetch_add(1, SeqCst);
            tokio::spawn(serve(stream, most, pause.clone(), Arc::clone(&counts)));
        }
    });
    Pod {
        address,
        paused,
        seen,
    }
}

async fn serve(
    stream: TcpStream,
    most: Option<u32>,
    mut pause: watch::Receiver<bool>,
    seen: Arc<Seen>,
) {
    stream.set_nodelay(true).unwrap();
    let mut builder = h2::server::Builder::new();
    if let Some(most) = most {
        builder.max_concurrent_streams(most);
    }
    let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
    loop {
        pause.wait_for(|paused| !paused).await.unwrap();
        let next = tokio::select! {
            biased;
            _ = pause.wait_for(|paused| *paused) => continue,
            next = connection.accept() => next,
        };
        let Some(Ok((request, mut respond))) = next else {
            break;
        };
        if request.uri().path() == GET {
            let mut response = Response::new(());
            *response.headers_mut() = HeaderMap::from_iter([
                (
                    http::header::CONTENT_TYPE,
                    HeaderValue::from_static("application/grpc"),
                ),
                (
                    "grpc-status".parse().unwrap(),
                    HeaderValue::from_static("0"),
                ),
            ]);
            let _ = respond.send_response(response, true);
            continue;
        }
        seen.watches.fetch_add(1, SeqCst);
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let reset = poll_fn(|context| respond.poll_reset(context)).await;
            seen.resets.fetch_add(usize::from(reset.is_ok()), SeqCst);
            drop(request);
        });
    }
    seen.ended.fetch_add(1, SeqCst);
}

type Call = (h2::client::ResponseFuture, h2::SendStream<Bytes>);

/// Requests for key 5 whose bodies do not end.
async fn calls(address: SocketAddr, path: &str, count: usize, timeout: Option<&str>) -> Vec<Call> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut requests = Vec::new();
    for _ in 0..count {
        sender = sender.ready().await.unwrap();
        let mut request = Request::post(format!("http://router{path}"))
            .header("content-type", "application/grpc")
            .header("x-titan-key", "5");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let request = request.body(()).unwrap();
        requests.push(sender.send_request(request, false).unwrap());
    }
    requests
}

/// The cell serves, and nobody blames it for anything.
async fn is_well(router: &Router, client: &Client) {
    let reply = client.get(5).await;
    assert_eq!(reply.grpc_status(), Some(0), "{reply:?}");
    let cell = router.shared.cell("cell-001");
    assert_eq!(cell.health.failures(), 0, "blamed for what clients did");
}

/// h2 ends a connection for everybody when more than 20 streams were reset that it did not hand to its service yet.
#[tokio::test]
async fn clients_that_leave_together_end_no_connection_to_a_pod() {
    const COUNT: usize = 60;
    let pod = pod(None).await;
    let router = router_to(narrow(), pod.address).await;
    let client = Client::connect(router.listen).await;
    is_well(&router, &client).await;
    // The last that came leaves first, or last.
    for backwards in [true, false] {
        let before = pod.seen.resets.load(SeqCst);
        pod.paused.send_replace(true);
        let mut all = calls(router.listen, WATCH, COUNT, None).await;
        let in_flight = || router.shared.metrics.in_flight();
        until("the requests", || in_flight() == COUNT as u64).await;
        if backwards {
            all.reverse();
        }
        for (_, body) in &mut all {
            body.send_reset(h2::Reason::CANCEL);
        }
        until("the end of the requests", || in_flight() == 0).await;
        pod.paused.send_replace(false);
        // The pod hears of all of them, if not at once.
        let resets = || pod.seen.resets.load(SeqCst) - before;
        until("the resets", || {
            resets() == COUNT || pod.seen.ended.load(SeqCst) > 0
        })
        .await;
        assert_eq!(pod.seen.ended.load(SeqCst), 0, "a connection ended");
        is_well(&router, &client).await;
    }
    assert_eq!(pod.seen.connections.load(SeqCst), 1);
}

/// RFC 9113, section 6.5.2: without the setting, there is no limit.
#[tokio::test]
async fn pods_that_set_no_limit_of_streams_take_as_many_as_there_are() {
    const COUNT: usize = 240;
    let pod = pod(None).await;
    let router = router_to(narrow(), pod.address).await;
    let client = Client::connect(router.listen).await;
    is_well(&router, &client).await;
    let all = calls(router.listen, WATCH, COUNT, None).await;
    until("the requests", || pod.seen.watches.load(SeqCst) == COUNT).await;
    is_well(&router, &client).await;
    assert_eq!(pod.seen.connections.load(SeqCst), 1);
    drop(all);
}

/// Requests that wait for the router's own connections say nothing about the cell.
#[tokio::test]
async fn requests_that_no_pod_heard_of_are_not_blamed_on_the_cell() {
    let pod = pod(Some(1)).await;
    let mut config = narrow();
    config.limits.default_deadline = Span(Duration::from_millis(100));
    config.limits.max_deadline = Span(Duration::from_mins(1));
    let router = router_to(config, pod.address).await;
    let client = Client::connect(router.listen).await;
    is_well(&router, &client).await;
    let long = calls(router.listen, WATCH, 1, Some("60S")).await;
    until("the request", || pod.seen.watches.load(SeqCst) == 1).await;
    for _ in 0..10 {
        let reply = client.get(5).await;
        assert_eq!(reply.header("x-titan-router-error"), "deadline");
    }
    drop(long);
    until("the reset", || pod.seen.resets.load(SeqCst) == 1).await;
    is_well(&router, &client).await;
}

/// With HTTP/1.1, each request holds a connection for as long as its client likes. The router's own limit of connections is no
/// fault of the pod.
#[tokio::test]
async fn clients_that_hold_all_connections_make_no_pod_look_bad() {
    const COUNT: usize = 20;
    const MOST: usize = 4;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&connections);
    tokio::spawn(async move {
        let mut all = Vec::new();
        loop {
            all.push(listener.accept().await.unwrap());
            counter.store(all.len(), SeqCst);
        }
    });
    let mut config = narrow();
    config.upstream.streams_per_connection = MOST;
    let router = router_to(config, address).await;
    // All at once, so that connections are counted that are not open yet.
    let all = calls(router.listen, CHAT, COUNT, None).await;
    let page = || router.shared.metrics.render(&[]);
    let busy = "cell_router_rejections_total{reason=\"cell-busy\"} ";
    let told = || {
        let page = page();
        let count = page.lines().find_map(|line| line.strip_prefix(busy));
        count.map_or(0, |count| count.trim().parse::<usize>().unwrap())
    };
    until("the refusals", || {
        let opened = connections.load(SeqCst);
        opened > MOST || (opened == MOST && told() == COUNT - MOST)
    })
    .await;
    assert_eq!(connections.load(SeqCst), MOST);
    let (answers, _bodies): (FuturesUnordered<_>, Vec<_>) = all.into_iter().unzip();
    let refused: Vec<_> = answers.take(COUNT - MOST).collect().await;
    for answer in refused {
        let answer = answer.unwrap();
        assert_eq!(answer.headers()["x-titan-router-error"], "cell-busy");
    }
    let cell = router.shared.cell("cell-001");
    assert_eq!(cell.health.failures(), 0);
    assert!(page().contains("cell_router_dial_failures_total 0\n"));
}
