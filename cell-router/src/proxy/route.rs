//! Where a request goes: the row of the table, the wait while a range is handed over, and who may be asked.

use std::rc::Rc;
use std::time::Instant;

use titan_routing::{AssignmentState, Epoch};

use super::{Passage, anonymous};
use crate::inbound::STREAM_WINDOW;
use crate::rejection::{Reason, Rejection};
use crate::upstream::{Probe, Target};
use crate::worker::{View, Worker};

/// Where a request goes.
pub(super) struct Route {
    pub(super) target: Rc<Target>,
    pub(super) epoch: Epoch,
    /// When the request is the one that may try a circuit that is open.
    pub(super) probe: Option<Box<Probe>>,
}

/// A request without a key may be sent to any cell: so many are looked at.
const CELLS_TRIED: usize = 8;

impl Passage {
    /// Where the request goes, when that can be said at once.
    pub(super) fn route_now(&self, view: &View) -> Result<Option<Route>, Rejection> {
        let Some(found) = self.key.and_then(|key| view.table.locate(key)) else {
            return Ok(None);
        };
        let row = found.row.and_then(|row| view.table.assignments().get(row));
        if found.pinned || row.is_some_and(|row| row.state == AssignmentState::Active) {
            return self.admit(view, found.cell).map(Some);
        }
        Ok(None)
    }

    /// Where the request goes; waits while its range is being handed over.
    pub(super) async fn route(&self, mut view: Rc<View>) -> Result<Route, Rejection> {
        let Some(key) = self.key else {
            return self.route_anonymous(&view);
        };
        let mut holding: Option<Held> = None;
        loop {
            has_table(&view)?;
            let Some(found) = view.table.locate(key) else {
                return Err(Rejection::new(
                    Reason::NoOwner,
                    format!(
                        "no cell serves key {key} (table of epoch {})",
                        view.table.epoch()
                    ),
                ));
            };
            let row = found.row.and_then(|row| view.table.assignments().get(row));
            let state = row
                .filter(|_| !found.pinned)
                .map_or(AssignmentState::Active, |row| row.state);
            let (first, cell) = row.map_or((0, ""), |row| (row.range.first().get(), &*row.cell));
            match state {
                AssignmentState::Active => return self.admit(&view, found.cell),
                AssignmentState::Pending => {
                    return Err(Rejection::new(
                        Reason::Pending,
                        format!("key {key} belongs to {cell}, which does not serve it yet"),
                    ));
                }
                AssignmentState::Moving | AssignmentState::Fenced => {}
            }
            let held = match holding.take() {
                Some(held) => held,
                None => match Held::start(&self.worker, &view, first) {
                    Some(held) => held,
                    None if state == AssignmentState::Moving => {
                        return self.admit(&view, found.cell);
                    }
                    None => {
                        return Err(Rejection::new(
                            Reason::HeldTooMany,
                            format!("key {key} is being moved, and too many requests wait for it"),
                        ));
                    }
                },
            };
            let patience = held.until.saturating_duration_since(Instant::now());
            let patience = self.deadline.map_or(patience, |deadline| {
                patience.min(deadline.saturating_duration_since(Instant::now()))
            });
            if self.worker.next_version(&view, patience).await {
                holding = Some(held);
                view = self.worker.view();
                continue;
            }
            if state == AssignmentState::Moving {
                // The move takes too long: the old cell still has the range, and refuses if it has not.
                return self.admit(&view, found.cell);
            }
            return Err(Rejection::new(
                Reason::Fenced,
                format!("key {key} is being moved away from {cell}; try again in a moment"),
            ));
        }
    }

    /// A healthy cell, the same each time for an address.
    fn route_anonymous(&self, view: &View) -> Result<Route, Rejection> {
        has_table(view)?;
        let cells = view.active_cells();
        let mut seed = self.anonymous_hash;
        let mut refused = None;
        for _ in 0..CELLS_TRIED {
            let Some(cell) = anonymous::jump_hash(seed, cells.len()).and_then(|at| cells.get(at))
            else {
                break;
            };
            match self.admit(view, *cell) {
                Err(rejection)
                    if matches!(rejection.reason, Reason::CircuitOpen | Reason::CellBusy) =>
                {
                    refused = Some(rejection);
                }
                decided => return decided,
            }
            seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        }
        Err(refused
            .unwrap_or_else(|| Rejection::new(Reason::NoOwner, "no cell serves anything yet")))
    }

