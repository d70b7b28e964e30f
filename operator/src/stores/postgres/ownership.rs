//! Table `titan.ownership` of a data home: who may write which keys, from which epoch on.

use titan_planner::cell::ServerCredentials;
use titan_routing::{Epoch, Key, KeyRange};

use super::session::{Session, Step, literal};
use crate::ledger::{Ledger, System};
use crate::stores::{Result, StoreError};

/// Whether the keys of a range may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnershipState {
    /// By the cell of the row.
    Active,
    /// By nobody.
    Fenced,
}

/// A row of `titan.ownership`.
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

const ROWS: &str =
    "SELECT range_first, range_last, cell, epoch, state FROM titan.ownership ORDER BY range_first";

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

/// Lets `cell` write the range from `epoch` on. Returns whether anything had to be written.
///
/// # Errors
/// The server cannot be reached, or refuses because the row carries a newer epoch.
pub async fn activate(
    server: &ServerCredentials,
    database: &str,
    range: KeyRange,
    cell: &str,
    epoch: Epoch,
    ledger: &dyn Ledger,
) -> Result<bool> {
    let want = OwnershipRow::active(range, cell, epoch);
    let mut session = Session::open_existing(server, database).await?;
    let done = settle(&mut session, &want, ledger).await;
    session.close().await;
    done
}

/// Stops every writer of the range, from `epoch` on: waits for those that passed the guard. Returns whether anything
/// had to be written.
///
/// # Errors
/// The server cannot be reached, or refuses because the row carries a newer epoch, or a writer held on to its
/// transaction for too long.
pub async fn fence(
    server: &ServerCredentials,
    database: &str,
    range: KeyRange,
    epoch: Epoch,
    ledger: &dyn Ledger,
) -> Result<bool> {
    let want = OwnershipRow {
        range,
        cell: String::new(),
        epoch,
        state: OwnershipState::Fenced,
    };
    let mut session = Session::open_existing(server, database).await?;
    let done = settle(&mut session, &want, ledger).await;
    session.close().await;
    done
}

async fn settle(session: &mut Session, want: &OwnershipRow, ledger: &dyn Ledger) -> Result<bool> {
    let rows = rows(session).await?;
    let settled = rows.iter().any(|row| {
        row.range == want.range
            && row.epoch == want.epoch
            && row.state == want.state
            && (want.state == OwnershipState::Fenced || row.cell == want.cell)
    });
    if settled {
        return Ok(false);
    }
    let epoch = i64::try_from(want.epoch.0).map_err(|_| StoreError::Invalid {
        system: System::Postgres,
        message: format!("epoch {} is larger than PostgreSQL's bigint", want.epoch.0),
    })?;
    let (first, last) = (want.range.first().as_i64(), want.range.last().as_i64());
    let (verb, sql) = match want.state {
        OwnershipState::Active => (
            "activate",
            format!(
                "SELECT titan.activate({first}, {last}, {}, {epoch})",
                literal(&want.cell)
            ),
        ),
        OwnershipState::Fenced => (
            "fence",
            format!("SELECT titan.fence({first}, {last}, {epoch})"),
        ),
    };
    let target = format!(
        "range {first}..={last} for {:?} at epoch {epoch}",
        want.cell
    );
    session.write(Step { verb, target, sql }, ledger).await?;
    Ok(true)
}

pub(super) async fn rows(session: &mut Session) -> Result<Vec<OwnershipRow>> {
    let rows = session
        .read("read titan.ownership", sqlx::query(ROWS))
        .await?;
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
            "fenced" => Some(OwnershipState::Fenced),
            _ => None,
        };
        let (Some(range), Ok(epoch), Some(state)) =
            (key_range(first, last), u64::try_from(epoch), state)
        else {
            return Err(StoreError::Invalid {
                system: System::Postgres,
                message: format!(
                    "titan.ownership on PostgreSQL at {} has a row for {first}..={last} that this version of the \
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
