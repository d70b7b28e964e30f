//! The registry and its client over real sockets: good days, bad tables, silence and loss.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use titan_routing::client::{
    Refusal, RegistryClient, RegistryConfig, RegistryObserver, Source, TableFile,
};
use titan_routing::proto::registry_server::{Registry, RegistryServer};
use titan_routing::proto::{self, watch_response::Event};
use titan_routing::server::{RegistryOptions, RegistryService};
use titan_routing::{
    Assignment, AssignmentState, CellEndpoint, Delta, Epoch, Key, KeyRange, KeyspaceMode,
    RoutingTable,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);

fn table(epoch: u64, cells: u64) -> Arc<RoutingTable> {
    let name = |index: u64| format!("cell-{:03}", index + 1);
    let rows = (0..cells).map(|index| Assignment {
        range: KeyRange::new(
            Key::new(index * 10_000).unwrap(),
            Key::new(index * 10_000 + 9_999).unwrap(),
        )
        .unwrap(),
        cell: name(index),
        home: name(index),
        state: AssignmentState::Active,
        epoch: Epoch(1),
    });
    let endpoints = (0..cells).map(|index| CellEndpoint {
        cell: name(index),
        region: "sg".into(),
        endpoint: format!("{}.svc.cluster.local", name(index)),
    });
    let table = RoutingTable::new(
        Epoch(epoch),
        KeyspaceMode::UserId,
        rows.collect(),
        endpoints.collect(),
        Vec::new(),
    );
    Arc::new(table.unwrap())
}

#[derive(Default)]
struct Seen(Mutex<Vec<Refusal>>, Mutex<Vec<u64>>);

impl RegistryObserver for Seen {
    fn refused(&self, reason: Refusal) {
        self.0.lock().unwrap().push(reason);
    }
    fn accepted(&self, table: &RoutingTable, _: Source) {
        self.1.lock().unwrap().push(table.epoch().0);
    }
}

impl Seen {
    async fn refusal(&self, reason: Refusal) {
        until(&format!("refusal {reason:?}"), || {
            self.0.lock().unwrap().contains(&reason)
        })
        .await;
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, wait).await.is_ok(),
        "waited in vain for: {what}"
    );
}

async fn serve<R: Registry>(registry: R) -> (SocketAddr, JoinHandle<()>) {
    serve_on(registry, "127.0.0.1:0".parse().unwrap()).await
}

async fn serve_on<R: Registry>(registry: R, at: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        titan_routing::server::builder()
            .add_service(RegistryServer::new(registry))
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .unwrap();
    });
    (address, task)
}

fn config(addresses: &[SocketAddr]) -> RegistryConfig {
    let list: Vec<String> = addresses.iter().map(|at| format!("http://{at}")).collect();
    RegistryConfig {
        client: "test".into(),
        backoff_min: Duration::from_millis(10),
        backoff_max: Duration::from_millis(50),
        // Heartbeats may be late on a machine that stalls.
        heartbeat_timeout: Duration::from_secs(20),
        ..RegistryConfig::new("main", &list.join(","))
    }
}

fn service(tables: watch::Receiver<Arc<RoutingTable>>) -> RegistryService {
    let service = RegistryService::new(RegistryOptions {
        heartbeat: Duration::from_millis(50),
        ..RegistryOptions::default()
    });
    service.serve_fleet("main", tables);
    service
}

/// A registry that plays a script and then stays silent.
struct Scripted(Vec<Event>);

#[tonic::async_trait]
impl Registry for Scripted {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        _: Request<proto::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let events = self.0.clone();
        let script =
            stream::iter(events).map(|event| Ok(proto::WatchResponse { event: Some(event) }));
        Ok(Response::new(script.chain(stream::pending()).boxed()))
    }

    async fn report_failures(
        &self,
        _: Request<Streaming<proto::FailureReport>>,
    ) -> Result<Response<proto::ReportFailuresResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

fn snapshot(table: &RoutingTable) -> Event {
    Event::Snapshot(table.into())
}