    /// Whether the cell may be asked now.
    fn admit(&self, view: &View, cell: usize) -> Result<Route, Rejection> {
        let worker = &self.worker;
        let target = worker.target(view, cell, self.service).ok_or_else(|| {
            Rejection::new(Reason::UnknownService, "the service was just removed")
        })?;
        let limits = &view.config.limits;
        let now_ms = worker.shared.clock.ms_at(self.started);
        if !target.allows(now_ms) {
            return Err(circuit_open(&target));
        }
        let most = limits.per_cell_in_flight.of(limits.in_flight);
        if is_full(&target, worker.threads, most) {
            return Err(Rejection::new(
                Reason::CellBusy,
                format!(
                    "{} has {most} requests under way already (`limits.perCellInFlight`)",
                    target.cell.name
                ),
            ));
        }
        let now_us = worker.shared.clock.us_at(self.started);
        if !target
            .cell
            .rate
            .allow(now_us, limits.per_cell_rate, limits.per_cell_burst)
        {
            return Err(Rejection::new(
                Reason::CellRate,
                format!(
                    "{} gets more than {} requests a second",
                    target.cell.name, limits.per_cell_rate
                ),
            ));
        }
        // Last, so that whoever takes the probe also makes it.
        let Some(probe) = target.enter(now_ms) else {
            return Err(circuit_open(&target));
        };
        Ok(Route {
            epoch: view.table.epoch(),
            target,
            probe,
        })
    }

    pub(super) fn reroute(&self) -> Option<Route> {
        let view = self.worker.view();
        let found = view.table.locate(self.key?)?;
        let row = found.row.and_then(|row| view.table.assignments().get(row));
        let serves = found.pinned || row.is_some_and(|row| row.state == AssignmentState::Active);
        serves.then(|| self.admit(&view, found.cell).ok()).flatten()
    }
}

fn has_table(view: &View) -> Result<(), Rejection> {
    if view.table.epoch() != Epoch(0) {
        return Ok(());
    }
    Err(Rejection::new(
        Reason::NoTable,
        "the router has no routing table yet: the registry did not answer and there is none on disk",
    ))
}

fn circuit_open(target: &Target) -> Rejection {
    Rejection::new(
        Reason::CircuitOpen,
        format!(
            "{} of {} is given a moment: {}",
            target.service,
            target.cell.name,
            target.why()
        ),
    )
}

/// Whether the cell has as many requests as it may. What other threads have is asked for only when this one has half
/// of its share, so that they rarely meet.
fn is_full(target: &Target, threads: usize, most: u64) -> bool {
    let here = target.cell_in_flight.get();
    here.saturating_mul(2 * threads as u64) >= most && target.cell.in_flight() >= most
}

/// A request that waits for a range.
struct Held {
    worker: Rc<Worker>,
    first: u64,
    until: Instant,
}

impl Held {
    fn start(worker: &Rc<Worker>, view: &View, first: u64) -> Option<Self> {
        let hold = &view.config.hold;
        let mut held = worker.held.borrow_mut();
        // What is taken in of a body while it waits is at most a window of 64 KiB.
        let bytes: usize = held.values().sum::<usize>() * STREAM_WINDOW;
        let count = held.get(&first).copied().unwrap_or_default();
        if count >= hold.max_requests || bytes >= hold.max_bytes {
            return None;
        }
        held.insert(first, count + 1);
        worker.metrics.held.add(1);
        worker.metrics.held_total.add(1);
        Some(Held {
            worker: Rc::clone(worker),
            first,
            until: Instant::now() + hold.max_wait.0,
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.worker.metrics.held.sub(1);
        let mut held = self.worker.held.borrow_mut();
        if let Some(count) = held.get_mut(&self.first) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.first);
            }
        }
    }
}
