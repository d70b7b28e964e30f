//! Why a reconcile of a cell did not get to its end.

use crate::execute::apply::ApplyError;
use crate::ledger::Interrupted;
use crate::run::attempt::LIMIT;
use crate::stores::StoreError;
use titan_routing::TableError;

/// Why a reconcile of a cell did not get to its end. It is tried again, later each time.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The apiserver refused or did not answer.
    #[error("apiserver: {0}")]
    Kube(#[from] kube::Error),
    /// An object could not be applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// PostgreSQL, Redis or Kafka refused or did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What came is not what an apiserver sends.
    #[error("the apiserver sent no {0}")]
    Malformed(&'static str),
    /// The planner made a table that is none. Nothing is committed.
    #[error(
        "planner bug: the next routing table is invalid ({error}); the committed table stays. Please report this with the output of: kubectl get cells,cellfleets,routingtables -o yaml"
    )]
    Planner {
        /// The fleet.
        fleet: String,
        /// What is wrong with the table.
        error: TableError,
    },
    /// It took too long and was given up, which is as safe as a crash at that point.
    #[error("not over after {} s; a server took the request and does not answer", LIMIT.as_secs())]
    TimedOut,
    /// The ledger ended the reconcile.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl ReconcileError {
    /// The label value in metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            ReconcileError::Kube(_) | ReconcileError::Apply(ApplyError::Kube { .. }) => "apiserver",
            ReconcileError::Apply(
                ApplyError::NotOurs { .. }
                | ApplyError::Refused { .. }
                | ApplyError::QuotaExceeded { .. },
            ) => "refused",
            ReconcileError::Store(error) => error.category(),
            ReconcileError::Malformed(_) => "malformed",
            ReconcileError::Planner { .. } => "planner",
            ReconcileError::TimedOut => "timeout",
            ReconcileError::Interrupted(_) | ReconcileError::Apply(ApplyError::Interrupted(_)) => {
                "interrupted"
            }
        }
    }

    /// Whether the reconcile must stop at once, as if the process had died.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        self.category() == "interrupted"
    }
}
