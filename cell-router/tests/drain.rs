//! A router that ends, and clients of HTTP/1.1 that keep their connections.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use cell_router::config::Span;
use cell_router::shared::Phase;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use support::{PATIENCE, config, pod, router, row, table, until};
use titan_routing::AssignmentState::Active;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const PATH: &str = "/titan.order.v1.Orders/Get";

/// A connection that is kept until the router says `Connection: close`.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<hyper::Result<()>>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let task = tokio::spawn(connection);
        Connection { sender, task }
    }

    /// Asks once. Whether the connection is to be closed now.
    async fn ask(&mut self) -> hyper::Result<bool> {
        let request = Request::post(PATH)
            .header("host", "router")
            .header("x-titan-key", "5")
            .body(Full::new(Bytes::from_static(b"hello")))
            .unwrap();
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        body.collect().await?;
        assert_eq!(head.status, 200, "{head:?}");
        let connection = head.headers.get("connection");
        Ok(connection.is_some_and(|value| value == "close"))
    }
}

/// Asks until it is stopped, with a moment between requests, in which the connection may end.
async fn client(address: SocketAddr, stop: Arc<AtomicBool>, answered: Arc<AtomicUsize>) {
    while !stop.load(SeqCst) {
        let mut connection = Connection::open(address).await;
        let mut close = false;
        while !close && !stop.load(SeqCst) {
            close = connection.ask().await.unwrap();
            answered.fetch_add(1, SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_router_restarts_without_a_failed_request_of_clients_that_keep_their_connections() {
    let a = pod("a").await;
    let cells = [("cell-001", &*a.endpoint())];
    let table = table(1, vec![row(0, 9, "cell-001", Active)], &cells);
    let mut config = config();
    // The test waits until the clients have moved, however long that takes.
    config.drain.delay = Span(Duration::ZERO);
    let mut current = router(config.clone(), Some(&table)).await;
    config.listen = current.listen;
    let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let clients: Vec<_> = (0..16)
        .map(|_| tokio::spawn(client(config.listen, stop.clone(), answered.clone())))
        .collect();
    let more = async || {
        let goal = answered.load(SeqCst) + 500;
        until("more answers", || {
            let failed = clients.iter().any(JoinHandle::is_finished);
            failed || answered.load(SeqCst) >= goal
        })
        .await;
    };
    for _ in 0..3 {
        more().await;
        let next = router(config.clone(), Some(&table)).await;
        let last = std::mem::replace(&mut current, next);
        last.shared.phase.send_replace(Phase::Leaving);
        until("the clients to move", || {
            last.shared.metrics.connections() == 0
        })
        .await;
        assert!(last.drain().await, "everything ended in time");
    }
    more().await;
    stop.store(true, SeqCst);
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn clients_are_told_to_close_before_the_router_does() {
    let a = pod("a").await;
    let cells = [("cell-001", &*a.endpoint())];
    let table = table(1, vec![row(0, 9, "cell-001", Active)], &cells);
    let mut config = config();
    config.drain.delay = Span(2 * PATIENCE);
    let router = router(config, Some(&table)).await;
    let shared = router.shared.clone();
    let mut connection = Connection::open(router.listen).await;
    for _ in 0..10 {
        assert!(!connection.ask().await.unwrap());
    }
    let drain = tokio::spawn(router.drain());
    let told = async { while !connection.ask().await.unwrap() {} };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!(*shared.phase.borrow(), Phase::Leaving, "it serves on");
    // The router closed it.
    let ended = tokio::time::timeout(PATIENCE, connection.task).await;
    ended.unwrap().unwrap().unwrap();
    drain.abort();
}