#[tokio::test]
async fn a_client_gets_a_snapshot_and_then_deltas() {
    let (sender, tables) = watch::channel(table(1, 500));
    let (address, _server) = serve(service(tables)).await;
    let seen = Arc::new(Seen::default());
    let client = RegistryClient::start(config(&[address]), seen.clone());
    assert!(client.wait_for(Epoch(1), PATIENCE).await);
    assert_eq!(*client.table(), *table(1, 500));
    for epoch in 2..10 {
        sender.send_replace(table(epoch, 500 - epoch));
        assert!(client.wait_for(Epoch(epoch), PATIENCE).await);
        assert_eq!(*client.table(), *table(epoch, 500 - epoch));
    }
    assert!(client.status().connected);
    assert_eq!(client.status().source, Source::Registry);
    assert!(seen.0.lock().unwrap().is_empty(), "nothing was refused");
}

#[tokio::test]
async fn a_returning_client_gets_a_delta_and_an_unknown_one_a_snapshot() {
    let (sender, tables) = watch::channel(table(1, 50));
    let (address, _server) = serve(service(tables)).await;
    let mut stub = proto::registry_client::RegistryClient::connect_to(address).await;
    let request = |epoch, checksum| proto::WatchRequest {
        fleet: "main".into(),
        client: "test".into(),
        have_epoch: epoch,
        have_checksum: checksum,
    };
    let first = async |stub: &mut Stub, request| {
        let mut stream = stub.watch(request).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap().event.unwrap()
    };
    assert!(matches!(
        first(&mut stub, request(0, 0)).await,
        Event::Snapshot(_)
    ));
    sender.send_replace(table(2, 49));
    let known = table(1, 50).checksum();
    assert!(matches!(
        first(&mut stub, request(1, known)).await,
        Event::Delta(_)
    ));
    assert!(matches!(
        first(&mut stub, request(1, 7)).await,
        Event::Snapshot(_)
    ));
    let newest = table(2, 49).checksum();
    assert!(matches!(
        first(&mut stub, request(2, newest)).await,
        Event::Heartbeat(_)
    ));
    assert!(matches!(
        first(&mut stub, request(2, 7)).await,
        Event::Snapshot(_)
    ));
    let status = stub
        .watch(proto::WatchRequest {
            fleet: "other".into(),
            ..request(0, 0)
        })
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
}

type Stub = proto::registry_client::RegistryClient<tonic::transport::Channel>;

trait ConnectTo {
    async fn connect_to(address: SocketAddr) -> Stub;
}

impl ConnectTo for Stub {
    async fn connect_to(address: SocketAddr) -> Stub {
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        Stub::new(endpoint.connect().await.unwrap())
    }
}

#[tokio::test]
async fn a_client_starts_from_disk_and_outlives_the_registry() {
    let directory = tempfile::tempdir().unwrap();
    let (sender, tables) = watch::channel(table(1, 10));
    let registry = service(tables);
    let (address, server) = serve(registry.clone()).await;
    let mut config = config(&[address]);
    config.state_dir = Some(directory.path().to_owned());
    let client = RegistryClient::start(config.clone(), Arc::new(()));
    sender.send_replace(table(2, 11));
    assert!(client.wait_for(Epoch(2), PATIENCE).await);
    let file = TableFile::new(directory.path(), "main");
    until(
        "the table on disk",
        || matches!(file.load(), Ok(Some((table, _))) if table.epoch() == Epoch(2)),
    )
    .await;
    server.abort();
    let _ = server.await;
    registry.close();
    until("the loss to be noticed", || !client.status().connected).await;
    assert_eq!(
        client.table().epoch(),
        Epoch(2),
        "it goes on with what it has"
    );
    drop(client);

    let client = RegistryClient::start(config, Arc::new(()));
    assert_eq!(
        *client.table(),
        *table(2, 11),
        "at once, without a registry"
    );
    assert_eq!(client.status().source, Source::Disk);

    let (_sender, tables) = watch::channel(table(3, 12));
    let _server = serve_on(service(tables), address).await;
    assert!(
        client.wait_for(Epoch(3), PATIENCE).await,
        "it comes back by itself"
    );
}

