//! Counters, kept by each thread for itself and added up when somebody asks.
//!
//! Each counter has one writer, so that counting is a plain load and store, without locked instructions and without
//! cache lines that travel between cores.

use std::collections::BTreeMap;
use std::fmt::Write as _;
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

    /// All counters as Prometheus reads them. `gauges` are lines of values that live elsewhere.
    #[must_use]
    pub fn render(&self, gauges: &[(&str, &str, f64)]) -> String {
        let mut out = String::with_capacity(16 * 1024);
        for (name, help, value) in gauges {
            let _ = writeln!(
                out,
                "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}"
            );
        }
        self.render_table(&mut out);
        self.render_threads(&mut out);
        self.render_pairs(&mut out);
        out
    }

    fn render_table(&self, out: &mut String) {
        let table = lock(&self.table);
        let plain = [
            (
                "table_epoch",
                "gauge",
                "Epoch of the routing table in use.",
                table.epoch,
            ),
            (
                "table_rows",
                "gauge",
                "Rows of the routing table.",
                table.rows as u64,
            ),
            (
                "table_cells",
                "gauge",
                "Cells of the routing table.",
                table.cells as u64,
            ),
            (
                "table_gaps",
                "gauge",
                "Ranges between rows that nobody serves.",
                table.gaps as u64,
            ),
            (
                "registry_connected",
                "gauge",
                "Whether the stream to the registry is open.",
                self.registry_connected.load(Relaxed),
            ),
            (
                "tables_accepted_total",
                "counter",
                "Tables taken into use.",
                self.tables_accepted.load(Relaxed),
            ),
            (
                "config_reloads_total",
                "counter",
                "Configurations taken into use while running.",
                self.reloads.load(Relaxed),
            ),
            (
                "config_reload_failures_total",
                "counter",
                "Configurations refused while running.",
                self.reload_failures.load(Relaxed),
            ),
        ];
        for (name, kind, help, value) in plain {
            let _ = writeln!(
                out,
                "# HELP cell_router_{name} {help}\n# TYPE cell_router_{name} {kind}\ncell_router_{name} {value}"
            );
        }
        head(
            out,
            "registry_refusals_total",
            "counter",
            "What the registry's client refused or gave up.",
        );
        for reason in Refusal::ALL {
            let _ = writeln!(
                out,
                "cell_router_registry_refusals_total{{reason=\"{}\"}} {}",
                reason.as_str(),
                self.refusals(reason)
            );
        }
    }

    fn render_threads(&self, out: &mut String) {
        type Read = fn(&ThreadMetrics) -> u64;
        let threads = lock(&self.threads);
        let rows: [(&str, &str, &str, Read); 10] = [
            (
                "connections_accepted_total",
                "counter",
                "Connections accepted.",
                |t| t.accepted.get(),
            ),
            ("connections", "gauge", "Connections open.", |t| {
                t.connections.get()
            }),
            (
                "connections_refused_total",
                "counter",
                "Connections refused for lack of room.",
                |t| t.refused_connections.get(),
            ),
            (
                "connections_reaped_total",
                "counter",
                "Connections closed as idle or stalled.",
                |t| t.reaped_connections.get(),
            ),
            ("in_flight", "gauge", "Requests under way.", |t| {
                t.in_flight.get()
            }),
            ("held", "gauge", "Requests that wait for a range.", |t| {
                t.held.get()
            }),
            (
                "held_total",
                "counter",
                "Requests that waited for a range.",
                |t| t.held_total.get(),
            ),
            (
                "retries_denied_total",
                "counter",
                "Retries that the budget forbade.",
                |t| t.retries_denied.get(),
            ),
            (
                "dials_total",
                "counter",
                "Connections opened to pods.",
                |t| t.dials.get(),
            ),
            (
                "dial_failures_total",
                "counter",
                "Connections to pods that failed.",
                |t| t.dial_failures.get(),
            ),
        ];
        for (name, kind, help, read) in rows {
            head(out, name, kind, help);
            let sum: u64 = threads.iter().map(|thread| read(thread)).sum();
            let _ = writeln!(out, "cell_router_{name} {sum}");
        }
        head(
            out,
            "rejections_total",
            "counter",
            "Requests that the router answered itself.",
        );
        for reason in Reason::ALL {
            let sum: u64 = threads
                .iter()
                .filter_map(|thread| thread.rejections.get(reason as usize))
                .map(Counter::get)
                .sum();
            let _ = writeln!(
                out,
                "cell_router_rejections_total{{reason=\"{}\"}} {sum}",
                reason.as_str()
            );
        }
    }

    fn render_pairs(&self, out: &mut String) {
        let pairs = lock(&self.pairs);
        head(
            out,
            "requests_total",
            "counter",
            "Requests that ended, by cell, service and class.",
        );
        for ((cell, service), threads) in &*pairs {
            for class in Class::ALL {
                let sum: u64 = threads
                    .iter()
                    .filter_map(|thread| thread.by_class.get(class as usize))
                    .map(Counter::get)
                    .sum();
                if sum > 0 {
                    let _ = writeln!(
                        out,
                        "cell_router_requests_total{{cell=\"{cell}\",service=\"{service}\",class=\"{}\"}} {sum}",
                        class.as_str()
                    );
                }
            }
        }
        type Read = fn(&PairMetrics) -> u64;
        let rows: [(&str, &str, &str, Read); 2] = [
            (
                "requests_in_flight",
                "gauge",
                "Requests under way, by cell and service.",
                |p| p.in_flight.get(),
            ),
            (
                "retries_total",
                "counter",
                "Requests sent a second time, by cell and service.",
                |p| p.retries.get(),
            ),
        ];
        for (name, kind, help, read) in rows {
            head(out, name, kind, help);
            for ((cell, service), threads) in &*pairs {
                let sum: u64 = threads.iter().map(|thread| read(thread)).sum();
                let _ = writeln!(
                    out,
                    "cell_router_{name}{{cell=\"{cell}\",service=\"{service}\"}} {sum}"
                );
            }
        }
        head(
            out,
            "request_seconds",
            "histogram",
            "Time from the headers of the request to the end of the answer.",
        );
        for ((cell, service), threads) in &*pairs {
            let labels = format!("cell=\"{cell}\",service=\"{service}\"");
            let mut below = 0;
            for (index, bound) in BUCKETS_US.iter().enumerate() {
                below += threads
                    .iter()
                    .filter_map(|thread| thread.buckets.get(index))
                    .map(Counter::get)
                    .sum::<u64>();
                let seconds = Duration::from_micros(*bound).as_secs_f64();
                let _ = writeln!(
                    out,
                    "cell_router_request_seconds_bucket{{{labels},le=\"{seconds}\"}} {below}"
                );
            }
            let sums = totals(threads);
            let seconds = Duration::from_micros(sums.latency_us).as_secs_f64();
            let _ = writeln!(
                out,
                "cell_router_request_seconds_bucket{{{labels},le=\"+Inf\"}} {count}\n\
                 cell_router_request_seconds_sum{{{labels}}} {seconds}\n\
                 cell_router_request_seconds_count{{{labels}}} {count}",
                count = sums.requests,
            );
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(
        out,
        "# HELP cell_router_{name} {help}\n# TYPE cell_router_{name} {kind}"
    );
}

fn totals(threads: &[Arc<PairMetrics>]) -> Totals {
    let sum = |read: &dyn Fn(&PairMetrics) -> u64| threads.iter().map(|thread| read(thread)).sum();
    let class = |thread: &PairMetrics, class: Class| {
        thread.by_class.get(class as usize).map_or(0, Counter::get)
    };
    Totals {
        requests: sum(&|thread| thread.by_class.iter().map(Counter::get).sum()),
        failures: sum(&|thread| class(thread, Class::Server) + class(thread, Class::Transport)),
        latency_us: sum(&|thread| thread.latency_us.get()),
    }
}
