//! The registry's client: keeps the newest table that was ever heard of, in memory and on disk.
//!
//! It never goes back to an older epoch, refuses what does not check out, and goes on with the last good table for
//! as long as the registry is away.

mod disk;
mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

pub use disk::{DiskError, TableFile};
pub use status::{Refusal, RegistryObserver, RegistryStatus, Source};

use crate::proto::registry_client::RegistryClient as Stub;
use crate::proto::{FailureReport, WatchRequest, watch_response::Event};
use crate::proto::{WatchResponse, WireError};
use crate::{Delta, DeltaError, Epoch, KeyspaceMode, RoutingTable};

/// Where the registry is and how patient the client is.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// The fleet whose table is wanted.
    pub fleet: String,
    /// Who asks: the name of the pod.
    pub client: String,
    /// Addresses of the registry, `http://host:port`; tried in turn from a random one.
    pub endpoints: Vec<String>,
    /// Where the last good table is kept; nowhere when None.
    pub state_dir: Option<PathBuf>,
    /// A connection that takes longer is given up.
    pub connect_timeout: Duration,
    /// A registry that is silent for longer is left. It sends a heartbeat every 5 s.
    pub heartbeat_timeout: Duration,
    /// The first pause between attempts; it doubles up to `backoff_max`, and each is cut short at random.
    pub backoff_min: Duration,
    /// The longest pause between attempts.
    pub backoff_max: Duration,
    /// A message larger than this is refused.
    pub max_message_bytes: usize,
}

impl RegistryConfig {
    /// The defaults, for a fleet and a comma-separated list of addresses.
    #[must_use]
    pub fn new(fleet: impl Into<String>, endpoints: &str) -> Self {
        RegistryConfig {
            fleet: fleet.into(),
            client: String::new(),
            endpoints: endpoints
                .split(',')
                .map(|endpoint| endpoint.trim().to_owned())
                .filter(|endpoint| !endpoint.is_empty())
                .collect(),
            state_dir: None,
            connect_timeout: Duration::from_secs(3),
            heartbeat_timeout: Duration::from_secs(15),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            max_message_bytes: 64 * 1024 * 1024,
        }
    }
}

/// A running client. Dropping it stops it; receivers keep the last table.
#[derive(Debug)]
pub struct RegistryClient {
    tables: watch::Receiver<Arc<RoutingTable>>,
    shared: Arc<status::Shared>,
    reports: mpsc::Sender<FailureReport>,
    task: JoinHandle<()>,
}

impl Drop for RegistryClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RegistryClient {
    /// Takes the table from disk, if there is a good one, and follows the registry from then on.
    ///
    /// It returns at once: until a table is known, the receiver holds an empty one at epoch 0. Must be called within
    /// a tokio runtime.
    #[must_use]
    pub fn start(config: RegistryConfig, observer: Arc<dyn RegistryObserver>) -> Self {
        let (sender, tables) = watch::channel(Arc::new(RoutingTable::empty(KeyspaceMode::UserId)));
        let shared = Arc::new(status::Shared::new());
        let (reports, reports_out) = mpsc::channel(1024);
        let file = config
            .state_dir
            .as_deref()
            .map(|directory| TableFile::new(directory, &config.fleet));
        let mut follower = Follower {
            tables: sender,
            shared: Arc::clone(&shared),
            observer,
            next_endpoint: rand::random_range(0..config.endpoints.len().max(1)),
            want_snapshot: false,
            conflict: false,
            emptied: None,
            behind_since: None,
            reports: reports_out,
            config,
        };
        if let Some(file) = &file {
            follower.load(file);
        }
        let writer = file.map(|file| follower.keep_on_disk(file));
        let task = tokio::spawn(async move {
            let _writer = writer.map(AbortOnDrop);
            follower.run().await;
        });
        RegistryClient {
            tables,
            shared,
            reports,
            task,
        }
    }

    /// The table in use and every later one.
    #[must_use]
    pub fn tables(&self) -> watch::Receiver<Arc<RoutingTable>> {
        self.tables.clone()
    }

    /// The table in use.
    #[must_use]
    pub fn table(&self) -> Arc<RoutingTable> {
        Arc::clone(&self.tables.borrow())
    }

    /// Where the table came from, how old it is, whether the registry is there.
    #[must_use]
    pub fn status(&self) -> RegistryStatus {
        self.shared.read()
    }

    /// Reports what was seen of a service; dropped when the registry is away and the queue is full.
    /// The names of the fleet and of the client are filled in.
    pub fn report(&self, report: FailureReport) {
        let _ = self.reports.try_send(report);
    }

    /// A handle for reports that can be given away.
    #[must_use]
    pub fn reporter(&self) -> mpsc::Sender<FailureReport> {
        self.reports.clone()
    }

