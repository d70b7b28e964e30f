//! What was decided for each row, in words.

use std::collections::BTreeMap;
use std::fmt;

use titan_routing::{Assignment, AssignmentState, KeyRange};

/// What was decided for one row, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The row stays as it is.
    Keeps(AssignmentState),
    /// A row for a claim that nobody is in the way of.
    Claims,
    /// The row becomes `Active`: the cell that serves it stands ready.
    Activates,
    /// The row goes: its home is being deleted, or is gone.
    Releases,
    /// The cell that served the row is being deleted, or is gone. The row's home serves it again.
    ReturnsHome {
        /// The cell that served it.
        from: String,
    },
    /// The row was taken from the statuses of the Cells, because the table was lost.
    Recovers,
    /// The row names a cell that was not found, and nobody has made sure that it does not exist. The row stays.
    LooksLost,
    /// The row is of a cell in a region that another operator works in. It stays.
    OtherRegion,
}

/// One row, and what was decided for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowDecision {
    /// The keys.
    pub range: KeyRange,
    /// The cell that serves them, afterwards.
    pub cell: String,
    /// The cell whose databases hold them.
    pub home: String,
    /// What becomes of the row.
    pub decision: Decision,
}

/// Why a cell's claim was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The home of the row that is in the way.
    pub holder: String,
    /// The keys of that row.
    pub held: KeyRange,
}

/// The decisions, by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanReport {
    /// Every row of the table before and after, in the order of their keys.
    pub rows: Vec<RowDecision>,
    /// Cells whose claim was refused.
    pub refused: BTreeMap<String, Refused>,
    /// Why nothing could be planned at all.
    pub waiting_on: Option<&'static str>,
}

impl PlanReport {
    /// The names of the cells whose claims were granted.
    pub fn claims(&self) -> impl Iterator<Item = &str> {
        let claims = |row: &&RowDecision| row.decision == Decision::Claims;
        self.rows.iter().filter(claims).map(|row| row.home.as_str())
    }

    pub(super) fn note(&mut self, row: &Assignment, decision: Decision) {
        self.rows.push(RowDecision {
            range: row.range,
            cell: row.cell.clone(),
            home: row.home.clone(),
            decision,
        });
    }
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reason) = self.waiting_on {
            return writeln!(f, "waiting: {reason}");
        }
        for row in &self.rows {
            let RowDecision {
                range,
                cell,
                home,
                decision,
            } = row;
            write!(f, "{range} {cell}")?;
            if home != cell {
                write!(f, " (home {home})")?;
            }
            match decision {
                Decision::Keeps(state) => writeln!(f, ": stays {state:?}")?,
                Decision::Claims => writeln!(f, ": claimed")?,
                Decision::Activates => writeln!(f, ": served from now on")?,
                Decision::Releases => writeln!(f, ": released")?,
                Decision::ReturnsHome { from } => {
                    writeln!(f, ": served by its home again, {from} leaves")?;
                }
                Decision::Recovers => writeln!(f, ": recovered from the statuses of the Cells")?,
                Decision::LooksLost => writeln!(f, ": stays, but a cell of it is not found")?,
                Decision::OtherRegion => writeln!(f, ": stays, it is of another region")?,
            }
        }
        for (cell, Refused { holder, held }) in &self.refused {
            writeln!(f, "{cell}: refused, {holder} holds {held}")?;
        }
        Ok(())
    }
}
