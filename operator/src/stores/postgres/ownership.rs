//! Table `titan.ranges` of a data home: who may write which keys, from which epoch on; and the calls that change it.
//!
//! What they do, and why no write is lost by them, says `cell-services/kit/sql/titan.sql`.

use serde::Deserialize;
use sqlx::types::Json;
use titan_planner::cell::ServerCredentials;
use titan_routing::{Epoch, Key, KeyRange};

use super::session::{Call, Session};
use crate::ledger::{Ledger, System};
use crate::stores::{Result, StoreError};

/// Whether the keys of a range may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnershipState {
    /// By the cell of the row.
    Active,
    /// By nobody while a fence looks who writes. It becomes `Fenced`, or what it was, within the fence's budget.
    Closing,
    /// By nobody.
    Fenced,
}

/// A row of `titan.ranges`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnershipRow {
    /// The keys.
    pub range: KeyRange,
    /// The compute cell that may write them; empty where a range was fenced before it was ever active.
    pub cell: String,
    /// The epoch since which the row says so.
    pub epoch: Epoch,
    /// Whether they may be written.
    pub state: OwnershipState,
}

impl OwnershipRow {
    /// The row of a range that `cell` may write from `epoch` on.
    #[must_use]
    pub fn active(range: KeyRange, cell: &str, epoch: Epoch) -> Self {
        OwnershipRow {
            range,
            cell: cell.to_owned(),
            epoch,
            state: OwnershipState::Active,
        }
    }
}

/// How long a fence may take, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FenceBudget {
    /// For how long the range is closed at most, and writers of it are refused.
    pub closed: u32,
    /// For how long to wait before that, with the range open, for writers that would take too long.
    pub quiet: u32,
}

impl FenceBudget {
    /// What a live range is fenced with: 150 ms leave 100 ms of a promised 250 ms for a writer's next try.
    pub const LIVE: Self = FenceBudget {
        closed: 150,
        quiet: 2_500,
    };
    /// What a range is fenced with whose compute is gone.
    pub const DEAD: Self = FenceBudget {
        closed: 5_000,
        quiet: 0,
    };
    /// The server ends a statement after 15 s, and a fence must not be ended.
    const LONGEST: u32 = 10_000;
}

/// A transaction that was in the way of a fence.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Blocker {
    /// Its session; none when the transaction is a prepared one.
    pub pid: Option<i32>,
    /// A key that it writes; none when it passed the guard of the release before.
    pub key: Option<i64>,
}

/// How a fence ended.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum FenceOutcome {
    /// Nobody can write the range at an older epoch any more.
    Fenced {
        /// For how long the range had been closed, in milliseconds; 0 when it was fenced already.
        closed_ms: f64,
    },
    /// Nothing was changed.
    Busy {
        /// `writers`, `closing` (another fence is under way) or `resting` (one was a moment ago).
        why: String,
        /// Who would have been in the way.
        blockers: Option<Vec<Blocker>>,
    },
    /// The range was closed for the whole budget, and is open again.
    Reopened {
        /// Who was in the way.
        blockers: Option<Vec<Blocker>>,
    },
    /// The range was closed for too long, somebody opened it again, and nothing is fenced.
    Lost,
}

const ROWS: &str =
    "SELECT range_first, range_last, cell, epoch, state FROM titan.ranges ORDER BY range_first";

/// Reads who owns what in a data home.
///
/// # Errors
/// The server cannot be reached or refuses, or the table holds what this version does not understand.
pub async fn ownership(server: &ServerCredentials, database: &str) -> Result<Vec<OwnershipRow>> {
    let mut session = Session::open_existing(server, database).await?;
    let rows = rows(&mut session).await;
    session.close().await;
    rows
}

/// One change of `titan.ranges`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Lets a cell write the range from an epoch on.
    Activate(KeyRange, &'a str, Epoch),
    /// Makes the key the first of a row.
    Split(Key),
    /// Makes one row of those inside the range.
    Merge(KeyRange),
    /// Forgets a fenced range that was given away at the epoch or before.
    Remove(KeyRange, Epoch),
}

/// Makes a change. Returns whether there was anything to do.
///
/// # Errors
/// The server cannot be reached, or refuses because of a newer epoch, of what has to be fenced first, or of a fence that
/// is under way.
pub async fn change(
    server: &ServerCredentials,
    database: &str,
    change: Change<'_>,
    ledger: &dyn Ledger,
) -> Result<bool> {
    let (verb, target, query) = match change {
        Change::Activate(range, cell, epoch) => (
            "activate",
            format!("range {} for {cell:?} at epoch {epoch}", text(range)),
            sqlx::query("SELECT titan.activate($1, $2, $3, $4) AS done")
                .bind(range.first().as_i64())
                .bind(range.last().as_i64())
                .bind(cell.to_owned())
                .bind(bigint(epoch)?),
        ),
        Change::Split(at) => (
            "split",
            format!("range at {at}"),
            sqlx::query("SELECT titan.split($1) AS done").bind(at.as_i64()),
        ),
        Change::Merge(range) => (
            "merge",
            format!("range {}", text(range)),
            sqlx::query("SELECT titan.merge($1, $2) AS done")
                .bind(range.first().as_i64())
                .bind(range.last().as_i64()),
        ),
        Change::Remove(range, epoch) => (
            "remove",
            format!("range {} at epoch {epoch}", text(range)),
            sqlx::query("SELECT titan.remove($1, $2, $3) AS done")
                .bind(range.first().as_i64())
                .bind(range.last().as_i64())
                .bind(bigint(epoch)?),
        ),
    };
    let call = Call {
        verb,
        target,
        query,
    };
    let mut session = Session::open_existing(server, database).await?;
    let done = session.call(call, ledger, |done: &bool| *done).await;
    session.close().await;
    done
}

