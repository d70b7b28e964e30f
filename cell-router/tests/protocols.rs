//! HTTP/1.1, WebSocket, configuration that changes, pages.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use cell_router::config::{Config, Span};
use cell_router::router::{Router, Start};
use std::net::SocketAddr;
use support::{Client, config, pod, router, row, table, until};
use titan_routing::AssignmentState::Active;
use titan_routing::client::{RegistryConfig, TableFile};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const PATH: &str = "/titan.order.v1.Orders/Get";

async fn raw(address: SocketAddr, request: &str) -> String {
    support::raw(TcpStream::connect(address).await.unwrap(), request).await
}

/// A pod that speaks HTTP/1.1: echoes what comes after an upgrade, else says hello.
async fn chat_pod() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                if head.contains("upgrade: websocket") && head.contains("connection: upgrade") {
                    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
                    stream.write_all(answer.as_bytes()).await?;
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await?;
                } else {
                    let keyed = head.contains("x-titan-key: 5\r\n");
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-keyed: {keyed}\r\n\r\nhello"
                    );
                    stream.write_all(answer.as_bytes()).await?;
                }
                std::io::Result::Ok(())
            });
        }
    });
    address
}

#[tokio::test]
async fn http1_and_websocket_go_through() {
    let chat = chat_pod().await.to_string();
    let table = table(
        1,
        vec![row(0, 9, "cell-001", Active)],
        &[("cell-001", &chat)],
    );
    let router = router(config(), Some(&table)).await;
    let plain = "GET /hello HTTP/1.1\r\nHost: chat.example.com\r\nx-titan-key: 5\r\nConnection: close\r\n\r\n";
    let answer = raw(router.listen, plain).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
        "{answer}"
    );
    assert!(answer.contains("x-keyed: true"), "{answer}");
    let answer = raw(router.listen, &plain.replace("key: 5", "key: 77")).await;
    assert!(
        answer.starts_with("HTTP/1.1 404") && answer.contains("no-owner"),
        "{answer}"
    );
    let answer = raw(router.listen, &plain.replace("chat.", "nothing.")).await;
    assert!(
        answer.starts_with("HTTP/1.1 404") && answer.contains("unknown-service"),
        "{answer}"
    );

    let mut stream = TcpStream::connect(router.listen).await.unwrap();
    let upgrade = "GET /socket HTTP/1.1\r\nHost: chat.example.com\r\nx-titan-key: 5\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(
        head.contains("upgrade: websocket") && head.contains("connection: upgrade"),
        "{head}"
    );
    for message in [b"one".as_slice(), b"two", &[7; 4096]] {
        stream.write_all(message).await.unwrap();
        let mut echo = vec![0; message.len()];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, message);
    }
}

/// A client that gets a pipe to a pod could speak for the router in it.
#[tokio::test]
async fn nothing_but_a_websocket_is_upgraded() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let upgrade = String::from_utf8_lossy(&head)
                .to_lowercase()
                .contains("upgrade");
            let answer = if upgrade {
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
            } else {
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let rows = vec![row(0, 9, "cell-001", Active)];
    let router = router(config(), Some(&table(1, rows, &[("cell-001", &endpoint)]))).await;
    for wanted in ["h2c", "websockets", "TLS/1.0", "h2c, websocket"] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: chat.example.com\r\nx-titan-key: 5\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: {wanted}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        );
        let answer = raw(router.listen, &request).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
            "{wanted}: {answer}"
        );
    }
}

#[tokio::test]
async fn anonymous_requests_go_to_a_healthy_cell() {
    let (a, b) = (pod("a").await, pod("b").await);
    let mut config = config();
    config.anonymous = true;
    config.breaker.consecutive_failures = 3;
    config.breaker.min_span = Span(std::time::Duration::ZERO);
    let rows = vec![
        row(0, 9, "cell-001", Active),
        row(10, 19, "cell-002", Active),
    ];
    let cells = [("cell-001", &*a.endpoint()), ("cell-002", &*b.endpoint())];
    let router = router(config, Some(&table(1, rows, &cells))).await;
    let client = Client::connect(router.listen).await;
    let reply = client.call(PATH, &[]).await.unwrap();
    let first = reply.pod().to_owned();
    assert_eq!(reply.header("x-seen-key"), "");
    assert_eq!(
        client.call(PATH, &[]).await.unwrap().pod(),
        first,
        "the same each time"
    );
    (if first == "a" { &a } else { &b }).kill();
    let mut failed = 0;
    while client.call(PATH, &[]).await.unwrap().grpc_status() != Some(0) {
        failed += 1;
        assert!(failed < 10, "the other cell is healthy");
    }
}

