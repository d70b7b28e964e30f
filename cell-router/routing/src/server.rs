//! The registry: serves the committed tables to routers and services.
//!
//! A stream is pulled: the next message is made when HTTP/2 flow control has room for it, from the table as it is
//! then. A slow client therefore skips epochs instead of filling a queue.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};
use tonic::{Request, Response, Status, Streaming};

use crate::proto::registry_server::{Registry, RegistryServer};
use crate::proto::{
    FailureReport, Heartbeat, ReportFailuresResponse, Snapshot, WatchRequest, WatchResponse,
    watch_response::Event,
};
use crate::{Delta, RoutingTable};

/// A table as it is shared between tasks.
pub type SharedTable = Arc<RoutingTable>;

/// What a client may send at once.
const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// Limits of the registry.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// A client that heard nothing for this long gets a heartbeat.
    pub heartbeat: Duration,
    /// How many past tables a returning client can start from with a delta.
    pub history: usize,
    /// How many streams are served at once.
    pub max_streams: usize,
    /// How many failure reports wait for a slow reader before the oldest go.
    pub report_buffer: usize,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        RegistryOptions {
            heartbeat: Duration::from_secs(5),
            history: 16,
            max_streams: 50_000,
            report_buffer: 4096,
        }
    }
}

/// The service `titan.registry.v1.Registry`. Cheap to clone; all clones share one state.
#[derive(Clone)]
pub struct RegistryService {
    shared: Arc<Shared>,
}

struct Shared {
    options: RegistryOptions,
    fleets: Mutex<BTreeMap<String, Arc<Fleet>>>,
    reports: broadcast::Sender<FailureReport>,
    streams: Arc<Semaphore>,
    closed: watch::Sender<bool>,
}

struct Fleet {
    tables: watch::Receiver<SharedTable>,
    past: Mutex<Past>,
}

/// The epoch and the checksum of a table.
type Version = (u64, u64);

/// Recent tables, and the deltas from them to the newest one.
#[derive(Default)]
struct Past {
    tables: VecDeque<SharedTable>,
    /// By the epoch and the checksum of the table they start from.
    deltas: BTreeMap<Version, Arc<Delta>>,
}

impl RegistryService {
    /// A registry that serves no fleet yet.
    #[must_use]
    pub fn new(options: RegistryOptions) -> Self {
        let (reports, _) = broadcast::channel(options.report_buffer.max(1));
        RegistryService {
            shared: Arc::new(Shared {
                streams: Arc::new(Semaphore::new(options.max_streams)),
                fleets: Mutex::default(),
                reports,
                closed: watch::Sender::new(false),
                options,
            }),
        }
    }

    /// A registry of one fleet.
    #[must_use]
    pub fn for_fleet(fleet: impl Into<String>, tables: watch::Receiver<SharedTable>) -> Self {
        let service = Self::new(RegistryOptions::default());
        service.serve_fleet(fleet, tables);
        service
    }

    /// Serves the tables of a fleet from now on. A table at epoch 0 means that there is none yet.
    pub fn serve_fleet(&self, fleet: impl Into<String>, tables: watch::Receiver<SharedTable>) {
        let state = Arc::new(Fleet {
            tables,
            past: Mutex::default(),
        });
        self.fleets().insert(fleet.into(), state);
    }

    /// Stops serving a fleet to new callers. Streams that are open end when the sender of the tables is dropped.
    pub fn forget_fleet(&self, fleet: &str) {
        self.fleets().remove(fleet);
    }

    /// What clients report of failing cells, from now on.
    #[must_use]
    pub fn failures(&self) -> broadcast::Receiver<FailureReport> {
        self.shared.reports.subscribe()
    }

    /// How many streams are open.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.shared
            .options
            .max_streams
            .saturating_sub(self.shared.streams.available_permits())
    }

    /// Ends all streams, so that the server can stop gracefully. Clients connect to another replica.
    pub fn close(&self) {
        self.shared.closed.send_replace(true);
    }

    /// The service as tonic serves it.
    #[must_use]
    pub fn into_server(self) -> RegistryServer<Self> {
        // Reports wait in a queue; what clients send is small.
        RegistryServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    fn fleets(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Fleet>>> {
        self.shared
            .fleets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn stream_permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.shared
            .streams
            .clone()
            .try_acquire_owned()
            .map_err(|_| {
                Status::resource_exhausted(format!(
                    "the registry serves {} streams already; try another replica",
                    self.shared.options.max_streams
                ))
            })
    }
}

/// A tonic server with the keep-alive that ends the streams of clients that vanished.
#[must_use]
pub fn builder() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .tcp_nodelay(true)
}

