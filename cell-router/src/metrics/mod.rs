//! Counters, kept by each thread for itself and added up when somebody asks.
//!
//! Each counter has one writer, so that counting is a plain load and store, without locked instructions and without
//! cache lines that travel between cores.

mod text;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use titan_routing::RoutingTable;
use titan_routing::client::{Refusal, RegistryObserver, Source};

use crate::rejection::Reason;

/// A counter or gauge with one writing thread.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it; for its one writer.
    pub fn add(&self, value: u64) {
        self.0
            .store(self.0.load(Relaxed).wrapping_add(value), Relaxed);
    }

    /// Takes from it; for its one writer.
    pub fn sub(&self, value: u64) {
        self.0
            .store(self.0.load(Relaxed).wrapping_sub(value), Relaxed);
    }

    /// Reads it, from anywhere.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the latency buckets, in microseconds.
pub const BUCKETS_US: [u64; 12] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    30_000_000,
];

/// How an answered request is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// gRPC OK, HTTP 1xx to 3xx.
    Ok,
    /// The client's fault: HTTP 4xx, gRPC statuses like `NOT_FOUND`.
    Client,
    /// The cell's fault: HTTP 5xx, gRPC `UNAVAILABLE`, `INTERNAL`, `UNKNOWN`, `DATA_LOSS`, `DEADLINE_EXCEEDED`.
    Server,
    /// The connection broke, or there was none.
    Transport,
    /// The client went away first.
    Cancelled,
}

impl Class {
    const ALL: [Class; 5] = [
        Class::Ok,
        Class::Client,
        Class::Server,
        Class::Transport,
        Class::Cancelled,
    ];

    /// The name, for a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Ok => "ok",
            Class::Client => "client_error",
            Class::Server => "server_error",
            Class::Transport => "transport_error",
            Class::Cancelled => "cancelled",
        }
    }
}

/// What one thread counts of one service of one cell.
#[derive(Debug, Default)]
pub struct PairMetrics {
    by_class: [Counter; 5],
    buckets: [Counter; BUCKETS_US.len()],
    /// The sum of all latencies, in microseconds.
    pub latency_us: Counter,
    /// Requests under way.
    pub in_flight: Counter,
    /// Requests sent a second time.
    pub retries: Counter,
}

impl PairMetrics {
    /// Requests that ended.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.by_class.iter().map(Counter::get).sum()
    }

    fn class(&self, class: Class) -> u64 {
        self.by_class.get(class as usize).map_or(0, Counter::get)
    }

    /// Counts a request that ended.
    pub fn ended(&self, class: Class, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(counter) = self.by_class.get(class as usize) {
            counter.add(1);
        }
        let bucket = BUCKETS_US.partition_point(|bound| *bound < micros);
        if let Some(counter) = self.buckets.get(bucket) {
            counter.add(1);
        }
        self.latency_us.add(micros);
    }
}

/// What one thread counts besides.
#[derive(Debug, Default)]
pub struct ThreadMetrics {
    rejections: [Counter; Reason::ALL.len()],
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections open.
    pub connections: Counter,
    /// Connections refused for lack of room.
    pub refused_connections: Counter,
    /// Connections closed because they were idle or stalled.
    pub reaped_connections: Counter,
    /// Requests under way.
    pub in_flight: Counter,
    /// Requests waiting for a range.
    pub held: Counter,
    /// Requests that waited for a range.
    pub held_total: Counter,
    /// Retries that the budget forbade.
    pub retries_denied: Counter,
    /// Connections opened to pods.
    pub dials: Counter,
    /// Connections to pods that failed.
    pub dial_failures: Counter,
}

impl ThreadMetrics {
    /// Counts an answer of the router itself.
    pub fn rejected(&self, reason: Reason) {
        if let Some(counter) = self.rejections.get(reason as usize) {
            counter.add(1);
        }
    }
}

/// The name of a cell and of a service in it.
pub type Pair = (Arc<str>, Arc<str>);

