//! Who is blamed for a request that fails, and what a blamed cell can and cannot take from others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use cell_router::config::{Config, Share, Span};
use cell_router::router::Router;
use http::{HeaderMap, Request};
use support::{Client, Pod, PodAnswer, config, pod, pod_with, router, row, table, touchy, until};
use titan_routing::AssignmentState::Active;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

const PATH: &str = "/titan.order.v1.Orders/Get";
const WATCH: &str = "/titan.order.v1.Orders/Watch";

fn one_cell(endpoint: &str) -> Arc<titan_routing::RoutingTable> {
    table(
        1,
        vec![row(0, 9, "cell-001", Active)],
        &[("cell-001", endpoint)],
    )
}

/// Requests for key 5 whose bodies are under way.
async fn unfinished(
    address: SocketAddr,
    count: usize,
    timeout: &str,
) -> Vec<(h2::client::ResponseFuture, h2::SendStream<Bytes>)> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut requests = Vec::new();
    for _ in 0..count {
        sender = sender.ready().await.unwrap();
        let request = Request::post(format!("http://router{PATH}"))
            .header("content-type", "application/grpc")
            .header("x-titan-key", "5")
            .header("grpc-timeout", timeout)
            .body(())
            .unwrap();
        let (answer, mut body) = sender.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"half"), false).unwrap();
        requests.push((answer, body));
    }
    requests
}

async fn ends(router: &Router) {
    until("the end of the requests", || {
        router.shared.metrics.in_flight() == 0
    })
    .await;
}

/// The circuits are closed, and the cell serves.
async fn serves(router: &Router) {
    let reply = Client::connect(router.listen).await.get(5).await;
    assert_eq!(reply.grpc_status(), Some(0), "{reply:?}");
    let cell = router.shared.cell("cell-001");
    assert_eq!(cell.health.failures(), 0, "blamed for what clients did");
}

#[tokio::test]
async fn clients_that_cancel_open_no_circuit() {
    let a = pod("a").await;
    let router = router(touchy(5), Some(&one_cell(&a.endpoint()))).await;
    let mut requests = unfinished(router.listen, 20, "10S").await;
    until("the requests", || a.requests() == 20).await;
    for (_, body) in &mut requests {
        body.send_reset(h2::Reason::CANCEL);
    }
    ends(&router).await;
    serves(&router).await;
}

#[tokio::test]
async fn clients_that_give_no_time_open_no_circuit() {
    let a = pod("a").await;
    let router = router(touchy(5), Some(&one_cell(&a.endpoint()))).await;
    let client = Client::connect(router.listen).await;
    for _ in 0..20 {
        let headers = [("x-titan-key", "5"), ("grpc-timeout", "1u")];
        client.call(PATH, &headers).await.unwrap();
    }
    ends(&router).await;
    serves(&router).await;
}

#[tokio::test]
async fn clients_that_send_no_more_open_no_circuit() {
    let a = pod("a").await;
    let router = router(touchy(5), Some(&one_cell(&a.endpoint()))).await;
    for (answer, _body) in unfinished(router.listen, 20, "1100m").await {
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers()["x-titan-router-error"], "deadline");
    }
    serves(&router).await;
}

