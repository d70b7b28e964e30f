//! Plans for fleets of two or three cells.

use std::collections::BTreeSet;

use titan_planner::Observed;
use titan_planner::assignment::{
    Activation, CellView, Claim, Decision, Fence, Plan, PlanInput, PlanReport, Refused, claim, plan,
};
use titan_routing::AssignmentState::{Active, Fenced, Moving, Pending};
use titan_routing::{Epoch, Key, KeyOverride, KeyspaceMode, RoutingTable};

use crate::{after, cell, input, planned, range, row, rows, table};

fn serving(view: CellView) -> CellView {
    CellView {
        serving: true,
        ..view
    }
}

/// Two cells that serve.
fn two() -> (Vec<CellView>, RoutingTable) {
    let cells = [cell("a", 1, 0, 9), cell("b", 2, 10, 19)];
    let claimed = after(&input(Observed::Absent, &cells));
    let cells = cells.map(serving);
    let table = after(&input(Observed::Known(claimed), &cells));
    (cells.to_vec(), table)
}

fn gone(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What was decided for the first row that `cell` serves.
fn decision<'a>(report: &'a PlanReport, cell: &str) -> &'a Decision {
    let row = report.rows.iter().find(|row| row.cell == cell);
    &row.unwrap_or_else(|| panic!("no row of {cell}: {report}"))
        .decision
}

#[test]
fn a_cell_claims_then_serves_then_rests() {
    let mut cells = vec![cell("a", 1, 0, 9)];
    let claimed = after(&input(Observed::Absent, &cells));
    assert_eq!(rows(&claimed), "0..=9 a Pending @1\n");
    assert_eq!(claimed.cell("a").unwrap().endpoint, "a.svc.cluster.local");

    let waits = input(Observed::Known(claimed.clone()), &cells);
    assert_eq!(planned(&waits).0, Plan::default());

    cells[0].serving = true;
    let activates = planned(&input(Observed::Known(claimed), &cells)).0;
    let active = activates.table.unwrap();
    assert_eq!(rows(&active), "0..=9 a Active @2\n");
    assert_eq!(activates.before, []);
    let activation = Activation {
        home: "a".to_owned(),
        cell: "a".to_owned(),
        range: range(0, 9),
        epoch: Epoch(2),
    };
    assert_eq!(activates.after, [activation]);

    // Serving less again is no reason to take the range away: that is failover's business.
    cells[0].serving = false;
    let (plan_made, report) = planned(&input(Observed::Known(active), &cells));
    assert_eq!(plan_made, Plan::default());
    assert_eq!(*decision(&report, "a"), Decision::Keeps(Active));
}

#[test]
fn of_two_new_cells_the_older_gets_the_keys_and_names_decide_between_twins() {
    for (a, b, winner) in [(1, 2, "a"), (2, 1, "b"), (1, 1, "a")] {
        let (a, b) = (cell("a", a, 0, 9), cell("b", b, 9, 19));
        for cells in [[a.clone(), b.clone()], [b, a]] {
            let (plan_made, report) = planned(&input(Observed::Absent, &cells));
            let table = plan_made.table.unwrap();
            assert_eq!(table.assignments().len(), 1);
            assert_eq!(table.assignments()[0].cell, winner);
            let loser = if winner == "a" { "b" } else { "a" };
            assert_eq!(
                report.refused[loser],
                Refused {
                    holder: winner.to_owned(),
                    held: table.assignments()[0].range,
                }
            );
        }
    }
}

#[test]
fn a_holder_keeps_its_row_from_an_older_cell_too() {
    let (mut cells, table) = two();
    cells.push(cell("older", 0, 5, 15));
    let (plan_made, report) = planned(&input(Observed::Known(table), &cells));
    assert_eq!(plan_made, Plan::default());
    assert!(report.refused.contains_key("older"));
}

