//! The operator as a whole: what every replica does, and what only the leader does.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::{FutureExt, StreamExt};
use kube::runtime::watcher;
use kube::{Client, Config};
use nix::sys::resource::{Resource, getrlimit};
use titan_crds::RoutingTable as TableResource;
use titan_planner::Observed;
use titan_routing::server::{RegistryOptions, RegistryService, builder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ledger::{GatedLedger, Ledger};
use crate::metrics::Metrics;
use crate::observe::tables::Tables;
use crate::observe::{KeepLast, count, readable};
use crate::run::client;
use crate::run::controllers::lead;
use crate::run::health::{Readiness, router};
use crate::run::leadership::{Candidate, LEASE_DURATION, WriteGate};

/// How a replica of the operator is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the registry listens.
    pub registry_listen: SocketAddr,
    /// Where metrics and health are.
    pub metrics_listen: SocketAddr,
    /// The name of this replica, as the holder of the Lease.
    pub identity: String,
    /// The namespace of the operator.
    pub namespace: String,
}

/// How long one watch of tables lasts. A connection that is silent for some seconds longer is given up.
const TABLE_WATCH_SECONDS: u32 = 30;
/// Files that are kept for everything but the registry: requests to the apiserver, stores of cells, metrics.
const OWN_FILES: usize = 512;
/// The name of the Lease.
const LEASE: &str = "titan-operator";
/// What the operator calls itself to the apiserver.
const USER_AGENT: http::HeaderValue =
    http::HeaderValue::from_static(concat!("titan-operator/", env!("CARGO_PKG_VERSION")));

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// Another process listens there, or the address is not this machine's.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// The client to the apiserver cannot be made.
    #[error("cannot set up the client for the apiserver: {0}")]
    Client(#[from] kube::Error),
    /// A metric cannot be registered.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

/// Runs a replica until `stop`: the registry and metrics all the time, the controllers while it leads.
///
/// # Errors
/// When it cannot begin.
pub async fn operate(
    mut config: Config,
    settings: Settings,
    metrics: Metrics,
    ledger: Arc<dyn Ledger>,
    stop: CancellationToken,
) -> Result<(), OperateError> {
    // So that an audit log says who wrote.
    config.headers.push((http::header::USER_AGENT, USER_AGENT));
    let registry = RegistryService::new(RegistryOptions {
        max_streams: registry_streams(),
        ..RegistryOptions::default()
    });
    let tables = Arc::new(Tables::new(registry.clone()));
    let readiness = Readiness::default();
    let tasks = TaskTracker::new();

    let registry_listener = listen(settings.registry_listen).await?;
    let http_listener = listen(settings.metrics_listen).await?;
    tasks.spawn(follow_tables(
        client::for_reading(config.clone())?,
        tables.clone(),
        metrics.clone(),
        readiness.clone(),
        stop.clone(),
    ));
    tasks.spawn(
        stop.clone()
            .run_until_cancelled_owned(count(registry.failures(), tables.clone(), metrics.clone()))
            .map(drop),
    );
    tasks.spawn(serve_registry(
        registry.clone(),
        registry_listener,
        stop.clone(),
    ));
    tasks.spawn(serve_http(
        router(metrics.clone(), readiness.clone()),
        http_listener,
        stop.clone(),
    ));

    let replica = Replica {
        config,
        settings,
        metrics,
        ledger,
        tables,
        registry,
        stop: stop.clone(),
    };
    let mut result = Ok(());
    while result.is_ok() && !stop.is_cancelled() {
        result = replica.term().await;
    }
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(LEASE_DURATION, tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!("some connections did not end in time");
    }
    result
}

/// What outlives a term.
struct Replica {
    config: Config,
    settings: Settings,
    metrics: Metrics,
    ledger: Arc<dyn Ledger>,
    tables: Arc<Tables>,
    registry: RegistryService,
    stop: CancellationToken,
}

/// Why a term ended.
enum End {
    Stopped,
    Lost,
    /// The controllers ended by themselves, which is a bug.
    Broken,
}

impl Replica {
    /// Waits for leadership, and leads until it is lost or the replica has to stop. What a term began ends with it; a table is
    /// served on. Each term has a gate and clients of its own, so that nothing of an earlier one can write in a later one.
    async fn term(&self) -> Result<(), OperateError> {
        let identity = &self.settings.identity;
        let gate = WriteGate::closed();
        let mut candidate = Candidate::new(
            client::for_lease(self.config.clone())?,
            &self.settings.namespace,
            LEASE,
            identity.clone(),
            gate.clone(),
        );
        tokio::select! {
            () = self.stop.cancelled() => return Ok(()),
            () = candidate.win() => {}
        }
        tracing::info!(identity, "leading");
        self.metrics.leading.set(1);
        let over = CancellationToken::new();
        let mut leading = tokio::spawn(lead(
            client::for_term(self.config.clone(), gate.clone())?,
            self.settings.clone(),
            self.metrics.clone(),
            Arc::new(GatedLedger::new(self.ledger.clone(), gate)),
            self.tables.clone(),
            self.registry.failures(),
            over.clone(),
        ));
        let end = tokio::select! {
            () = self.stop.cancelled() => End::Stopped,
            () = candidate.keep() => End::Lost,
            _ = &mut leading => End::Broken,
        };
        over.cancel();
        match end {
            End::Stopped => {
                // Reconciles that are under way end while the Lease is still held.
                let finished = tokio::time::timeout(LEASE_DURATION, async {
                    tokio::select! {
                        _ = &mut leading => {}
                        () = candidate.keep() => {}
                    }
                });
                if finished.await.is_err() {
                    tracing::warn!("some reconciles did not end in time");
                }
                leading.abort();
                candidate.release().await;
            }
            End::Lost => {
                tracing::warn!(identity, "lost the leader Lease; a candidate again");
                leading.abort();
                // It says that it was aborted.
                let _ = leading.await;
            }
            End::Broken => {
                tracing::error!(
                    identity,
                    "the controllers ended; giving the leader Lease back"
                );
                candidate.release().await;
            }
        }
        self.metrics.end_term();
        Ok(())
    }
}

/// How many streams the registry serves. A client that is one too many is told to try another replica; without files for its
/// connection it would be told nothing, and no request to the apiserver could be made either.
fn registry_streams() -> usize {
    let default = RegistryOptions::default().max_streams;
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    default.min(files.saturating_sub(OWN_FILES).max(1))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, OperateError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| OperateError::Listen { address, error })
}

