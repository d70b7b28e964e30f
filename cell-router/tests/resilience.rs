//! Cells that fail, move and restart, and a router that restarts: who notices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use cell_router::config::Span;
use http::{HeaderMap, HeaderValue};
use support::{Client, Pod, PodAnswer, config, pod, pod_with, router, row, table, until};
use titan_routing::AssignmentState::{Active, Fenced, Moving};
use titan_routing::client::RegistryConfig;
use titan_routing::server::{RegistryOptions, RegistryService};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;

const PATH: &str = "/titan.order.v1.Orders/Get";

/// Requests that go on until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    ok: Arc<AtomicUsize>,
    failed: Arc<std::sync::Mutex<Vec<String>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// So many clients, each with a connection of its own that it opens again when it is told to leave.
    fn start(address: std::net::SocketAddr, clients: usize, key: u64) -> Self {
        let load = Load {
            stop: Arc::default(),
            ok: Arc::default(),
            failed: Arc::default(),
            tasks: Vec::new(),
        };
        let tasks = (0..clients).map(|_| {
            let (stop, ok, failed) = (load.stop.clone(), load.ok.clone(), load.failed.clone());
            tokio::spawn(async move {
                let key = key.to_string();
                let mut client = Client::connect(address).await;
                while !stop.load(SeqCst) {
                    if client.is_closed() {
                        client = Client::connect(address).await;
                    }
                    match client.call(PATH, &[("x-titan-key", &key)]).await {
                        Ok(reply) if reply.grpc_status() == Some(0) => {
                            ok.fetch_add(1, SeqCst);
                        }
                        // As gRPC clients do by themselves: the server said that it did nothing.
                        Err(error) if was_not_sent(&error) => {}
                        other => failed.lock().unwrap().push(format!("{other:?}")),
                    }
                }
            })
        });
        let tasks = tasks.collect();
        Load { tasks, ..load }
    }

    fn ok(&self) -> usize {
        self.ok.load(SeqCst)
    }

    async fn more(&self, requests: usize) {
        let goal = self.ok() + requests;
        until("more answers", || {
            self.ok() >= goal || !self.failed.lock().unwrap().is_empty()
        })
        .await;
    }

    async fn stop(self) -> Vec<String> {
        self.stop.store(true, SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        std::mem::take(&mut *self.failed.lock().unwrap())
    }
}

/// Whether the connection was being left when the request came, so that it never went out or was not looked at.
fn was_not_sent(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let left = source
        .and_then(|error| error.downcast_ref::<h2::Error>())
        .is_some_and(|error| error.is_go_away() && error.is_remote());
    left || error.is_canceled()
}

fn refusal(newer: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", HeaderValue::from_static("9"));
    headers.insert("x-titan-moved-to", HeaderValue::from_static("cell-002"));
    headers.insert("x-titan-epoch", HeaderValue::from_static(newer));
    headers
}

async fn refusing_pod() -> Pod {
    pod_with(Arc::new(|_| PodAnswer::TrailersOnly(refusal("2")))).await
}

#[tokio::test]
async fn a_stale_epoch_is_retried_once_with_the_newer_table() {
    let (a, b) = (refusing_pod().await, pod("b").await);
    let cells = [("cell-001", &*a.endpoint()), ("cell-002", &*b.endpoint())];
    let mut config = config();
    // The test may be slow with the newer table.
    config.retry.table_wait = Span(support::PATIENCE);
    let router = router(
        config,
        Some(&table(1, vec![row(0, 9, "cell-001", Active)], &cells)),
    )
    .await;
    let client = Client::connect(router.listen).await;
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.get(5).await }
    });
    until("the refusal", || a.requests() == 1).await;
    router
        .shared
        .use_table(table(2, vec![row(0, 9, "cell-002", Active)], &cells));
    let reply = asking.await.unwrap();
    assert_eq!((reply.pod(), reply.grpc_status()), ("b", Some(0)));
    assert_eq!(reply.header("x-seen-epoch"), "2");
    assert_eq!(
        reply.body.as_ref(),
        b"\0\0\0\0\x05hello",
        "the body was sent again"
    );

    // Back to the refusing cell, at an epoch that is not older than the refusal: passed on as it is.
    router
        .shared
        .use_table(table(3, vec![row(0, 9, "cell-001", Active)], &cells));
    let reply = client.get(5).await;
    assert_eq!((reply.grpc_status(), a.requests()), (Some(9), 2));
    assert_eq!(reply.header("x-titan-moved-to"), "cell-002");
}

