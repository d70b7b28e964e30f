//! What becomes of the rows that are committed.

use std::collections::BTreeMap;

use titan_routing::{Assignment, AssignmentState, Epoch, RoutingTable};

use super::draft::Draft;
use super::report::{Decision, PlanReport};
use super::{CellView, Fence, PlanInput};

/// Where a cell that a row names stands.
enum Standing<'a> {
    /// It is there, and is not being deleted.
    Stays(&'a CellView),
    /// It is being deleted.
    Leaves,
    /// It was looked for and does not exist.
    Gone,
    /// It is paused: its rows stay as they are.
    Paused,
    /// It is not seen, and nobody has made sure that it does not exist.
    Unseen,
    /// It is not seen because another operator works in its region.
    OtherRegion,
}

/// Decides for each committed row, and carries over those that stay.
pub(super) struct Release<'a> {
    input: &'a PlanInput,
    current: &'a RoutingTable,
    views: BTreeMap<&'a str, &'a CellView>,
    epoch: Epoch,
}

impl<'a> Release<'a> {
    pub(super) fn new(input: &'a PlanInput, current: &'a RoutingTable, epoch: Epoch) -> Self {
        let views = input.cells.iter().map(|cell| (cell.name.as_str(), cell));
        Release {
            input,
            current,
            views: views.collect(),
            epoch,
        }
    }

    fn standing(&self, cell: &str) -> Standing<'a> {
        match self.views.get(cell) {
            Some(view) if view.paused => Standing::Paused,
            Some(view) if view.leaves() => Standing::Leaves,
            Some(view) => Standing::Stays(view),
            None if self.is_of_another_region(cell) => Standing::OtherRegion,
            None if self.input.gone.contains(cell) => Standing::Gone,
            None => Standing::Unseen,
        }
    }

    fn is_of_another_region(&self, cell: &str) -> bool {
        let Some(own) = &self.input.region else {
            return false;
        };
        let listed = self.current.cell(cell);
        listed.is_some_and(|listed| listed.region != *own)
    }

    /// Decides for one row.
    pub(super) fn decide(
        &self,
        row: &Assignment,
        recovered: bool,
        draft: &mut Draft,
        before: &mut Vec<Fence>,
        report: &mut PlanReport,
    ) {
        let keeps = if recovered {
            Decision::Recovers
        } else {
            Decision::Keeps(row.state)
        };
        // An operation has the row in hand: it alone brings it further.
        let in_operation = matches!(row.state, AssignmentState::Moving | AssignmentState::Fenced);
        let home = self.standing(&row.home);
        let compute = self.standing(&row.cell);
        let (next, decision) = match (home, compute) {
            (Standing::Paused, _) | (_, Standing::Paused) => (row.clone(), keeps),
            (Standing::OtherRegion, _) => (row.clone(), Decision::OtherRegion),
            (Standing::Unseen, _) => (row.clone(), Decision::LooksLost),
            (Standing::Gone, _) => {
                report.note(row, Decision::Releases);
                return;
            }
            _ if in_operation => (row.clone(), keeps),
            (Standing::Leaves, _) => {
                before.push(Fence {
                    home: row.home.clone(),
                    range: row.range,
                    epoch: self.epoch,
                    required: false,
                });
                report.note(row, Decision::Releases);
                return;
            }
            (_, Standing::OtherRegion) => (row.clone(), Decision::OtherRegion),
            (_, Standing::Unseen) => (row.clone(), Decision::LooksLost),
            (Standing::Stays(home), Standing::Leaves | Standing::Gone) => {
                if row.state == AssignmentState::Active {
                    before.push(Fence {
                        home: row.home.clone(),
                        range: row.range,
                        epoch: self.epoch,
                        required: true,
                    });
                }
                let next = Assignment {
                    cell: row.home.clone(),
                    state: state_for(home),
                    epoch: self.epoch,
                    ..row.clone()
                };
                let from = row.cell.clone();
                (next, Decision::ReturnsHome { from })
            }
            (Standing::Stays(_), Standing::Stays(compute))
                if row.state == AssignmentState::Pending && compute.serving =>
            {
                let next = Assignment {
                    state: AssignmentState::Active,
                    epoch: self.epoch,
                    ..row.clone()
                };
                (next, Decision::Activates)
            }
            (Standing::Stays(_), Standing::Stays(_)) => (row.clone(), keeps),
        };
        report.note(&next, decision);
        draft.insert(next);
    }
}

fn state_for(cell: &CellView) -> AssignmentState {
    if cell.serving {
        AssignmentState::Active
    } else {
        AssignmentState::Pending
    }
}
