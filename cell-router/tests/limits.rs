//! Limits: what a client, a cell or a moment of too much can take from others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cell_router::config::{Config, Share, Span};
use cell_router::deadline;
use http::{HeaderValue, Method, Request};
use support::{
    Client, PREFACE, Pod, PodAnswer, config, frame, headers, pod, pod_with, router, row, table,
    until,
};
use titan_routing::AssignmentState::{Active, Moving};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PATH: &str = "/titan.order.v1.Orders/Get";
const KIB: usize = 1024;

/// One thread and one connection to each pod, so that all requests share them.
fn narrow() -> Config {
    let mut config = config();
    config.threads = 1;
    config.upstream.connections_per_pod = 1;
    config
}

fn one_cell(pod: &Pod) -> Arc<titan_routing::RoutingTable> {
    let cells = [("cell-001", &*pod.endpoint())];
    table(1, vec![row(0, 9, "cell-001", Active)], &cells)
}

/// A pod that answers each request with so many bytes.
async fn pod_of(bytes: usize) -> Pod {
    let body = Bytes::from(vec![7; bytes]);
    pod_with(Arc::new(move |_| PodAnswer::Body(body.clone()))).await
}

/// A client that asks for so many answers and takes almost nothing of them.
async fn taker_of_nothing(address: SocketAddr, requests: usize) -> Vec<h2::client::ResponseFuture> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = h2::client::Builder::new()
        .initial_window_size(100)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..requests {
        sender = sender.ready().await.unwrap();
        let request = Request::post(format!("http://router{PATH}"))
            .header("content-type", "application/grpc")
            .header("x-titan-key", "5")
            .body(())
            .unwrap();
        answers.push(sender.send_request(request, true).unwrap().0);
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_take_nothing_do_not_stop_the_answers_of_others() {
    let a = pod_of(512 * KIB).await;
    let router = router(narrow(), Some(&one_cell(&a))).await;
    let mut stuck = Vec::new();
    for _ in 0..2 {
        stuck.extend(taker_of_nothing(router.listen, 25).await);
    }
    for answer in &mut stuck {
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    assert_eq!(
        router.shared.metrics.in_flight(),
        50,
        "all of them wait for their client"
    );
    // Over the same connection to the pod.
    let client = Client::connect(router.listen).await;
    let others = async {
        for _ in 0..3 {
            let reply = client.get(5).await;
            assert_eq!(
                (reply.grpc_status(), reply.body.len()),
                (Some(0), 512 * KIB)
            );
        }
    };
    let served = tokio::time::timeout(Duration::from_secs(10), others).await;
    assert!(served.is_ok(), "an answer is stuck behind those of others");
    assert_eq!(a.connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_take_nothing_are_cut_off() {
    let a = pod_of(512 * KIB).await;
    let mut config = narrow();
    config.limits.stalled = Span(Duration::from_secs(1));
    let router = router(config, Some(&one_cell(&a))).await;
    let stuck = taker_of_nothing(router.listen, 10).await;
    let metrics = router.shared.metrics.clone();
    until("the requests", || metrics.in_flight() == 10).await;
    let client = Client::connect(router.listen).await;
    assert_eq!(client.get(5).await.body.len(), 512 * KIB);
    until("the end of the requests", || metrics.in_flight() == 0).await;
    until("the end of the connection", || metrics.connections() == 1).await;
    assert!(
        metrics
            .render(&[])
            .contains("cell_router_connections_reaped_total 1\n")
    );
    assert_eq!(
        client.get(5).await.body.len(),
        512 * KIB,
        "who takes is not cut off"
    );
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_takes_nothing_does_not_stop_what_its_clients_send_to_others() {
    // A pod that accepts connections, says what HTTP/2 wants, and never takes a byte of a body.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stuck = listener.local_addr().unwrap().to_string();
    let (taken, mut all_taken) = tokio::sync::mpsc::channel(100);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let taken = taken.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut held = Vec::new();
                while let Some(Ok(request)) = connection.accept().await {
                    held.push(request);
                    taken.send(()).await.unwrap();
                }
            });
        }
    });
    let b = pod("b").await;
    let rows = vec![
        row(0, 9, "cell-001", Active),
        row(10, 19, "cell-002", Active),
    ];
    let cells = [("cell-001", &*stuck), ("cell-002", &*b.endpoint())];
    let router = router(narrow(), Some(&table(1, rows, &cells))).await;
    // One connection, as a gateway in front would have.
    let client = Client::connect(router.listen).await;
    let body = Bytes::from(vec![7; 256 * KIB]);
    let mut waiting = Vec::new();
    for _ in 0..40 {
        let (client, body) = (client.clone(), body.clone());
        waiting.push(tokio::spawn(async move {
            client.call_with(PATH, &[("x-titan-key", "5")], body).await
        }));
    }
    for _ in 0..40 {
        let request = tokio::time::timeout(support::PATIENCE, all_taken.recv()).await;
        assert!(request.unwrap().is_some());
    }
    let others = client.call_with(PATH, &[("x-titan-key", "15")], body);
    let reply = tokio::time::timeout(Duration::from_secs(10), others).await;
    let reply = reply
        .expect("stuck behind what goes to another cell")
        .unwrap();
    assert_eq!((reply.pod(), reply.body.len()), ("b", 256 * KIB));
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_long_answer_is_no_idle_connection() {
    let long = pod_with(Arc::new(|_| PodAnswer::Later(Duration::from_secs(4)))).await;
    let mut config = narrow();
    config.limits.idle = Span(Duration::from_secs(1));
    let router = router(config, Some(&one_cell(&long))).await;
    let client = Client::connect(router.listen).await;
    assert_eq!(client.get(5).await.grpc_status(), Some(0));
    let metrics = router.shared.metrics.clone();
    assert!(
        metrics
            .render(&[])
            .contains("cell_router_connections_reaped_total 0\n")
    );
    assert_eq!(metrics.connections(), 1);
    until("the idle connection to be closed", || {
        metrics.connections() == 0
    })
    .await;
}

#[tokio::test]
async fn more_requests_than_allowed_are_refused_at_once() {
    let silent = pod_with(Arc::new(|_| PodAnswer::Silence)).await;
    let mut config = narrow();
    config.limits.in_flight = 4;
    config.limits.per_cell_in_flight = Share::Percent(100);
    let router = router(config, Some(&one_cell(&silent))).await;
    let client = Client::connect(router.listen).await;
    let timeout = [("x-titan-key", "5"), ("grpc-timeout", "1S")];
    let burst: Vec<_> = (0..50)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.call(PATH, &timeout).await.unwrap() })
        })
        .collect();
    let mut errors = std::collections::BTreeMap::<String, usize>::new();
    for request in burst {
        let reply = request.await.unwrap();
        let error = reply.header("x-titan-router-error").to_owned();
        *errors.entry(error).or_default() += 1;
    }
    assert_eq!(
        (errors["deadline"], errors["overloaded"], silent.requests()),
        (4, 46, 4),
        "{errors:?}"
    );
    // When they ended, there is room again.
    let again = async {
        while client
            .call(PATH, &timeout)
            .await
            .unwrap()
            .header("x-titan-router-error")
            != "deadline"
        {}
    };
    tokio::time::timeout(support::PATIENCE, again)
        .await
        .unwrap();
}