impl Past {
    /// Remembers the table as the newest one, unless it is older than what is known.
    fn remember(&mut self, table: &SharedTable, history: usize) {
        if self
            .tables
            .back()
            .is_some_and(|last| last.epoch() >= table.epoch())
        {
            return;
        }
        self.deltas.clear();
        self.tables.push_back(Arc::clone(table));
        while self.tables.len() > history.max(1) {
            self.tables.pop_front();
        }
    }

    /// The difference from a table that a client has, when that table is known here.
    fn delta(&mut self, have: Version, to: &SharedTable) -> Option<Arc<Delta>> {
        if self.tables.back()?.epoch() != to.epoch() {
            return None;
        }
        if let Some(delta) = self.deltas.get(&have) {
            return Some(Arc::clone(delta));
        }
        let base = self
            .tables
            .iter()
            .find(|table| table.epoch().0 == have.0 && table.checksum() == have.1)?;
        let delta = Arc::new(Delta::between(base, to));
        self.deltas.insert(have, Arc::clone(&delta));
        Some(delta)
    }
}

impl Fleet {
    /// What a client needs to get from the table it has to `to`: a delta when that is known and smaller.
    fn event(&self, have: Option<Version>, to: &SharedTable, history: usize) -> Event {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.remember(to, history);
        let delta = have.and_then(|have| past.delta(have, to));
        drop(past);
        match delta {
            Some(delta) if delta.changes() < to.assignments().len() + to.cells().len() => {
                Event::Delta((&*delta).into())
            }
            _ => Event::Snapshot(Snapshot::from(&**to)),
        }
    }
}

/// One open Watch.
struct Subscription {
    fleet: Arc<Fleet>,
    options: RegistryOptions,
    tables: watch::Receiver<SharedTable>,
    closed: watch::Receiver<bool>,
    have: Option<Version>,
    _permit: OwnedSemaphorePermit,
}

impl Subscription {
    /// The next message, when there is one to send. None ends the stream.
    async fn next(&mut self) -> Option<WatchResponse> {
        let deadline = tokio::time::Instant::now() + self.options.heartbeat;
        loop {
            if *self.closed.borrow() {
                return None;
            }
            let table = Arc::clone(&self.tables.borrow_and_update());
            let epoch = table.epoch().0;
            if epoch > self.have.map_or(0, |have| have.0) {
                let event = self.fleet.event(self.have, &table, self.options.history);
                self.have = Some((epoch, table.checksum()));
                return Some(WatchResponse { event: Some(event) });
            }
            tokio::select! {
                changed = self.tables.changed() => changed.ok()?,
                closed = self.closed.changed() => closed.ok()?,
                () = tokio::time::sleep_until(deadline) => {
                    return Some(WatchResponse {
                        event: Some(Event::Heartbeat(Heartbeat { epoch })),
                    });
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Registry for RegistryService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let fleet = self.fleets().get(&request.fleet).cloned().ok_or_else(|| {
            Status::not_found(format!(
                "no fleet named `{}` here; is there a CellFleet of that name?",
                request.fleet
            ))
        })?;
        let have = (request.have_epoch > 0)
            .then_some((request.have_epoch, request.have_checksum))
            .filter(|have| {
                // The same epoch with other content: the client has to see the snapshot and complain.
                let table = fleet.tables.borrow();
                table.epoch().0 != have.0 || table.checksum() == have.1
            });
        let subscription = Subscription {
            tables: fleet.tables.clone(),
            fleet,
            options: self.shared.options.clone(),
            closed: self.shared.closed.subscribe(),
            have,
            _permit: self.stream_permit()?,
        };
        tracing::debug!(
            client = request.client,
            fleet = request.fleet,
            have = request.have_epoch,
            "watch opened"
        );
        let stream = stream::unfold(subscription, async |mut subscription| {
            let message = subscription.next().await?;
            Some((Ok(message), subscription))
        });
        Ok(Response::new(stream.boxed()))
    }

    async fn report_failures(
        &self,
        request: Request<Streaming<FailureReport>>,
    ) -> Result<Response<ReportFailuresResponse>, Status> {
        let _permit = self.stream_permit()?;
        let mut closed = self.shared.closed.subscribe();
        let mut reports = request.into_inner();
        loop {
            tokio::select! {
                _ = closed.wait_for(|closed| *closed) => break,
                report = reports.message() => match report? {
                    // Nobody listening is fine: the detector may not lead at the moment.
                    Some(report) => { let _ = self.shared.reports.send(report); }
                    None => break,
                },
            }
        }
        Ok(Response::new(ReportFailuresResponse {}))
    }
}
