//! The next routing table of a fleet.
//!
//! The table is the only place where it is decided who owns a key. A cell claims its range by a `Pending` row before
//! anything of it is created, so that of two cells with overlapping ranges one is refused while it is still nothing.
//! Planning is idempotent: planned on its own result, it changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use titan_routing::{
    Assignment, AssignmentState, CellEndpoint, Epoch, KeyOverride, KeyRange, KeyspaceMode,
    RoutingTable, TableError,
};

use crate::Observed;

/// What the planner knows of one cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellView {
    /// Its name.
    pub name: String,
    /// When it was created, in seconds since 1970. Of two cells that claim the same keys, the older keeps them.
    pub created: i64,
    /// The keys it claims.
    pub range: KeyRange,
    /// Its region.
    pub region: String,
    /// The DNS suffix of its services.
    pub endpoint: String,
    /// Its services and databases stand ready to take requests.
    pub serving: bool,
    /// It is being deleted.
    pub deleting: bool,
    /// It is paused: its rows stay as they are.
    pub paused: bool,
    /// The epoch at which its status says it was given its range. Used when the table itself is lost.
    pub recorded: Option<Epoch>,
}

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
    /// Every cell of the fleet.
    pub cells: Vec<CellView>,
    /// Cells that the table names and that were looked for, one by one, and do not exist.
    pub gone: BTreeSet<String>,
}

/// What is to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The next table; `None` when the committed one is right.
    pub table: Option<RoutingTable>,
}

/// What was decided for one cell, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its row stays as it is.
    Keeps(AssignmentState),
    /// It gets a `Pending` row.
    Claims,
    /// Its row becomes `Active`.
    Activates,
    /// Its row goes, because the cell is being deleted or is gone.
    Releases,
    /// It gets nothing: another cell holds some of its keys.
    Refused {
        /// The cell that holds them.
        holder: String,
        /// The keys that the holder has.
        held: KeyRange,
    },
    /// The table names a cell that was not found, and nobody has made sure that it does not exist.
    LooksLost,
}

/// The decisions, by cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanReport {
    /// One decision a cell.
    pub decisions: BTreeMap<String, Decision>,
    /// Why nothing could be planned at all.
    pub waiting_on: Option<&'static str>,
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reason) = self.waiting_on {
            return writeln!(f, "waiting: {reason}");
        }
        for (cell, decision) in &self.decisions {
            match decision {
                Decision::Keeps(state) => writeln!(f, "{cell}: keeps its row ({state:?})")?,
                Decision::Claims => writeln!(f, "{cell}: claims its range")?,
                Decision::Activates => writeln!(f, "{cell}: starts to serve")?,
                Decision::Releases => writeln!(f, "{cell}: releases its range")?,
                Decision::Refused { holder, held } => {
                    writeln!(f, "{cell}: refused, {holder} holds {held}")?;
                }
                Decision::LooksLost => writeln!(f, "{cell}: in the table but not found")?,
            }
        }
        Ok(())
    }
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
            return Ok((Plan { table: None }, report));
        }
    };
    // Where the table was lost, what the cells remember of it is a floor: consumers never take an older table.
    let recorded = input.cells.iter().filter_map(|cell| cell.recorded).max();
    let floor = input.epoch_floor.max(recorded.unwrap_or_default());
    let epoch = current.epoch().max(floor).next();
    let mut draft = Draft {
        epoch,
        rows: current.assignments().to_vec(),
        decisions: BTreeMap::new(),
    };

    draft.release(input);
    let mut by_age: Vec<&CellView> = input.cells.iter().filter(|cell| !cell.deleting).collect();
    // Where the table was lost, a cell that had been given its range comes before one that waited, however old.
    by_age.sort_by_key(|cell| (cell.recorded.is_none(), cell.created, cell.name.as_str()));
    for cell in by_age {
        draft.place(cell);
    }

    let pins: Vec<KeyOverride> = current
        .overrides()
        .iter()
        .filter(|pin| !input.gone.contains(&pin.cell))
        .cloned()
        .collect();
    let cells = endpoints(&draft.rows, &pins, current, &input.cells);
    let next = RoutingTable::new(epoch, input.mode, draft.rows, cells, pins)?;
    let same = next.assignments() == current.assignments()
        && next.cells() == current.cells()
        && next.overrides() == current.overrides()
        && next.mode() == current.mode();
    let exists = matches!(input.table, Observed::Known(_));
    let table = (input.rewrite || !same || !exists).then_some(next);
    let report = PlanReport {
        decisions: draft.decisions,
        waiting_on: None,
    };
    Ok((Plan { table }, report))
}