/// A client sends the bodies of requests that it does not know to be refused yet.
#[tokio::test]
async fn refusals_do_not_end_the_connection() {
    let router = router(narrow(), None).await;
    let mut stream = TcpStream::connect(router.listen).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(PREFACE).await.unwrap();
    let ids = |range: std::ops::Range<u32>| range.map(|index| index * 2 + 1);
    let body = |id| frame(0, 0x1, id, b"late");
    // One after the other, and many more than resets can be remembered.
    for id in ids(0..5_000) {
        let head = frame(1, 0x4, id, &headers());
        stream.write_all(&head).await.unwrap();
        while next_frame(&mut stream).await != (1, id) {}
        stream.write_all(&body(id)).await.unwrap();
    }
    // A burst, of which the bodies come after the router gave up waiting for them.
    for id in ids(5_000..5_200) {
        let head = frame(1, 0x4, id, &headers());
        stream.write_all(&head).await.unwrap();
    }
    for id in ids(5_000..5_200) {
        while next_frame(&mut stream).await != (3, id) {}
    }
    for id in ids(5_000..5_200) {
        stream.write_all(&body(id)).await.unwrap();
    }
    stream
        .write_all(&frame(6, 0, 0, b"are-you?"))
        .await
        .unwrap();
    while next_frame(&mut stream).await.0 != 6 {}
}

