//! The book of every write that the operator makes, in Kubernetes, PostgreSQL, Kafka and Redis, and the word on whether the
//! next one may begin.
//!
//! In production the ledger only counts. In tests it also ends a reconcile right after its k-th write, as a crash
//! would, which is how every crash point is tried (the method of Sieve, OSDI '22).

use std::fmt;
use std::sync::Arc;

use crate::run::leadership::WriteGate;

/// The system that was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum System {
    /// The apiserver.
    Kubernetes,
    /// A PostgreSQL server.
    Postgres,
    /// Kafka.
    Kafka,
    /// A Redis node.
    Redis,
}

impl System {
    /// The label value in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            System::Kubernetes => "kubernetes",
            System::Postgres => "postgres",
            System::Kafka => "kafka",
            System::Redis => "redis",
        }
    }
}

/// One write that has succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where.
    pub system: System,
    /// What was done: `create`, `apply`, `delete`, `status`, `create schema`, `grow partitions`.
    pub verb: &'static str,
    /// To what: `Deployment cell-001/order`, `role cell_001_order`.
    pub target: String,
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.system.as_str(), self.verb, self.target)
    }
}

/// The reconcile ends here, as if the process had died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted: nothing more may be written")]
pub struct Interrupted;

/// Takes note of each write right after it succeeded.
pub trait Ledger: Send + Sync {
    /// Whether a write may begin. Asked right before each write to a store: those of the apiserver pass the leader's gate on
    /// their way there.
    ///
    /// # Errors
    /// [`Interrupted`] when the caller must stop at once and write nothing more.
    fn may_write(&self) -> Result<(), Interrupted>;

    /// Takes note of a write.
    ///
    /// # Errors
    /// [`Interrupted`] when the caller must stop at once and write nothing more.
    fn record(&self, write: Write) -> Result<(), Interrupted>;
}

/// A ledger behind the leader's gate: who leads no more writes to no store.
pub struct GatedLedger {
    ledger: Arc<dyn Ledger>,
    gate: WriteGate,
}

impl GatedLedger {
    /// Puts a ledger behind a gate.
    #[must_use]
    pub fn new(ledger: Arc<dyn Ledger>, gate: WriteGate) -> Self {
        GatedLedger { ledger, gate }
    }
}

impl Ledger for GatedLedger {
    fn may_write(&self) -> Result<(), Interrupted> {
        if self.gate.is_open() {
            self.ledger.may_write()
        } else {
            tracing::warn!("not the leader any more: a write to a store was not sent");
            Err(Interrupted)
        }
    }

    fn record(&self, write: Write) -> Result<(), Interrupted> {
        self.ledger.record(write)
    }
}
