//! A running service: gRPC, health, workers; and its orderly end.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use titan_routing::RoutingTable;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;

use crate::admin::{self, Readiness};
use crate::config::Config;
use crate::context::Context;
use crate::database::Database;
use crate::error::StartError;
use crate::idempotency;
use crate::metrics::Metrics;
use crate::outbox::{Publisher, PublisherConfig};
use crate::ownership::Ownership;
use crate::redis::Redis;
use crate::request::GateLayer;
use crate::service::{OUTBOX, Service, Store};

/// How often missing migrations are looked for.
const LOOK_FOR_MIGRATIONS: Duration = Duration::from_millis(500);

/// How much of one request's body is taken in before the service reads it.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same of all requests of a connection, which those of many clients share. h2 ends a connection when its service leaves
/// too many small frames unread, and half of this is what they may cost: 256 bytes each, less their own. A window that adapts
/// begins with 65,535 bytes, and so with 128 such frames.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// A service that listens.
#[derive(Debug)]
pub struct Server {
    service: &'static Service,
    config: Arc<Config>,
    readiness: Readiness,
    metrics: Metrics,
    ownership: Ownership,
    grpc: TcpListener,
    admin: TcpListener,
}

/// Where a service listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC.
    pub grpc: SocketAddr,
    /// Metrics and health.
    pub admin: SocketAddr,
}

impl Server {
    /// Takes the ports. Port 0 is any free one.
    ///
    /// # Errors
    /// When a port is taken.
    pub async fn bind(
        service: &'static Service,
        config: Config,
        table: watch::Receiver<Arc<RoutingTable>>,
    ) -> Result<Self, StartError> {
        let ownership =
            Ownership::new(&config.cell, &config.data_home, table).with_catch_up(config.catch_up());
        let metrics = Metrics::new(service.name, service.descriptor)
            .map_err(|error| StartError::Telemetry(error.to_string()))?;
        Ok(Server {
            service,
            readiness: Readiness::new(ownership.clone()),
            metrics,
            ownership,
            grpc: listen(config.grpc_port.unwrap_or(service.port)).await?,
            admin: listen(config.metrics_port).await?,
            config: Arc::new(config),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn addresses(&self) -> Result<Addresses, StartError> {
        let address = |listener: &TcpListener| {
            listener.local_addr().map_err(|source| StartError::Io {
                action: "ask for the port",
                source,
            })
        };
        Ok(Addresses {
            grpc: address(&self.grpc)?,
            admin: address(&self.admin)?,
        })
    }

    /// Serves until `stop`, then drains: readiness fails, a while passes for clients to learn of it, requests
    /// in flight finish.
    ///
    /// # Errors
    /// When a store's settings are wrong or the server fails.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StartError> {
        let Server {
            service,
            config,
            readiness,
            metrics,
            ownership,
            grpc,
            admin,
        } = self;
        let database = Database::new(&config.postgres, ownership.clone(), metrics.clone())?;
        let redis = service
            .stores
            .contains(&Store::Redis)
            .then(|| Redis::new(&config.redis))
            .transpose()?;
        let draining = CancellationToken::new();
        let ending = CancellationToken::new();
        let context = Context {
            config: config.clone(),
            database: database.clone(),
            redis,
            metrics: metrics.clone(),
            draining: draining.clone(),
        };
        let routes = (service.build)(context).await?;

        let (health, health_service) = tonic_health::server::health_reporter();
        let names: Vec<&str> = std::iter::once("")
            .chain(service.grpc.iter().copied())
            .collect();
        for name in &names {
            health
                .set_service_status(name, ServingStatus::NotServing)
                .await;
        }
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(service.descriptor)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let reflect = |error: tonic_reflection::server::Error| {
            StartError::Other(format!("reflection: {error}"))
        };
        let routes = routes
            .add_service(health_service)
            .add_service(reflection().build_v1().map_err(reflect)?)
            .add_service(reflection().build_v1alpha().map_err(reflect)?);

        let mut workers = JoinSet::new();
        workers.spawn(database.clone().watch(ending.clone()));
        workers.spawn(idempotency::retention(database.clone(), ending.clone()));
        if service.tables.contains(&OUTBOX) {
            let publisher = Publisher::new(
                database.clone(),
                PublisherConfig {
                    bootstrap: config.kafka_bootstrap.clone(),
                    cell: config.cell.clone(),
                    delivery_timeout: Duration::from_secs(10),
                },
            );
            workers.spawn(publisher.run(ending.clone()));
        }
        let http = axum::serve(admin, admin::router(readiness.clone(), metrics.clone()))
            .with_graceful_shutdown(ending.clone().cancelled_owned());
        workers.spawn(async move {
            if let Err(error) = http.await {
                tracing::error!(%error, "the metrics server failed");
            }
        });
        workers.spawn(become_ready(
            service,
            database,
            readiness.clone(),
            health.clone(),
            draining.clone(),
        ));

        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(1024)
            .layer(GateLayer::new(ownership, metrics, service.grpc))
            .add_routes(routes)
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(grpc),
                draining.clone().cancelled_owned(),
            );
        let mut server = tokio::spawn(server);
        tracing::info!(service = service.name, cell = config.cell, "serving");

        tokio::select! {
            ended = &mut server => {
                ending.cancel();
                return match ended {
                    Ok(outcome) => Ok(outcome?),
                    Err(error) => Err(StartError::Other(format!("the server's task ended: {error}"))),
                };
            }
            () = stop.cancelled() => {}
        }

        tracing::info!("draining");
        readiness.drain();
        for name in &names {
            health
                .set_service_status(name, ServingStatus::NotServing)
                .await;
        }
        tokio::time::sleep(config.drain_delay()).await;
        draining.cancel();
        if tokio::time::timeout(config.drain_timeout(), &mut server)
            .await
            .is_err()
        {
            tracing::warn!(timeout = ?config.drain_timeout(), "some requests did not finish in time");
            server.abort();
        }
        ending.cancel();
        let rest = async { while workers.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(5), rest)
            .await
            .is_err()
        {
            workers.abort_all();
        }
        tracing::info!("drained");
        Ok(())
    }
}

async fn listen(port: u16) -> Result<TcpListener, StartError> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .await
        .map_err(|source| StartError::Listen { port, source })
}

async fn become_ready(
    service: &'static Service,
    database: Database,
    readiness: Readiness,
    health: tonic_health::server::HealthReporter,
    draining: CancellationToken,
) {
    let versions: Vec<i64> = service
        .migrator()
        .iter()
        .map(|migration| migration.version)
        .collect();
    let mut told = false;
    loop {
        match database.missing_migrations(&versions).await {
            Ok(missing) if missing.is_empty() => break,
            Ok(missing) => {
                if !told {
                    tracing::warn!(
                        ?missing,
                        "the schema lacks migrations: run `migrate`; not ready until then"
                    );
                    told = true;
                }
                readiness.lacks(missing);
            }
            Err(error) => tracing::warn!(%error, "cannot look for missing migrations"),
        }
        tokio::select! {
            () = draining.cancelled() => return,
            () = tokio::time::sleep(LOOK_FOR_MIGRATIONS) => {}
        }
    }
    readiness.migrated();
    while !readiness.reasons().is_empty() {
        tokio::select! {
            () = draining.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
    health.set_service_status("", ServingStatus::Serving).await;
    for name in service.grpc {
        health
            .set_service_status(name, ServingStatus::Serving)
            .await;
    }
    tracing::info!("ready");
}