/// All counters of the process.
#[derive(Debug, Default)]
pub struct Metrics {
    pairs: Mutex<BTreeMap<Pair, Vec<Arc<PairMetrics>>>>,
    threads: Mutex<Vec<Arc<ThreadMetrics>>>,
    /// Refusals of the registry's client.
    registry_refusals: [AtomicU64; Refusal::ALL.len()],
    tables_accepted: AtomicU64,
    registry_connected: AtomicU64,
    table: Mutex<TableFacts>,
    /// Configurations that were loaded while running.
    pub reloads: AtomicU64,
    /// Configurations that were refused while running.
    pub reload_failures: AtomicU64,
}

#[derive(Debug, Default)]
struct TableFacts {
    epoch: u64,
    rows: usize,
    cells: usize,
    gaps: usize,
}

/// What is added up for one pair, or for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that ended.
    pub requests: u64,
    /// Those that ended by the fault of the cell or of the way to it.
    pub failures: u64,
    /// The sum of their latencies, in microseconds.
    pub latency_us: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RegistryObserver for Metrics {
    fn accepted(&self, table: &RoutingTable, _: Source) {
        self.tables_accepted.fetch_add(1, Relaxed);
        *lock(&self.table) = TableFacts {
            epoch: table.epoch().0,
            rows: table.assignments().len(),
            cells: table.cells().len(),
            gaps: table.gaps().len(),
        };
        let mut pairs = lock(&self.pairs);
        pairs.retain(|(cell, _), _| table.cell(cell).is_some());
    }

    fn refused(&self, reason: Refusal) {
        if let Some(counter) = self.registry_refusals.get(reason as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    fn connected(&self, connected: bool) {
        self.registry_connected.store(u64::from(connected), Relaxed);
    }
}

impl Metrics {
    /// The counters of one thread for a pair.
    #[must_use]
    pub fn pair(&self, cell: &Arc<str>, service: &Arc<str>) -> Arc<PairMetrics> {
        let counters = Arc::new(PairMetrics::default());
        lock(&self.pairs)
            .entry((Arc::clone(cell), Arc::clone(service)))
            .or_default()
            .push(Arc::clone(&counters));
        counters
    }

    /// The other counters of one thread.
    #[must_use]
    pub fn thread(&self) -> Arc<ThreadMetrics> {
        let counters = Arc::new(ThreadMetrics::default());
        lock(&self.threads).push(Arc::clone(&counters));
        counters
    }

    /// Requests under way in all threads.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        lock(&self.threads)
            .iter()
            .map(|thread| thread.in_flight.get())
            .sum()
    }

    /// Connections open in all threads.
    #[must_use]
    pub fn connections(&self) -> u64 {
        lock(&self.threads)
            .iter()
            .map(|thread| thread.connections.get())
            .sum()
    }

    /// How often the registry's client refused something for this reason.
    #[must_use]
    pub fn refusals(&self, reason: Refusal) -> u64 {
        self.registry_refusals
            .get(reason as usize)
            .map_or(0, |counter| counter.load(Relaxed))
    }

    /// What is counted for a pair so far.
    #[must_use]
    pub fn totals(&self, cell: &Arc<str>, service: &Arc<str>) -> Totals {
        lock(&self.pairs)
            .get(&(Arc::clone(cell), Arc::clone(service)))
            .map(|threads| totals(threads))
            .unwrap_or_default()
    }
}

/// A counter of one pair in all threads.
fn sum(threads: &[Arc<PairMetrics>], read: impl Fn(&PairMetrics) -> u64) -> u64 {
    threads.iter().map(|thread| read(thread)).sum()
}

fn totals(threads: &[Arc<PairMetrics>]) -> Totals {
    let failed =
        |thread: &PairMetrics| thread.class(Class::Server) + thread.class(Class::Transport);
    Totals {
        requests: sum(threads, PairMetrics::requests),
        failures: sum(threads, failed),
        latency_us: sum(threads, |thread| thread.latency_us.get()),
    }
}
