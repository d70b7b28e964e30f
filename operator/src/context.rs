//! What every reconcile is given.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Client;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::Store;
use titan_crds::{Cell, CellFleet, ServiceProfile};

use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::stores::kafka::KafkaAdmin;
use crate::tables::Tables;

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
    /// All Cells.
    pub cells: Store<Cell>,
    /// All ServiceProfiles.
    pub profiles: Store<ServiceProfile>,
    /// All CellFleets.
    pub fleets: Store<CellFleet>,
    /// One admin client a Kafka.
    pub kafka: KafkaAdmins,
    /// How often each object failed in a row.
    pub failures: Failures,
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
}

/// Failures in a row, by object, for the time until the next try.
#[derive(Default)]
pub struct Failures {
    by_object: Mutex<HashMap<String, u32>>,
}

impl Failures {
    /// Notes a failure and returns how long to wait: from half a second doubling to a minute, give or take a quarter,
    /// so that a hundred cells that failed together do not come back together.
    pub fn next_delay(&self, object: &str) -> Duration {
        let mut failures = self
            .by_object
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(object.to_owned()).or_insert(0);
        let exponent = (*count).min(7);
        *count = count.saturating_add(1);
        let base = Duration::from_millis(500 << exponent).min(Duration::from_mins(1));
        jitter(base)
    }

    /// Forgets an object's failures.
    pub fn clear(&self, object: &str) {
        self.by_object
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(object);
    }
}

/// A duration give or take a quarter.
#[must_use]
pub fn jitter(base: Duration) -> Duration {
    base.mul_f64(0.75 + 0.5 * rand::random::<f64>())
}