#[tokio::test]
async fn a_refusal_without_a_newer_table_is_passed_on() {
    let a = refusing_pod().await;
    let mut config = config();
    config.retry.table_wait = Span(Duration::from_millis(50));
    let cells = [("cell-001", &*a.endpoint())];
    let router = router(
        config,
        Some(&table(1, vec![row(0, 9, "cell-001", Active)], &cells)),
    )
    .await;
    let reply = Client::connect(router.listen).await.get(5).await;
    assert_eq!((reply.grpc_status(), a.requests()), (Some(9), 1));
}

#[tokio::test]
async fn requests_wait_for_a_range_that_moves_and_then_fail_open() {
    let (a, b) = (pod("a").await, pod("b").await);
    let cells = [("cell-001", &*a.endpoint()), ("cell-002", &*b.endpoint())];
    let mut config = config();
    config.hold.max_wait = Span(support::PATIENCE);
    let router = router(
        config.clone(),
        Some(&table(1, vec![row(0, 9, "cell-001", Moving)], &cells)),
    )
    .await;
    let client = Client::connect(router.listen).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.get(5).await }
    });
    let metrics = router.shared.metrics.clone();
    until("a held request", || {
        metrics.render(&[]).contains("cell_router_held 1")
    })
    .await;
    router
        .shared
        .use_table(table(2, vec![row(0, 9, "cell-002", Active)], &cells));
    assert_eq!(waiting.await.unwrap().pod(), "b");
    assert_eq!(a.requests(), 0);

    config.hold.max_wait = Span(Duration::from_millis(300));
    router.shared.use_config(config).unwrap();
    router
        .shared
        .use_table(table(3, vec![row(0, 9, "cell-001", Moving)], &cells));
    let started = Instant::now();
    assert_eq!(
        client.get(5).await.pod(),
        "a",
        "open: the old cell has it still"
    );
    assert!(started.elapsed() >= Duration::from_millis(300));

    router
        .shared
        .use_table(table(4, vec![row(0, 9, "cell-001", Fenced)], &cells));
    let reply = client.get(5).await;
    assert_eq!(
        (reply.grpc_status(), reply.header("x-titan-router-error")),
        (Some(14), "fenced")
    );
    assert!(metrics.render(&[]).contains("cell_router_held 0"));
}