/// Clients may cancel as much as they like: what is cancelled as soon as it is asked costs the cells nothing.
#[tokio::test]
async fn requests_that_are_reset_at_once_reach_no_cell() {
    let a = pod("a").await;
    let router = router(narrow(), Some(&one_cell(&a))).await;
    let good = Client::connect(router.listen).await;
    assert_eq!(good.get(5).await.pod(), "a");
    let mut all = PREFACE.to_vec();
    for id in (0..300).map(|index| index * 2 + 1) {
        all.extend(frame(1, 0x5, id, &headers()));
        all.extend(frame(3, 0, id, &8_u32.to_be_bytes()));
    }
    all.extend(frame(6, 0, 0, b"are-you?"));
    let mut stream = TcpStream::connect(router.listen).await.unwrap();
    stream.write_all(&all).await.unwrap();
    while next_frame(&mut stream).await.0 != 6 {}
    assert_eq!(good.get(5).await.pod(), "a");
    // Those whose reset was in the next packet may.
    assert!(a.requests() < 10, "{} requests", a.requests());
}

/// Nothing that a client makes up may look like the failure of a cell, which would open its circuit for everybody.
#[tokio::test]
async fn what_pods_would_refuse_is_not_blamed_on_them() {
    let a = pod("a").await;
    let router = router(narrow(), Some(&one_cell(&a))).await;
    let mut stream = TcpStream::connect(router.listen).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    // In place of the last byte of a value, one that no URI has.
    for (id, value, byte) in [(1, &b"Orders/Get"[..], b'<'), (3, b":authority\x01x", 0xff)] {
        let mut block = headers();
        let at = block.windows(value.len()).position(|it| it == value);
        block[at.unwrap() + value.len() - 1] = byte;
        stream.write_all(&frame(1, 0x5, id, &block)).await.unwrap();
        while next_frame(&mut stream).await != (1, id) {}
    }
    let page = router.shared.metrics.render(&[]);
    let told = |reason: &str| {
        let name = format!("cell_router_rejections_total{{reason=\"{reason}\"}}");
        let line = page.lines().find_map(|line| line.strip_prefix(&*name));
        line.map_or("0", str::trim).to_owned()
    };
    assert_eq!((&*told("bad-request"), &*told("broken")), ("2", "0"));
}

/// The type and the stream of the next frame.
async fn next_frame(stream: &mut TcpStream) -> (u8, u32) {
    let read = async {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        stream.read_exact(&mut vec![0; length]).await.unwrap();
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        assert_ne!(head[3], 7, "the router ends the connection");
        (head[3], id)
    };
    tokio::time::timeout(support::PATIENCE, read).await.unwrap()
}

