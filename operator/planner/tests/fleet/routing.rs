//! Plans for fleets of two or three cells.

use std::collections::BTreeSet;

use titan_planner::Observed;
use titan_planner::fleet::{CellView, Claim, Decision, Plan, PlanInput, claim, plan};
use titan_routing::{AssignmentState, Epoch, Key, KeyOverride, KeyspaceMode, RoutingTable};

use crate::{after, cell, input, planned, range, rows};

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

#[test]
fn a_cell_claims_then_serves_then_rests() {
    let mut cells = vec![cell("a", 1, 0, 9)];
    let claimed = after(&input(Observed::Absent, &cells));
    assert_eq!(rows(&claimed), "0..=9 a Pending @1\n");
    assert_eq!(claimed.cell("a").unwrap().endpoint, "a.svc.cluster.local");

    let waits = input(Observed::Known(claimed.clone()), &cells);
    assert_eq!(planned(&waits).0, Plan { table: None });

    cells[0].serving = true;
    let active = after(&input(Observed::Known(claimed), &cells));
    assert_eq!(rows(&active), "0..=9 a Active @2\n");

    // Serving less again is no reason to take the range away: that is failover's business.
    cells[0].serving = false;
    let (plan_made, report) = planned(&input(Observed::Known(active), &cells));
    assert_eq!(plan_made, Plan { table: None });
    assert_eq!(
        report.decisions["a"],
        Decision::Keeps(AssignmentState::Active)
    );
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
                report.decisions[loser],
                Decision::Refused {
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
    assert_eq!(plan_made, Plan { table: None });
    assert!(matches!(
        report.decisions["older"],
        Decision::Refused { .. }
    ));
}

#[test]
fn keys_that_become_free_go_to_the_cell_that_waited() {
    let (mut cells, table) = two();
    cells.push(cell("c", 3, 0, 9));
    cells[0].deleting = true;
    let next = after(&input(Observed::Known(table), &cells));
    assert_eq!(rows(&next), "0..=9 c Pending @3\n10..=19 b Active @2\n");
    assert_eq!(next.cell("a"), None, "nobody is sent to a cell that left");
}

#[test]
fn unknown_is_never_absent() {
    let (cells, table) = two();
    let (plan_made, report) = plan(&input(Observed::Unknown, &cells)).unwrap();
    assert_eq!(plan_made, Plan { table: None });
    assert!(report.waiting_on.is_some());
    assert!(report.decisions.is_empty());

    // A cell that no cache shows and that nobody has looked for keeps its row and how to reach it.
    let unseen = input(Observed::Known(table.clone()), &cells[..1]);
    let (plan_made, report) = planned(&unseen);
    assert_eq!(plan_made, Plan { table: None });
    assert_eq!(report.decisions["b"], Decision::LooksLost);

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
    cells[1].range = range(10, 29);
    let (plan_made, _) = planned(&input(Observed::Known(table), &cells));
    assert_eq!(plan_made, Plan { table: None });

    // And one that was never let in is not let in.
    let paused = CellView {
        paused: true,
        ..serving(cell("a", 1, 0, 9))
    };
    assert_eq!(rows(&after(&input(Observed::Absent, &[paused]))), "");
}

#[test]
fn a_lost_table_is_made_again_with_what_was_served_first() {
    // `older` waited while `a` and `b` were served; then the table was lost.
    let cells = [
        cell("older", 0, 5, 15),
        CellView {
            recorded: Some(Epoch(7)),
            ..serving(cell("a", 1, 0, 9))
        },
        CellView {
            recorded: Some(Epoch(4)),
            ..serving(cell("b", 2, 10, 19))
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
    assert_eq!(planned(&keeps).0, Plan { table: None });

    cells.pop();
    let next = after(&PlanInput {
        gone: gone(&["b"]),
        ..input(Observed::Known(pinned), &cells)
    });
    assert_eq!(next.overrides(), []);
    assert_eq!(next.cell("b"), None);
}

#[test]
fn a_claim_reads_the_committed_table() {
    let (_, table) = two();
    let held = &table.assignments()[0];
    assert_eq!(claim(&table, "a", range(0, 9)), Claim::Held(held));
    assert_eq!(claim(&table, "c", range(3, 4)), Claim::Overlaps(held));
    assert_eq!(claim(&table, "c", range(20, 29)), Claim::NotYet);
    // The same name with another range: its own old row is in nobody's way, and is not its claim.
    assert_eq!(claim(&table, "a", range(0, 8)), Claim::NotYet);
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
    show("no answer", &input(Observed::Unknown, &cells));
    insta::assert_snapshot!(steps.join("\n"));
}