    /// Waits until the table has at least this epoch. False when that takes longer than `patience`.
    pub async fn wait_for(&self, epoch: Epoch, patience: Duration) -> bool {
        let mut tables = self.tables.clone();
        timeout(patience, tables.wait_for(|table| table.epoch() >= epoch))
            .await
            .is_ok_and(|found| found.is_ok())
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Follower {
    config: RegistryConfig,
    tables: watch::Sender<Arc<RoutingTable>>,
    shared: Arc<status::Shared>,
    observer: Arc<dyn RegistryObserver>,
    reports: mpsc::Receiver<FailureReport>,
    next_endpoint: usize,
    want_snapshot: bool,
    /// The registry has other content under the epoch in use.
    conflict: bool,
    /// The epoch at which the registry has no rows any more, and this client goes on with those it has.
    emptied: Option<Epoch>,
    /// Since when the registry has an older table than this client.
    behind_since: Option<Instant>,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("registry address `{0}` is not a URL: {1}")]
    Address(String, tonic::transport::Error),
    #[error("cannot reach the registry at {0}: {1}")]
    Connect(String, tonic::transport::Error),
    #[error("the registry ended the stream: {} {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error("the registry closed the stream")]
    Closed,
    #[error("the registry was silent for {0:?}")]
    Stalled(Duration),
    #[error("the registry stays at epoch {0}, {1} is in use")]
    Behind(Epoch, Epoch),
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl Follower {
    fn load(&self, file: &TableFile) {
        match file.load() {
            Ok(Some((table, age))) => {
                tracing::info!(
                    epoch = table.epoch().0,
                    rows = table.assignments().len(),
                    age_seconds = age.as_secs(),
                    "routing by the table on disk until the registry answers"
                );
                self.shared.accepted(table.epoch(), Source::Disk, age);
                self.observer.accepted(&table, Source::Disk);
                self.tables.send_replace(Arc::new(table));
            }
            Ok(None) => {}
            Err(error) => self.refuse(Refusal::DiskUnusable, &error.to_string()),
        }
    }

    /// Writes each table that comes from now on; only the newest when they come faster than the disk.
    fn keep_on_disk(&self, file: TableFile) -> JoinHandle<()> {
        let mut tables = self.tables.subscribe();
        tables.mark_unchanged();
        let observer = Arc::clone(&self.observer);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            while tables.changed().await.is_ok() {
                let table = Arc::clone(&tables.borrow_and_update());
                let file = file.clone();
                let saved = tokio::task::spawn_blocking(move || file.save(&table)).await;
                if let Ok(Err(error)) = saved {
                    tracing::error!(%error, "the routing table was not kept on disk");
                    shared.refused(error.to_string());
                    observer.refused(Refusal::DiskNotWritten);
                }
            }
        })
    }

    async fn run(&mut self) {
        if self.config.endpoints.is_empty() {
            tracing::warn!(
                "no address of the registry is configured: the table on disk is all there is"
            );
            return;
        }
        let mut pause = self.config.backoff_min;
        loop {
            let started = Instant::now();
            let end = self.follow().await;
            self.shared.connected(false);
            self.observer.connected(false);
            self.next_endpoint = self.next_endpoint.wrapping_add(1);
            let reason = match &end {
                StreamEnd::Stalled(_) => Refusal::Stalled,
                StreamEnd::Behind(..) => Refusal::OlderEpoch,
                StreamEnd::Wire(WireError::Delta(DeltaError::OtherBase { .. })) => {
                    Refusal::OtherBase
                }
                StreamEnd::Wire(_) => Refusal::Invalid,
                _ => Refusal::Unreachable,
            };
            self.want_snapshot = matches!(end, StreamEnd::Wire(_));
            self.refuse(reason, &end.to_string());
            if started.elapsed() > self.config.backoff_max {
                pause = self.config.backoff_min;
            }
            let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
            pause = (pause * 2).min(self.config.backoff_max);
            sleep(jittered).await;
        }
    }

