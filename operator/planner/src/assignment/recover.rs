//! The rows of a table that was lost, from what the Cells' statuses have of it.

use std::collections::BTreeSet;

use titan_routing::{Assignment, AssignmentState, Epoch};

use super::PlanInput;
use super::draft::Draft;

/// The rows that the statuses record, with the states that they had. Where two statuses differ the row of the larger epoch is
/// right; of a row of which a newer one has a part, the rest is kept, and changes in this table.
pub(super) fn recovered(input: &PlanInput, epoch: Epoch) -> Vec<Assignment> {
    let seen: BTreeSet<&str> = input.cells.iter().map(|cell| cell.name.as_str()).collect();
    let mut recorded: Vec<(bool, Assignment)> = input
        .cells
        .iter()
        .flat_map(|cell| {
            let rows = cell.recorded.iter();
            rows.map(|row| (row.home == cell.name, row.clone()))
        })
        // Of a home that is not seen nothing is known, neither its database nor how to reach it.
        .filter(|(_, row)| seen.contains(row.home.as_str()))
        .collect();
    for (_, row) in &mut recorded {
        // Nobody can be sent to a cell that is not seen: the home serves the row again.
        if !seen.contains(row.cell.as_str()) {
            row.cell.clone_from(&row.home);
            row.state = AssignmentState::Pending;
        }
    }
    // Of two records of one epoch, the home's own.
    recorded.sort_by(|(a_by_home, a), (b_by_home, b)| {
        let order = |by_home: bool, row: &Assignment| (!by_home, row.range);
        b.epoch
            .cmp(&a.epoch)
            .then_with(|| order(*a_by_home, a).cmp(&order(*b_by_home, b)))
            .then_with(|| (&a.home, &a.cell).cmp(&(&b.home, &b.cell)))
    });
    let mut draft = Draft::default();
    for (_, row) in recorded {
        if draft.overlapping(row.range).is_none() {
            draft.insert(row);
            continue;
        }
        for range in draft.free_parts(row.range) {
            draft.insert(Assignment {
                range,
                epoch,
                ..row.clone()
            });
        }
    }
    draft.into_rows()
}
