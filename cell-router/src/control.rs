//! What runs beside the data plane: the registry's client, the configuration file, memory, failure reports.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use titan_routing::client::RegistryClient;
use titan_routing::proto::FailureReport;

use crate::config::Config;
use crate::metrics::{Pair, Totals};
use crate::shared::Shared;

/// Hands each new table to the data plane. Ends when the client ends.
pub async fn follow_tables(shared: Arc<Shared>, registry: Arc<RegistryClient>) {
    let mut tables = registry.tables();
    loop {
        let table = Arc::clone(&tables.borrow_and_update());
        if table.epoch() > shared.table.load().epoch() {
            shared.use_table(table);
        }
        if tables.changed().await.is_err() {
            return;
        }
    }
}

/// Takes a changed configuration file into use, when it is right.
pub async fn follow_config(shared: Arc<Shared>, path: PathBuf, every: Duration) {
    let mut seen = changed_at(&path);
    loop {
        tokio::time::sleep(every).await;
        let now = changed_at(&path);
        if now == seen {
            continue;
        }
        seen = now;
        let before = shared.config.load_full();
        match shared.reload(&path) {
            Ok(()) => {
                shared.metrics.reloads.fetch_add(1, Relaxed);
                tracing::info!(path = %path.display(), "configuration taken into use");
                warn_of_restart(&before, &shared.config.load());
            }
            Err(error) => {
                shared.metrics.reload_failures.fetch_add(1, Relaxed);
                tracing::error!(%error, "going on with the old configuration");
            }
        }
    }
}

/// Takes changed certificates into use, when they are right.
pub async fn follow_certificates(shared: Arc<Shared>, every: Duration) {
    let Some(tls) = shared.config.load().tls.clone() else {
        return;
    };
    let files: Vec<PathBuf> = [Some(tls.certificate), Some(tls.key), tls.client_ca]
        .into_iter()
        .flatten()
        .collect();
    let look = || {
        files
            .iter()
            .map(|file| changed_at(file))
            .collect::<Vec<_>>()
    };
    let mut seen = look();
    loop {
        tokio::time::sleep(every).await;
        let now = look();
        if now == seen {
            continue;
        }
        seen = now;
        match shared.reload_tls() {
            Ok(()) => {
                shared.metrics.reloads.fetch_add(1, Relaxed);
                tracing::info!("certificates taken into use");
            }
            Err(error) => {
                shared.metrics.reload_failures.fetch_add(1, Relaxed);
                tracing::error!(%error, "going on with the old certificates");
            }
        }
    }
}

/// A ConfigMap is mounted by links, so that the target of the file is what changes.
fn changed_at(path: &std::path::Path) -> Option<(PathBuf, SystemTime, u64)> {
    let target = std::fs::canonicalize(path).ok()?;
    let metadata = std::fs::metadata(&target).ok()?;
    Some((target, metadata.modified().ok()?, metadata.len()))
}

fn warn_of_restart(before: &Config, now: &Config) {
    let fixed = [
        ("listen", before.listen != now.listen),
        ("metrics", before.metrics != now.metrics),
        ("admin", before.admin != now.admin),
        ("threads", before.threads != now.threads),
        ("tls", before.tls != now.tls),
    ];
    for (name, changed) in fixed {
        if changed {
            tracing::warn!(field = name, "this change takes effect with the next start");
        }
    }
}

/// Refuses new requests while memory is short, before the kernel ends the process.
pub async fn watch_memory(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let limits = shared.config.load().limits.clone();
        let Some(resident) = resident_bytes() else {
            return;
        };
        let in_flight = shared.metrics.in_flight();
        let shed = Shed::of(resident, limits.memory_bytes);
        shared
            .memory_short
            .store(shed >= Shed::Connections, Relaxed);
        let over = shed == Shed::Requests || in_flight >= limits.in_flight as u64;
        if shared.overloaded.swap(over, Relaxed) != over {
            tracing::warn!(resident, in_flight, over, "load shedding changed");
        }
    }
}

/// What is given up to save memory. Connections that do nothing must not take what requests need: they go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Shed {
    Nothing,
    Connections,
    Requests,
}

impl Shed {
    /// With so much resident memory, of so much that there may be; 0 means no limit.
    fn of(resident: u64, limit: u64) -> Self {
        if limit == 0 || resident <= limit / 5 * 4 {
            Shed::Nothing
        } else if resident <= limit {
            Shed::Connections
        } else {
            Shed::Requests
        }
    }
}

/// Resident memory of this process.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

/// Tells the registry what failed, and what works again.
pub async fn report_failures(shared: Arc<Shared>, registry: Arc<RegistryClient>) {
    let mut before: HashMap<Pair, (Totals, bool)> = HashMap::new();
    loop {
        let interval = shared.config.load().breaker.report_interval.0;
        let interval = interval.max(Duration::from_millis(50));
        tokio::time::sleep(interval).await;
        let healths = shared.healths();
        let mut now = HashMap::with_capacity(healths.len());
        for ((cell, service), health) in healths {
            let totals = shared.metrics.totals(&cell, &service);
            // Late answers are no failures in a row; the registry hears of the circuit all the same.
            let row = health
                .consecutive_failures()
                .max(u32::from(health.is_open()));
            let pair = (Arc::clone(&cell), Arc::clone(&service));
            let (last, was_failing) = before.get(&pair).copied().unwrap_or_default();
            now.insert(pair, (totals, row > 0));
            if row == 0 && !was_failing {
                continue;
            }
            let requests = totals.requests.saturating_sub(last.requests);
            let latency = totals.latency_us.saturating_sub(last.latency_us);
            registry.report(FailureReport {
                epoch: shared.table.load().epoch().0,
                cell: cell.to_string(),
                service: service.to_string(),
                consecutive_failures: row,
                requests,
                failures: totals.failures.saturating_sub(last.failures),
                mean_latency_us: latency.checked_div(requests).unwrap_or(0),
                window_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
                detail: health.detail().unwrap_or_default(),
                circuit_open: health.is_open() || shared.cell(&cell).health.is_open(),
                ..FailureReport::default()
            });
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_shed_before_requests() {
        assert_eq!(Shed::of(u64::MAX, 0), Shed::Nothing);
        assert_eq!(Shed::of(80, 100), Shed::Nothing);
        assert_eq!(Shed::of(81, 100), Shed::Connections);
        assert_eq!(Shed::of(100, 100), Shed::Connections);
        assert_eq!(Shed::of(101, 100), Shed::Requests);
    }
}
