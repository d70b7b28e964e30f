//! Prometheus metrics of the operator.

use std::fmt;

use kube::runtime::{controller, watcher};
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::error::ReconcileError;
use crate::ledger::{Interrupted, Ledger, Write};

/// All metrics, registered.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Seconds a reconcile took, by controller and outcome.
    pub reconcile_seconds: HistogramVec,
    /// Writes that succeeded, by system and verb.
    pub writes: IntCounterVec,
    /// Reconciles that failed, by controller and category.
    pub failures: IntCounterVec,
    /// Watches that were interrupted and begun again, by what they watch.
    pub watch_errors: IntCounterVec,
    /// Objects that this version cannot read, by kind.
    pub unreadable: IntGaugeVec,
    /// Servers of cells whose circuit is open, by kind. Known to the leader alone.
    pub open_circuits: IntGaugeVec,
    /// Whether this replica leads.
    pub leading: IntGauge,
    /// The epoch of the last good table, by fleet.
    pub table_epoch: IntGaugeVec,
    /// How many cells a fleet has, by fleet. Known to the leader alone.
    pub fleet_cells: IntGaugeVec,
    /// How many of them are Ready, by fleet. Known to the leader alone.
    pub fleet_cells_ready: IntGaugeVec,
    /// Failures that routers reported to this replica, by fleet, cell and service.
    pub reported_failures: IntCounterVec,
    /// Services to which routers have an open circuit, as reported to this replica, by fleet and cell.
    pub reported_circuits: IntGaugeVec,
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// When two metrics have one name, which is a bug.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let reconcile_seconds = HistogramVec::new(
            HistogramOpts::new("titan_reconcile_seconds", "Time a reconcile took.").buckets(vec![
                0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            ]),
            &["controller", "outcome"],
        )?;
        let writes = IntCounterVec::new(
            Opts::new("titan_writes_total", "Writes that succeeded."),
            &["system", "verb"],
        )?;
        let failures = IntCounterVec::new(
            Opts::new("titan_reconcile_failures_total", "Reconciles that failed."),
            &["controller", "category"],
        )?;
        let watch_errors = IntCounterVec::new(
            Opts::new(
                "titan_watch_errors_total",
                "Watches that were interrupted and begun again.",
            ),
            &["kind"],
        )?;
        let unreadable = IntGaugeVec::new(
            Opts::new(
                "titan_unreadable_objects",
                "Objects that this version of the operator cannot read.",
            ),
            &["kind"],
        )?;
        let open_circuits = IntGaugeVec::new(
            Opts::new(
                "titan_open_circuits",
                "Servers that do not answer and are left alone for a while.",
            ),
            &["system"],
        )?;
        let leading = IntGauge::new("titan_leading", "1 on the replica that leads.")?;
        let table_epoch = IntGaugeVec::new(
            Opts::new(
                "titan_routing_table_epoch",
                "Epoch of the last good routing table.",
            ),
            &["fleet"],
        )?;
        let fleet_cells = IntGaugeVec::new(
            Opts::new("titan_fleet_cells", "Cells of the fleet."),
            &["fleet"],
        )?;
        let fleet_cells_ready = IntGaugeVec::new(
            Opts::new(
                "titan_fleet_cells_ready",
                "Cells of the fleet that are Ready.",
            ),
            &["fleet"],
        )?;
        let reported_failures = IntCounterVec::new(
            Opts::new(
                "titan_reported_failures_total",
                "Failures that routers reported to this replica.",
            ),
            &["fleet", "cell", "service"],
        )?;
        let reported_circuits = IntGaugeVec::new(
            Opts::new(
                "titan_reported_open_circuits",
                "Services of the cell to which routers have an open circuit, as reported to this replica.",
            ),
            &["fleet", "cell"],
        )?;
        registry.register(Box::new(reported_failures.clone()))?;
        registry.register(Box::new(reported_circuits.clone()))?;
        registry.register(Box::new(reconcile_seconds.clone()))?;
        registry.register(Box::new(writes.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        registry.register(Box::new(watch_errors.clone()))?;
        registry.register(Box::new(unreadable.clone()))?;
        registry.register(Box::new(open_circuits.clone()))?;
        registry.register(Box::new(leading.clone()))?;
        registry.register(Box::new(table_epoch.clone()))?;
        registry.register(Box::new(fleet_cells.clone()))?;
        registry.register(Box::new(fleet_cells_ready.clone()))?;
        Ok(Metrics {
            registry,
            reconcile_seconds,
            writes,
            failures,
            watch_errors,
            unreadable,
            open_circuits,
            leading,
            table_epoch,
            fleet_cells,
            fleet_cells_ready,
            reported_failures,
            reported_circuits,
        })
    }

    /// Takes in what the controller of a kind says: only that its watch was interrupted is news. A failed attempt was logged
    /// by who tries again, and an object that is gone is no failure.
    pub(crate) fn heard<T>(
        &self,
        kind: &str,
        said: Result<T, controller::Error<ReconcileError, watcher::Error>>,
    ) {
        match said {
            Err(controller::Error::QueueError(error)) => self.watch_interrupted(kind, &error),
            Err(error) => tracing::debug!(kind, %error, "controller"),
            Ok(_) => {}
        }
    }

    /// Says that a watch was interrupted. It is begun again by itself; until then what it watches is not noticed.
    pub fn watch_interrupted(&self, kind: &str, error: &dyn fmt::Display) {
        tracing::warn!(kind, %error, "watch interrupted; it is begun again");
        self.watch_errors.with_label_values(&[kind]).inc();
    }

    /// Says how many objects of a kind cannot be read.
    pub(crate) fn count_unreadable(&self, kind: &str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.unreadable.with_label_values(&[kind]).set(count);
    }

    /// Says nothing more of what only a leader knows.
    pub(crate) fn end_term(&self) {
        self.leading.set(0);
        self.open_circuits.reset();
        self.fleet_cells.reset();
        self.fleet_cells_ready.reset();
    }

    /// The metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }
}

/// The ledger of production: it counts.
pub struct CountingLedger(pub Metrics);

impl Ledger for CountingLedger {
    fn may_write(&self) -> Result<(), Interrupted> {
        Ok(())
    }

    fn record(&self, write: Write) -> Result<(), Interrupted> {
        tracing::debug!(%write, "wrote");
        self.0
            .writes
            .with_label_values(&[write.system.as_str(), write.verb])
            .inc();
        Ok(())
    }
}
