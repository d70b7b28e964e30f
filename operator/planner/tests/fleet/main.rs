//! The fleet: its template's cells, the next routing table, and the table as a resource.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by them.

mod assignment;
mod assignment_properties;
mod resource;
mod template;

use titan_planner::Observed;
use titan_planner::assignment::{CellView, Plan, PlanInput, PlanReport, plan};
use titan_routing::{
    Assignment, AssignmentState, Epoch, Key, KeyRange, KeyspaceMode, RoutingTable,
};

fn range(first: u64, last: u64) -> KeyRange {
    KeyRange::new(Key::new(first).unwrap(), Key::new(last).unwrap()).unwrap()
}

/// A cell that has just been created.
fn cell(name: &str, created: i64, first: u64, last: u64) -> CellView {
    CellView {
        name: name.to_owned(),
        created,
        claim: Some(range(first, last)),
        granted: false,
        region: "local".to_owned(),
        endpoint: format!("{name}.svc.cluster.local"),
        serving: false,
        deleting: false,
        paused: false,
        recorded: Vec::new(),
    }
}

/// A row, served from its home unless `cell` is another one.
fn row(range: KeyRange, cell: &str, home: &str, state: AssignmentState, epoch: u64) -> Assignment {
    Assignment {
        range,
        cell: cell.to_owned(),
        home: home.to_owned(),
        state,
        epoch: Epoch(epoch),
    }
}

/// A committed table of these rows, with the endpoints that [`cell`] gives.
fn table(epoch: u64, rows: Vec<Assignment>) -> RoutingTable {
    let names: std::collections::BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| [row.cell.as_str(), row.home.as_str()])
        .collect();
    let endpoint = |name: &str| titan_routing::CellEndpoint {
        cell: name.to_owned(),
        region: "local".to_owned(),
        endpoint: format!("{name}.svc.cluster.local"),
    };
    let cells = names.into_iter().map(endpoint).collect();
    RoutingTable::new(Epoch(epoch), KeyspaceMode::UserId, rows, cells, Vec::new()).unwrap()
}

fn input(table: Observed<RoutingTable>, cells: &[CellView]) -> PlanInput {
    PlanInput {
        mode: KeyspaceMode::UserId,
        table,
        epoch_floor: Epoch::default(),
        rewrite: false,
        cells: cells.to_vec(),
        gone: Default::default(),
        region: None,
    }
}

/// Plans, and makes sure that planning on the result changes nothing.
fn planned(input: &PlanInput) -> (Plan, PlanReport) {
    let (plan_made, report) = plan(input).unwrap();
    let settled = PlanInput {
        table: match &plan_made.table {
            Some(table) => Observed::Known(table.clone()),
            None => input.table.clone(),
        },
        rewrite: false,
        epoch_floor: Epoch::default(),
        ..input.clone()
    };
    assert_eq!(
        plan(&settled).unwrap().0,
        Plan::default(),
        "planning on its own result must change nothing: {input:#?}"
    );
    (plan_made, report)
}

/// The table after a plan.
fn after(input: &PlanInput) -> RoutingTable {
    match (planned(input).0.table, &input.table) {
        (Some(table), _) => table,
        (None, Observed::Known(table)) => table.clone(),
        (None, _) => panic!("there is no table"),
    }
}

/// The rows as text, one a line.
fn rows(table: &RoutingTable) -> String {
    table
        .assignments()
        .iter()
        .map(|row| {
            let home = if row.home == row.cell {
                String::new()
            } else {
                format!(" (home {})", row.home)
            };
            format!(
                "{} {}{home} {:?} @{}\n",
                row.range, row.cell, row.state, row.epoch
            )
        })
        .collect()
}
