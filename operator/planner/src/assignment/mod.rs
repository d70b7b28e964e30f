//! The next routing table of a fleet: which cell serves which keys, and whose databases hold them.
//!
//! The table is the only place where it is decided who owns a key. A cell claims its range by a `Pending` row before
//! anything of it is created, so that of two cells with overlapping ranges one is refused while it is still nothing. A claim
//! is granted once. From then on the rows stand on their own: a cell has any number of them, and the cell that serves a row
//! (its compute) and the cell whose databases hold it (its home) may differ.
//!
//! Planning is idempotent: planned on its own result, it changes nothing.

mod claim;
mod draft;
mod endpoints;
mod place;
mod recover;
mod release;
mod report;
mod view;

use std::collections::BTreeSet;

use titan_routing::{
    Assignment, AssignmentState, Epoch, KeyOverride, KeyRange, KeyspaceMode, RoutingTable,
    TableError,
};

pub use claim::{Claim, claim, rows_of};
pub use report::{Decision, PlanReport, Refused, RowDecision};
pub use view::{CellView, recorded_rows};

use crate::Observed;
use draft::Draft;
use release::Release;

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct PlanInput {
    /// How user ids become keys.
    pub mode: KeyspaceMode,
    /// The committed table.
    pub table: Observed<RoutingTable>,
    /// The new epoch must be larger than this. Larger than the table's own only when the table was edited by hand.
    pub epoch_floor: Epoch,
    /// Write the table even where its rows are right: what is committed is not what the operator wrote.
    pub rewrite: bool,
    /// Every cell of the fleet that is in this cluster.
    pub cells: Vec<CellView>,
    /// Cells that the table names and that were looked for, one by one, and do not exist.
    pub gone: BTreeSet<String>,
    /// The region that this operator works in. Rows of cells in other regions are another operator's, and stay as they are.
    /// `None` where one operator works in all regions.
    pub region: Option<String>,
}

/// What is to be done, in this order. Planned on its own result it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What the data homes must refuse before the table is committed.
    pub before: Vec<Fence>,
    /// The next table; `None` when the committed one is right.
    pub table: Option<RoutingTable>,
    /// What the data homes may allow once the table is committed.
    pub after: Vec<Activation>,
}

/// Writes of a range that a data home refuses from an epoch on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The cell whose databases hold the range.
    pub home: String,
    /// The keys.
    pub range: KeyRange,
    /// The epoch of the table that is committed afterwards.
    pub epoch: Epoch,
    /// Whether the table must not be committed without it, because somebody else writes the range afterwards. Not so where
    /// the home itself is being deleted: then a database that does not answer must not hold the deletion up.
    pub required: bool,
}

/// Writes of a range that a data home allows a cell from an epoch on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// The cell whose databases hold the range.
    pub home: String,
    /// The cell that may write it.
    pub cell: String,
    /// The keys.
    pub range: KeyRange,
    /// The epoch of the row.
    pub epoch: Epoch,
}

/// Plans the next routing table.
///
/// # Errors
/// When the result would not be a valid table; that is a bug in the planner, and nothing is committed.
pub fn plan(input: &PlanInput) -> Result<(Plan, PlanReport), TableError> {
    let empty;
    let current = match &input.table {
        Observed::Known(table) => table,
        Observed::Absent => {
            empty = RoutingTable::empty(input.mode);
            &empty
        }
        Observed::Unknown => {
            let report = PlanReport {
                waiting_on: Some("the committed routing table could not be read"),
                ..PlanReport::default()
            };
            return Ok((Plan::default(), report));
        }
    };
    let lost = input.table == Observed::Absent;
    // Where the table was lost, what the cells remember of it is a floor: consumers never take an older table.
    let recorded = input.cells.iter().flat_map(|cell| &cell.recorded);
    let recorded = recorded.map(|row| row.epoch).max().unwrap_or_default();
    let floor = input.epoch_floor.max(recorded);
    let epoch = current.epoch().max(floor).next();

    let base = if lost {
        recover::recovered(input, epoch)
    } else {
        current.assignments().to_vec()
    };
    let mut draft = Draft::default();
    let mut before = Vec::new();
    let mut report = PlanReport::default();
    let release = Release::new(input, current, epoch);
    for row in &base {
        release.decide(row, lost, &mut draft, &mut before, &mut report);
    }
    place::place(input, epoch, &mut draft, &mut report);
    let order = |row: &RowDecision| (row.range, row.decision == Decision::Claims);
    report.rows.sort_by_key(order);

    let cells = endpoints::endpoints(&draft, current, &input.cells);
    let pins = pins(current, &cells);
    let next = RoutingTable::new(epoch, input.mode, draft.into_rows(), cells, pins)?;
    let same = next.assignments() == current.assignments()
        && next.cells() == current.cells()
        && next.overrides() == current.overrides()
        && next.mode() == current.mode();
    if !input.rewrite && same && !lost {
        return Ok((Plan::default(), report));
    }
    let after = activations(current, &next);
    let plan = Plan {
        before,
        table: Some(next),
        after,
    };
    Ok((plan, report))
}

/// Pins of cells that the table still reaches.
fn pins(current: &RoutingTable, cells: &[titan_routing::CellEndpoint]) -> Vec<KeyOverride> {
    let listed: BTreeSet<&str> = cells.iter().map(|cell| cell.cell.as_str()).collect();
    let pins = current.overrides().iter();
    pins.filter(|pin| listed.contains(pin.cell.as_str()))
        .cloned()
        .collect()
}

/// The rows that may be written from the next table on and might not before.
fn activations(current: &RoutingTable, next: &RoutingTable) -> Vec<Activation> {
    let known: BTreeSet<(KeyRange, &str, &str, Epoch)> = current
        .assignments()
        .iter()
        .filter(active)
        .map(key)
        .collect();
    next.assignments()
        .iter()
        .filter(active)
        .filter(|row| !known.contains(&key(row)))
        .map(|row| Activation {
            home: row.home.clone(),
            cell: row.cell.clone(),
            range: row.range,
            epoch: row.epoch,
        })
        .collect()
}

fn active(row: &&Assignment) -> bool {
    row.state == AssignmentState::Active
}

fn key(row: &Assignment) -> (KeyRange, &str, &str, Epoch) {
    (row.range, &row.home, &row.cell, row.epoch)
}
