//! A registry or a disk that lies to the router, a process of its own: refused, counted, logged, and traffic goes on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use support::process::Process;
use support::{Client, pod, row, table};
use titan_routing::AssignmentState::Active;
use titan_routing::client::TableFile;
use titan_routing::proto::registry_server::{Registry, RegistryServer};
use titan_routing::proto::{self, watch_response::Event};
use titan_routing::{Delta, RoutingTable};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

/// A table in which one pod serves the keys up to 9.
fn one_cell(epoch: u64, endpoint: &str) -> Arc<RoutingTable> {
    let rows = vec![row(0, 9, "cell-001", Active)];
    table(epoch, rows, &[("cell-001", endpoint)])
}

/// What the registry does with those who connect.
#[derive(Clone)]
enum Mode {
    /// Plays these events to each, and is then silent.
    Play(Vec<Event>),
    /// Says something that is not HTTP/2.
    Garbage,
    /// Says nothing.
    Mute,
}

/// A registry that can be made to lie. A change of mode ends the streams that are open.
struct Liar {
    mode: watch::Sender<Mode>,
    address: SocketAddr,
}

struct Player(watch::Receiver<Mode>);

#[tonic::async_trait]
impl Registry for Player {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        _: Request<proto::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut modes = self.0.clone();
        let Mode::Play(events) = modes.borrow_and_update().clone() else {
            return Err(Status::unavailable("not now"));
        };
        let events =
            stream::iter(events).map(|event| Ok(proto::WatchResponse { event: Some(event) }));
        let rest = stream::once(async move {
            let _ = modes.changed().await;
            Err(Status::unavailable("something else now"))
        });
        Ok(Response::new(events.chain(rest).boxed()))
    }

    async fn report_failures(
        &self,
        _: Request<Streaming<proto::FailureReport>>,
    ) -> Result<Response<proto::ReportFailuresResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

impl Liar {
    async fn start(mode: Mode) -> Self {
        let (mode, modes) = watch::channel(mode);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let player = Player(modes.clone());
        let incoming = stream::unfold((listener, modes), |(listener, modes)| async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mode = modes.borrow().clone();
                match mode {
                    Mode::Play(_) => {
                        return Some((Ok::<_, std::io::Error>(stream), (listener, modes)));
                    }
                    Mode::Garbage => drop(stream.write_all(&[0xff; 4096]).await),
                    Mode::Mute => drop(tokio::spawn(async move {
                        while stream.read_u8().await.is_ok() {}
                    })),
                }
            }
        });
        tokio::spawn(
            titan_routing::server::builder()
                .add_service(RegistryServer::new(player))
                .serve_with_incoming(incoming),
        );
        Liar { mode, address }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Requests for key 5, one after the other, until it is dropped.
struct Traffic {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
}

