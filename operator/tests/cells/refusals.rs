//! Bad input: each is answered by a condition that says what to do, and nothing is half made.

use std::sync::Arc;

use kube::ResourceExt;
use serde_json::{Value, json};
use titan_crds::{Cell, RoutingTable, ServiceProfile};
use titan_planner::object::Kind;

use crate::book::Book;
use crate::harness::{World, condition};

/// Applies a cell, lets the operator come to rest, and expects it to be stalled for `reason`, with nothing created.
async fn refused(world: &World, cell: Value, reason: &str, names: &[&str]) {
    let cell: Cell = world.create(cell).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let view = world.view().await;
    let cell = view
        .cells
        .iter()
        .find(|other| other.name_any() == cell.name_any())
        .unwrap();
    let ready = condition(cell, "Ready");
    assert!(ready.starts_with(&format!("False/{reason}: ")), "{ready}");
    assert!(condition(cell, "Stalled").starts_with("True/"));
    assert_eq!(condition(cell, "Reconciling"), "absent");
    for name in names {
        assert!(
            ready.contains(name),
            "the message should name {name}: {ready}"
        );
    }
    for kind in [Kind::Deployment, Kind::Secret, Kind::Job] {
        assert!(
            world.objects(&cell.name_any(), kind).await.is_empty(),
            "nothing may be made of a refused cell"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_of_two_overlapping_cells_keeps_its_range() {
    let world = World::new("overlaps").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();

    let mut second = world.cell(2);
    second["spec"]["userRange"]["first"] = world.cell(1)["spec"]["userRange"]["last"].clone();
    refused(&world, second, "RangeOverlaps", &[&world.cell_name(1)]).await;
    let first = world.get_cell(1).await.unwrap();
    assert!(condition(&first, "Ready").starts_with("True/"));

    // With the older one gone, the younger one gets what it asked for, without anybody touching it.
    world.delete_cell(1).await;
    world.settle(&book).await.unwrap();
    let second = world.get_cell(2).await.unwrap();
    assert!(
        condition(&second, "Ready").starts_with("True/"),
        "{}",
        condition(&second, "Ready")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_profile_is_named() {
    let world = World::new("profileless").await;
    let mut cell = world.cell(1);
    cell["spec"]["profile"] = json!("nowhere");
    refused(&world, cell, "ProfileNotFound", &["nowhere"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_and_a_shared_port_are_named() {
    let world = World::new("cycles").await;
    let mut services = world.profile()["spec"]["services"].clone();
    services[0]["dependsOn"] = json!(["order"]);
    world
        .patch::<ServiceProfile>(&world.name, json!({"spec": {"services": services}}))
        .await;
    refused(&world, world.cell(1), "DependencyCycle", &["user", "order"]).await;

    let mut services = world.profile()["spec"]["services"].clone();
    services[0]["port"] = services[1]["port"].clone();
    world
        .patch::<ServiceProfile>(&world.name, json!({"spec": {"services": services}}))
        .await;
    refused(&world, world.cell(2), "DuplicatePort", &["50001"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_not_ours_is_not_touched() {
    let world = World::new("occupied").await;
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": world.cell_name(1)}});
    world
        .create::<k8s_openapi::api::core::v1::Namespace>(namespace)
        .await;
    refused(
        &world,
        world.cell(1),
        "NamespaceNotOurs",
        &[&world.cell_name(1)],
    )
    .await;

    world.delete_cell(1).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    assert!(world.get_cell(1).await.is_none());
    let namespaces = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(world.client.clone());
    let left = namespaces.get(&world.cell_name(1)).await.unwrap();
    assert!(
        left.metadata.deletion_timestamp.is_none(),
        "somebody else's namespace stays"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_routing_table_is_put_right() {
    let world = World::new("edited").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let good = world.table().await.unwrap();

    for operator_restarts in [false, true] {
        let edited = world.table().await.unwrap().spec.epoch + 10;
        let edit = json!({"spec": {"assignments": [], "epoch": edited}});
        world.patch::<RoutingTable>(&world.name, edit).await;
        if operator_restarts {
            world.restart_operator();
        }
        world.settle(&book).await.unwrap();
        let mended = world.table().await.unwrap();
        assert_eq!(mended.spec.assignments, good.spec.assignments);
        assert!(mended.spec.epoch > edited, "the epoch only grows");
        let cell = world.get_cell(1).await.unwrap();
        assert!(condition(&cell, "Ready").starts_with("True/"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_that_is_gone_does_not_hold_a_deletion_for_ever() {
    let world = World::new("kafkaless").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    world
        .patch::<titan_crds::CellFleet>(
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
