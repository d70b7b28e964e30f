//! Connections that do nothing: what they cost a real process, and that it gets over too many of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::process::Process;
use support::{Client, Pod, pod, row, table};
use titan_routing::AssignmentState::Active;
use titan_routing::client::TableFile;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const MIB: u64 = 1024 * 1024;

async fn router(pod: &Pod, limits: &str) -> Process {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    assert!(hard > 15_000, "too few open files: `ulimit -Hn` is {hard}");
    let state = tempfile::tempdir().unwrap();
    let cells = [("cell-001", &*pod.endpoint())];
    let table = table(1, vec![row(0, 9, "cell-001", Active)], &cells);
    TableFile::new(state.path(), "main").save(&table).unwrap();
    let router = Process::start("", state.path(), limits).await;
    assert_eq!(Client::connect(router.listen).await.get(5).await.pod(), "a");
    router
}

/// A connection that asks once over HTTP/2, and then nothing more. None when the router has no room.
async fn idle(router: &Process) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(router.listen).await?;
    stream.write_all(support::PREFACE).await?;
    let request = support::frame(1, 0x5, 1, &support::headers());
    stream.write_all(&request).await?;
    // Until the router speaks.
    stream.read_u8().await?;
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_do_not_take_the_memory_of_requests() {
    let a = pod("a").await;
    let router = router(&a, "{}").await;
    let before = router.resident();
    let mut open = Vec::new();
    let mut most = before;
    for index in 0..10_000 {
        open.extend(idle(&router).await.ok());
        if index % 100 == 0 {
            most = most.max(router.resident());
        }
    }
    most = most.max(router.resident());
    println!(
        "10,000 idle connections: RSS {} MiB before, {} MiB at most, {} were let in",
        before / MIB,
        most / MIB,
        open.len()
    );
    assert!(most < 256 * MIB, "more than the pod has");
    // The clients hold on to their side, and there is room for requests again.
    router
        .reaches("cell_router_memory_short", |short| short == 0.0)
        .await;
    assert_eq!(Client::connect(router.listen).await.get(5).await.pod(), "a");
    println!("afterwards: RSS {} MiB", router.resident() / MIB);
    drop(open);
    assert!(router.stop().await);
}