#[tokio::test]
async fn requests_are_refused_while_memory_is_short() {
    let a = pod("a").await;
    let router = router(narrow(), Some(&one_cell(&a))).await;
    let client = Client::connect(router.listen).await;
    assert_eq!(client.get(5).await.pod(), "a");
    let mut short = narrow();
    short.limits.memory_bytes = 1;
    router.shared.use_config(short).unwrap();
    until("the watch over memory", || router.shared.is_overloaded()).await;
    let reply = client.get(5).await;
    assert_eq!(
        (reply.grpc_status(), reply.header("x-titan-router-error")),
        (Some(14), "overloaded")
    );
    let page = support::page(router.metrics, "/metrics").await;
    assert!(page.contains("cell_router_overloaded 1\n"), "{page}");
    assert!(page.contains("cell_router_rejections_total{reason=\"overloaded\"} 1\n"));
    let ready = support::page(router.metrics, "/readyz").await;
    assert!(
        ready.starts_with("HTTP/1.1 200"),
        "shedding is not leaving: {ready}"
    );
    router.shared.use_config(narrow()).unwrap();
    until("memory again", || !router.shared.is_overloaded()).await;
    assert_eq!(client.get(5).await.pod(), "a");
}

#[tokio::test]
async fn limits_of_connections_change_without_a_restart() {
    let a = pod("a").await;
    let router = router(narrow(), Some(&one_cell(&a))).await;
    let client = Client::connect(router.listen).await;
    assert_eq!(client.get(5).await.pod(), "a");
    let mut few = narrow();
    few.limits.connections = 1;
    router.shared.use_config(few).unwrap();
    let mut refused = TcpStream::connect(router.listen).await.unwrap();
    assert_eq!(refused.read(&mut [0]).await.unwrap(), 0);
    let metrics = router.shared.metrics.render(&[]);
    assert!(metrics.contains("cell_router_connections_refused_total 1\n"));
    router.shared.use_config(narrow()).unwrap();
    assert_eq!(Client::connect(router.listen).await.get(5).await.pod(), "a");
}

/// A client that sends a byte now and then holds a connection for as long as it likes, unless its head has to end.
#[tokio::test]
async fn a_head_that_trickles_in_is_cut_off_and_an_idle_connection_is_not() {
    let a = pod("a").await;
    let mut config = narrow();
    config.limits.header_timeout = Span(Duration::from_secs(1));
    let router = router(config, Some(&one_cell(&a))).await;
    let request = format!("GET {PATH} HTTP/1.1\r\nHost: x\r\nx-titan-key: 5\r\n\r\n");
    let mut idle = TcpStream::connect(router.listen).await.unwrap();
    let answered = async |stream: &mut TcpStream| {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n0\r\n\r\n") {
            seen.push(stream.read_u8().await.unwrap());
        }
    };
    answered(&mut idle).await;

    let mut slow = TcpStream::connect(router.listen).await.unwrap();
    // The head of a second request is no different.
    answered(&mut slow).await;
    slow.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
    let (mut read, mut write) = slow.into_split();
    let trickle = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut rest = Vec::new();
    let end = tokio::time::timeout(support::PATIENCE, read.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "it is let go on");
    trickle.abort();
    answered(&mut idle).await;
}

/// The same over HTTP/2: a connection that said nothing, one whose head has no end, and one that stopped amid a frame.
#[tokio::test]
async fn a_stream_that_does_not_begin_is_cut_off_and_an_idle_connection_is_not() {
    let a = pod("a").await;
    let mut config = narrow();
    config.limits.header_timeout = Span(Duration::from_secs(1));
    let router = router(config, Some(&one_cell(&a))).await;
    let good = Client::connect(router.listen).await;
    assert_eq!(good.get(5).await.pod(), "a");
    let whole = frame(1, 0x5, 1, &headers());
    for start in [
        &[][..],
        &frame(1, 0, 1, &headers()),
        &[&whole, &frame(1, 0x5, 3, &headers())[..20]].concat(),
    ] {
        let mut stream = TcpStream::connect(router.listen).await.unwrap();
        // The preface without the settings that follow it, or with.
        let preface = if start.is_empty() {
            &PREFACE[..24]
        } else {
            PREFACE
        };
        stream.write_all(&[preface, start].concat()).await.unwrap();
        let mut rest = Vec::new();
        let end = tokio::time::timeout(support::PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "it is let go on after {start:?}");
    }
    assert_eq!(good.get(5).await.pod(), "a");
}