#[test]
fn keys_that_become_free_go_to_the_cell_that_waited() {
    let (mut cells, table) = two();
    cells.push(cell("c", 3, 0, 9));
    cells[0].deleting = true;
    let plan_made = planned(&input(Observed::Known(table), &cells)).0;
    let next = plan_made.table.unwrap();
    assert_eq!(rows(&next), "0..=9 c Pending @3\n10..=19 b Active @2\n");
    assert_eq!(next.cell("a"), None, "nobody is sent to a cell that left");
    let fence = Fence {
        home: "a".to_owned(),
        range: range(0, 9),
        epoch: Epoch(3),
        required: false,
    };
    assert_eq!(plan_made.before, [fence], "a row that leaves its home");
}

#[test]
fn unknown_is_never_absent() {
    let (cells, table) = two();
    let (plan_made, report) = plan(&input(Observed::Unknown, &cells)).unwrap();
    assert_eq!(plan_made, Plan::default());
    assert!(report.waiting_on.is_some());
    assert!(report.rows.is_empty());

    // A cell that no cache shows and that nobody has looked for keeps its row and how to reach it.
    let unseen = input(Observed::Known(table.clone()), &cells[..1]);
    let (plan_made, report) = planned(&unseen);
    assert_eq!(plan_made, Plan::default());
    assert_eq!(*decision(&report, "b"), Decision::LooksLost);

    let known_gone = PlanInput {
        gone: gone(&["b"]),
        ..unseen
    };
    let next = after(&known_gone);
    assert_eq!(rows(&next), "0..=9 a Active @2\n");
    assert_eq!(next.cell("b"), None);
}

#[test]
fn a_paused_cell_stays_as_it_is() {
    let (mut cells, table) = two();
    for cell in &mut cells {
        cell.paused = true;
    }
    cells[0].deleting = true;
    let (plan_made, _) = planned(&input(Observed::Known(table), &cells));
    assert_eq!(plan_made, Plan::default());

    // And one that was never let in is not let in.
    let paused = CellView {
        paused: true,
        ..serving(cell("a", 1, 0, 9))
    };
    assert_eq!(rows(&after(&input(Observed::Absent, &[paused]))), "");
}

#[test]
fn a_cell_without_a_claim_gets_no_row_and_one_whose_range_moved_away_claims_nothing_back() {
    let empty = CellView {
        claim: None,
        ..serving(cell("empty", 0, 0, 9))
    };
    let moved_away = CellView {
        granted: true,
        ..serving(cell("old", 1, 20, 29))
    };
    let cells = [empty, moved_away, serving(cell("a", 2, 0, 9))];
    let next = after(&input(Observed::Absent, &cells));
    assert_eq!(rows(&next), "0..=9 a Active @1\n");
}

#[test]
fn rows_stand_on_their_own_whatever_the_claims_say() {
    // `a` claimed 0..=19. Half of it was moved to `b`, and `c` serves what `a` still holds.
    let cells = [
        serving(cell("a", 1, 0, 19)),
        serving(cell("b", 2, 20, 29)),
        serving(cell("c", 3, 40, 49)),
    ];
    let committed = table(
        7,
        vec![
            row(range(0, 9), "c", "a", Active, 6),
            row(range(10, 19), "b", "b", Active, 7),
            row(range(20, 29), "b", "b", Active, 2),
            row(range(40, 49), "c", "c", Active, 2),
        ],
    );
    let (plan_made, report) = planned(&input(Observed::Known(committed), &cells));
    assert_eq!(plan_made, Plan::default());
    assert_eq!(report.refused.len(), 0, "no complaint: {report}");
}

#[test]
fn a_row_goes_back_to_its_home_when_the_cell_that_served_it_leaves() {
    let mut cells = [serving(cell("a", 1, 0, 9)), serving(cell("b", 2, 20, 29))];
    cells[1].deleting = true;
    let committed = table(
        7,
        vec![
            row(range(0, 9), "b", "a", Active, 6),
            row(range(20, 29), "b", "b", Active, 2),
        ],
    );
    let (plan_made, report) = planned(&input(Observed::Known(committed.clone()), &cells));
    assert_eq!(rows(&plan_made.table.unwrap()), "0..=9 a Active @8\n");
    let fence = |home: &str, range, required| Fence {
        home: home.to_owned(),
        range,
        epoch: Epoch(8),
        required,
    };
    assert_eq!(
        plan_made.before,
        [
            fence("a", range(0, 9), true),
            fence("b", range(20, 29), false)
        ]
    );
    assert_eq!(plan_made.after.len(), 1, "{report}");

    // While the home does not serve, the row waits for it.
    cells[0].serving = false;
    let next = after(&input(Observed::Known(committed.clone()), &cells));
    assert_eq!(rows(&next), "0..=9 a Pending @8\n");

    // A home that leaves takes its rows along, whoever serves them.
    cells[1].deleting = false;
    cells[0].deleting = true;
    let next = after(&input(Observed::Known(committed), &cells));
    assert_eq!(rows(&next), "20..=29 b Active @2\n");
}