impl Traffic {
    async fn start(address: SocketAddr) -> Self {
        let traffic = Traffic {
            stop: Arc::default(),
            served: Arc::default(),
            failed: Arc::default(),
        };
        let (stop, served, failed) = (
            traffic.stop.clone(),
            traffic.served.clone(),
            traffic.failed.clone(),
        );
        let client = Client::connect(address).await;
        tokio::spawn(async move {
            while !stop.load(SeqCst) {
                let reply = client.get(5).await;
                if reply.grpc_status() == Some(0) {
                    served.fetch_add(1, SeqCst);
                } else {
                    failed.lock().unwrap().push(format!("{reply:?}"));
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        traffic
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

fn refusals(reason: &str) -> String {
    format!("cell_router_registry_refusals_total{{reason=\"{reason}\"}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_lies_is_refused_and_traffic_goes_on() {
    let (a, b) = (pod("a").await, pod("b").await);
    let good = one_cell(5, &a.endpoint());
    let play = |event: Event| Mode::Play(vec![event]);
    let snapshot = |table: &RoutingTable| proto::Snapshot::from(table);
    let registry = Liar::start(play(Event::Snapshot(snapshot(&good)))).await;
    let state = tempfile::tempdir().unwrap();
    let router = Process::start(&registry.url(), state.path(), "{}").await;
    router
        .reaches("cell_router_table_epoch", |epoch| epoch == 5.0)
        .await;
    let traffic = Traffic::start(router.listen).await;

    // Each says that it is newer than what is in use.
    let wide = vec![
        row(0, 9, "cell-001", Active),
        row(10, 19, "cell-001", Active),
    ];
    let wide = table(8, wide, &[("cell-001", &b.endpoint())]);
    let with = |change: fn(&mut proto::Table)| {
        let mut lie = snapshot(&wide);
        change(lie.table.as_mut().unwrap());
        play(Event::Snapshot(lie))
    };
    let cells = [("cell-001", &*b.endpoint())];
    let other = table(5, vec![row(0, 7, "cell-001", Active)], &cells);
    let stray = Delta::between(&one_cell(77, "x"), &one_cell(78, "y"));
    let ahead = proto::Heartbeat { epoch: 99 };
    let lies = [
        (
            "a hole",
            with(|table| drop(table.assignments.remove(0))),
            "invalid",
            "checksum",
        ),
        (
            "an overlap",
            with(|table| table.assignments[0].last = 15),
            "invalid",
            "overlap",
        ),
        (
            "an unknown cell",
            with(|table| table.assignments[0].cell = "x".into()),
            "invalid",
            "cell",
        ),
        (
            "a key that cannot be",
            with(|table| table.assignments[1].last = 1 << 63),
            "invalid",
            "key",
        ),
        (
            "an older epoch",
            play(Event::Snapshot(snapshot(&one_cell(3, &b.endpoint())))),
            "older_epoch",
            "epoch 3",
        ),
        (
            "other content",
            play(Event::Snapshot(snapshot(&other))),
            "same_epoch_other_content",
            "epoch 5",
        ),
        (
            "a delta of another table",
            play(Event::Delta((&stray).into())),
            "other_base",
            "77",
        ),
        (
            "a heartbeat of a table never sent",
            play(Event::Heartbeat(ahead)),
            "invalid",
            "delta",
        ),
        ("garbage", Mode::Garbage, "unreachable", "registry"),
        ("silence", Mode::Mute, "stalled", "silent"),
    ];
    for (what, lie, reason, says) in lies {
        let metric = refusals(reason);
        let before = router.metric(&metric).await;
        let lines = router.log.lock().unwrap().len();
        registry.mode.send_replace(lie);
        router.reaches(&metric, |count| count > before).await;
        support::until(&format!("a warning of {what}"), || {
            router.log.lock().unwrap()[lines..].iter().any(|line| {
                let message = line["message"].as_str().unwrap_or_default();
                line["level"] == "WARN" && line["reason"] == reason && message.contains(says)
            })
        })
        .await;
        assert_eq!(
            router.metric("cell_router_table_epoch").await,
            5.0,
            "{what}"
        );
        let served = traffic.served.load(SeqCst);
        support::until("traffic", || traffic.served.load(SeqCst) > served + 5).await;
    }
    assert_eq!(b.requests(), 0, "no lie was believed");

    // It tells the truth again, and is believed.
    registry
        .mode
        .send_replace(play(Event::Snapshot(snapshot(&one_cell(9, &b.endpoint())))));
    router
        .reaches("cell_router_table_epoch", |epoch| epoch == 9.0)
        .await;
    support::until("the new pod", || b.requests() > 0).await;
    assert_eq!(*traffic.failed.lock().unwrap(), Vec::<String>::new());
    println!("{} requests served, 0 failed", traffic.served.load(SeqCst));
    drop(traffic);
    assert!(router.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_is_told_and_traffic_goes_on() {
    let a = pod("a").await;
    let good = one_cell(5, &a.endpoint());
    let play = |table: &RoutingTable| Mode::Play(vec![Event::Snapshot(table.into())]);
    let registry = Liar::start(play(&good)).await;
    let state = tempfile::tempdir().unwrap();
    let file = TableFile::new(state.path(), "main");
    let on_disk = |epoch: u64| {
        let file = file.clone();
        move || matches!(file.load(), Ok(Some((table, _))) if table.epoch().0 == epoch)
    };

    // The file goes while the router runs: nobody notices, and the next table is kept again.
    let router = Process::start(&registry.url(), state.path(), "{}").await;
    support::until("the file", on_disk(5)).await;
    let client = Client::connect(router.listen).await;
    std::fs::remove_file(file.path()).unwrap();
    assert_eq!(client.get(5).await.pod(), "a");
    registry
        .mode
        .send_replace(play(&one_cell(6, &a.endpoint())));
    support::until("the file again", on_disk(6)).await;
    assert!(router.stop().await);

    // Without the registry, a corrupted file is no table, and says so.
    registry.mode.send_replace(Mode::Mute);
    let text = std::fs::read_to_string(file.path()).unwrap();
    std::fs::write(file.path(), text.replace("\"last\":9", "\"last\":8")).unwrap();
    let router = Process::start(&registry.url(), state.path(), "{}").await;
    router
        .reaches(&refusals("disk_unusable"), |count| count == 1.0)
        .await;
    router
        .logged("the corruption", |line| {
            line["reason"] == "disk_unusable"
                && line["message"].as_str().unwrap().contains("corrupted")
        })
        .await;
    let ready = support::page(router.metrics, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    let reply = Client::connect(router.listen).await.get(5).await;
    assert_eq!(reply.header("x-titan-router-error"), "no-table");
    assert!(router.stop().await);

    // With a good file it serves at once.
    std::fs::write(file.path(), text).unwrap();
    let router = Process::start(&registry.url(), state.path(), "{}").await;
    assert_eq!(router.metric("cell_router_table_from_disk").await, 1.0);
    assert_eq!(Client::connect(router.listen).await.get(5).await.pod(), "a");
    assert!(router.stop().await);

    // A folder that cannot be one: the table is in memory alone.
    registry.mode.send_replace(play(&good));
    let router = Process::start(&registry.url(), Path::new("/dev/null/titan"), "{}").await;
    router
        .reaches("cell_router_table_epoch", |epoch| epoch == 5.0)
        .await;
    router
        .reaches(&refusals("disk_not_written"), |count| count >= 1.0)
        .await;
    assert_eq!(Client::connect(router.listen).await.get(5).await.pod(), "a");
    assert!(router.stop().await);
}
