//! A whole router in one process: threads of the data plane, control tasks, pages.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use titan_routing::client::{RegistryClient, RegistryConfig};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, LocalOptions};

use crate::admin::{self, Pages};
use crate::config::Config;
use crate::shared::{Phase, Shared};
use crate::worker::Worker;
use crate::{control, listener};

/// What a router is started with, besides its configuration.
#[derive(Clone, Debug)]
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// Its file, which is watched for changes.
    pub config_file: Option<PathBuf>,
    /// Where the table comes from.
    pub registry: RegistryConfig,
}

/// A running router.
pub struct Router {
    /// The state of the data plane.
    pub shared: Arc<Shared>,
    /// The client of the registry.
    pub registry: Arc<RegistryClient>,
    /// Where requests come in.
    pub listen: SocketAddr,
    /// Metrics and health.
    pub metrics: SocketAddr,
    /// Who serves a key.
    pub admin: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

impl Router {
    /// Starts everything. Must be called within a tokio runtime, which runs the control tasks.
    ///
    /// # Errors
    /// When an address cannot be bound or a thread not be started.
    pub async fn start(start: Start) -> Result<Self> {
        let config = start.config;
        let shared = Shared::new(config.clone(), Handle::current())?;
        let registry = Arc::new(RegistryClient::start(
            start.registry,
            Arc::clone(&shared.metrics) as _,
        ));
        // The table on disk is in use before the first request.
        shared.use_table(registry.table());

        let pages = Pages {
            shared: Arc::clone(&shared),
            registry: Arc::clone(&registry),
        };
        let metrics = serve_pages(config.metrics, admin::public(pages.clone())).await?;
        let admin = serve_pages(config.admin, admin::private(pages)).await?;
        tokio::spawn(control::follow_tables(
            Arc::clone(&shared),
            Arc::clone(&registry),
        ));
        tokio::spawn(control::watch_memory(Arc::clone(&shared)));
        tokio::spawn(control::report_failures(
            Arc::clone(&shared),
            Arc::clone(&registry),
        ));
        let every = Duration::from_secs(1);
        tokio::spawn(control::follow_certificates(Arc::clone(&shared), every));
        let for_keys = Arc::clone(&shared);
        tokio::spawn(async move {
            let config = Arc::clone(&for_keys.config);
            for_keys.identity.follow_keys(config).await;
        });
        if let Some(path) = start.config_file {
            tokio::spawn(control::follow_config(Arc::clone(&shared), path, every));
        }

        let mut listen = config.listen;
        let mut threads = Vec::new();
        for index in 0..config.thread_count() {
            let socket = listener::bind(listen)
                .with_context(|| format!("cannot listen on {listen}; is it taken?"))?;
            // With port 0, the first thread chooses and the others follow.
            listen = socket.local_addr()?;
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("data-{index}"))
                .spawn(move || run_thread(shared, socket))?;
            threads.push(thread);
        }
        tracing::info!(%listen, %metrics, %admin, threads = threads.len(), "routing");
        Ok(Router {
            shared,
            registry,
            listen,
            metrics,
            admin,
            threads,
        })
    }

    /// Ends it: first not ready, then nothing new, then until the last request ended or the time is over.
    /// True when every request ended.
    pub async fn drain(self) -> bool {
        let drain = self.shared.config.load().drain.clone();
        self.shared.phase.send_replace(Phase::Leaving);
        tracing::info!(delay = ?drain.delay.0, "leaving: not ready any more");
        tokio::time::sleep(drain.delay.0).await;
        self.shared.phase.send_replace(Phase::Draining);
        let threads = self.threads;
        let ended = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
        });
        let clean = tokio::time::timeout(drain.timeout.0, ended).await.is_ok();
        let in_flight = self.shared.metrics.in_flight();
        tracing::info!(clean, in_flight, "drained");
        clean
    }
}

fn run_thread(shared: Arc<Shared>, socket: std::net::TcpListener) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .event_interval(61)
        .build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a thread of the data plane has no runtime");
            return;
        }
    };
    runtime.block_on(async move {
        let worker: Rc<Worker> = Worker::new(shared);
        match TcpListener::from_std(socket) {
            Ok(socket) => listener::serve(worker, socket).await,
            Err(error) => tracing::error!(%error, "a thread of the data plane has no socket"),
        }
    });
    // Connections to pods and upgraded ones end with the thread.
    drop(runtime);
}

async fn serve_pages(address: SocketAddr, pages: axum::Router) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; is it taken?"))?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, pages).await {
            tracing::error!(%error, "pages ended");
        }
    });
    Ok(address)
}
