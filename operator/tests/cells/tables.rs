//! What is not known of the routing table: not read yet, not readable, lost. And cells whose rows are not their claims.

use std::sync::Arc;

use kube::api::{DeleteParams, Patch, PatchParams};
use kube::client::Body;
use kube::{Api, Client};
use serde_json::json;
use titan_crds::{AssignmentState, Cell, CellStatus, RoutingTable};
use titan_planner::object::Kind;

use crate::book::Book;
use crate::harness::{World, condition};

/// A world with one cell that serves.
async fn serving(name: &str) -> (World, Arc<Book>) {
    let world = World::new(name).await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    (world, book)
}

async fn status(world: &World, number: i64) -> CellStatus {
    world.get_cell(number).await.unwrap().status.unwrap()
}

async fn lose_table(world: &World) {
    Api::<RoutingTable>::all(world.client.clone())
        .delete(&world.name, &DeleteParams::default())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_not_read_the_tables_takes_no_cell_apart() {
    let (world, book) = serving("unreadapart").await;
    let before = world.outside_of(&world.cell_name(1)).await;
    world.delete_cell(1).await;
    world.restart_operator();
    let fresh = Arc::new(Book::new());
    for _ in 0..3 {
        world.pass_cells(&world.view().await, &fresh).await;
    }
    let writes = fresh.writes();
    assert!(
        writes.iter().all(|write| write.contains("status")),
        "{writes:#?}"
    );
    assert_eq!(world.outside_of(&world.cell_name(1)).await, before);
    assert!(
        !world
            .objects(&world.cell_name(1), Kind::Deployment)
            .await
            .is_empty()
    );
    let cell = world.get_cell(1).await.unwrap();
    let ready = condition(&cell, "Ready");
    assert!(ready.contains("Unrouting"), "{ready}");
    assert!(ready.contains("has been read"), "{ready}");

    world.settle(&book).await.unwrap();
    assert!(
        world.get_cell(1).await.is_none(),
        "it goes once it is known"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serving_cell_says_the_same_while_the_tables_are_not_read() {
    let (world, book) = serving("unreadserves").await;
    let before = status(&world, 1).await;
    assert_eq!(before.ranges.len(), 1);
    world.restart_operator();
    let fresh = Arc::new(Book::new());
    world.pass_cells(&world.view().await, &fresh).await;
    assert_eq!(status(&world, 1).await, before);
    assert_eq!(fresh.writes(), Vec::<String>::new());

    // The same where there is a table, but not the one that the operator wrote.
    let edit = json!({"spec": {"assignments": []}});
    world.patch::<RoutingTable>(&world.name, edit).await;
    world.restart_operator();
    world.list_tables().await;
    world.pass_cells(&world.view().await, &fresh).await;
    assert_eq!(status(&world, 1).await, before);
    world.settle(&book).await.unwrap();
    assert_eq!(status(&world, 1).await.ranges, before.ranges);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_table_is_made_again_as_it_was_although_cells_are_looked_at_first() {
    let (world, book) = serving("unreadlost").await;
    world.create::<Cell>(world.cell(2)).await;
    world.settle(&book).await.unwrap();
    // The second is in the middle of a rollout when the table is lost.
    let name = world.cell_name(2);
    world
        .patch::<Cell>(&name, json!({"spec": {"release": "2.0.0"}}))
        .await;
    world.round(&world.view().await, &book).await.unwrap();
    let rolling = world.get_cell(2).await.unwrap();
    assert!(
        condition(&rolling, "Ready").starts_with("Unknown/"),
        "{}",
        condition(&rolling, "Ready")
    );
    let good = world.table().await.unwrap();
    let (first, second) = (status(&world, 1).await, status(&world, 2).await);

    lose_table(&world).await;
    world.restart_operator();
    world.list_tables().await;
    let fresh = Arc::new(Book::new());
    for _ in 0..3 {
        world.pass_cells(&world.view().await, &fresh).await;
    }
    assert_eq!(status(&world, 1).await, first);
    assert_eq!(status(&world, 2).await.ranges, second.ranges);

    let view = world.view().await;
    world.pass_fleet(&view, &fresh, world.client.clone()).await;
    let again = world.table().await.unwrap();
    assert_eq!(again.spec.assignments, good.spec.assignments);
    assert!(
        again
            .spec
            .assignments
            .iter()
            .all(|row| row.state == AssignmentState::Active),
        "who served goes on serving"
    );
    assert!(again.spec.epoch > good.spec.epoch);
}

/// A client whose requests for a RoutingTable are never answered with one.
fn without_tables(client: &Client) -> Client {
    let inner = client.clone();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let inner = inner.clone();
        async move {
            let is_get = request.method() == http::Method::GET;
            if is_get && request.uri().path().contains("/routingtables/") {
                return Err(tower::BoxError::from("connection reset"));
            }
            inner.send(request).await.map_err(tower::BoxError::from)
        }
    });
    Client::new(service, "default")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_read_is_neither_planned_on_nor_told_of_the_fleet() {
    let (world, book) = serving("unreadfleet").await;
    let good = world.table().await.unwrap();
    let told = world.get_fleet().await.unwrap().status.unwrap();
    world.create::<Cell>(world.cell(2)).await;
    world.delete_cell(1).await;
    let blind = without_tables(&world.client);
    for restarts in [false, true] {
        if restarts {
            world.restart_operator();
        }
        let fresh = Arc::new(Book::new());
        world
            .pass_fleet(&world.view().await, &fresh, blind.clone())
            .await;
        assert_eq!(fresh.writes(), Vec::<String>::new());
    }
    assert_eq!(world.table().await.unwrap(), good);
    assert_eq!(world.get_fleet().await.unwrap().status.unwrap(), told);
    world.settle(&book).await.unwrap();
    let next = world.table().await.unwrap();
    assert_eq!(
        next.spec.assignments.len(),
        1,
        "{:#?}",
        next.spec.assignments
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_without_a_range_is_ready_as_empty_capacity() {
    let world = World::new("emptycap").await;
    let mut body = world.cell(1);
    body["spec"].as_object_mut().unwrap().remove("userRange");
    world.create::<Cell>(body).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let cell = world.get_cell(1).await.unwrap();
    let ready = condition(&cell, "Ready");
    assert!(ready.starts_with("True/EmptyCapacity"), "{ready}");
    assert_eq!(cell.status.unwrap().ranges, []);
    assert_eq!(world.table().await.unwrap().spec.assignments, []);
    assert!(
        !world
            .objects(&world.cell_name(1), Kind::Deployment)
            .await
            .is_empty()
    );
    assert_ne!(
        world.outside_of(&world.cell_name(1)).await["postgres"],
        json!([])
    );

    let late = json!({"spec": {"userRange": world.cell(1)["spec"]["userRange"]}});
    let refused = Api::<Cell>::all(world.client.clone())
        .patch(
            &world.cell_name(1),
            &PatchParams::default(),
            &Patch::Merge(late),
        )
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("claim at creation"), "{refused}");

    world.delete_cell(1).await;
    world.settle(&book).await.unwrap();
    assert!(world.get_cell(1).await.is_none());
}
