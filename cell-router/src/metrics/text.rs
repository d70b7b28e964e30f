//! All counters as Prometheus reads them.
//!
//! With 500 cells of 35 services there are 17,500 pairs of both. A histogram of each would be 30 MB to read every few seconds;
//! so there is one for each cell and one for each service, and for pairs what tells which of them it is: counts and the
//! time that they took. Pairs with nothing to say are left out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use titan_routing::client::Refusal;

use super::{BUCKETS_US, Class, Counter, Metrics, Pair, PairMetrics, ThreadMetrics, lock, sum};
use crate::rejection::Reason;

type Pairs = BTreeMap<Pair, Vec<Arc<PairMetrics>>>;

impl Metrics {
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
                let count = sum(threads, |thread| thread.class(class));
                if count > 0 {
                    let _ = writeln!(
                        out,
                        "cell_router_requests_total{{cell=\"{cell}\",service=\"{service}\",class=\"{}\"}} {count}",
                        class.as_str()
                    );
                }
            }
        }
        type Value = fn(&[Arc<PairMetrics>]) -> f64;
        let rows: [(&str, &str, &str, Value); 3] = [
            (
                "requests_in_flight",
                "gauge",
                "Requests under way, by cell and service.",
                |pair| sum(pair, |thread| thread.in_flight.get()) as f64,
            ),
            (
                "retries_total",
                "counter",
                "Requests sent a second time, by cell and service.",
                |pair| sum(pair, |thread| thread.retries.get()) as f64,
            ),
            (
                "request_seconds_total",
                "counter",
                "The time of all requests that ended, by cell and service.",
                |pair| {
                    let micros = sum(pair, |thread| thread.latency_us.get());
                    Duration::from_micros(micros).as_secs_f64()
                },
            ),
        ];
        for (name, kind, help, value) in rows {
            head(out, name, kind, help);
            for ((cell, service), threads) in &*pairs {
                let value = value(threads);
                if value > 0.0 {
                    let _ = writeln!(
                        out,
                        "cell_router_{name}{{cell=\"{cell}\",service=\"{service}\"}} {value}"
                    );
                }
            }
        }
        let took = "Time from the headers of the request to the end of the answer";
        histograms(out, &pairs, "cell", took, |(cell, _)| cell);
        histograms(out, &pairs, "service", took, |(_, service)| service);
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(
        out,
        "# HELP cell_router_{name} {help}\n# TYPE cell_router_{name} {kind}"
    );
}

/// Latencies of all pairs that have the same label.
#[derive(Default)]
struct Histogram {
    buckets: [u64; BUCKETS_US.len()],
    count: u64,
    micros: u64,
}

impl Histogram {
    fn add(&mut self, threads: &[Arc<PairMetrics>]) {
        for thread in threads {
            for (sum, bucket) in self.buckets.iter_mut().zip(&thread.buckets) {
                *sum += bucket.get();
            }
            self.count += thread.requests();
            self.micros += thread.latency_us.get();
        }
    }
}

fn histograms<'a>(
    out: &mut String,
    pairs: &'a Pairs,
    label: &str,
    help: &str,
    value: impl Fn(&'a Pair) -> &'a Arc<str>,
) {
    let mut sums: BTreeMap<&str, Histogram> = BTreeMap::new();
    for (pair, threads) in pairs {
        sums.entry(value(pair)).or_default().add(threads);
    }
    let name = format!("{label}_request_seconds");
    head(out, &name, "histogram", &format!("{help}, by {label}."));
    for (value, histogram) in sums {
        let mut below = 0;
        for (bucket, bound) in histogram.buckets.iter().zip(BUCKETS_US) {
            below += bucket;
            let seconds = Duration::from_micros(bound).as_secs_f64();
            let _ = writeln!(
                out,
                "cell_router_{name}_bucket{{{label}=\"{value}\",le=\"{seconds}\"}} {below}"
            );
        }
        let seconds = Duration::from_micros(histogram.micros).as_secs_f64();
        let _ = writeln!(
            out,
            "cell_router_{name}_bucket{{{label}=\"{value}\",le=\"+Inf\"}} {count}\n\
             cell_router_{name}_sum{{{label}=\"{value}\"}} {seconds}\n\
             cell_router_{name}_count{{{label}=\"{value}\"}} {count}",
            count = histogram.count,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(cells: usize, services: usize) -> Metrics {
        let metrics = Metrics::default();
        for cell in 0..cells {
            let cell: Arc<str> = format!("cell-{cell:03}").into();
            for service in 0..services {
                let service = format!("service-{service:02}").into();
                // Two threads.
                for _ in 0..2 {
                    let pair = metrics.pair(&cell, &service);
                    pair.ended(Class::Ok, Duration::from_micros(700));
                    pair.ended(Class::Server, Duration::from_millis(20));
                }
            }
        }
        metrics
    }

    #[test]
    fn histograms_add_up_over_pairs_and_threads() {
        let text = counted(2, 3).render(&[]);
        for line in [
            "cell_router_requests_total{cell=\"cell-001\",service=\"service-02\",class=\"server_error\"} 2",
            "cell_router_request_seconds_total{cell=\"cell-001\",service=\"service-02\"} 0.0414",
            "cell_router_cell_request_seconds_bucket{cell=\"cell-001\",le=\"0.0005\"} 0",
            "cell_router_cell_request_seconds_bucket{cell=\"cell-001\",le=\"0.001\"} 6",
            "cell_router_cell_request_seconds_bucket{cell=\"cell-001\",le=\"0.01\"} 6",
            "cell_router_cell_request_seconds_bucket{cell=\"cell-001\",le=\"0.025\"} 12",
            "cell_router_cell_request_seconds_bucket{cell=\"cell-001\",le=\"+Inf\"} 12",
            "cell_router_cell_request_seconds_sum{cell=\"cell-001\"} 0.1242",
            "cell_router_service_request_seconds_count{service=\"service-00\"} 8",
        ] {
            assert!(
                text.lines().any(|it| it == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(!text.contains("cell_router_retries_total{"));
    }

    /// One series for each promise of the page, and no more: Prometheus reads all of it every few seconds.
    #[test]
    fn a_large_fleet_is_a_page_that_can_be_read() {
        let text = counted(500, 35).render(&[]);
        let pairs = 500 * 35;
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(series < 3 * pairs + 20 * 535, "{series} series");
        assert!(text.len() < 6 << 20, "{} bytes", text.len());
    }
}
