//! Clients that mean harm: memory stays bounded, and others are served.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use cell_router::config::Span;
use cell_router::control::resident_bytes;
use support::{Client, PREFACE, config, frame, headers, pod, router, row, table, until};
use titan_routing::AssignmentState::Active;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const MIB: u64 = 1024 * 1024;

/// Writes until everything is written or the router closes, reading what it says.
async fn attack(address: SocketAddr, chunks: impl Iterator<Item = Vec<u8>>) -> bool {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut sink = vec![0; 64 * 1024];
        while read.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    });
    let mut closed = write.write_all(PREFACE).await.is_err();
    for chunk in chunks {
        if closed || reading.is_finished() {
            closed = true;
            break;
        }
        closed = write.write_all(&chunk).await.is_err();
    }
    reading.abort();
    closed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_of_http2_is_cut_off_and_memory_stays_bounded() {
    let a = pod("a").await;
    let table = table(
        1,
        vec![row(0, 9, "cell-001", Active)],
        &[("cell-001", &a.endpoint())],
    );
    let router = router(config(), Some(&table)).await;
    let good = Client::connect(router.listen).await;
    assert_eq!(good.get(5).await.pod(), "a");
    let before = resident_bytes().unwrap();

    let resets = (0..200_000_u32).map(|index| {
        let stream = index * 2 + 1;
        let mut both = frame(1, 0x4, stream, &headers());
        both.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
        both
    });
    assert!(
        attack(router.listen, resets).await,
        "rapid reset is cut off"
    );
    assert_eq!(good.get(5).await.pod(), "a");

    let flood = std::iter::once(frame(1, 0, 1, &headers())).chain((0..100_000).map(|_| {
        frame(
            9,
            0,
            1,
            &[b"\0\x01a\x7f\x80\x7f".as_slice(), &[b'x'; 8192]].concat(),
        )
    }));
    assert!(
        attack(router.listen, flood).await,
        "endless CONTINUATION is cut off"
    );
    let empty = std::iter::once(frame(1, 0, 1, &headers()))
        .chain((0..3_000_000).map(|_| frame(9, 0, 1, &[])));
    let empty = empty.take(400_000);
    attack(router.listen, empty).await;
    assert_eq!(good.get(5).await.pod(), "a");

    let pings = (0..100_000).map(|_| frame(6, 0, 0, &[0; 8]));
    attack(router.listen, pings).await;
    let settings = (0..100_000).map(|_| frame(4, 0, 0, &[]));
    attack(router.listen, settings).await;

    let huge = "x".repeat(64 * 1024);
    let reply = good
        .call(
            "/titan.order.v1.Orders/Get",
            &[("x-titan-key", "5"), ("x-huge", &huge)],
        )
        .await;
    assert!(reply.is_err() || reply.unwrap().status == 431);
    assert_eq!(Client::connect(router.listen).await.get(5).await.pod(), "a");
    let grown = resident_bytes().unwrap().saturating_sub(before) / MIB;
    assert!(grown < 64, "{grown} MiB more");
    assert!(
        a.requests() < 20_000,
        "the cell did not see the flood: {}",
        a.requests()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_slow_clients_are_bounded() {
    let a = pod("a").await;
    let table = table(
        1,
        vec![row(0, 9, "cell-001", Active)],
        &[("cell-001", &a.endpoint())],
    );
    let mut config = config();
    config.limits.connections = 600;
    config.limits.idle = Span(Duration::from_secs(1));
    config.limits.header_timeout = Span(Duration::from_millis(500));
    let router = router(config, Some(&table)).await;
    let before = resident_bytes().unwrap();
    let mut idle = Vec::new();
    for index in 0..1_500 {
        let mut stream = TcpStream::connect(router.listen).await.unwrap();
        match index % 3 {
            0 => {}
            1 => drop(stream.write_all(PREFACE).await),
            _ => drop(stream.write_all(b"GET / HT").await),
        }
        idle.push(stream);
    }
    let metrics = router.shared.metrics.clone();
    let count = || metrics.connections();
    assert!(count() <= 600, "{} connections", count());
    let grown = resident_bytes().unwrap().saturating_sub(before) / MIB;
    assert!(grown < 48, "{grown} MiB more");
    until("idle connections to be closed", || count() == 0).await;
    assert_eq!(Client::connect(router.listen).await.get(5).await.pod(), "a");
}
