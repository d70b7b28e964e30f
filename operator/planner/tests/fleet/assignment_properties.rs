//! What holds for the routing table through any history of a fleet.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use titan_planner::Observed;
use titan_planner::assignment::{CellView, Plan, PlanInput, PlanReport, plan};
use titan_routing::{Assignment, AssignmentState, Epoch, KeyRange, RoutingTable};

use crate::{cell, input, planned, range, row, table};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const STATES: [AssignmentState; 4] = [
    AssignmentState::Pending,
    AssignmentState::Active,
    AssignmentState::Moving,
    AssignmentState::Fenced,
];

/// A row of any cells in any state, over few keys.
fn any_row(range: KeyRange) -> impl Strategy<Value = Assignment> {
    let name = prop::sample::select(NAMES.to_vec());
    let state = prop::sample::select(STATES.to_vec());
    (name.clone(), name, any::<bool>(), state, 1..20_u64).prop_map(
        move |(cell, home, at_home, state, epoch)| {
            row(range, if at_home { home } else { cell }, home, state, epoch)
        },
    )
}

/// A committed table with foreign homes, several rows a cell, rows in operations, and gaps.
fn any_table() -> impl Strategy<Value = RoutingTable> {
    vec((1..4_u64, 0..4_u64), 0..7)
        .prop_flat_map(|pieces| {
            let mut first = 0;
            let mut rows = Vec::new();
            for (gap, length) in pieces {
                first += gap - 1;
                rows.push(any_row(range(first, first + length)));
                first += length + 1;
            }
            rows
        })
        .prop_map(|rows| table(20, rows))
}