#[tokio::test]
async fn clients_that_leave_in_the_middle_open_no_circuit() {
    let a = pod("a").await;
    let router = router(touchy(5), Some(&one_cell(&a.endpoint()))).await;
    for _ in 0..20 {
        let before = a.requests();
        let mut stream = TcpStream::connect(router.listen).await.unwrap();
        let request = format!(
            "POST {PATH} HTTP/1.1\r\nHost: x\r\nx-titan-key: 5\r\nContent-Length: 100\r\n\r\nhalf"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        until("the request", || a.requests() > before).await;
    }
    ends(&router).await;
    serves(&router).await;
}

#[tokio::test]
async fn clients_that_speak_of_their_own_connection_open_no_circuit() {
    let a = pod("a").await;
    let router = router(touchy(5), Some(&one_cell(&a.endpoint()))).await;
    for _ in 0..20 {
        let stream = TcpStream::connect(router.listen).await.unwrap();
        let request = format!(
            "GET {PATH} HTTP/1.1\r\nHost: x\r\nx-titan-key: 5\r\nTE: gzip\r\nConnection: close\r\n\r\n"
        );
        let answer = support::raw(stream, &request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    serves(&router).await;
}

#[tokio::test]
async fn clients_that_send_too_much_open_no_circuit_and_hear_of_it() {
    let a = pod("a").await;
    let mut config = touchy(5);
    config.limits.body_bytes = 1000;
    let router = router(config, Some(&one_cell(&a.endpoint()))).await;
    for (answer, mut body) in unfinished(router.listen, 20, "10S").await {
        body.send_data(Bytes::from(vec![7; 2000]), false).unwrap();
        let answer = answer.await.unwrap();
        let headers = answer.headers();
        assert_eq!(headers["x-titan-router-error"], "too-large");
        assert_eq!(headers["grpc-status"], "8");
    }
    ends(&router).await;
    serves(&router).await;
}

#[tokio::test]
async fn a_cell_that_had_time_is_blamed() {
    let silent = pod_with(Arc::new(|_| PodAnswer::Silence)).await;
    let router = router(touchy(5), Some(&one_cell(&silent.endpoint()))).await;
    let client = Client::connect(router.listen).await;
    let requests = (0..5).map(|_| {
        let client = client.clone();
        let headers = [("x-titan-key", "5"), ("grpc-timeout", "1100m")];
        async move { client.call(PATH, &headers).await.unwrap() }
    });
    for reply in futures::future::join_all(requests).await {
        assert_eq!(reply.header("x-titan-router-error"), "deadline");
    }
    let reply = client.get(5).await;
    assert_eq!(reply.header("x-titan-router-error"), "circuit-open");
}

/// Kills the pod and opens the circuit of its cell by requests with these headers.
async fn open_circuit(router: &Router, pod: &Pod, headers: &[(&str, &str)]) {
    let client = Client::connect(router.listen).await;
    assert_eq!(client.call(PATH, headers).await.unwrap().pod(), "a");
    pod.kill();
    let mut error = String::new();
    for _ in 0..50 {
        let reply = client.call(PATH, headers).await.unwrap();
        assert_eq!(reply.grpc_status(), Some(14), "{reply:?}");
        reply.header("x-titan-router-error").clone_into(&mut error);
        if error == "circuit-open" {
            break;
        }
    }
    assert_eq!(error, "circuit-open");
}

/// It opens for moments, so that it is half open soon.
fn nervous() -> Config {
    let mut config = touchy(5);
    config.breaker.open = Span(Duration::from_millis(50));
    config.breaker.max_open = Span(Duration::from_millis(50));
    config
}

async fn back_at(address: SocketAddr) -> Pod {
    support::pod_at(address, watched()).await
}

/// Answers at once, but for watches, which go on.
fn watched() -> support::Behaviour {
    Arc::new(|request| match request.uri().path() {
        WATCH => PodAnswer::Later(Duration::from_mins(1)),
        _ => PodAnswer::Grpc(0, HeaderMap::new()),
    })
}

#[tokio::test]
async fn a_cell_that_only_anonymous_requests_ask_comes_back() {
    let a = pod("a").await;
    let mut config = nervous();
    config.anonymous = true;
    let router = router(config, Some(&one_cell(&a.endpoint()))).await;
    open_circuit(&router, &a, &[]).await;
    let _back = back_at(a.address).await;
    let client = Client::connect(router.listen).await;
    let back = async {
        while client.call(PATH, &[]).await.unwrap().grpc_status() != Some(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, back).await.unwrap();
}

#[tokio::test]
async fn anonymous_requests_without_a_table_may_be_sent_again() {
    let mut config = config();
    config.anonymous = true;
    let router = router(config, None).await;
    let reply = Client::connect(router.listen).await;
    let reply = reply.call(PATH, &[]).await.unwrap();
    assert_eq!(
        (reply.grpc_status(), reply.header("x-titan-router-error")),
        (Some(14), "no-table")
    );
}

#[tokio::test]
async fn a_probe_without_a_verdict_is_given_back() {
    let a = pod("a").await;
    let router = router(nervous(), Some(&one_cell(&a.endpoint()))).await;
    open_circuit(&router, &a, &[("x-titan-key", "5")]).await;
    let _back = back_at(a.address).await;
    let client = Client::connect(router.listen).await;
    let (cell, clock) = (router.shared.cell("cell-001"), router.shared.clock);
    until("a circuit that is half open", || {
        cell.health.allows(clock.now_ms())
    })
    .await;
    // It is the probe, and says nothing about the cell.
    let headers = [("x-titan-key", "5"), ("grpc-timeout", "1u")];
    let reply = client.call(WATCH, &headers).await.unwrap();
    // In the head of the answer or, when the pod's had come by then, after it.
    assert_eq!(reply.grpc_status(), Some(4));
    assert_eq!(client.get(5).await.grpc_status(), Some(0));
}

#[tokio::test]
async fn a_pod_that_dies_with_many_requests_is_one_failure() {
    let (a, b) = (pod_with(watched()).await, pod_with(watched()).await);
    let mut config = touchy(5);
    config
        .hosts
        .insert("order.cell-001.test".into(), vec![a.address, b.address]);
    let router = router(config, Some(&one_cell("cell-001.test"))).await;
    let client = Client::connect(router.listen).await;
    let streams: Vec<_> = (0..60)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.call(WATCH, &[("x-titan-key", "5")]).await })
        })
        .collect();
    until("the streams", || a.requests() + b.requests() == 60).await;
    assert!(a.requests() >= 20, "balanced over pods");
    a.kill();
    let metrics = router.shared.metrics.clone();
    until("the broken ones", || {
        metrics.in_flight() == b.requests() as u64
    })
    .await;
    let cell = router.shared.cell("cell-001");
    assert_eq!(cell.health.failures(), 1);
    for _ in 0..10 {
        assert_eq!(client.get(5).await.grpc_status(), Some(0));
    }
    for stream in streams {
        stream.abort();
    }
}

