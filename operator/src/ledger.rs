//! The book of every write that the operator makes, in Kubernetes, PostgreSQL, Kafka and Redis.
//!
//! In production the ledger only counts. In tests it also ends a reconcile right after its k-th write, as a crash
//! would, which is how every crash point is tried (the method of Sieve, OSDI '22).

use std::fmt;

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
#[error("interrupted after a write")]
pub struct Interrupted;

/// Takes note of each write right after it succeeded.
pub trait Ledger: Send + Sync {
    /// Takes note of a write.
    ///
    /// # Errors
    /// [`Interrupted`] when the caller must stop at once and write nothing more.
    fn record(&self, write: Write) -> Result<(), Interrupted>;
}
