//! What holds for the routing table through any history of a fleet.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use titan_planner::Observed;
use titan_planner::fleet::{CellView, Decision, PlanInput, plan};
use titan_routing::{Assignment, AssignmentState, Epoch, RoutingTable};

use crate::{cell, input, planned};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// What one cell is at one moment, with few keys and few moments, so that cells get in each other's way.
fn view(name: &'static str) -> impl Strategy<Value = CellView> {
    let flags = (
        any::<bool>(),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    );
    let recorded = prop::option::weighted(0.2, (1..20_u64).prop_map(Epoch));
    (0..20_u64, 0..8_u64, 0..3_i64, flags, recorded).prop_map(
        move |(first, length, created, (serving, deleting, paused), recorded)| CellView {
            serving,
            deleting,
            paused,
            recorded,
            ..cell(name, created, first, first + length)
        },
    )
}

/// One moment of a fleet: its cells in any order, some of the others known to be gone, and whether the table is lost.
#[derive(Clone, Debug)]
struct Moment {
    cells: Vec<CellView>,
    gone: BTreeSet<String>,
    lost: bool,
}

fn moment() -> impl Strategy<Value = Moment> {
    let all: Vec<_> = NAMES.into_iter().map(view).collect();
    let gone = btree_set(prop::sample::select(NAMES.to_vec()), 0..3);
    let cells = prop::sample::subsequence(NAMES.to_vec(), 0..=NAMES.len());
    (all, cells, gone, prop::bool::weighted(0.1))
        .prop_map(|(all, seen, gone, lost)| Moment {
            cells: all
                .into_iter()
                .filter(|cell| seen.contains(&cell.name.as_str()))
                .collect(),
            gone: gone
                .into_iter()
                .filter(|name| !seen.contains(name))
                .map(str::to_owned)
                .collect(),
            lost,
        })
        .prop_flat_map(|moment| {
            let order = Just(moment.cells.clone()).prop_shuffle();
            (Just(moment), order).prop_map(|(moment, cells)| Moment { cells, ..moment })
        })
}

fn row_of<'a>(table: &'a RoutingTable, cell: &str) -> Option<&'a Assignment> {
    table.assignments().iter().find(|row| row.cell == cell)
}

fn check_step(input: &PlanInput, before: &RoutingTable) -> Result<RoutingTable, TestCaseError> {
    let (plan_made, report) = planned(input);
    let after = plan_made.table.clone().unwrap_or_else(|| before.clone());
    if plan_made.table.is_some() {
        prop_assert!(after.epoch() > before.epoch(), "the epoch only grows");
    }

    for (index, one) in after.assignments().iter().enumerate() {
        for other in &after.assignments()[index + 1..] {
            prop_assert!(!one.range.overlaps(other.range), "{one:?} and {other:?}");
        }
        prop_assert!(after.cell(&one.cell).is_some() && after.cell(&one.home).is_some());
        prop_assert!(one.epoch <= after.epoch(), "{one:?} at {}", after.epoch());
    }
    let cells: BTreeSet<&str> = after
        .cells()
        .iter()
        .map(|cell| cell.cell.as_str())
        .collect();
    prop_assert_eq!(
        cells,
        after.cells_in_use(),
        "nobody is told of cells without a row"
    );

    let views: BTreeMap<&str, &CellView> = input
        .cells
        .iter()
        .map(|cell| (cell.name.as_str(), cell))
        .collect();
    for row in before.assignments() {
        let now = row_of(&after, &row.cell);
        match views.get(row.cell.as_str()) {
            None if input.gone.contains(&row.cell) => prop_assert_eq!(now, None),
            None => prop_assert_eq!(now, Some(row), "a cell that is not seen keeps its row"),
            Some(view) if view.paused => {
                prop_assert_eq!(now, Some(row), "a paused cell's row is left alone");
            }
            Some(view) if view.deleting => prop_assert_eq!(now, None),
            Some(view) if view.range != row.range => {
                prop_assert!(now.is_none_or(|now| now.range == view.range));
            }
            Some(view) => {
                let starts = row.state == AssignmentState::Pending && view.serving;
                let expected = if starts {
                    Assignment {
                        state: AssignmentState::Active,
                        epoch: after.epoch(),
                        ..row.clone()
                    }
                } else {
                    row.clone()
                };
                prop_assert_eq!(now, Some(&expected), "who holds a range keeps it");
            }
        }
    }

    for row in after.assignments() {
        if row_of(before, &row.cell).is_some_and(|old| old.range == row.range) {
            continue;
        }
        let view = views.get(row.cell.as_str());
        prop_assert!(
            view.is_some_and(|view| !view.deleting && !view.paused && view.range == row.range),
            "{row:?} is new and nobody asked for it"
        );
        prop_assert_eq!(&row.home, &row.cell);
    }

    for view in input.cells.iter().filter(|view| !view.deleting) {
        let row = row_of(&after, &view.name);
        match report.decisions.get(&view.name) {
            Some(Decision::Refused { holder, held }) => {
                prop_assert_eq!(row, None);
                prop_assert!(held.overlaps(view.range));
                prop_assert_eq!(row_of(&after, holder).unwrap().range, *held);
                let rival = views.get(holder.as_str());
                let held_before = row_of(before, holder).is_some_and(|old| old.range == *held);
                let first = rival.is_some_and(|rival| {
                    (rival.recorded.is_none(), rival.created, &rival.name)
                        < (view.recorded.is_none(), view.created, &view.name)
                });
                prop_assert!(held_before || first, "{holder} took {held} from {view:?}");
            }
            Some(Decision::Claims | Decision::Activates | Decision::Keeps(_)) => {
                prop_assert!(row.is_some(), "{view:?}");
            }
            None => prop_assert!(view.paused && row.is_none(), "{view:?} was forgotten"),
            Some(other) => prop_assert!(false, "{other:?} for {view:?}"),
        }
    }
    Ok(after)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_the_promises(history in vec(moment(), 1..8)) {
        let mut table = RoutingTable::empty(titan_routing::KeyspaceMode::UserId);
        let mut observed = Observed::Absent;
        for moment in history {
            if moment.lost {
                table = RoutingTable::empty(table.mode());
                observed = Observed::Absent;
            }
            let step = PlanInput { gone: moment.gone, ..input(observed, &moment.cells) };
            table = check_step(&step, &table)?;
            observed = Observed::Known(table.clone());
        }
    }

    #[test]
    fn the_order_in_which_cells_are_listed_means_nothing(
        first in moment(),
        (second, shuffled) in moment().prop_flat_map(|moment| {
            let shuffled = Just(moment.cells.clone()).prop_shuffle();
            (Just(moment), shuffled)
        }),
    ) {
        let (start, _) = plan(&input(Observed::Absent, &first.cells)).unwrap();
        let one = PlanInput {
            gone: second.gone,
            ..input(Observed::Known(start.table.unwrap()), &second.cells)
        };
        let other = PlanInput { cells: shuffled, ..one.clone() };
        prop_assert_eq!(plan(&one).unwrap(), plan(&other).unwrap());
    }
}