#[tokio::test]
async fn a_cell_that_hangs_leaves_room_for_the_others() {
    let silent = pod_with(Arc::new(|_| PodAnswer::Silence)).await;
    let b = pod("b").await;
    let rows = vec![
        row(0, 9, "cell-001", Active),
        row(10, 19, "cell-002", Active),
    ];
    let cells = [
        ("cell-001", &*silent.endpoint()),
        ("cell-002", &*b.endpoint()),
    ];
    let mut config = config();
    config.limits.in_flight = 20;
    config.limits.per_cell_in_flight = Share::Percent(50);
    let router = router(config, Some(&table(1, rows, &cells))).await;
    let requests: Vec<_> = (0..40)
        .map(|_| {
            tokio::spawn(async move {
                let client = Client::connect(router.listen).await;
                let headers = [("x-titan-key", "5"), ("grpc-timeout", "2S")];
                let reply = client.call(PATH, &headers).await.unwrap();
                reply.header("x-titan-router-error").to_owned()
            })
        })
        .collect();
    let client = Client::connect(router.listen).await;
    until("as many as the cell may have", || silent.requests() >= 10).await;
    let reply = client.get(15).await;
    assert_eq!((reply.pod(), reply.grpc_status()), ("b", Some(0)));
    let mut busy = 0;
    for request in requests {
        busy += usize::from(request.await.unwrap() == "cell-busy");
    }
    // Two threads look at each other now and then only.
    assert!((25..=30).contains(&busy), "{busy} were refused");
    let page = support::page(router.metrics, "/metrics").await;
    let counted = format!("cell_router_rejections_total{{reason=\"cell-busy\"}} {busy}\n");
    assert!(page.contains(&counted), "{page}");
    assert_eq!(router.shared.cell("cell-001").in_flight(), 0);
}

/// A service whose answers are late after 50 ms.
fn impatient() -> Config {
    let mut config = touchy(5);
    let late = Span(Duration::from_millis(50));
    config.breaker.slow_after.insert("order".into(), late);
    config
}

/// A pod whose answers begin after a while, and take as long again to end.
async fn slow_pod(head: Duration, rest: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        while let Some(data) = body.data().await {
                            let data = data.unwrap();
                            body.flow_control().release_capacity(data.len()).unwrap();
                        }
                        tokio::time::sleep(head).await;
                        let answer = http::Response::builder()
                            .header("content-type", "application/grpc")
                            .body(())
                            .unwrap();
                        let mut stream = respond.send_response(answer, false).unwrap();
                        tokio::time::sleep(rest).await;
                        let status = http::HeaderValue::from_static("0");
                        let trailers = HeaderMap::from_iter([(
                            http::HeaderName::from_static("grpc-status"),
                            status,
                        )]);
                        stream.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    address
}

/// What so many requests at once are refused for.
async fn refusals(client: &Client, count: usize, headers: &[(&str, &str)]) -> Vec<String> {
    let requests = (0..count).map(|_| async {
        let reply = client.call(PATH, headers).await.unwrap();
        reply.header("x-titan-router-error").to_owned()
    });
    futures::future::join_all(requests).await
}

