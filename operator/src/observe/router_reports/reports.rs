//! What routers report of failing services, summed up. Pure: the time is given.
//!
//! Whoever can reach the registry can report, so all of it is bounded: in cells by the table, in services, clients and text by
//! numbers, and in time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use titan_routing::RoutingTable;
use titan_routing::proto::FailureReport;

/// A router reports a failing service every second. What was not heard of for so long is over, or its router is.
const FORGET: Duration = Duration::from_secs(30);
/// Services of one cell; a profile has no more.
const SERVICES: usize = 64;
/// Routers that are told apart.
const CLIENTS: usize = 64;
/// Characters of a name, and of a detail, that are kept.
const NAME: usize = 63;
const DETAIL: usize = 200;
/// Failures that one report can claim.
const FAILURES: u64 = 1_000_000;

/// A fleet and a cell of it.
pub(super) type CellName = (String, String);

/// What is known of the services of all cells.
#[derive(Default)]
pub(super) struct Reports {
    cells: BTreeMap<CellName, BTreeMap<String, Seen>>,
    /// What was said of a cell last: the services that had an open circuit.
    said: BTreeMap<CellName, BTreeSet<String>>,
}

struct Seen {
    /// The routers whose circuit is open, and when each said so last.
    open: BTreeMap<String, Instant>,
    detail: String,
    last: Instant,
}

/// A cell of which routers say something else now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) cell: CellName,
    /// The services to which some routers send nothing.
    pub(super) open: BTreeSet<String>,
    /// Those routers.
    pub(super) routers: usize,
    /// The last failure of one of the services.
    pub(super) detail: String,
}

impl Reports {
    /// Takes in a report. The failures that it counts; None when it is about nothing that there is.
    pub(super) fn take(
        &mut self,
        report: &FailureReport,
        table: &RoutingTable,
        now: Instant,
    ) -> Option<u64> {
        table.cell(&report.cell)?;
        if !is_name(&report.service) {
            return None;
        }
        let cell = (report.fleet.clone(), report.cell.clone());
        let services = self.cells.entry(cell).or_default();
        if services.len() >= SERVICES && !services.contains_key(&report.service) {
            return None;
        }
        let seen = services
            .entry(report.service.clone())
            .or_insert_with(|| Seen {
                open: BTreeMap::new(),
                detail: String::new(),
                last: now,
            });
        seen.last = now;
        let client: String = report.client.chars().take(NAME).collect();
        if !report.circuit_open {
            // One that is closed for a moment is said to be open until it stays closed.
            return Some(report.failures.min(FAILURES));
        }
        if seen.open.len() < CLIENTS || seen.open.contains_key(&client) {
            seen.open.insert(client, now);
        }
        seen.detail = report.detail.chars().take(DETAIL).collect();
        Some(report.failures.min(FAILURES))
    }

    /// Forgets what is over, and says which services are known no more.
    pub(super) fn forget(&mut self, now: Instant) -> Vec<(CellName, String)> {
        let mut forgotten = Vec::new();
        let is_over = |last: Instant| now.duration_since(last) > FORGET;
        self.cells.retain(|cell, services| {
            services.retain(|service, seen| {
                seen.open.retain(|_, last| !is_over(*last));
                let keep = !is_over(seen.last);
                if !keep {
                    forgotten.push((cell.clone(), service.clone()));
                }
                keep
            });
            !services.is_empty()
        });
        forgotten
    }

    /// The cells of which something else is to be said than the last time.
    pub(super) fn changes(&mut self) -> Vec<Change> {
        let mut names: BTreeSet<CellName> = self.cells.keys().cloned().collect();
        names.extend(self.said.keys().cloned());
        let mut changes = Vec::new();
        for cell in names {
            let open: Vec<(&String, &Seen)> = self
                .cells
                .get(&cell)
                .into_iter()
                .flatten()
                .filter(|(_, seen)| !seen.open.is_empty())
                .collect();
            let services: BTreeSet<String> = open.iter().map(|(name, _)| (*name).clone()).collect();
            if self.said.get(&cell).cloned().unwrap_or_default() == services {
                continue;
            }
            let routers: BTreeSet<&String> =
                open.iter().flat_map(|(_, seen)| seen.open.keys()).collect();
            let detail = open.first().map_or("", |(_, seen)| &seen.detail).to_owned();
            let routers = routers.len();
            if services.is_empty() {
                self.said.remove(&cell);
            } else {
                self.said.insert(cell.clone(), services.clone());
            }
            changes.push(Change {
                cell,
                open: services,
                routers,
                detail,
            });
        }
        changes
    }
}

