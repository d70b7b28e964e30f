//! What people on call have to rely on: the check of a configuration, the access log, and an end in time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use support::process::Process;
use support::{Client, Pod, PodAnswer, pod_with, row, table, until};
use titan_routing::AssignmentState::Active;
use titan_routing::client::TableFile;

const PATH: &str = "/titan.order.v1.Orders/Get";

fn check(file: &Path) -> (bool, String) {
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_cell-router"))
        .arg("check")
        .arg("--config")
        .arg(file)
        .output()
        .unwrap();
    let text = [run.stdout, run.stderr].concat();
    (run.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn check_tells_everything_that_is_wrong() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "services: { order: 50001 }").unwrap();
    let (right, text) = check(file.path());
    assert!(right && text.contains("with 1 services"), "{text}");

    let wrong = "
        admin: 0.0.0.0:9091
        services: { Order: 0 }
        upstream: { minTtl: 60s, maxTtl: 30s, keepAlive: 0s }
        limits: { idle: 0s, headerTimeout: 0s, inFlight: 0 }
        breaker: { slowPercent: 5, slowAfter: { nobody: 0s } }
        jwt: { jwks: 'https://id.example.com/keys', refresh: 0s }
        trustedPeers: secret
        trustSecretFile: /nowhere/secret
        tls: { certificate: /nowhere/tls.crt, key: /nowhere/tls.key }";
    std::fs::write(file.path(), wrong).unwrap();
    let (right, text) = check(file.path());
    assert!(!right, "{text}");
    for wanted in [
        "`admin`",
        "`services.Order` is not a DNS label",
        "`services.Order` needs a port",
        "`upstream.minTtl` must not be above",
        "`upstream.keepAlive`",
        "`limits.idle`",
        "`limits.headerTimeout`",
        "`limits.inFlight`",
        "`breaker.slowPercent` must be from 10 to 100",
        "`breaker.slowAfter.nobody` is not one of `services`",
        "`breaker.slowAfter.nobody` must be at least 1ms",
        "`jwt.refresh`",
        "`jwt.ca`",
        "/nowhere/secret",
        "/nowhere/tls",
    ] {
        assert!(text.contains(wanted), "no {wanted} in: {text}");
    }
}

async fn start(pod: &Pod, rest: &str) -> Process {
    let state = tempfile::tempdir().unwrap();
    let cells = [("cell-001", &*pod.endpoint())];
    let table = table(1, vec![row(0, 9, "cell-001", Active)], &cells);
    TableFile::new(state.path(), "main").save(&table).unwrap();
    Process::start_with("", state.path(), rest).await
}

fn access(router: &Process) -> Vec<Value> {
    let log = router.log.lock().unwrap();
    log.iter()
        .filter(|line| line["target"] == "access")
        .cloned()
        .collect()
}

#[tokio::test]
async fn the_access_log_names_what_it_tells_of() {
    // The later a request comes, the sooner it is answered: they end in another order than they start in.
    let pod = pod_with(Arc::new(|request| match request.uri().path() {
        "/titan.order.v1.Orders/Slow" => PodAnswer::Later(Duration::from_millis(200)),
        "/titan.order.v1.Orders/Bad" => {
            let mut headers = http::HeaderMap::new();
            headers.insert("grpc-status", http::HeaderValue::from_static("13"));
            PodAnswer::TrailersOnly(headers)
        }
        _ => PodAnswer::Grpc(0, http::HeaderMap::new()),
    }))
    .await;
    let log = "accessLog: { sample: 3, errorsPerSecond: 5 }\nthreads: 1\ndrain: { delay: 0s }\n";
    let router = start(&pod, log).await;
    let client = Client::connect(router.listen).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("x-titan-key", "5"), ("traceparent", trace)];
    let requests = (0..60).map(|index| {
        let client = client.clone();
        let path = ["/titan.order.v1.Orders/Slow", PATH][index % 2];
        async move { client.call(path, &headers).await.unwrap() }
    });
    for reply in futures::future::join_all(requests).await {
        assert_eq!(reply.grpc_status(), Some(0));
    }
    until("one line in three", || access(&router).len() == 20).await;
    let named = |line: &Value| {
        assert_eq!(line["method"], "POST", "{line}");
        assert!(
            line["path"].as_str().unwrap().starts_with("/titan."),
            "{line}"
        );
        assert_eq!(line["traceparent"], trace, "{line}");
    };
    for line in access(&router) {
        named(&line);
        assert_eq!(
            (&line["key"], &line["cell"]),
            (&5.into(), &"cell-001".into())
        );
    }

    // Failures are all told, up to so many a second, and those of the router with the reason.
    let bad = "/titan.order.v1.Orders/Bad";
    assert_eq!(
        client.call(bad, &headers).await.unwrap().grpc_status(),
        Some(13)
    );
    let line = router
        .logged("the failure", |line| line["grpc_status"] == 13)
        .await;
    named(&line);
    assert_eq!(line["path"], bad);
    pod.kill();
    let failing =
        async { while client.call(PATH, &headers).await.unwrap().grpc_status() != Some(14) {} };
    tokio::time::timeout(support::PATIENCE, failing)
        .await
        .unwrap();
    let line = router
        .logged("why", |line| line["class"] == "transport_error")
        .await;
    named(&line);
    assert!(
        line["error"].as_str().unwrap().contains("connection"),
        "{line}"
    );

    // What clients do wrong is sampled.
    let headers = [("x-titan-key", "77"), ("traceparent", trace)];
    for _ in 0..9 {
        let reply = client.call(PATH, &headers).await.unwrap();
        assert_eq!(reply.header("x-titan-router-error"), "no-owner");
    }
    let told = || {
        let lines = access(&router).into_iter();
        lines
            .filter(|line| line["reason"] == "no-owner")
            .collect::<Vec<_>>()
    };
    until("one in three", || told().len() == 3).await;
    for line in told() {
        named(&line);
        assert_eq!(line["key"], 77);
    }
    assert!(router.stop().await);
}

#[tokio::test]
async fn a_stream_without_end_does_not_keep_the_router_from_ending() {
    let pod = pod_with(Arc::new(|_| PodAnswer::Later(Duration::from_mins(10)))).await;
    let router = start(&pod, "drain: { delay: 0s, timeout: 300ms }\n").await;
    let client = Client::connect(router.listen).await;
    let stream = tokio::spawn(async move { client.call(PATH, &[("x-titan-key", "5")]).await });
    until("the stream", || pod.requests() == 1).await;
    assert!(router.stop().await, "it ended by itself, and in time");
    assert!(stream.await.unwrap().is_err());
}