/// Stops every writer of the range, from `epoch` on.
///
/// `Fenced` is not proven on a standby: that is for [`DataHome`](crate::stores::data_home::DataHome).
///
/// # Errors
/// The server cannot be reached, or refuses because it knows a newer epoch.
pub(crate) async fn fence(
    session: &mut Session,
    range: KeyRange,
    epoch: Epoch,
    budget: FenceBudget,
    ledger: &dyn Ledger,
) -> Result<FenceOutcome> {
    if budget.closed.saturating_add(budget.quiet) > FenceBudget::LONGEST {
        return Err(invalid(format!(
            "a fence may take {} ms at most, and {} + {} ms were asked for",
            FenceBudget::LONGEST,
            budget.closed,
            budget.quiet
        )));
    }
    // CALL commits in between, so it has to be the only statement.
    let query = sqlx::query("CALL titan.fence($1, $2, $3, $4, $5)")
        .bind(range.first().as_i64())
        .bind(range.last().as_i64())
        .bind(bigint(epoch)?)
        .bind(budget.closed.cast_signed())
        .bind(budget.quiet.cast_signed());
    let call = Call {
        verb: "fence",
        target: format!("range {} at epoch {epoch}", text(range)),
        query,
    };
    let Json(outcome) = session
        .call(call, ledger, |Json(outcome): &Json<FenceOutcome>| {
            matches!(outcome, FenceOutcome::Fenced { closed_ms } if *closed_ms > 0.0)
        })
        .await?;
    Ok(outcome)
}

/// Ends the sessions that write keys of the range, and returns how many. Never cancels: a COMMIT that is cancelled while
/// it waits for a standby reports success.
///
/// # Errors
/// The server cannot be reached or refuses.
pub(crate) async fn terminate_writers(
    session: &mut Session,
    range: KeyRange,
    ledger: &dyn Ledger,
) -> Result<i64> {
    let query = sqlx::query(
        "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) AS done FROM (
            SELECT DISTINCT pid FROM titan.writers($1, $2) UNION SELECT pid FROM titan.old_writers()) w
          WHERE pid IS NOT NULL",
    )
    .bind(range.first().as_i64())
    .bind(range.last().as_i64());
    let call = Call {
        verb: "terminate",
        target: format!("writers of range {}", text(range)),
        query,
    };
    session.call(call, ledger, |ended: &i64| *ended > 0).await
}

fn text(range: KeyRange) -> String {
    format!("{}..={}", range.first(), range.last())
}

fn bigint(epoch: Epoch) -> Result<i64> {
    i64::try_from(epoch.0)
        .map_err(|_| invalid(format!("epoch {epoch} is larger than PostgreSQL's bigint")))
}

fn invalid(message: String) -> StoreError {
    StoreError::Invalid {
        system: System::Postgres,
        message,
    }
}

pub(super) async fn rows(session: &mut Session) -> Result<Vec<OwnershipRow>> {
    let rows = session.read("read titan.ranges", sqlx::query(ROWS)).await?;
    let mut owned = Vec::with_capacity(rows.len());
    for row in &rows {
        let (first, last): (i64, i64) = (
            session.column(row, "range_first")?,
            session.column(row, "range_last")?,
        );
        let (cell, epoch): (String, i64) =
            (session.column(row, "cell")?, session.column(row, "epoch")?);
        let state: &str = session.column(row, "state")?;
        let state = match state {
            "active" => Some(OwnershipState::Active),
            "closing" => Some(OwnershipState::Closing),
            "fenced" => Some(OwnershipState::Fenced),
            _ => None,
        };
        let (Some(range), Ok(epoch), Some(state)) =
            (key_range(first, last), u64::try_from(epoch), state)
        else {
            return Err(StoreError::Invalid {
                system: System::Postgres,
                message: format!(
                    "titan.ranges on PostgreSQL at {} has a row for {first}..={last} that this version of the \
                     operator does not understand: run the version that wrote it",
                    session.address()
                ),
            });
        };
        owned.push(OwnershipRow {
            range,
            cell,
            epoch: Epoch(epoch),
            state,
        });
    }
    Ok(owned)
}

fn key_range(first: i64, last: i64) -> Option<KeyRange> {
    let key = |value: i64| Key::new(u64::try_from(value).ok()?).ok();
    KeyRange::new(key(first)?, key(last)?).ok()
}
