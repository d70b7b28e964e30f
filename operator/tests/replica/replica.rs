//! A replica of the operator in this process, and waiting for what it does.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use titan_operator::metrics::{CountingLedger, Metrics};
use titan_operator::run::replica::{OperateError, Settings, operate};
use titan_testbed::Apiserver;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a test waits for what must come, where it is no matter when.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Gives an apiserver our CRDs, and says how it is reached.
pub async fn prepare(apiserver: &Apiserver) -> Config {
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/manifests");
    tokio::task::block_in_place(|| apiserver.apply(&manifests).unwrap());
    let kubeconfig = Kubeconfig::read_from(apiserver.kubeconfig()).unwrap();
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap()
}

/// An address that nobody listens on.
fn free() -> SocketAddr {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}

/// A replica that runs until it is dropped or stopped.
pub struct Replica {
    pub metrics: Metrics,
    registry: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), OperateError>>,
}

impl Replica {
    pub fn start(config: Config, identity: &str) -> Self {
        let settings = Settings {
            registry_listen: free(),
            metrics_listen: free(),
            identity: identity.to_owned(),
            namespace: "default".to_owned(),
        };
        let (metrics, stop) = (Metrics::new().unwrap(), CancellationToken::new());
        let ledger = Arc::new(CountingLedger(metrics.clone()));
        let registry = settings.registry_listen;
        let task = tokio::spawn(operate(
            config,
            settings,
            metrics.clone(),
            ledger,
            stop.clone(),
        ));
        Replica {
            metrics,
            registry,
            stop,
            task,
        }
    }

    /// Where its registry is.
    pub fn registry(&self) -> String {
        format!("http://{}", self.registry)
    }

    pub fn leads(&self) -> bool {
        self.metrics.leading.get() == 1
    }

    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    /// Stops it, as SIGTERM does.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Waits until something is so; how long that took.
pub async fn until(what: &str, within: Duration, so: impl AsyncFn() -> bool) -> Duration {
    let began = Instant::now();
    while !so().await {
        assert!(began.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}
