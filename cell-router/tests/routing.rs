//! Which cell gets a request, and what the router answers itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use cell_router::config::{Span, TrustedPeers};
use http::HeaderMap;
use support::{Client, PodAnswer, config, pod, pod_with, router, row, table, until};
use titan_routing::AssignmentState::{Active, Pending};

#[tokio::test]
async fn requests_go_to_the_cell_of_their_key() {
    let (a, b) = (pod("a").await, pod("b").await);
    let table = table(
        7,
        vec![
            row(0, 9_999, "cell-001", Active),
            row(20_000, 29_999, "cell-002", Active),
            row(30_000, 39_999, "cell-003", Pending),
        ],
        &[
            ("cell-001", &a.endpoint()),
            ("cell-002", &b.endpoint()),
            ("cell-003", "127.0.0.1:1"),
        ],
    );
    let router = router(config(), Some(&table)).await;
    let client = Client::connect(router.listen).await;
    for (key, cell) in [(0, "a"), (9_999, "a"), (20_000, "b"), (29_999, "b")] {
        let reply = client.get(key).await;
        assert_eq!(
            (reply.pod(), reply.grpc_status()),
            (cell, Some(0)),
            "key {key}: {reply:?}"
        );
        assert_eq!(reply.header("x-seen-key"), key.to_string());
        assert_eq!(reply.header("x-seen-epoch"), "7");
        assert_eq!(reply.header("x-seen-trace").len(), 55);
        assert_eq!(reply.body.as_ref(), b"\0\0\0\0\x05hello");
    }
    for (key, status, error) in [(10_000, 5, "no-owner"), (35_000, 14, "pending")] {
        let reply = client.get(key).await;
        assert_eq!(
            (reply.status, reply.grpc_status()),
            (200, Some(status)),
            "key {key}"
        );
        assert_eq!(reply.header("x-titan-router-error"), error);
        assert!(reply.header("grpc-message").contains(&key.to_string()));
    }
    let reply = client
        .call("/titan.nobody.v1.X/Y", &[("x-titan-key", "1")])
        .await
        .unwrap();
    assert_eq!(reply.grpc_status(), Some(12));
    let reply = client
        .call("/titan.order.v1.Orders/Get", &[("x-titan-key", "-1")])
        .await
        .unwrap();
    assert_eq!(reply.grpc_status(), Some(3));
    let reply = client
        .call("/titan.order.v1.Orders/Get", &[])
        .await
        .unwrap();
    assert_eq!(reply.grpc_status(), Some(16));
    assert!(router.drain().await);
}

#[tokio::test]
async fn a_key_is_believed_from_trusted_peers_alone() {
    let a = pod("a").await;
    let table = table(
        1,
        vec![row(0, 9, "cell-001", Active)],
        &[("cell-001", &a.endpoint())],
    );
    let path = "/titan.order.v1.Orders/Get";

    let mut nobody = config();
    nobody.trusted_peers = TrustedPeers::None;
    let nobody = router(nobody, Some(&table)).await;
    let client = Client::connect(nobody.listen).await;
    let reply = client.call(path, &[("x-titan-key", "1")]).await.unwrap();
    assert_eq!(
        (reply.grpc_status(), reply.header("x-titan-router-error")),
        (Some(7), "untrusted")
    );

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a-secret-of-some-length\n").unwrap();
    let mut secret = config();
    secret.trusted_peers = TrustedPeers::Secret;
    secret.trust_secret_file = Some(file.path().to_owned());
    let secret = router(secret, Some(&table)).await;
    let client = Client::connect(secret.listen).await;
    for (trust, status) in [
        ("a-secret-of-some-length", 0),
        ("a-secret-of-some-lengtX", 7),
        ("", 7),
    ] {
        let reply = client
            .call(path, &[("x-titan-key", "1"), ("x-titan-trust", trust)])
            .await
            .unwrap();
        assert_eq!(reply.grpc_status(), Some(status), "{trust}");
        assert_eq!(
            reply.header("x-seen-trust"),
            "",
            "the secret ends at the router"
        );
    }
    assert_eq!(a.requests(), 1);
}

#[tokio::test]
async fn without_a_table_nothing_is_guessed() {
    let router = router(config(), None).await;
    let client = Client::connect(router.listen).await;
    let reply = client.get(1).await;
    assert_eq!(
        (reply.grpc_status(), reply.header("x-titan-router-error")),
        (Some(14), "no-table")
    );
}

#[tokio::test]
async fn services_that_nobody_asks_for_are_looked_up_no_more() {
    const WATCH: &str = "/titan.order.v1.Orders/Watch";
    const CART: &str = "/titan.cart.v1.Carts/Get";
    let a = pod_with(Arc::new(|request| match request.uri().path() {
        WATCH => PodAnswer::Later(Duration::from_mins(1)),
        _ => PodAnswer::Grpc(0, HeaderMap::new()),
    }))
    .await;
    let mut config = config();
    config.threads = 1;
    config.upstream.idle = Span(Duration::from_secs(1));
    config.upstream.min_ttl = Span(Duration::from_millis(100));
    config.upstream.max_ttl = Span(Duration::from_millis(100));
    for service in ["order", "cart"] {
        let name = format!("{service}.cell-001.test");
        config.hosts.insert(name, vec![a.address]);
    }
    let cells = [("cell-001", "cell-001.test")];
    let table = table(1, vec![row(0, 9, "cell-001", Active)], &cells);
    let router = router(config, Some(&table)).await;
    let client = Client::connect(router.listen).await;
    let key = [("x-titan-key", "5")];
    let stream = tokio::spawn({
        let client = client.clone();
        async move { client.call(WATCH, &key).await }
    });
    let cart = client.call(CART, &key).await.unwrap();
    assert_eq!(cart.grpc_status(), Some(0));
    let known = || {
        let known = router.shared.resolver.known();
        known.into_keys().collect::<Vec<_>>()
    };
    until("both", || {
        known() == ["cart.cell-001.test:1", "order.cell-001.test:1"]
    })
    .await;
    // One request is under way still; nobody asks for the other service.
    until("the one", || known() == ["order.cell-001.test:1"]).await;
    let connections = a.connections();
    assert_eq!(client.get(5).await.grpc_status(), Some(0));
    assert_eq!(a.connections(), connections, "its connection is used on");
    let cart = client.call(CART, &key).await.unwrap();
    assert_eq!(cart.grpc_status(), Some(0));
    let page = support::page(router.metrics, "/metrics").await;
    let counted = "cell_router_requests_total{cell=\"cell-001\",service=\"cart\",class=\"ok\"} 2\n";
    assert!(page.contains(counted), "{page}");
    stream.abort();
}