impl Change {
    /// The sentence for people.
    pub(super) fn sentence(&self) -> String {
        if self.open.is_empty() {
            return format!(
                "no router says any more that it has an open circuit to this cell, for {} s",
                FORGET.as_secs()
            );
        }
        let services: Vec<&str> = self.open.iter().map(String::as_str).collect();
        format!(
            "{} router(s) have an open circuit to {}: {}",
            self.routers,
            services.join(", "),
            self.detail
        )
    }
}

fn is_name(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= NAME && name.bytes().all(is_part)
}

#[cfg(test)]
mod tests {
    use titan_routing::{CellEndpoint, Epoch, KeyspaceMode};

    use super::*;

    fn table() -> RoutingTable {
        let cell = CellEndpoint {
            cell: "cell-001".into(),
            region: "sg".into(),
            endpoint: "cell-001.svc".into(),
        };
        let mode = KeyspaceMode::UserId;
        RoutingTable::new(Epoch(1), mode, vec![], vec![cell], vec![]).unwrap()
    }

    fn report(client: &str, service: &str, circuit_open: bool) -> FailureReport {
        FailureReport {
            fleet: "shop".into(),
            client: client.into(),
            cell: "cell-001".into(),
            service: service.into(),
            failures: 3,
            detail: "UNAVAILABLE".into(),
            circuit_open,
            ..FailureReport::default()
        }
    }

    #[test]
    fn a_circuit_is_told_of_once_and_over_when_nobody_speaks_of_it() {
        let (mut reports, table, start) = (Reports::default(), table(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(
            reports.take(&report("r1", "order", false), &table, start),
            Some(3)
        );
        assert_eq!(reports.changes(), [], "failures alone are counted");
        reports.take(&report("r1", "order", true), &table, start);
        reports.take(&report("r2", "cart", true), &table, start);
        let changes = reports.changes();
        assert_eq!(changes.len(), 1, "{changes:?}");
        assert_eq!(
            changes[0].sentence(),
            "2 router(s) have an open circuit to cart, order: UNAVAILABLE"
        );
        for second in 1..=60 {
            // It closes and opens.
            reports.take(&report("r1", "order", second % 10 == 0), &table, at(second));
            let forgotten = reports.forget(at(second));
            assert_eq!(forgotten.len(), usize::from(second == 31), "{forgotten:?}");
            let changes = reports.changes();
            assert_eq!(changes.len(), usize::from(second == 31), "{changes:?}");
        }
        let forgotten = reports.forget(at(91));
        let order = ("shop".to_owned(), "cell-001".to_owned());
        assert_eq!(forgotten, [(order.clone(), "order".to_owned())]);
        let changes = reports.changes();
        assert_eq!(changes.len(), 1);
        assert!(changes[0].open.is_empty() && changes[0].cell == order);
        assert!(changes[0].sentence().starts_with("no router"));
        assert_eq!(reports.changes(), []);
        assert!(reports.cells.is_empty() && reports.said.is_empty());
    }

    #[test]
    fn whatever_is_reported_memory_stays_bounded() {
        let (mut reports, table, now) = (Reports::default(), table(), Instant::now());
        let unknown = FailureReport {
            cell: "cell-999".into(),
            ..report("r", "order", true)
        };
        assert_eq!(reports.take(&unknown, &table, now), None);
        for service in ["", "Order", "a b", "\"} 1", &*"x".repeat(64)] {
            assert_eq!(reports.take(&report("r", service, true), &table, now), None);
        }
        for index in 0..1000 {
            let name = format!("service-{index}");
            let taken = reports.take(&report("r", &name, true), &table, now);
            assert_eq!(taken.is_some(), index < SERVICES);
            let client = "c".repeat(50) + &index.to_string() + &"c".repeat(1_000);
            let many = FailureReport {
                failures: u64::MAX,
                detail: "d".repeat(100_000),
                ..report(&client, "service-0", true)
            };
            assert_eq!(reports.take(&many, &table, now), Some(FAILURES));
        }
        let services = reports.cells.values().next().unwrap();
        assert_eq!((reports.cells.len(), services.len()), (1, SERVICES));
        assert_eq!(services["service-0"].open.len(), CLIENTS);
        assert_eq!(services["service-0"].detail.len(), DETAIL);
        assert!(
            services["service-0"]
                .open
                .keys()
                .all(|name| name.len() <= NAME)
        );
    }
}
