//! What routers saw of failing cells while they served requests.
//!
//! It is one kind of observation, and decides nothing alone: it is counted, and told to people. Each replica hears the routers
//! that are connected to it.

mod reports;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::reflector::{ObjectRef, Store};
use titan_crds::Cell;
use titan_planner::Observed;
use titan_routing::proto::FailureReport;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::metrics::Metrics;
use crate::observe::tables::Tables;
use reports::{Change, Reports};

/// How often it is looked what is new and what is over. At most one Event a cell is written in this time.
const LOOK: Duration = Duration::from_secs(2);

/// The reports that this replica gets.
struct Follower {
    received: broadcast::Receiver<FailureReport>,
    tables: Arc<Tables>,
    reports: Reports,
    look: Interval,
}

enum Heard {
    /// So many failures.
    Failures(FailureReport, u64),
    /// It is time to look.
    Look(Instant),
}

impl Follower {
    fn new(received: broadcast::Receiver<FailureReport>, tables: Arc<Tables>) -> Self {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Follower {
            received,
            tables,
            reports: Reports::default(),
            look,
        }
    }

    /// What comes next; None when nothing will.
    async fn next(&mut self) -> Option<Heard> {
        loop {
            let report = tokio::select! {
                report = self.received.recv() => report,
                now = self.look.tick() => return Some(Heard::Look(now.into_std())),
            };
            match report {
                Ok(report) => {
                    let Observed::Known(table) = self.tables.get(&report.fleet) else {
                        continue;
                    };
                    if let Some(failures) = self.reports.take(&report, &table, Instant::now()) {
                        return Some(Heard::Failures(report, failures));
                    }
                }
                // The next report says it again.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// Counts what routers report. Every replica does.
pub(crate) async fn count(
    received: broadcast::Receiver<FailureReport>,
    tables: Arc<Tables>,
    metrics: Metrics,
) {
    let mut follower = Follower::new(received, tables);
    while let Some(heard) = follower.next().await {
        match heard {
            Heard::Failures(report, failures) => metrics
                .reported_failures
                .with_label_values(&[&report.fleet, &report.cell, &report.service])
                .inc_by(failures),
            Heard::Look(now) => {
                for ((fleet, cell), service) in follower.reports.forget(now) {
                    // There is nothing to remove when it reported no failures.
                    let _ = metrics
                        .reported_failures
                        .remove_label_values(&[&fleet, &cell, &service]);
                }
                for change in follower.reports.changes() {
                    let (fleet, cell) = &change.cell;
                    let open = i64::try_from(change.open.len()).unwrap_or(i64::MAX);
                    let labels = [&**fleet, &**cell];
                    if open == 0 {
                        let _ = metrics.reported_circuits.remove_label_values(&labels);
                    } else {
                        metrics
                            .reported_circuits
                            .with_label_values(&labels)
                            .set(open);
                    }
                }
            }
        }
    }
}

/// Tells people by Events on the Cells. Only the leader does.
pub(crate) async fn announce(
    received: broadcast::Receiver<FailureReport>,
    tables: Arc<Tables>,
    cells: Store<Cell>,
    recorder: Recorder,
) {
    let mut follower = Follower::new(received, tables);
    while let Some(heard) = follower.next().await {
        let Heard::Look(now) = heard else { continue };
        follower.reports.forget(now);
        for change in follower.reports.changes() {
            tell(&change, &cells, &recorder).await;
        }
    }
}

async fn tell(change: &Change, cells: &Store<Cell>, recorder: &Recorder) {
    let (fleet, name) = &change.cell;
    let sentence = change.sentence();
    tracing::warn!(fleet, cell = name, "{sentence}");
    // The cell may be another region's, whose operator tells of it.
    let Some(cell) = cells.get(&ObjectRef::new(name)) else {
        return;
    };
    let event = if change.open.is_empty() {
        event(EventType::Normal, "RoutersServe", &sentence)
    } else {
        event(EventType::Warning, "RoutersFail", &sentence)
    };
    if let Err(error) = recorder.publish(&event, &cell.object_ref(&())).await {
        tracing::warn!(%error, "cannot write an Event");
    }
}

fn event(type_: EventType, reason: &str, note: &str) -> Event {
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(super::note(note)),
        action: "Detect".to_owned(),
        secondary: None,
    }
}