#[tokio::test]
async fn a_changed_file_is_taken_into_use_and_a_wrong_one_refused() {
    let a = pod("a").await;
    let table = table(
        1,
        vec![row(0, 9, "cell-001", Active)],
        &[("cell-001", &a.endpoint())],
    );
    let directory = tempfile::tempdir().unwrap();
    TableFile::new(directory.path(), "main")
        .save(&table)
        .unwrap();
    let path = directory.path().join("router.yaml");
    let text = "listen: 127.0.0.1:0\nmetrics: 127.0.0.1:0\nadmin: 127.0.0.1:0\nthreads: 1\ntrustedPeers: any\nservices:\n  cart: 1\n";
    std::fs::write(&path, text).unwrap();
    let mut registry = RegistryConfig::new("main", "");
    registry.state_dir = Some(directory.path().to_owned());
    let router = Router::start(Start {
        config: Config::load(&path).unwrap(),
        config_file: Some(path.clone()),
        registry,
    })
    .await
    .unwrap();
    let client = Client::connect(router.listen).await;
    assert_eq!(
        client.get(5).await.grpc_status(),
        Some(12),
        "order is not known yet"
    );
    std::fs::write(&path, format!("{text}  order: 1\n")).unwrap();
    until("the new configuration", || {
        router.shared.config.load().services.len() == 2
    })
    .await;
    assert_eq!(client.get(5).await.pod(), "a");
    std::fs::write(&path, format!("{text}  order: no-port\n")).unwrap();
    let metrics = router.shared.metrics.clone();
    until("the refusal", || {
        metrics
            .reload_failures
            .load(std::sync::atomic::Ordering::SeqCst)
            == 1
    })
    .await;
    assert_eq!(client.get(5).await.pod(), "a", "the old one stays");

    let close = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let page = raw(router.admin, &format!("GET /who?key=5 {close}")).await;
    assert!(
        page.contains("cell-001") && page.contains("key 5 lies in 0..=9"),
        "{page}"
    );
    assert!(
        raw(router.admin, &format!("GET /who?key=55 {close}"))
            .await
            .starts_with("HTTP/1.1 404")
    );
    let page = raw(router.metrics, &format!("GET /metrics {close}")).await;
    assert!(
        page.contains(
            "cell_router_requests_total{cell=\"cell-001\",service=\"order\",class=\"ok\"} 2"
        ),
        "{page}"
    );
    assert!(page.contains("cell_router_table_epoch 1\n"), "{page}");
    assert!(
        raw(router.metrics, &format!("GET /readyz {close}"))
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[test]
fn configurations_are_checked_as_a_whole() {
    let wrong = [
        ("surprise: 1", "unknown field"),
        ("services: { order: 0 }", "needs a port"),
        ("services: { Order: 1 }", "DNS label"),
        (
            "services: { order: { port: 1, protocol: h3 } }",
            "a port, or",
        ),
        ("admin: 0.0.0.0:1", "loopback"),
        ("trustedPeers: secret", "trustSecretFile"),
        ("limits: { idle: 5 minutes }", "not a duration"),
        ("limits: { headerBytes: 10 }", "at least 1024"),
        ("limits: { perCellInFlight: 120% }", "no share"),
        ("upstream: { minTtl: 31s }", "minTtl"),
    ];
    let file = tempfile::NamedTempFile::new().unwrap();
    for (text, wanted) in wrong {
        std::fs::write(file.path(), text).unwrap();
        let error = Config::load(file.path()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    }
    std::fs::write(file.path(), "").unwrap();
    assert_eq!(Config::load(file.path()).unwrap(), Config::default());
    let text = serde_yaml::to_string(&Config::default()).unwrap();
    assert_eq!(Config::parse(&text).unwrap(), Config::default());
}
