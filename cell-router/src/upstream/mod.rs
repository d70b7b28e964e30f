//! The way to the pods: names, addresses, connections, and the choice between them.

mod conn;
mod dns;
mod pool;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

pub use conn::{Conn, SendError, Sending};
pub use dns::{Addresses, Resolver};
pub use pool::{Pool, PoolError};

use crate::metrics::PairMetrics;
use crate::resilience::health::Health;
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
    /// The connections of this thread.
    pub pool: Pool,
    /// When it was last used, in milliseconds since start.
    pub used_ms: Cell<u64>,
}

impl Target {
    /// A request was answered as it should.
    pub fn succeeded(&self) {
        self.health.succeeded();
        self.cell.health.succeeded();
    }

    /// Whether a request may go there.
    #[must_use]
    pub fn allows(&self, now_ms: u64) -> bool {
        self.cell.health.allows(now_ms) && self.health.allows(now_ms)
    }
}

/// A target that is shared within a thread.
pub type SharedTarget = Rc<Target>;