struct Draft {
    epoch: Epoch,
    rows: Vec<Assignment>,
    decisions: BTreeMap<String, Decision>,
}

impl Draft {
    /// Drops the rows of cells that are being deleted or are known to be gone, and of cells whose range is another one
    /// now. A cell that is merely not seen keeps its rows.
    fn release(&mut self, input: &PlanInput) {
        let views: BTreeMap<&str, &CellView> = input
            .cells
            .iter()
            .map(|cell| (cell.name.as_str(), cell))
            .collect();
        let decisions = &mut self.decisions;
        self.rows.retain(|row| {
            let decision = match views.get(row.cell.as_str()) {
                Some(view) if view.deleting && !view.paused => Decision::Releases,
                Some(view) if view.range != row.range && !view.paused => Decision::Releases,
                Some(_) => return true,
                None if input.gone.contains(&row.cell) => Decision::Releases,
                None => Decision::LooksLost,
            };
            let stays = decision == Decision::LooksLost;
            decisions.insert(row.cell.clone(), decision);
            stays
        });
    }

    fn place(&mut self, cell: &CellView) {
        let decision = if let Some(row) = self.rows.iter_mut().find(|row| row.cell == cell.name) {
            if row.state == AssignmentState::Pending && cell.serving && !cell.paused {
                row.state = AssignmentState::Active;
                row.epoch = self.epoch;
                Decision::Activates
            } else {
                Decision::Keeps(row.state)
            }
        } else if let Some(holder) = self.rows.iter().find(|row| row.range.overlaps(cell.range)) {
            Decision::Refused {
                holder: holder.cell.clone(),
                held: holder.range,
            }
        } else if cell.paused {
            return;
        } else {
            // A cell whose status records an epoch was served already: the table was lost, not the claim. Its data
            // home knows that epoch, so the row keeps it.
            let (state, epoch) = match cell.recorded {
                Some(recorded) => (AssignmentState::Active, recorded),
                None if cell.serving => (AssignmentState::Active, self.epoch),
                None => (AssignmentState::Pending, self.epoch),
            };
            self.rows.push(Assignment {
                range: cell.range,
                cell: cell.name.clone(),
                home: cell.name.clone(),
                state,
                epoch,
            });
            Decision::Claims
        };
        self.decisions.insert(cell.name.clone(), decision);
    }
}

/// The endpoints of all cells that the rows and the pins mention: fresh where the cell is seen, as committed where it is not.
fn endpoints(
    rows: &[Assignment],
    pins: &[KeyOverride],
    current: &RoutingTable,
    cells: &[CellView],
) -> Vec<CellEndpoint> {
    let mut known: BTreeMap<&str, CellEndpoint> = current
        .cells()
        .iter()
        .map(|cell| (cell.cell.as_str(), cell.clone()))
        .collect();
    for view in cells {
        known.insert(
            &view.name,
            CellEndpoint {
                cell: view.name.clone(),
                region: view.region.clone(),
                endpoint: view.endpoint.clone(),
            },
        );
    }
    let used: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| [row.cell.as_str(), row.home.as_str()])
        .chain(pins.iter().map(|pin| pin.cell.as_str()))
        .collect();
    used.into_iter()
        .filter_map(|name| known.get(name).cloned())
        .collect()
}

/// What the committed table says of a cell's claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim<'a> {
    /// The cell has its row.
    Held(&'a Assignment),
    /// Another cell holds some of the keys.
    Overlaps(&'a Assignment),
    /// Neither: the fleet has not been planned with this cell yet.
    NotYet,
}

/// Reads a cell's claim from the committed table.
#[must_use]
pub fn claim<'a>(table: &'a RoutingTable, cell: &str, range: KeyRange) -> Claim<'a> {
    if let Some(row) = table
        .assignments()
        .iter()
        .find(|row| row.cell == cell && row.range == range)
    {
        return Claim::Held(row);
    }
    table
        .assignments()
        .iter()
        .find(|row| row.cell != cell && row.range.overlaps(range))
        .map_or(Claim::NotYet, Claim::Overlaps)
}