const LATE: Duration = Duration::from_millis(150);

#[tokio::test]
async fn late_answers_open_the_circuit_of_the_service_alone() {
    let (slow, a) = (slow_pod(LATE, Duration::ZERO).await, pod("a").await);
    let mut config = impatient();
    let endpoints = [("order", slow), ("cart", a.address)];
    for (service, address) in endpoints {
        let name = format!("{service}.cell-001.test");
        config.hosts.insert(name, vec![address]);
    }
    let router = router(config, Some(&one_cell("cell-001.test"))).await;
    let client = Client::connect(router.listen).await;
    let key = [("x-titan-key", "5")];
    assert_eq!(refusals(&client, 40, &key).await, vec![""; 40]);
    assert_eq!(refusals(&client, 10, &key).await, vec![""; 10]);
    assert_eq!(refusals(&client, 10, &key).await, vec!["circuit-open"; 10]);
    let cart = client.call("/titan.cart.v1.Carts/Get", &key).await.unwrap();
    assert_eq!(cart.pod(), "a");
    assert_eq!(router.shared.cell("cell-001").health.failures(), 0);
    let page = support::page(router.admin, "/cells").await;
    assert!(page.contains("of the answers are late"), "{page}");
}

#[tokio::test]
async fn streams_and_who_is_ready_to_wait_open_no_circuit_for_late_answers() {
    // Far longer than what is late, for a router that stalls may see the head and the end with less in between.
    let stream = slow_pod(LATE, Duration::from_secs(2)).await;
    let router = router(impatient(), Some(&one_cell(&stream.to_string()))).await;
    let client = Client::connect(router.listen).await;
    // It goes on after its head for long.
    assert_eq!(
        refusals(&client, 100, &[("x-titan-key", "5")]).await,
        vec![""; 100]
    );
    serves(&router).await;

    let poll = slow_pod(LATE, Duration::ZERO).await;
    let router = support::router(impatient(), Some(&one_cell(&poll.to_string()))).await;
    let client = Client::connect(router.listen).await;
    let headers = [("x-titan-key", "5"), ("grpc-timeout", "31S")];
    assert_eq!(refusals(&client, 100, &headers).await, vec![""; 100]);
    serves(&router).await;
}

#[tokio::test]
async fn slow_clients_open_no_circuit_for_late_answers() {
    let a = pod("a").await;
    let late = Duration::from_secs(1);
    let mut config = impatient();
    config.breaker.slow_after.insert("order".into(), Span(late));
    let router = router(config, Some(&one_cell(&a.endpoint()))).await;
    let requests = unfinished(router.listen, 100, "30S").await;
    until("the requests", || a.requests() == 100).await;
    let (answers, mut bodies): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
    tokio::time::sleep(late + LATE).await;
    for body in &mut bodies {
        body.send_data(Bytes::from_static(b"rest"), true).unwrap();
    }
    for answer in answers {
        assert!(
            !answer
                .await
                .unwrap()
                .headers()
                .contains_key("x-titan-router-error")
        );
    }
    ends(&router).await;
    serves(&router).await;
}

/// A pod that resets each request, and how many it had.
async fn resetting_pod() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::<AtomicUsize>::default();
    let counter = requests.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counter = counter.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    counter.fetch_add(1, SeqCst);
                    respond.send_reset(h2::Reason::INTERNAL_ERROR);
                }
            });
        }
    });
    (address, requests)
}

#[tokio::test]
async fn a_pod_that_fails_fast_does_not_attract_requests() {
    let (bad, asked) = resetting_pod().await;
    let good = pod("good").await;
    let mut config = config();
    config.threads = 1;
    config.retry.min_per_second = 1000;
    config
        .hosts
        .insert("order.cell-001.test".into(), vec![bad, good.address]);
    let router = router(config, Some(&one_cell("cell-001.test"))).await;
    let client = Client::connect(router.listen).await;
    let headers = [("x-titan-key", "5"), ("idempotency-key", "1")];
    for _ in 0..60 {
        let reply = client.call_with(PATH, &headers, Bytes::new()).await;
        let reply = reply.unwrap();
        assert_eq!(reply.grpc_status(), Some(0), "{reply:?}");
    }
    // It is left in peace for a second after three.
    let asked = asked.load(SeqCst);
    assert!((1..15).contains(&asked), "asked {asked} times");
}