/// Keeps the last good tables. Every replica does, so that the registry outlives the leader.
async fn follow_tables(
    client: Client,
    tables: Arc<Tables>,
    metrics: Metrics,
    readiness: Readiness,
    stop: CancellationToken,
) {
    // A connection that died unseen must not hide a failover from routers for the five minutes of a watch's usual length.
    let config = watcher::Config::default().timeout(TABLE_WATCH_SECONDS);
    // The last good table of a fleet is served on while a newer one cannot be read.
    let events = readable::<TableResource>(client, config, metrics.clone(), KeepLast);
    let mut events = std::pin::pin!(events.take_until(stop.cancelled_owned()));
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                metrics.watch_interrupted("RoutingTable", &error);
                continue;
            }
        };
        let fleet = match &event {
            watcher::Event::Apply(table) | watcher::Event::InitApply(table) => {
                Some(table.spec.fleet.clone())
            }
            _ => None,
        };
        let listed = matches!(event, watcher::Event::InitDone);
        tables.observe(event);
        if listed {
            readiness.set(true);
        }
        if let Some(fleet) = fleet
            && let Observed::Known(good) = tables.get(&fleet)
        {
            metrics
                .table_epoch
                .with_label_values(&[&fleet])
                .set(i64::try_from(good.epoch().0).unwrap_or(i64::MAX));
        }
    }
}

async fn serve_registry(registry: RegistryService, listener: TcpListener, stop: CancellationToken) {
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let closing = registry.clone();
    let served = builder()
        .add_service(registry.into_server())
        .serve_with_incoming_shutdown(incoming, async move {
            stop.cancelled().await;
            closing.close();
        })
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the registry ended");
    }
}

async fn serve_http(app: axum::Router, listener: TcpListener, stop: CancellationToken) {
    let served = axum::serve(listener, app)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the metrics server ended");
    }
}