#[test]
fn what_an_operation_has_in_hand_is_left_to_it() {
    let mut cells = [serving(cell("a", 1, 0, 19)), serving(cell("b", 2, 20, 29))];
    let committed = table(
        7,
        vec![
            row(range(0, 9), "a", "a", Moving, 6),
            row(range(10, 19), "b", "a", Fenced, 7),
        ],
    );
    cells[1].granted = true;
    for deleting in [false, true] {
        cells[0].deleting = deleting;
        cells[1].deleting = deleting;
        let (plan_made, report) = planned(&input(Observed::Known(committed.clone()), &cells));
        assert_eq!(plan_made, Plan::default(), "{report}");
    }
}

#[test]
fn rows_of_another_region_are_another_operators() {
    let (cells, committed) = two();
    let mut listed = committed.cells().to_vec();
    listed[1].region = "west".to_owned();
    let committed = RoutingTable::new(
        committed.epoch(),
        committed.mode(),
        committed.assignments().to_vec(),
        listed,
        Vec::new(),
    )
    .unwrap();
    let looked_for = PlanInput {
        gone: gone(&["b"]),
        region: Some("local".to_owned()),
        ..input(Observed::Known(committed), &cells[..1])
    };
    let (plan_made, report) = planned(&looked_for);
    assert_eq!(plan_made, Plan::default());
    assert_eq!(*decision(&report, "b"), Decision::OtherRegion);

    let one_for_all = PlanInput {
        region: None,
        ..looked_for
    };
    assert_eq!(rows(&after(&one_for_all)), "0..=9 a Active @2\n");
}

#[test]
fn a_lost_table_is_made_again_with_what_was_served_first() {
    // `older` waited while `a` and `b` were served; then the table was lost. `b` is mid-rollout, and serves all the same.
    let cells = [
        cell("older", 0, 5, 15),
        CellView {
            recorded: vec![row(range(0, 9), "a", "a", Active, 7)],
            ..serving(cell("a", 1, 0, 9))
        },
        CellView {
            recorded: vec![row(range(10, 19), "b", "b", Active, 4)],
            ..cell("b", 2, 10, 19)
        },
    ];
    let table = after(&input(Observed::Absent, &cells));
    assert_eq!(
        rows(&table),
        "0..=9 a Active @7\n10..=19 b Active @4\n",
        "data homes know these epochs, so the rows keep them"
    );
    assert!(
        table.epoch() > Epoch(7),
        "consumers never take an older table than the one they had: {}",
        table.epoch()
    );
}

#[test]
fn a_lost_table_is_made_again_with_the_states_and_homes_that_it_had() {
    let away = row(range(0, 4), "b", "a", Active, 9);
    let cells = [
        CellView {
            granted: true,
            recorded: vec![
                away.clone(),
                row(range(5, 9), "a", "a", Fenced, 8),
                row(range(50, 59), "gone", "a", Active, 3),
            ],
            ..serving(cell("a", 1, 0, 9))
        },
        CellView {
            granted: true,
            // It has not heard yet that 12..=14 was moved to `c`.
            recorded: vec![away, row(range(10, 19), "b", "b", Active, 4)],
            ..serving(cell("b", 2, 10, 19))
        },
        CellView {
            granted: true,
            recorded: vec![row(range(12, 14), "c", "c", Pending, 6)],
            ..cell("c", 3, 12, 14)
        },
    ];
    let (plan_made, _) = planned(&input(Observed::Absent, &cells));
    assert_eq!(
        rows(&plan_made.table.unwrap()),
        "0..=4 b (home a) Active @9\n\
         5..=9 a Fenced @8\n\
         10..=11 b Active @10\n\
         12..=14 c Pending @6\n\
         15..=19 b Active @10\n\
         50..=59 a Active @10\n"
    );
}

