//! What every reconcile is given.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::Store;
use kube::{Api, Client};
use titan_crds::{Cell, CellFleet, ServiceProfile};
use tokio::sync::{OnceCell, SetOnce};

use crate::error::ReconcileError;
use crate::execute::apply::Compared;
use crate::execute::cell::PassCache;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::observe::own_writes::OwnWrites;
use crate::observe::tables::Tables;
use crate::observe::unseen::Unseen;
use crate::run::attempt::Failures;
use crate::run::dependencies::Dependencies;
use crate::stores::kafka::KafkaAdmin;
use crate::stores::postgres::Proof;

/// The shared parts of the operator.
pub struct Context {
    /// The apiserver. Writes through it pass the leader's gate.
    pub client: Client,
    /// Every write is noted here.
    pub ledger: Arc<dyn Ledger>,
    /// The last good routing tables.
    pub tables: Arc<Tables>,
    /// Events.
    pub recorder: Recorder,
    /// Prometheus metrics.
    pub metrics: Metrics,
    /// The namespace of the operator, where Secrets of external servers are.
    pub system_namespace: String,
    /// Which cluster this is, once it was asked for.
    pub cluster: OnceCell<String>,
    /// All Cells.
    pub cells: Store<Cell>,
    /// Set when `cells` holds all Cells. (The store's own `wait_until_ready` wakes only the last of those that wait for it,
    /// and the controller of Cells is one of them.)
    pub cells_known: Arc<SetOnce<()>>,
    /// All ServiceProfiles.
    pub profiles: Store<ServiceProfile>,
    /// All CellFleets.
    pub fleets: Store<CellFleet>,
    /// One admin client a Kafka.
    pub kafka: KafkaAdmins,
    /// The last writes, whose events need no pass.
    pub own_writes: Arc<OwnWrites>,
    /// How members of PostgreSQL show that they live before one of them is let go.
    pub proof: Arc<dyn Proof>,
    /// What of the cells' objects need not be compared again.
    pub compared: Arc<Compared>,
    /// Cells that wait for nothing but their pods.
    pub pass_cache: PassCache,
    /// The servers that cells depend on outside of Kubernetes.
    pub dependencies: Dependencies,
    /// Since when parts of cells could not be looked at.
    pub unseen: Unseen,
    /// How often each object failed in a row.
    pub failures: Failures,
}

impl Context {
    /// Which cluster this is: the uid of its namespace `kube-system`, which lives as long as the cluster does.
    ///
    /// # Errors
    /// When the apiserver does not say.
    pub async fn cluster(&self) -> Result<&str, ReconcileError> {
        let read = async || {
            let namespaces: Api<Namespace> = Api::all(self.client.clone());
            let system = namespaces.get_metadata("kube-system").await?;
            let uid = system.metadata.uid;
            uid.ok_or(ReconcileError::Malformed("uid of kube-system"))
        };
        self.cluster.get_or_try_init(read).await.map(String::as_str)
    }
}

/// Kafka admin clients by bootstrap servers: each holds connections and threads, so they are shared.
#[derive(Default)]
pub struct KafkaAdmins {
    by_bootstrap: Mutex<HashMap<String, Arc<KafkaAdmin>>>,
}

impl KafkaAdmins {
    /// The client for these servers.
    ///
    /// # Errors
    /// When the configuration is not one that the client accepts.
    pub fn get(&self, bootstrap: &str) -> Result<Arc<KafkaAdmin>, crate::stores::StoreError> {
        let mut clients = self
            .by_bootstrap
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(bootstrap) {
            return Ok(client.clone());
        }
        let client = Arc::new(KafkaAdmin::new(bootstrap)?);
        clients.insert(bootstrap.to_owned(), client.clone());
        Ok(client)
    }

    /// Lets go of the clients of servers that no fleet names any more, mistyped ones for example.
    pub fn keep(&self, named: impl Fn(&str) -> bool) {
        self.by_bootstrap
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|bootstrap, _| named(bootstrap));
    }
}