#[tokio::test]
async fn a_deadline_shrinks_on_its_way() {
    let a = pod("a").await;
    let cells = [("cell-001", &*a.endpoint())];
    let mut config = config();
    config.hold.max_wait = Span(Duration::from_millis(300));
    config.limits.max_deadline = Span(Duration::from_mins(1));
    let held = table(1, vec![row(0, 9, "cell-001", Moving)], &cells);
    let router = router(config.clone(), Some(&held)).await;
    let client = Client::connect(router.listen).await;
    let seen = async |timeout: &str| {
        let headers = [("x-titan-key", "5"), ("grpc-timeout", timeout)];
        let reply = client.call(PATH, &headers).await.unwrap();
        deadline::parse(reply.header("x-seen-timeout").as_bytes()).unwrap()
    };
    // It waited for the move for 300 ms.
    let left = seen("10S").await;
    let most = Duration::from_millis(9_700);
    assert!(left <= most && left > Duration::from_secs(1), "{left:?}");
    let left = seen("2H").await;
    assert!(left <= Duration::from_mins(1), "cut to the limit: {left:?}");

    router
        .shared
        .use_table(table(2, vec![row(0, 9, "cell-001", Active)], &cells));
    let left = seen("2H").await;
    assert!(
        left <= Duration::from_mins(1),
        "without a wait, too: {left:?}"
    );
    let left = seen("30S").await;
    assert!(left <= Duration::from_secs(30), "{left:?}");

    // A wait longer than the deadline ends with it, and the cell never hears of the request.
    config.hold.max_wait = Span(support::PATIENCE);
    router.shared.use_config(config).unwrap();
    router
        .shared
        .use_table(table(3, vec![row(0, 9, "cell-001", Moving)], &cells));
    let before = a.requests();
    let started = Instant::now();
    let headers = [("x-titan-key", "5"), ("grpc-timeout", "50m")];
    let reply = client.call(PATH, &headers).await.unwrap();
    assert_eq!(reply.header("x-titan-router-error"), "deadline");
    assert!(started.elapsed() < support::PATIENCE / 2);
    assert_eq!(a.requests(), before);
}

#[tokio::test]
async fn connect_is_refused_and_hurts_nobody() {
    let a = pod("a").await;
    let router = router(config(), Some(&one_cell(&a))).await;
    let stream = TcpStream::connect(router.listen).await.unwrap();
    let request = "CONNECT order.test:443 HTTP/1.1\r\nHost: order.test\r\nx-titan-key: 5\r\nConnection: close\r\n\r\n";
    let answer = support::raw(stream, request).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("\"bad-request\""), "{answer}");

    let stream = TcpStream::connect(router.listen).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = "order.test:443".parse().unwrap();
    let key = HeaderValue::from_static("5");
    request.headers_mut().insert("x-titan-key", key);
    sender = sender.ready().await.unwrap();
    let answer = sender.send_request(request, true).unwrap().0.await.unwrap();
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.headers()["x-titan-router-error"], "bad-request");

    // WebSocket over HTTP/2 (RFC 8441) is not offered in the settings, so browsers do not try it.
    assert!(!sender.is_extended_connect_protocol_enabled());
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = "http://order.test/socket".parse().unwrap();
    request
        .extensions_mut()
        .insert(h2::ext::Protocol::from_static("websocket"));
    let answer = match sender.send_request(request, false) {
        Ok((answer, _body)) => answer.await.map(|answer| answer.status().as_u16()),
        Err(error) => Err(error),
    };
    assert!(answer.is_err() || answer.unwrap() == 400);
    assert_eq!(Client::connect(router.listen).await.get(5).await.pod(), "a");
    assert_eq!(a.requests(), 1);
}
