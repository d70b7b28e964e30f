//! The way to the pods: names, addresses, connections, and the choice between them.

mod conn;
mod pool;

use std::rc::Rc;
use std::sync::Arc;

pub use conn::{Conn, SendError, Sending};
pub use pool::{Pool, PoolError};

use crate::metrics::{Counter, PairMetrics};
use crate::resilience::health::{Entry, Health};
use crate::shared::CellShared;

/// One service of one cell, as one thread sees it.
pub struct Target {
    /// The cell, shared by all threads.
    pub cell: Arc<CellShared>,
    /// The name of the service.
    pub service: Arc<str>,
    /// Failures of the service in this cell, shared by all threads.
    pub health: Arc<Health>,
    /// What this thread counts.
    pub metrics: Arc<PairMetrics>,
    /// Requests under way to the cell, of this thread.
    pub cell_in_flight: Arc<Counter>,
    /// The connections of this thread.
    pub pool: Pool,
}

impl Target {
    /// A request was answered as it should.
    pub fn succeeded(&self, probe: bool) {
        self.health.succeeded(probe);
        self.cell.health.succeeded(probe);
    }

    /// Whether a request could go there now.
    #[must_use]
    pub fn allows(&self, now_ms: u64) -> bool {
        self.cell.health.allows(now_ms) && self.health.allows(now_ms)
    }

    /// Why its circuits are open, or were last.
    #[must_use]
    pub fn why(&self) -> String {
        let health = if self.cell.health.is_open() {
            &self.cell.health
        } else {
            &self.health
        };
        let late = health.detail().filter(|_| health.is_late());
        late.unwrap_or_else(|| {
            format!("it failed {} times in a row", health.consecutive_failures())
        })
    }

    /// Goes there. None when a circuit is open; with a probe when the request is the one that may try.
    #[must_use]
    pub fn enter(self: &Rc<Self>, now_ms: u64) -> Option<Option<Box<Probe>>> {
        let cell = self.cell.health.enter(now_ms);
        if cell == Entry::Refused {
            return None;
        }
        let service = self.health.enter(now_ms);
        if cell == Entry::Open && service == Entry::Open {
            return Some(None);
        }
        // Made before the service is asked for its answer, so that what was taken of the cell is given back.
        let probe = Box::new(Probe {
            target: Rc::clone(self),
            cell,
            service,
        });
        (service != Entry::Refused).then_some(Some(probe))
    }
}

/// The right of one request to try circuits that are open. Given back when it is dropped without a verdict.
pub struct Probe {
    target: Rc<Target>,
    cell: Entry,
    service: Entry,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.target.cell.health.leave(self.cell);
        self.target.health.leave(self.service);
    }
}

/// A target that is shared within a thread.
pub type SharedTarget = Rc<Target>;
