//! Whatever goes through the router comes out as it went in, whatever else goes through at the same time, and nothing of it
//! stays behind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use support::{Client, Pod, PodAnswer, config, pod_with, row, table, until};
use titan_routing::AssignmentState::Active;

const PATH: &str = "/titan.order.v1.Orders/Get";

/// What a client asks.
#[derive(Clone, Debug)]
struct Ask {
    /// Over which of its connections.
    connection: usize,
    headers: Vec<(String, String)>,
    size: usize,
    status: u8,
    /// After which time the client leaves, if it does.
    leaves: Option<Duration>,
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let name = prop_oneof!["x-e-[a-c]", "x-e-[a-z-]{1,30}"];
    let value = prop_oneof![4 => "[ -~]{0,40}", 1 => "[a-z]{800,2000}"];
    let headers = prop::collection::vec((name, value.prop_map(|it| it.trim().to_owned())), 0..6);
    // None, few bytes, about a frame, about a window, and more than any window.
    let size = prop_oneof![
        2 => Just(0_usize),
        4 => 1_usize..500,
        2 => 16_000_usize..17_000,
        2 => 60_000_usize..70_000,
        1 => 100_000_usize..400_000,
    ];
    let leaves = prop::option::weighted(0.2, (0_u64..3_000).prop_map(Duration::from_micros));
    let ask = (0_usize..3, headers, size, 0_u8..17, leaves);
    let ask = ask.prop_map(|(connection, headers, size, status, leaves)| Ask {
        connection,
        headers,
        size,
        status,
        leaves,
    });
    prop::collection::vec(ask, 1..60)
}

/// A pod that gives back what it gets, with the status that it is asked for.
async fn mirror() -> Pod {
    pod_with(Arc::new(|request| {
        let headers = request.headers();
        let echoed: HeaderMap = headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("x-e-"))
            .fold(HeaderMap::new(), |mut all, (name, value)| {
                all.append(name, value.clone());
                all
            });
        let status = headers["x-status"].to_str().unwrap().parse().unwrap();
        PodAnswer::Grpc(status, echoed)
    }))
    .await
}

/// A body in which every place is another.
fn body(size: usize) -> Bytes {
    (0..size)
        .map(|at| (at * 7 + at / 251).to_le_bytes()[0])
        .collect()
}

async fn ask(client: Client, ask: Ask) {
    let status = ask.status.to_string();
    let mut headers = vec![("x-titan-key", "5"), ("x-status", &*status)];
    let own = ask.headers.iter();
    headers.extend(own.map(|(name, value)| (&**name, &**value)));
    let sent = body(ask.size);
    let call = client.call_with(PATH, &headers, sent.clone());
    let reply = match ask.leaves {
        Some(after) => match tokio::time::timeout(after, call).await {
            Ok(reply) => reply,
            Err(_) => return,
        },
        None => call.await,
    };
    let reply = reply.unwrap();
    assert!(
        reply.body == sent,
        "{} of {} bytes",
        reply.body.len(),
        ask.size
    );
    assert_eq!(reply.grpc_status(), Some(ask.status.into()), "{reply:?}");
    for (name, _) in &ask.headers {
        let name: HeaderName = name.parse().unwrap();
        let wanted: Vec<&str> = ask
            .headers
            .iter()
            .filter(|(other, _)| *other == name.as_str())
            .map(|(_, value)| &**value)
            .collect();
        let got: Vec<_> = reply.headers.get_all(&name).iter().collect();
        assert_eq!(got, wanted, "{name}");
    }
}

#[test]
fn whatever_goes_in_comes_out_as_it_was() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (_pod, router, mut clients) = runtime.block_on(async {
        let pod = mirror().await;
        let cells = [("cell-001", &*pod.endpoint())];
        let table = table(1, vec![row(0, 9, "cell-001", Active)], &cells);
        let mut config = config();
        config.threads = 1;
        // All share one connection, so that whatever is lost of its windows is missed.
        config.upstream.connections_per_pod = 1;
        // Statuses that tell of a failure are part of what goes through.
        config.breaker.consecutive_failures = u32::MAX;
        config.upstream.eject_after = u32::MAX;
        config.retry.body_bytes = 0;
        let router = support::router(config, Some(&table)).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(Client::connect(router.listen).await);
        }
        (pod, router, clients)
    });
    let metrics = router.shared.metrics.clone();
    let cases = Cases {
        cases: 100,
        // A request that is stuck takes its time to be told.
        max_shrink_iters: 5,
        failure_persistence: None,
        ..Cases::default()
    };
    let mut runner = TestRunner::new(cases);
    let ran = runner.run(&asks(), |asks| {
        runtime.block_on(async {
            let mut all = tokio::task::JoinSet::new();
            for one in asks {
                let client = clients[one.connection].clone();
                all.spawn(ask(client, one));
            }
            let whole = tokio::time::timeout(Duration::from_secs(20), all.join_all());
            whole.await.expect("a request is stuck");
            until("the end of what the clients left", || {
                metrics.in_flight() == 0
            })
            .await;
        });
        Ok(())
    });
    ran.unwrap();
    assert!(clients.iter_mut().all(|client| !client.is_closed()));
    runtime.shutdown_background();
}
