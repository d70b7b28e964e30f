//! What a deletion waits for, and what it does not wait for.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::DeleteParams;
use serde_json::json;
use titan_crds::{Cell, CellFleet, ServiceProfile};
use titan_operator::stores::postgres::ownership;

use crate::book::Book;
use crate::harness::{World, condition};

async fn settle(world: &World) -> Arc<Book> {
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    book
}

async fn rounds(world: &World, count: usize) {
    let book = Arc::new(Book::new());
    for _ in 0..count {
        world.round(&world.view().await, &book).await.unwrap();
    }
}

async fn ready(world: &World) -> String {
    condition(&world.get_cell(1).await.unwrap(), "Ready")
}

async fn annotate(world: &World, annotation: &str) {
    let annotations = json!({"metadata": {"annotations": {annotation: "true"}}});
    world.patch::<Cell>(&world.cell_name(1), annotations).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_is_deleted_with_its_cells_goes_after_them() {
    let world = World::new("together").await;
    world.create::<Cell>(world.cell(1)).await;
    settle(&world).await;
    world.delete_fleet().await;
    world.delete_cell(1).await;
    let book = settle(&world).await;
    assert!(world.get_cell(1).await.is_none());
    assert!(world.get_fleet().await.is_none());
    let writes = book.writes();
    assert!(
        writes.iter().any(|write| write.contains("delete topics")),
        "its Kafka was known to the end: {writes:#?}"
    );
    assert_eq!(world.table().await.unwrap().spec.assignments, vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_stays_while_cells_name_it_and_makes_no_new_ones() {
    let world = World::new("lasting").await;
    let template = |count: i32| {
        json!({"spec": {"template": {
            "count": count, "namePrefix": "lasting", "firstKey": 910_000_000, "usersPerCell": 10,
            "spec": {"profile": world.name, "release": "1.0.0", "reclaimPolicy": "Delete"},
        }}})
    };
    world.patch::<CellFleet>(&world.name, template(1)).await;
    settle(&world).await;
    world.patch::<CellFleet>(&world.name, template(2)).await;
    world.delete_fleet().await;
    settle(&world).await;
    assert!(
        ready(&world).await.starts_with("True/"),
        "its cell serves on"
    );
    assert_eq!(
        world.view().await.cells.len(),
        1,
        "no cell is made any more"
    );
    let fleet = world.get_fleet().await.unwrap();
    let status = &fleet.status.unwrap().conditions[0];
    assert_eq!(status.reason, "CellsRemain", "{}", status.message);
    assert_eq!(settle(&world).await.writes(), Vec::<String>::new());

    world.delete_cell(1).await;
    settle(&world).await;
    assert!(world.view().await.cells.is_empty());
    assert!(world.get_fleet().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_does_not_wait_for_the_table_of_a_fleet_that_is_gone() {
    let world = World::new("fleetless").await;
    world.create::<Cell>(world.cell(1)).await;
    settle(&world).await;
    world.delete_fleet().await;
    world
        .patch::<CellFleet>(&world.name, json!({"metadata": {"finalizers": []}}))
        .await;
    assert!(world.get_fleet().await.is_none());
    world.delete_cell(1).await;
    rounds(&world, 3).await;
    let said = ready(&world).await;
    assert!(said.starts_with("False/FleetNotFound"), "{said}");

    annotate(&world, "titan.dev/abandon-topics").await;
    settle(&world).await;
    assert!(world.get_cell(1).await.is_none());
    let database = world.cell_name(1).replace('-', "_");
    assert!(
        ownership(&world.postgres(), &database).await.is_err(),
        "its database is dropped all the same"
    );
}

/// Makes a cell, and deletes it when its profile is gone. Returns its database.
async fn delete_after_its_profile(world: &World) -> String {
    world.create::<Cell>(world.cell(1)).await;
    settle(world).await;
    let database = world.cell_name(1).replace('-', "_");
    let profiles = kube::Api::<ServiceProfile>::all(world.client.clone());
    profiles
        .delete(&world.name, &Default::default())
        .await
        .unwrap();
    world.delete_cell(1).await;
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_dropped_is_not_left_without_a_word() {
    let world = World::new("undropped").await;
    let database = delete_after_its_profile(&world).await;
    rounds(&world, 4).await;
    let said = ready(&world).await;
    assert!(said.starts_with("False/DatabaseNotDropped"), "{said}");
    assert!(said.contains("abandon-database"), "{said}");
    assert!(ownership(&world.postgres(), &database).await.is_ok());

    // The profile back: whether its services make sense does not matter for what is to be dropped.
    let mut profile = world.profile();
    profile["spec"]["services"][0]["dependsOn"] = json!(["order"]);
    world.create::<ServiceProfile>(profile).await;
    settle(&world).await;
    assert!(world.get_cell(1).await.is_none());
    assert!(ownership(&world.postgres(), &database).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_abandoned_by_a_word() {
    let world = World::new("abandons").await;
    let database = delete_after_its_profile(&world).await;
    annotate(&world, "titan.dev/abandon-database").await;
    settle(&world).await;
    assert!(world.get_cell(1).await.is_none());
    assert!(ownership(&world.postgres(), &database).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_that_is_gone_does_not_hold_a_deletion_for_ever() {
    let world = World::new("kafkaless").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    world
        .patch::<CellFleet>(
            &world.name,
            json!({"spec": {"kafka": {"bootstrap": "127.0.0.1:1"}}}),
        )
        .await;
    world.delete_cell(1).await;
    for _ in 0..4 {
        world.round(&world.view().await, &book).await.unwrap();
    }
    let cell = world.get_cell(1).await.unwrap();
    let ready = condition(&cell, "Ready");
    assert!(ready.starts_with("False/TopicsNotDeleted"), "{ready}");
    assert!(ready.contains("abandon-topics"), "{ready}");

    world
        .patch::<Cell>(
            &world.cell_name(1),
            json!({"metadata": {"annotations": {"titan.dev/abandon-topics": "true"}}}),
        )
        .await;
    world.settle(&book).await.unwrap();
    assert!(world.get_cell(1).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_outside_goes_also_when_somebody_removed_the_namespace() {
    let world = World::new("homeless").await;
    world.create::<Cell>(world.cell(1)).await;
    settle(&world).await;
    let (namespace, database) = (world.cell_name(1), world.cell_name(1).replace('-', "_"));
    let namespaces = kube::Api::<Namespace>::all(world.client.clone());
    namespaces
        .delete(&namespace, &DeleteParams::default())
        .await
        .unwrap();
    while namespaces.get_opt(&namespace).await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(ownership(&world.postgres(), &database).await.is_ok());
    world.delete_cell(1).await;
    settle(&world).await;
    assert!(world.get_cell(1).await.is_none());
    assert!(
        ownership(&world.postgres(), &database).await.is_err(),
        "its database is dropped all the same"
    );
}