#[test]
fn an_edited_table_is_written_again_above_the_edit() {
    let (cells, table) = two();
    let edited = PlanInput {
        rewrite: true,
        epoch_floor: Epoch(40),
        ..input(Observed::Known(table.clone()), &cells)
    };
    let next = after(&edited);
    assert_eq!(next.epoch(), Epoch(41));
    assert_eq!(next.assignments(), table.assignments());
}

#[test]
fn the_mode_and_how_to_reach_a_cell_follow_what_is_declared() {
    let (mut cells, table) = two();
    cells[1].endpoint = "b.svc.other.domain".to_owned();
    cells[1].region = "west".to_owned();
    let next = after(&PlanInput {
        mode: KeyspaceMode::Hash,
        ..input(Observed::Known(table.clone()), &cells)
    });
    assert_eq!(next.mode(), KeyspaceMode::Hash);
    assert_eq!(next.cell("b").unwrap().endpoint, "b.svc.other.domain");
    assert_eq!(next.cell("b").unwrap().region, "west");
    assert_eq!(next.assignments(), table.assignments());
}

#[test]
fn a_pin_lives_as_long_as_its_cell() {
    let (mut cells, table) = two();
    let pinned = RoutingTable::new(
        table.epoch(),
        table.mode(),
        table.assignments().to_vec(),
        table.cells().to_vec(),
        vec![KeyOverride {
            key: Key::new(3).unwrap(),
            cell: "b".to_owned(),
        }],
    )
    .unwrap();
    let keeps = input(Observed::Known(pinned.clone()), &cells);
    assert_eq!(planned(&keeps).0, Plan::default());

    cells.pop();
    let next = after(&PlanInput {
        gone: gone(&["b"]),
        ..input(Observed::Known(pinned), &cells)
    });
    assert_eq!(next.overrides(), []);
    assert_eq!(next.cell("b"), None);
}

#[test]
fn a_claim_reads_the_committed_table_by_home_first() {
    let away = row(range(0, 9), "b", "a", Active, 3);
    let committed = table(
        3,
        vec![away.clone(), row(range(10, 19), "b", "b", Active, 2)],
    );
    let of = |cell, range| claim(&committed, cell, range);
    assert_eq!(of("b", None), Claim::Serves);
    let own = Some(range(0, 9));
    assert_eq!(of("a", own), Claim::ServedElsewhere(&away));
    assert_eq!(of("a", None), Claim::ServedElsewhere(&away));
    assert_eq!(of("c", Some(range(3, 4))), Claim::Overlaps(&away));
    assert_eq!(of("c", Some(range(20, 29))), Claim::NotYet);
    assert_eq!(of("c", None), Claim::Empty);
}

#[test]
fn a_report_reads_well() {
    let (mut cells, table) = two();
    let mut steps = vec![];
    let mut show = |what: &str, input: &PlanInput| {
        steps.push(format!("# {what}\n{}", planned(input).1));
    };
    let known = |table: &RoutingTable| Observed::Known(table.clone());
    show("at rest", &input(known(&table), &cells));
    cells.push(cell("c", 3, 15, 29));
    show("a third overlaps the second", &input(known(&table), &cells));
    cells[1].deleting = true;
    let freed = input(known(&table), &cells);
    show("the second is deleted", &freed);
    cells.remove(1);
    cells[1].serving = true;
    show(
        "the third has its pods",
        &input(known(&after(&freed)), &cells),
    );
    cells.remove(0);
    show("neither holder is seen", &input(known(&table), &cells));
    let away = crate::table(9, vec![row(range(0, 9), "b", "a", Active, 9)]);
    let mut two = two().0;
    show("another cell serves", &input(known(&away), &two));
    two[1].deleting = true;
    show("that cell leaves", &input(known(&away), &two));
    show("no answer", &input(Observed::Unknown, &cells));
    insta::assert_snapshot!(steps.join("\n"));
}
