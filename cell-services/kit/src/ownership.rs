//! Who may write what: the check of a request against the routing table, and the guard inside the data home.
//!
//! The check answers most strangers cheaply. The guard is what makes it true: it runs in the transaction that
//! writes, in SQL ([`BOOTSTRAP_SQL`]), and registers the owner for as long as that runs, so that a fence sees it.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use sqlx::postgres::PgDatabaseError;
use titan_routing::{AssignmentState, Epoch, Key, RoutingTable};
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::headers;

/// The schema `titan` of a data home: table of ranges, guard, trigger, fence and activation. Idempotent.
pub const BOOTSTRAP_SQL: &str = include_str!("../sql/titan.sql");

/// SQLSTATE of a guard that found the key not owned here.
pub const NOT_OWNED: &str = "TC001";
/// SQLSTATE of a write that did not pass the guard.
pub const UNGUARDED: &str = "TC002";

/// How long a request that knows a newer epoch waits for this process to learn of it, unless something else is said.
const CATCH_UP: Duration = Duration::from_millis(500);

/// The view of this process on who owns what.
#[derive(Clone, Debug)]
pub struct Ownership {
    cell: Arc<str>,
    home: Arc<str>,
    table: watch::Receiver<Arc<RoutingTable>>,
    catch_up: Duration,
}

/// A key that this cell owned when it was looked up, and since which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The key.
    pub key: Key,
    /// The epoch of its assignment, which the guard compares.
    pub epoch: Epoch,
}

/// A key that is not served here, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotOwned {
    /// What is wrong, for people.
    pub message: String,
    /// The cell that serves the key, when one does.
    pub moved_to: Option<String>,
    /// The epoch at which that is known.
    pub epoch: Epoch,
}

impl Ownership {
    /// The view of a process of `cell`, connected to the databases of `home`.
    #[must_use]
    pub fn new(cell: &str, home: &str, table: watch::Receiver<Arc<RoutingTable>>) -> Self {
        Ownership {
            cell: cell.into(),
            home: home.into(),
            table,
            catch_up: CATCH_UP,
        }
    }

    /// The same, with requests that wait so long for a newer table.
    #[must_use]
    pub fn with_catch_up(self, catch_up: Duration) -> Self {
        Ownership { catch_up, ..self }
    }

    /// The cell that this process computes for.
    #[must_use]
    pub fn cell(&self) -> &str {
        &self.cell
    }

    /// The epoch of the table in use.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.table.borrow().epoch()
    }

    /// Whether a table has arrived at all.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.epoch() > Epoch(0)
    }

    /// Decides whether a request for `key`, routed by a table of epoch `routed_by`, is served here.
    ///
    /// # Errors
    /// When it is not, with the cell that serves it.
    pub async fn check(&self, key: Key, routed_by: Epoch) -> Result<Owner, NotOwned> {
        let verdict = self.decide(key);
        if verdict.is_ok() || routed_by <= self.epoch() {
            return verdict;
        }
        self.wait_until(|table| table.epoch() >= routed_by).await;
        self.decide(key)
    }

    /// Waits, for a short while, until the assignment of `key` has reached `epoch`.
    pub(crate) async fn catch_up(&self, key: Key, epoch: Epoch) -> Result<Owner, NotOwned> {
        self.wait_until(|table| {
            table
                .lookup(key)
                .and_then(|found| found.assignment)
                .is_some_and(|assignment| assignment.epoch >= epoch)
        })
        .await;
        self.decide(key)
    }

    async fn wait_until(&self, arrived: impl Fn(&RoutingTable) -> bool) {
        let mut table = self.table.clone();
        // Neither a time-out nor a registry that is gone changes the answer: the table in hand decides.
        let _ = tokio::time::timeout(self.catch_up, table.wait_for(|table| arrived(table))).await;
    }

    fn decide(&self, key: Key) -> Result<Owner, NotOwned> {
        let table = self.table.borrow();
        let refuse = |message: String, moved_to: Option<&str>| NotOwned {
            message,
            moved_to: moved_to.map(str::to_owned),
            epoch: table.epoch(),
        };
        let epoch = table.epoch();
        let Some(found) = table.lookup(key) else {
            return Err(refuse(
                format!("no cell serves key {key} at epoch {epoch}"),
                None,
            ));
        };
        if *found.cell.cell != *self.cell {
            let cell = &found.cell.cell;
            return Err(refuse(
                format!(
                    "key {key} is served by cell {cell}, not by {}, at epoch {epoch}",
                    self.cell
                ),
                Some(cell),
            ));
        }
        let Some(assignment) = found.assignment else {
            return Err(refuse(
                format!("key {key} is pinned to {} but lies in no range", self.cell),
                None,
            ));
        };
        match assignment.state {
            AssignmentState::Active | AssignmentState::Moving => {}
            AssignmentState::Pending => {
                return Err(refuse(
                    format!(
                        "cell {} does not serve key {key} yet; retry shortly",
                        self.cell
                    ),
                    None,
                ));
            }
            AssignmentState::Fenced => {
                return Err(refuse(
                    format!("range {} is fenced; retry shortly", assignment.range),
                    None,
                ));
            }
        }
        if *assignment.home != *self.home {
            return Err(refuse(
                format!(
                    "the data of key {key} is at home {}, this process is connected to {}; retry shortly",
                    assignment.home, self.home
                ),
                None,
            ));
        }
        Ok(Owner {
            key,
            epoch: assignment.epoch,
        })
    }
}

impl From<NotOwned> for Status {
    fn from(refusal: NotOwned) -> Self {
        let mut status = Status::new(Code::FailedPrecondition, refusal.message);
        let metadata = status.metadata_mut();
        metadata.insert(headers::EPOCH, refusal.epoch.0.into());
        if let Some(cell) = refusal.moved_to.and_then(|cell| cell.parse().ok()) {
            metadata.insert(headers::MOVED_TO, cell);
        }
        status
    }
}

/// What the guard says in the DETAIL of a refusal.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct GuardRefusal {
    pub(crate) reason: String,
    #[serde(default)]
    pub(crate) cell: String,
    #[serde(default)]
    pub(crate) epoch: u64,
    /// Of a range that is closing: its fence should have ended by now, so it may be opened again.
    pub(crate) overdue: Option<bool>,
}

impl GuardRefusal {
    /// The refusal inside a database error, if it is one.
    pub(crate) fn of(error: &sqlx::Error) -> Option<(Self, String)> {
        let database = error.as_database_error()?;
        if database.code()? != NOT_OWNED {
            return None;
        }
        let database = database.try_downcast_ref::<PgDatabaseError>()?;
        let detail = serde_json::from_str(database.detail()?).ok()?;
        Some((detail, database.message().to_owned()))
    }

    /// The answer to the caller, given the table in hand.
    pub(crate) fn into_not_owned(self, message: String, ownership: &Ownership) -> NotOwned {
        let moved = self.reason == "moved";
        NotOwned {
            message,
            moved_to: moved.then_some(self.cell),
            epoch: Epoch(self.epoch).max(ownership.epoch()),
        }
    }
}
