//! Rows for cells that claim keys and have none.

use titan_routing::{Assignment, AssignmentState, Epoch};

use super::draft::Draft;
use super::report::{Decision, PlanReport, Refused};
use super::{CellView, PlanInput};

/// Gives each cell that has a claim, and was never granted it, its row. Of two cells that claim the same keys the older gets
/// them.
pub(super) fn place(input: &PlanInput, epoch: Epoch, draft: &mut Draft, report: &mut PlanReport) {
    let mut by_age: Vec<&CellView> = input
        .cells
        .iter()
        .filter(|cell| !cell.deleting && !cell.paused && !cell.granted)
        .collect();
    by_age.sort_by_key(|cell| (cell.created, cell.name.as_str()));
    for cell in by_age {
        let Some(range) = cell.claim else { continue };
        if draft.has_home(&cell.name) {
            // The committed table granted it, and the status does not say so yet.
            continue;
        }
        if let Some(other) = draft.overlapping(range) {
            let refused = Refused {
                holder: other.home.clone(),
                held: other.range,
            };
            report.refused.insert(cell.name.clone(), refused);
            continue;
        }
        let row = Assignment {
            range,
            cell: cell.name.clone(),
            home: cell.name.clone(),
            state: if cell.serving {
                AssignmentState::Active
            } else {
                AssignmentState::Pending
            },
            epoch,
        };
        report.note(&row, Decision::Claims);
        draft.insert(row);
    }
}