#[tokio::test]
async fn a_corrupted_file_is_refused_and_the_registry_used() {
    let directory = tempfile::tempdir().unwrap();
    let file = TableFile::new(directory.path(), "main");
    file.save(&table(7, 10)).unwrap();
    let text = std::fs::read_to_string(file.path()).unwrap();
    std::fs::write(file.path(), text.replace("cell-003", "cell-004")).unwrap();
    let (_sender, tables) = watch::channel(table(5, 10));
    let (address, _server) = serve(service(tables)).await;
    let mut config = config(&[address]);
    config.state_dir = Some(directory.path().to_owned());
    let seen = Arc::new(Seen::default());
    let client = RegistryClient::start(config, seen.clone());
    assert_eq!(client.table().epoch(), Epoch(0));
    seen.refusal(Refusal::DiskUnusable).await;
    assert!(client.wait_for(Epoch(5), PATIENCE).await);
}

#[tokio::test]
async fn an_older_table_is_never_taken() {
    let directory = tempfile::tempdir().unwrap();
    TableFile::new(directory.path(), "main")
        .save(&table(9, 10))
        .unwrap();
    let (sender, tables) = watch::channel(table(4, 3));
    let (address, _server) = serve(service(tables)).await;
    let mut config = config(&[address]);
    config.state_dir = Some(directory.path().to_owned());
    // For so long it may stay behind, too.
    config.heartbeat_timeout = Duration::from_secs(2);
    let seen = Arc::new(Seen::default());
    let client = RegistryClient::start(config, seen.clone());
    // The registry stays at epoch 4: it is left and tried again, and that is counted.
    seen.refusal(Refusal::OlderEpoch).await;
    assert_eq!(client.table().epoch(), Epoch(9));
    sender.send_replace(table(10, 3));
    assert!(client.wait_for(Epoch(10), PATIENCE).await);
    assert_eq!(*seen.1.lock().unwrap(), [9, 10]);
}

#[tokio::test]
async fn bad_messages_are_refused_and_a_good_replica_is_found() {
    let good = table(3, 5);
    let mut overlap = proto::Snapshot::from(&*good);
    overlap.table.as_mut().unwrap().epoch = 8;
    overlap.table.as_mut().unwrap().assignments[0].last = 10_001;
    let mut hole = proto::Snapshot::from(&*good);
    hole.table.as_mut().unwrap().epoch = 8;
    hole.table.as_mut().unwrap().assignments.remove(2);
    let mut unknown_cell = proto::Snapshot::from(&*good);
    unknown_cell.table.as_mut().unwrap().cells.remove(0);
    let mut reversed = proto::Snapshot::from(&*good);
    reversed.table.as_mut().unwrap().assignments[0].first = 1 << 63;
    let stray = Delta::between(&table(77, 5), &table(78, 5));
    let cases = [
        (Event::Snapshot(overlap), Refusal::Invalid),
        (Event::Snapshot(hole), Refusal::Invalid),
        (Event::Snapshot(unknown_cell), Refusal::Invalid),
        (Event::Snapshot(reversed), Refusal::Invalid),
        (
            Event::Snapshot(proto::Snapshot::default()),
            Refusal::Invalid,
        ),
        (Event::Delta((&stray).into()), Refusal::OtherBase),
        (
            Event::Heartbeat(proto::Heartbeat { epoch: 99 }),
            Refusal::Invalid,
        ),
    ];
    for (event, reason) in cases {
        let what = format!("{event:?}").chars().take(60).collect::<String>();
        let (bad, _bad) = serve(Scripted(vec![event])).await;
        let seen = Arc::new(Seen::default());
        let client = RegistryClient::start(config(&[bad]), seen.clone());
        seen.refusal(reason).await;
        assert_eq!(client.table().epoch(), Epoch(0), "{what}");

        let (_sender, tables) = watch::channel(table(3, 5));
        let (address, _server) = serve(service(tables)).await;
        let client = RegistryClient::start(config(&[bad, address]), Arc::new(()));
        assert!(client.wait_for(Epoch(3), PATIENCE).await, "{what}");
    }
}

#[tokio::test]
async fn the_same_epoch_with_other_content_is_refused() {
    let (bad, _server) = serve(Scripted(vec![
        snapshot(&table(3, 5)),
        snapshot(&table(3, 6)),
    ]))
    .await;
    let seen = Arc::new(Seen::default());
    let client = RegistryClient::start(config(&[bad]), seen.clone());
    seen.refusal(Refusal::SameEpochOtherContent).await;
    assert_eq!(*client.table(), *table(3, 5));
}