    async fn follow(&mut self) -> StreamEnd {
        match self.stream().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn stream(&mut self) -> Result<std::convert::Infallible, StreamEnd> {
        let channel = self.connect().await?;
        let mut stub =
            Stub::new(channel.clone()).max_decoding_message_size(self.config.max_message_bytes);
        let request = {
            let table = self.tables.borrow();
            let known = table.epoch() > Epoch(0) && !self.want_snapshot;
            WatchRequest {
                fleet: self.config.fleet.clone(),
                client: self.config.client.clone(),
                have_epoch: if known { table.epoch().0 } else { 0 },
                have_checksum: if known { table.checksum() } else { 0 },
            }
        };
        let silence = self.config.heartbeat_timeout;
        let mut stream = timeout(silence, stub.watch(request))
            .await
            .map_err(|_| StreamEnd::Stalled(silence))??
            .into_inner();
        self.shared.connected(true);
        self.observer.connected(true);

        let (report, reports) = mpsc::channel::<FailureReport>(64);
        let _reporting = AbortOnDrop(tokio::spawn(async move {
            let reports = ReceiverStream::new(reports);
            if let Err(status) = Stub::new(channel).report_failures(reports).await {
                tracing::debug!(%status, "failure reports are not taken");
            }
        }));
        let mut deadline = Instant::now() + silence;
        loop {
            tokio::select! {
                message = stream.next() => {
                    deadline = Instant::now() + silence;
                    self.take(message.ok_or(StreamEnd::Closed)??)?;
                }
                Some(mut observed) = self.reports.recv() => {
                    observed.fleet.clone_from(&self.config.fleet);
                    observed.client.clone_from(&self.config.client);
                    let _ = report.try_send(observed);
                }
                () = tokio::time::sleep_until(deadline) => return Err(StreamEnd::Stalled(silence)),
            }
        }
    }

    async fn connect(&self) -> Result<Channel, StreamEnd> {
        let endpoints = &self.config.endpoints;
        let address = endpoints
            .get(self.next_endpoint % endpoints.len().max(1))
            .cloned()
            .unwrap_or_default();
        Endpoint::from_shared(address.clone())
            .map_err(|error| StreamEnd::Address(address.clone(), error))?
            .connect_timeout(self.config.connect_timeout)
            .http2_keep_alive_interval(self.config.heartbeat_timeout / 2)
            .keep_alive_timeout(self.config.heartbeat_timeout / 2)
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(|error| StreamEnd::Connect(address, error))
    }

    fn take(&mut self, message: WatchResponse) -> Result<(), StreamEnd> {
        let table = match message.event {
            Some(Event::Snapshot(snapshot)) => RoutingTable::try_from(snapshot)?,
            Some(Event::Delta(delta)) => {
                let delta = Delta::try_from(delta)?;
                delta
                    .apply(&self.tables.borrow())
                    .map_err(WireError::from)?
            }
            Some(Event::Heartbeat(heartbeat)) => {
                return self.heartbeat(Epoch(heartbeat.epoch));
            }
            None => return Err(WireError::Missing("event").into()),
        };
        self.adopt(table);
        Ok(())
    }

    fn heartbeat(&mut self, registry: Epoch) -> Result<(), StreamEnd> {
        let epoch = self.tables.borrow().epoch();
        if self.emptied == Some(registry) {
            return Ok(());
        }
        if registry > epoch {
            // It believes that we have something that we never got.
            return Err(WireError::Missing("delta").into());
        }
        if registry < epoch {
            // A replica that lags may catch up; one that does not is left for another.
            let since = *self.behind_since.get_or_insert_with(Instant::now);
            if since.elapsed() > self.config.heartbeat_timeout {
                self.behind_since = None;
                return Err(StreamEnd::Behind(registry, epoch));
            }
            return Ok(());
        }
        self.behind_since = None;
        if !self.conflict {
            self.shared.confirmed();
        }
        Ok(())
    }

    /// Takes the table into use when it is newer than the one in use.
    fn adopt(&mut self, table: RoutingTable) {
        self.want_snapshot = false;
        let current = Arc::clone(&self.tables.borrow());
        let (epoch, current_epoch) = (table.epoch(), current.epoch());
        if epoch < current_epoch {
            self.refuse(
                Refusal::OlderEpoch,
                &format!("the registry sent epoch {epoch}, {current_epoch} is in use"),
            );
        } else if epoch == current_epoch {
            if table == *current {
                self.shared.confirmed();
            } else {
                self.conflict = true;
                self.refuse(
                    Refusal::SameEpochOtherContent,
                    &format!("the registry sent another table with epoch {epoch}, which is in use"),
                );
            }
        } else if table.assignments().is_empty() && !current.assignments().is_empty() {
            // If the last cell is really gone, nothing is lost: its rows lead to nobody. If not, everything would be.
            self.emptied = Some(epoch);
            self.refuse(
                Refusal::Emptied,
                &format!("the registry sent epoch {epoch} without a single row"),
            );
        } else {
            self.conflict = false;
            self.emptied = None;
            let gaps = table.gaps();
            if let Some(gap) = gaps.first().filter(|_| gaps.len() > current.gaps().len()) {
                tracing::warn!(%epoch, gaps = gaps.len(), first = %gap, "the table has new gaps: keys that nobody serves");
            }
            tracing::info!(
                %epoch,
                rows = table.assignments().len(),
                cells = table.cells().len(),
                "routing by a new table"
            );
            self.shared
                .accepted(epoch, Source::Registry, Duration::ZERO);
            self.observer.accepted(&table, Source::Registry);
            self.tables.send_replace(Arc::new(table));
        }
    }

    fn refuse(&self, reason: Refusal, what: &str) {
        tracing::warn!(
            reason = reason.as_str(),
            epoch = self.tables.borrow().epoch().0,
            "{what}; going on with the table in use"
        );
        self.shared.refused(what.to_owned());
        self.observer.refused(reason);
    }
}