/// What one cell is at one moment, with few keys and few moments, so that cells get in each other's way.
fn view(name: &'static str) -> impl Strategy<Value = CellView> {
    let flags = (
        any::<bool>(),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.3),
    );
    let recorded = (0..20_u64, 0..5_u64)
        .prop_flat_map(|(first, length)| any_row(range(first, first + length)));
    let claim = prop::option::weighted(0.9, (0..20_u64, 0..8_u64));
    (claim, 0..3_i64, flags, vec(recorded, 0..3)).prop_map(
        move |(claim, created, (serving, deleting, paused, granted), recorded)| CellView {
            serving,
            deleting,
            paused,
            granted,
            claim: claim.map(|(first, length)| range(first, first + length)),
            recorded,
            ..cell(name, created, 0, 0)
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

/// What must become of one committed row, said without the planner.
struct Fate {
    row: Option<Assignment>,
    fenced: bool,
}

fn fate(
    row: &Assignment,
    views: &BTreeMap<&str, &CellView>,
    gone: &BTreeSet<String>,
    epoch: Epoch,
) -> Fate {
    let stays = |row: Assignment| Fate {
        row: Some(row),
        fenced: false,
    };
    let home = views.get(row.home.as_str());
    let compute = views.get(row.cell.as_str());
    if [home, compute].into_iter().flatten().any(|it| it.paused) {
        return stays(row.clone());
    }
    let Some(home) = home else {
        let row = (!gone.contains(&row.home)).then(|| row.clone());
        return Fate { row, fenced: false };
    };
    if matches!(row.state, AssignmentState::Moving | AssignmentState::Fenced) {
        return stays(row.clone());
    }
    if home.deleting {
        return Fate {
            row: None,
            fenced: true,
        };
    }
    let leaves = compute.map_or(gone.contains(&row.cell), |it| it.deleting);
    if leaves {
        let state = if home.serving {
            AssignmentState::Active
        } else {
            AssignmentState::Pending
        };
        let back = Assignment {
            cell: row.home.clone(),
            state,
            epoch,
            ..row.clone()
        };
        return Fate {
            row: Some(back),
            fenced: row.state == AssignmentState::Active,
        };
    }
    let starts = row.state == AssignmentState::Pending && compute.is_some_and(|it| it.serving);
    if starts {
        return stays(Assignment {
            state: AssignmentState::Active,
            epoch,
            ..row.clone()
        });
    }
    stays(row.clone())
}

fn check_shape(plan: &Plan, before: &RoutingTable) -> Result<RoutingTable, TestCaseError> {
    let Some(after) = &plan.table else {
        prop_assert_eq!(&plan.before, &[], "nothing is committed, nothing is fenced");
        prop_assert_eq!(&plan.after, &[]);
        return Ok(before.clone());
    };
    prop_assert!(after.epoch() > before.epoch(), "the epoch only grows");
    for one in after.assignments() {
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
    let activated: Vec<(&str, &str, KeyRange, Epoch)> = plan
        .after
        .iter()
        .map(|it| (it.home.as_str(), it.cell.as_str(), it.range, it.epoch))
        .collect();
    let active = |row: &&Assignment| row.state == AssignmentState::Active;
    let news: Vec<(&str, &str, KeyRange, Epoch)> = after
        .assignments()
        .iter()
        .filter(active)
        .filter(|row| !before.assignments().contains(row))
        .map(|row| (row.home.as_str(), row.cell.as_str(), row.range, row.epoch))
        .collect();
    prop_assert_eq!(
        activated,
        news,
        "what may be written from now on, all of it"
    );
    Ok(after.clone())
}

/// New rows are claims of cells that were never granted one; claims that get no row are refused for a reason.
fn check_claims(
    input: &PlanInput,
    kept: &[Assignment],
    after: &RoutingTable,
    report: &PlanReport,
) -> Result<(), TestCaseError> {
    let views: BTreeMap<&str, &CellView> = input
        .cells
        .iter()
        .map(|cell| (cell.name.as_str(), cell))
        .collect();
    for row in after.assignments() {
        if kept.contains(row) {
            continue;
        }
        let Some(view) = views.get(row.home.as_str()) else {
            return Err(TestCaseError::fail(format!("{row:?} is of nobody")));
        };
        prop_assert!(
            !view.deleting && !view.paused && !view.granted && view.claim == Some(row.range),
            "{row:?} is new and nobody asked for it"
        );
        let state = if view.serving {
            AssignmentState::Active
        } else {
            AssignmentState::Pending
        };
        prop_assert_eq!(
            (&row.cell, row.state, row.epoch),
            (&row.home, state, after.epoch())
        );
    }
    for view in &input.cells {
        let refused = report.refused.get(&view.name);
        let asks = !view.deleting && !view.paused && !view.granted;
        let Some(claim) = view.claim.filter(|_| asks) else {
            prop_assert_eq!(refused, None);
            continue;
        };
        let holds = after.assignments().iter().any(|row| row.home == view.name);
        prop_assert_eq!(holds, refused.is_none(), "{:?}: {}", view, report);
        let Some(refused) = refused else { continue };
        prop_assert!(refused.held.overlaps(claim));
        let holder = after
            .assignments()
            .iter()
            .find(|row| row.range == refused.held);
        prop_assert_eq!(&holder.unwrap().home, &refused.holder);
        let older = views
            .get(refused.holder.as_str())
            .is_some_and(|rival| (rival.created, &rival.name) < (view.created, &view.name));
        prop_assert!(
            kept.contains(holder.unwrap()) || older,
            "{refused:?} for {view:?}"
        );
    }
    Ok(())
}

fn check_step(input: &PlanInput, before: &RoutingTable) -> Result<RoutingTable, TestCaseError> {
    let (plan_made, report) = planned(input);
    let after = check_shape(&plan_made, before)?;
    let views: BTreeMap<&str, &CellView> = input
        .cells
        .iter()
        .map(|cell| (cell.name.as_str(), cell))
        .collect();
    let fates: Vec<Fate> = before
        .assignments()
        .iter()
        .map(|row| fate(row, &views, &input.gone, after.epoch()))
        .collect();
    let kept: Vec<Assignment> = fates.iter().filter_map(|it| it.row.clone()).collect();
    for row in &kept {
        prop_assert!(after.assignments().contains(row), "{row:?} in {report}");
    }
    let fenced: Vec<(&str, KeyRange, Epoch)> = plan_made
        .before
        .iter()
        .map(|it| (it.home.as_str(), it.range, it.epoch))
        .collect();
    let left: Vec<(&str, KeyRange, Epoch)> = before
        .assignments()
        .iter()
        .zip(&fates)
        .filter(|(_, fate)| fate.fenced)
        .map(|(row, _)| (row.home.as_str(), row.range, after.epoch()))
        .collect();
    prop_assert_eq!(
        fenced,
        left,
        "what leaves its home or its compute is fenced first"
    );
    check_claims(input, &kept, &after, &report)?;
    Ok(after)
}

/// A table that is made again from the statuses: every key that a living home recorded is there, with the home of its newest
/// record, in the state of that record.
fn check_recovery(input: &PlanInput) -> Result<RoutingTable, TestCaseError> {
    let empty = RoutingTable::empty(input.mode);
    let (plan_made, report) = planned(input);
    let after = check_shape(&plan_made, &empty)?;
    let recorded = || input.cells.iter().flat_map(|cell| &cell.recorded);
    let view = |name: &str| input.cells.iter().find(|cell| cell.name == name);
    for key in 0..30 {
        let key = titan_routing::Key::new(key).unwrap();
        let known = recorded().filter(|row| row.range.contains(key) && view(&row.home).is_some());
        let Some(newest) = known.map(|row| row.epoch).max() else {
            continue;
        };
        let newest: Vec<&Assignment> = recorded()
            .filter(|row| row.range.contains(key) && row.epoch == newest)
            .collect();
        let found = after.lookup(key).and_then(|found| found.assignment);
        let of = |row: &&&Assignment| found.is_some_and(|found| found.home == row.home);
        let Some(record) = newest.iter().find(of) else {
            let leaves = |row: &&Assignment| view(&row.home).is_some_and(|it| it.deleting);
            prop_assert!(newest.iter().any(leaves), "{key} was forgotten: {report}");
            continue;
        };
        let found = found.unwrap();
        let same_compute = found.cell == record.cell;
        let in_operation =
            |state| matches!(state, AssignmentState::Moving | AssignmentState::Fenced);
        if same_compute && in_operation(found.state) {
            prop_assert!(
                newest.iter().any(|row| row.state == found.state),
                "{found:?}"
            );
        }
    }
    Ok(after)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_the_promises(start in any_table(), history in vec(moment(), 1..8)) {
        let mut committed = start;
        for moment in history {
            committed = if moment.lost {
                check_recovery(&PlanInput {
                    gone: moment.gone,
                    ..input(Observed::Absent, &moment.cells)
                })?
            } else {
                let observed = Observed::Known(committed.clone());
                let step = PlanInput { gone: moment.gone, ..input(observed, &moment.cells) };
                check_step(&step, &committed)?
            };
        }
    }

    #[test]
    fn the_order_in_which_cells_are_listed_means_nothing(
        first in any_table(),
        lost in any::<bool>(),
        (second, shuffled) in moment().prop_flat_map(|moment| {
            let shuffled = Just(moment.cells.clone()).prop_shuffle();
            (Just(moment), shuffled)
        }),
    ) {
        let observed = if lost { Observed::Absent } else { Observed::Known(first) };
        let one = PlanInput {
            gone: second.gone,
            ..input(observed, &second.cells)
        };
        let other = PlanInput { cells: shuffled, ..one.clone() };
        prop_assert_eq!(plan(&one).unwrap(), plan(&other).unwrap());
    }
}