#[tokio::test]
async fn a_dead_cell_opens_its_circuit_and_hurts_nobody_else() {
    let (a, b) = (pod("a").await, pod("b").await);
    let address = a.address;
    let cells = [("cell-001", &*a.endpoint()), ("cell-002", &*b.endpoint())];
    let mut config = config();
    config.breaker.consecutive_failures = 5;
    config.breaker.min_span = Span(Duration::ZERO);
    config.breaker.open = Span(Duration::from_millis(50));
    config.breaker.max_open = Span(Duration::from_millis(100));
    let rows = vec![
        row(0, 9, "cell-001", Active),
        row(10, 19, "cell-002", Active),
    ];
    let router = router(config, Some(&table(1, rows, &cells))).await;
    let client = Client::connect(router.listen).await;
    assert_eq!(client.get(5).await.pod(), "a");
    a.kill();
    let mut errors = Vec::new();
    while errors.last().is_none_or(|error| error != "circuit-open") {
        let reply = client.get(5).await;
        assert_eq!(reply.grpc_status(), Some(14));
        errors.push(reply.header("x-titan-router-error").to_owned());
        assert!(errors.len() < 50, "{errors:?}");
    }
    assert!((5..10).contains(&errors.len()), "{errors:?}");
    assert_eq!(client.get(15).await.pod(), "b");
    let _back = support::pod_at(address, Arc::new(|_| PodAnswer::Grpc(0, HeaderMap::new()))).await;
    let back = async {
        while client.get(5).await.grpc_status() != Some(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, back).await.unwrap();
}

#[tokio::test]
async fn pods_take_turns_from_the_first_request_on() {
    let (a, b) = (pod("a").await, pod("b").await);
    let mut config = config();
    let name = "order.cell-001.test";
    config.hosts.insert(name.into(), vec![a.address, b.address]);
    let cells = [("cell-001", "cell-001.test")];
    let table = table(1, vec![row(0, 9, "cell-001", Active)], &cells);
    let router = router(config, Some(&table)).await;
    let client = Client::connect(router.listen).await;
    // One after the other: no connection is busy, and at first there is none.
    for _ in 0..10 {
        assert_eq!(client.get(5).await.grpc_status(), Some(0));
    }
    assert_eq!((a.requests(), b.requests()), (5, 5));
}

#[tokio::test]
async fn a_pod_that_came_since_the_last_lookup_takes_over_from_the_one_that_went() {
    let (a, b) = (pod("a").await, pod("b").await);
    let mut config = config();
    let name = "order.cell-001.test";
    config.hosts.insert(name.into(), vec![a.address]);
    config.upstream.max_ttl = Span(Duration::from_hours(1));
    let cells = [("cell-001", "cell-001.test")];
    let table = table(1, vec![row(0, 9, "cell-001", Active)], &cells);
    let router = router(config.clone(), Some(&table)).await;
    let client = Client::connect(router.listen).await;
    assert_eq!(client.get(5).await.pod(), "a");

    // The name says so from now on, and nobody looks for an hour.
    config.hosts.insert(name.into(), vec![a.address, b.address]);
    router.shared.use_config(config).unwrap();
    assert_eq!(client.get(5).await.pod(), "a");
    a.stop_gracefully().await;
    let reply = client.get(5).await;
    assert_eq!((reply.grpc_status(), reply.pod()), (Some(0), "b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_restart_one_after_the_other_without_a_failed_request() {
    let mut pods = vec![pod("a").await, pod("b").await, pod("c").await];
    let mut config = config();
    let name = "order.cell-001.test";
    let addresses = |pods: &[Pod]| pods.iter().map(|pod| pod.address).collect::<Vec<_>>();
    config.hosts.insert(name.into(), addresses(&pods));
    let cells = [("cell-001", "cell-001.test")];
    let router = router(
        config.clone(),
        Some(&table(1, vec![row(0, 9, "cell-001", Active)], &cells)),
    )
    .await;
    let load = Load::start(router.listen, 8, 5);
    load.more(500).await;
    for round in 0..3 {
        let new = pod("new").await;
        let old = std::mem::replace(&mut pods[round], new);
        // As in Kubernetes: the addresses change a little later than the pod learns that it has to go.
        old.stop_gracefully().await;
        load.more(200).await;
        config.hosts.insert(name.into(), addresses(&pods));
        router.shared.use_config(config.clone()).unwrap();
        load.more(500).await;
    }
    // On a busy machine the last pod may be dialled after the last of these requests.
    until("a request at every pod, or one that failed", || {
        pods.iter().all(|pod| pod.requests() > 0) || !load.failed.lock().unwrap().is_empty()
    })
    .await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_router_restarts_under_load_without_a_failed_request() {
    let a = pod("a").await;
    let cells = [("cell-001", &*a.endpoint())];
    let table = table(1, vec![row(0, 9, "cell-001", Active)], &cells);
    let mut current = router(config(), Some(&table)).await;
    let mut config = config();
    config.listen = current.listen;
    let load = Load::start(config.listen, 8, 5);
    for _ in 0..3 {
        load.more(300).await;
        let next = router(config.clone(), Some(&table)).await;
        assert!(
            std::mem::replace(&mut current, next).drain().await,
            "everything ended in time"
        );
    }
    load.more(300).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_goes_on_without_the_registry() {
    let (a, b) = (pod("a").await, pod("b").await);
    let cells = [("cell-001", &*a.endpoint()), ("cell-002", &*b.endpoint())];
    let (tables, receiver) = watch::channel(table(1, vec![row(0, 9, "cell-001", Active)], &cells));
    let service = RegistryService::new(RegistryOptions {
        heartbeat: Duration::from_millis(50),
        ..RegistryOptions::default()
    });
    service.serve_fleet("main", receiver);
    let mut failures = service.failures();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let registry = tokio::spawn({
        let service = service.clone();
        async move {
            let incoming = TcpListenerStream::new(listener);
            let server = titan_routing::server::builder().add_service(service.into_server());
            server.serve_with_incoming(incoming).await.unwrap();
        }
    });
    let mut registry_config = RegistryConfig::new("main", &format!("http://{address}"));
    registry_config.heartbeat_timeout = Duration::from_millis(400);
    let mut config = config();
    config.breaker.report_interval = Span(Duration::from_millis(50));
    let router = support::start(config, registry_config).await;
    until("the table", || router.shared.table.load().epoch().0 == 1).await;
    let client = Client::connect(router.listen).await;
    assert_eq!(client.get(5).await.pod(), "a");
    tables.send_replace(table(2, vec![row(0, 9, "cell-002", Active)], &cells));
    until("the new table", || {
        router.shared.table.load().epoch().0 == 2
    })
    .await;
    assert_eq!(client.get(5).await.pod(), "b");

    b.kill();
    assert_eq!(client.get(5).await.grpc_status(), Some(14));
    let report = tokio::time::timeout(support::PATIENCE, failures.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (&*report.cell, &*report.service, report.epoch),
        ("cell-002", "order", 2)
    );
    assert!(report.consecutive_failures > 0);

    tables.send_replace(table(3, vec![row(0, 9, "cell-001", Active)], &cells));
    until("the table", || router.shared.table.load().epoch().0 == 3).await;
    registry.abort();
    service.close();
    until("the loss", || !router.registry.status().connected).await;
    for _ in 0..100 {
        assert_eq!(client.get(5).await.pod(), "a");
    }
}

#[tokio::test]
async fn deadlines_are_kept_and_passed_on() {
    let (silent, a) = (
        pod_with(Arc::new(|_| PodAnswer::Silence)).await,
        pod("a").await,
    );
    let cells = [
        ("cell-001", &*silent.endpoint()),
        ("cell-002", &*a.endpoint()),
    ];
    let rows = vec![
        row(0, 9, "cell-001", Active),
        row(10, 19, "cell-002", Active),
    ];
    let router = router(config(), Some(&table(1, rows, &cells))).await;
    let client = Client::connect(router.listen).await;
    let started = Instant::now();
    let reply = client
        .call(PATH, &[("x-titan-key", "5"), ("grpc-timeout", "100m")])
        .await
        .unwrap();
    assert_eq!(
        (reply.grpc_status(), reply.header("x-titan-router-error")),
        (Some(4), "deadline")
    );
    assert!(started.elapsed() >= Duration::from_millis(100));
    let reply = client
        .call(PATH, &[("x-titan-key", "15"), ("grpc-timeout", "10S")])
        .await
        .unwrap();
    assert!(!reply.header("x-seen-timeout").is_empty());
    let reply = client
        .call(PATH, &[("x-titan-key", "15"), ("grpc-timeout", "soon")])
        .await
        .unwrap();
    assert_eq!(reply.grpc_status(), Some(3));
}

#[tokio::test]
async fn rates_are_limited_per_key_and_per_cell() {
    let a = pod("a").await;
    let cells = [("cell-001", &*a.endpoint())];
    let mut config = config();
    config.limits.per_key_rate = 1;
    config.limits.per_key_burst = 3;
    config.limits.per_cell_rate = 1;
    config.limits.per_cell_burst = 7;
    let router = router(
        config,
        Some(&table(1, vec![row(0, 99, "cell-001", Active)], &cells)),
    )
    .await;
    let client = Client::connect(router.listen).await;
    let mut errors = Vec::new();
    for key in [1, 1, 1, 1, 2, 2, 2, 2, 3, 4, 5] {
        errors.push(
            client
                .get(key)
                .await
                .header("x-titan-router-error")
                .to_owned(),
        );
    }
    let wanted = [
        "",
        "",
        "",
        "key-rate",
        "",
        "",
        "",
        "key-rate",
        "",
        "cell-rate",
        "cell-rate",
    ];
    assert_eq!(errors, wanted);
}
