//! The data home of a cell is reached when the cell is in no state for a pass.

use std::sync::Arc;

use serde_json::json;
use titan_crds::{Cell, ServiceProfile};
use titan_operator::execute::cell::open_data_home;
use titan_operator::stores::postgres::{FenceBudget, FenceOutcome, OwnershipState};
use titan_routing::{Epoch, KeyRange};

use crate::book::Book;
use crate::harness::{World, condition};

#[tokio::test(flavor = "multi_thread")]
async fn a_range_is_fenced_of_a_cell_that_is_paused_and_not_valid() {
    let world = World::new("data-home").await;
    let cell = world.cell_name(1);
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();

    let needs_nothing_there_is = json!({"spec": {"services": [
        {"name": "user", "port": 50020, "dependsOn": ["nobody"], "stores": {"postgres": true}},
    ]}});
    world
        .patch::<ServiceProfile>(&world.name, needs_nothing_there_is)
        .await;
    world.settle(&book).await.unwrap();
    let stalled = condition(&world.get_cell(1).await.unwrap(), "Stalled");
    assert!(stalled.starts_with("True"), "{stalled}");
    let paused = json!({"spec": {"paused": true}});
    let paused = world.patch::<Cell>(&cell, paused).await;

    let view = world.view().await;
    let context = world.context(&view, book.clone());
    let home = open_data_home(&paused, &context).await.unwrap().unwrap();
    let rows = home.ownership().await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let all = rows[0].range;
    let part = KeyRange::new(all.first(), all.first()).unwrap();
    let next = Epoch(rows[0].epoch.0 + 1);
    let budget = FenceBudget {
        closed: 1_000,
        quiet: 1_000,
    };
    let outcome = home.fence(part, next, budget).await.unwrap();
    assert!(
        matches!(outcome, FenceOutcome::Fenced { .. }),
        "{outcome:?}"
    );
    let rows = home.ownership().await.unwrap();
    assert_eq!(rows[0].state, OwnershipState::Fenced);
    assert_eq!(rows[1].state, OwnershipState::Active);
    assert!(home.activate(all, &cell, next).await.unwrap());
}
