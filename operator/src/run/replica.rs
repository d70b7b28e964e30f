//! The operator as a whole: what every replica does, and what only the leader does.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::{FutureExt, StreamExt};
use kube::client::ClientBuilder;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config};
use titan_crds::RoutingTable as TableResource;
use titan_routing::server::{RegistryOptions, RegistryService, builder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::limit::GlobalConcurrencyLimitLayer;

use crate::ledger::{GatedLedger, Ledger};
use crate::metrics::Metrics;
use crate::observe::count;
use crate::observe::tables::Tables;
use crate::run::controllers::lead;
use crate::run::health::{Readiness, router};
use crate::run::leadership::{Candidate, GateLayer, WriteGate};

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

/// Requests to the apiserver that are under way at once, of all passes. More make neither side faster, and each has a
/// connection of its own, which costs memory on both.
const REQUESTS_AT_ONCE: usize = 24;
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
    /// Another replica leads now. The process ends, so that nothing of its term as leader lives on.
    #[error("lost the leader Lease; ending, to begin again as a candidate")]
    Deposed,
}

/// Runs a replica until `stop`.
///
/// # Errors
/// When it cannot begin, or has to end because it leads no more.
pub async fn operate(
    mut config: Config,
    settings: Settings,
    metrics: Metrics,
    ledger: Arc<dyn Ledger>,
    stop: CancellationToken,
) -> Result<(), OperateError> {
    let gate = WriteGate::closed();
    let ledger: Arc<dyn Ledger> = Arc::new(GatedLedger::new(ledger, gate.clone()));
    // So that an audit log says who wrote.
    config.headers.push((http::header::USER_AGENT, USER_AGENT));
    // A Lease that waited behind a hundred other requests would run out.
    let lease_client = Client::try_from(config.clone())?;
    let client = ClientBuilder::try_from(config)?
        .with_layer(&GlobalConcurrencyLimitLayer::new(REQUESTS_AT_ONCE))
        .with_layer(&GateLayer(gate.clone()))
        .build();
    let registry = RegistryService::new(RegistryOptions::default());
    let tables = Arc::new(Tables::new(registry.clone()));
    let readiness = Readiness::default();
    let tasks = TaskTracker::new();

    let registry_listener = listen(settings.registry_listen).await?;
    let http_listener = listen(settings.metrics_listen).await?;
    tasks.spawn(follow_tables(
        client.clone(),
        tables.clone(),
        metrics.clone(),
        readiness.clone(),
        stop.clone(),
    ));
    let reports = registry.failures();
    tasks.spawn(
        stop.clone()
            .run_until_cancelled_owned(count(registry.failures(), tables.clone(), metrics.clone()))
            .map(drop),
    );
    tasks.spawn(serve_registry(registry, registry_listener, stop.clone()));
    tasks.spawn(serve_http(
        router(metrics.clone(), readiness.clone()),
        http_listener,
        stop.clone(),
    ));

    let mut candidate = Candidate::new(
        lease_client,
        &settings.namespace,
        LEASE,
        settings.identity.clone(),
        gate,
    );
    let result = tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = candidate.win() => {
            tracing::info!(identity = settings.identity, "leading");
            metrics.leading.set(1);
            let term = CancellationToken::new();
            let leading = tokio::spawn(lead(
                client,
                settings,
                metrics.clone(),
                ledger,
                tables,
                reports,
                term.clone(),
            ));
            let result = tokio::select! {
                () = stop.cancelled() => Ok(()),
                () = candidate.keep() => Err(OperateError::Deposed),
            };
            term.cancel();
            if result.is_ok() {
                // Reconciles that are under way end while the Lease is still held.
                let finished = tokio::time::timeout(crate::run::leadership::LEASE_DURATION, async {
                    tokio::select! {
                        _ = leading => {}
                        () = candidate.keep() => {}
                    }
                });
                if finished.await.is_err() {
                    tracing::warn!("some reconciles did not end in time");
                }
                candidate.release().await;
            } else {
                leading.abort();
            }
            metrics.leading.set(0);
            result
        }
    };
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(crate::run::leadership::LEASE_DURATION, tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!("some connections did not end in time");
    }
    result
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
    let api: Api<TableResource> = Api::all(client);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events.take_until(stop.cancelled_owned()));
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(table) | watcher::Event::InitApply(table)) => {
                tables.take_in(&table);
                if let Some(good) = tables.latest(&table.spec.fleet) {
                    metrics
                        .table_epoch
                        .with_label_values(&[&table.spec.fleet])
                        .set(i64::try_from(good.epoch().0).unwrap_or(i64::MAX));
                }
            }
            Ok(watcher::Event::InitDone) => readiness.set(true),
            Ok(watcher::Event::Delete(table)) => tables.lost(&table),
            Ok(watcher::Event::Init) => {}
            Err(error) => metrics.watch_interrupted("RoutingTable", &error),
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
