//! The fleet: its template's cells, the next routing table, and the table as a resource.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by them.

mod resource;
mod routing;
mod routing_properties;
mod template;

use titan_planner::Observed;
use titan_planner::fleet::{CellView, Plan, PlanInput, PlanReport, plan};
use titan_routing::{Epoch, Key, KeyRange, KeyspaceMode, RoutingTable};

fn range(first: u64, last: u64) -> KeyRange {
    KeyRange::new(Key::new(first).unwrap(), Key::new(last).unwrap()).unwrap()
}

/// A cell that has just been created.
fn cell(name: &str, created: i64, first: u64, last: u64) -> CellView {
    CellView {
        name: name.to_owned(),
        created,
        range: range(first, last),
        region: "local".to_owned(),
        endpoint: format!("{name}.svc.cluster.local"),
        serving: false,
        deleting: false,
        paused: false,
        recorded: None,
    }
}

fn input(table: Observed<RoutingTable>, cells: &[CellView]) -> PlanInput {
    PlanInput {
        mode: KeyspaceMode::UserId,
        table,
        epoch_floor: Epoch::default(),
        rewrite: false,
        cells: cells.to_vec(),
        gone: Default::default(),
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
        Plan { table: None },
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
            format!(
                "{} {} {:?} @{}\n",
                row.range, row.cell, row.state, row.epoch
            )
        })
        .collect()
}
