//! Clients written by others: grpcurl, ghz, and a WebSocket client.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use support::{config, router, row, table};
use titan_routing::AssignmentState::Active;
use titan_testbed::cache;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

const AUTHORITY: &str = "order.cells.test";

/// A pod as services are: a gRPC server with health and reflection.
async fn grpc_pod() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .unwrap();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(health)
            .add_service(reflection)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    address
}

async fn run(tool: &str, args: &[&str]) -> String {
    let program = cache::find(tool).unwrap();
    let run = Command::new(program).args(args).kill_on_drop(true).output();
    let output = tokio::time::timeout(support::PATIENCE, run)
        .await
        .unwrap()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{tool}: {out}{err}");
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcurl_and_ghz_go_through_unchanged() {
    let endpoint = grpc_pod().await.to_string();
    let cells = [("cell-001", &*endpoint)];
    let table = table(1, vec![row(0, 9, "cell-001", Active)], &cells);
    let router = router(config(), Some(&table)).await;
    let address = router.listen.to_string();

    // Reflection is a bidirectional stream.
    let common = [
        "-plaintext",
        "-authority",
        AUTHORITY,
        "-H",
        "x-titan-key: 5",
        &address,
    ];
    let list = run("grpcurl", &[&common[..], &["list"]].concat()).await;
    assert!(list.contains("grpc.health.v1.Health\n"), "{list}");
    let describe = [&common[..], &["describe", "grpc.health.v1.Health"]].concat();
    let shape = run("grpcurl", &describe).await;
    assert!(shape.contains("rpc Check"), "{shape}");
    let answer = run(
        "grpcurl",
        &[&common[..], &["grpc.health.v1.Health/Check"]].concat(),
    )
    .await;
    assert!(answer.contains("\"SERVING\""), "{answer}");

    let report = run(
        "ghz",
        &[
            "--insecure",
            "--authority",
            AUTHORITY,
            "--call",
            "grpc.health.v1.Health.Check",
            "--metadata",
            "{\"x-titan-key\":\"5\"}",
            "--reflect-metadata",
            "{\"x-titan-key\":\"5\"}",
            "--total=2000",
            "--concurrency=20",
            "--connections=4",
            "--timeout=10s",
            "--format=json",
            &address,
        ],
    )
    .await;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["count"], 2000);
    assert_eq!(
        report["statusCodeDistribution"],
        serde_json::json!({ "OK": 2000 })
    );
    let page = support::page(router.metrics, "/metrics").await;
    let counted = page.lines().find_map(|line| {
        line.strip_prefix(
            "cell_router_requests_total{cell=\"cell-001\",service=\"order\",class=\"ok\"} ",
        )
    });
    assert!(counted.unwrap().parse::<u64>().unwrap() >= 2003, "{page}");
}

/// A pod that speaks WebSocket and says back what it hears.
async fn socket_pod() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await?;
                while let Some(message) = socket.next().await {
                    let message = message?;
                    if message.is_text() || message.is_binary() {
                        socket.send(message).await?;
                    }
                }
                Ok::<_, tokio_tungstenite::tungstenite::Error>(())
            });
        }
    });
    address
}

#[tokio::test]
async fn a_websocket_client_goes_through_unchanged() {
    let endpoint = socket_pod().await.to_string();
    let cells = [("cell-001", &*endpoint)];
    let table = table(1, vec![row(0, 9, "cell-001", Active)], &cells);
    let router = router(config(), Some(&table)).await;
    let mut request = "ws://chat.cells.test/socket".into_client_request().unwrap();
    request
        .headers_mut()
        .insert("x-titan-key", "5".parse().unwrap());
    let stream = TcpStream::connect(router.listen).await.unwrap();
    // The client checks the answer to its handshake (Sec-WebSocket-Accept) by itself.
    let (mut socket, answer) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    assert_eq!(answer.status(), 101);
    let messages = [
        Message::text("hello"),
        Message::text(""),
        Message::binary(vec![7; 1024 * 1024]),
    ];
    for message in messages {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket
        .send(Message::Ping("are you there".into()))
        .await
        .unwrap();
    let pong = socket.next().await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong("are you there".into()));
    assert_eq!(router.shared.metrics.in_flight(), 1);
    let reason = CloseFrame {
        code: CloseCode::Normal,
        reason: "enough".into(),
    };
    socket.close(Some(reason.clone())).await.unwrap();
    let closed = socket.next().await.unwrap().unwrap();
    assert_eq!(closed, Message::Close(Some(reason)), "the pod agreed");
    assert!(socket.next().await.is_none(), "and left");
    drop(socket);
    let metrics = router.shared.metrics.clone();
    support::until("the end", || metrics.in_flight() == 0).await;
}