#[tokio::test]
async fn a_silent_registry_is_left() {
    let config = |address| RegistryConfig {
        heartbeat_timeout: Duration::from_millis(400),
        ..config(&[address])
    };
    let (silent, _server) = serve(Scripted(vec![snapshot(&table(3, 5))])).await;
    let seen = Arc::new(Seen::default());
    let client = RegistryClient::start(config(silent), seen.clone());
    seen.refusal(Refusal::Stalled).await;
    assert_eq!(client.table().epoch(), Epoch(3));

    // One that accepts the connection and never says a word.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let seen = Arc::new(Seen::default());
    let _client = RegistryClient::start(config(mute.local_addr().unwrap()), seen.clone());
    seen.refusal(Refusal::Stalled).await;
}

#[tokio::test]
async fn something_else_on_the_port_is_not_a_registry() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _garbage = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.write_all(&[0xff; 4096]).await;
        }
    });
    let seen = Arc::new(Seen::default());
    let client = RegistryClient::start(config(&[address]), seen.clone());
    seen.refusal(Refusal::Unreachable).await;
    assert_eq!(client.table().epoch(), Epoch(0));
}

#[tokio::test]
async fn a_table_without_rows_takes_nobodys_rows_away() {
    let (sender, tables) = watch::channel(table(1, 5));
    let (address, _server) = serve(service(tables)).await;
    let seen = Arc::new(Seen::default());
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&[address]);
    config.state_dir = Some(directory.path().to_owned());
    let client = RegistryClient::start(config, seen.clone());
    assert!(client.wait_for(Epoch(1), PATIENCE).await);
    sender.send_replace(table(2, 0));
    seen.refusal(Refusal::Emptied).await;
    // It stays with the registry, which has nothing better, and knows that it has not the newest table.
    let old = |limit| client.status().age.unwrap() > Duration::from_millis(limit);
    until("an old table", || old(300)).await;
    assert!(client.status().connected);
    assert_eq!(*seen.0.lock().unwrap(), [Refusal::Emptied]);
    assert_eq!(
        (client.table().epoch(), client.table().assignments().len()),
        (Epoch(1), 5)
    );
    // A single row is a table again.
    sender.send_replace(table(3, 1));
    assert!(client.wait_for(Epoch(3), PATIENCE).await);
    assert_eq!(client.table().assignments().len(), 1);
    let file = TableFile::new(directory.path(), "main");
    until("the table on disk", || {
        file.load()
            .unwrap()
            .is_some_and(|(table, _)| table.epoch() == Epoch(3))
    })
    .await;
    // Who never had a row has nothing to lose.
    sender.send_replace(table(4, 0));
    let config = self::config(&[address]);
    let fresh = RegistryClient::start(config, Arc::new(()));
    assert!(fresh.wait_for(Epoch(4), PATIENCE).await);
}

#[tokio::test]
async fn failure_reports_reach_the_detector() {
    let (_sender, tables) = watch::channel(table(1, 5));
    let service = service(tables);
    let mut failures = service.failures();
    let (address, _server) = serve(service).await;
    let client = RegistryClient::start(config(&[address]), Arc::new(()));
    assert!(client.wait_for(Epoch(1), PATIENCE).await);
    client.report(proto::FailureReport {
        cell: "cell-003".into(),
        service: "order".into(),
        consecutive_failures: 5,
        ..proto::FailureReport::default()
    });
    let report = tokio::time::timeout(PATIENCE, failures.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (report.cell.as_str(), report.fleet.as_str()),
        ("cell-003", "main")
    );
    assert_eq!(
        (report.client.as_str(), report.consecutive_failures),
        ("test", 5)
    );
}

#[tokio::test]
async fn closing_the_registry_ends_its_streams() {
    let (_sender, tables) = watch::channel(table(1, 5));
    let service = service(tables);
    let (address, _server) = serve(service.clone()).await;
    let client = RegistryClient::start(config(&[address]), Arc::new(()));
    assert!(client.wait_for(Epoch(1), PATIENCE).await);
    assert!(service.open_streams() > 0);
    service.close();
    until("all streams to end", || service.open_streams() == 0).await;
}
