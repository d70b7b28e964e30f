//! A cell whose spec changes where its data lies: what holds data stays until the cell has it somewhere else.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::ResourceExt;
use serde_json::{Value, json};
use titan_crds::Cell;
use titan_planner::object::Kind;

use crate::book::Book;
use crate::harness::{World, condition};

/// The objects of the cell that hold data, or the way to it, with their uids.
async fn holding(world: &World) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for kind in Kind::ALL {
        if kind == Kind::Namespace {
            continue;
        }
        for object in world.objects(&world.cell_name(1), kind).await {
            if object.annotations().contains_key("titan.dev/holds-data") {
                let name = format!("{kind:?} {}", object.name_any());
                found.insert(name, object.uid().unwrap());
            }
        }
    }
    found
}

async fn settled(world: &World) -> (String, Vec<String>) {
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let cell = world.get_cell(1).await.unwrap();
    (condition(&cell, "Ready"), book.writes())
}

async fn set_databases(world: &World, databases: Value) {
    let patch = json!({"spec": {"databases": databases}});
    world.patch::<Cell>(&world.cell_name(1), patch).await;
}

async fn environment(world: &World) -> Option<Value> {
    let maps = world.objects(&world.cell_name(1), Kind::ConfigMap).await;
    let map = maps
        .into_iter()
        .find(|map| map.name_any() == "cell-environment");
    map.map(|map| map.data["data"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_spec_takes_no_data_from_a_living_cell() {
    let world = World::new("homes").await;
    let own = json!({"postgres": {"members": 1, "storage": {"ephemeral": {}}}});
    let mut cell = world.cell(1);
    cell["spec"]["databases"] = own.clone();
    world.create::<Cell>(cell).await;
    let (waiting, _) = settled(&world).await;
    assert!(waiting.starts_with("Unknown/"), "{waiting}");
    let before = holding(&world).await;
    assert!(before.contains_key("StatefulSet postgres"), "{before:?}");
    assert!(before.contains_key("Secret postgres-admin"), "{before:?}");
    // As if it had been up: there are no pods here.
    let id = "0190b3a2-0000-7000-8000-000000000000";
    let status = json!({"status": {"databaseId": id}});
    world.patch_cell_status(1, status).await;

    // The profile has an external server.
    set_databases(&world, json!({"postgres": null})).await;
    let (refused, writes) = settled(&world).await;
    assert!(refused.starts_with("False/OtherDatabase"), "{refused}");
    assert_eq!(holding(&world).await, before);
    let deleted = |write: &&String| write.contains(" delete ");
    assert_eq!(writes.iter().find(deleted), None);
    let told = environment(&world).await;
    assert_eq!(
        told, None,
        "services are not sent to a database that is not theirs"
    );

    // Another word for it, and the cell has its data where they were.
    set_databases(&world, own).await;
    settled(&world).await;
    assert_eq!(holding(&world).await, before);

    // The old data are given up, and the new home is found to be the cell's.
    set_databases(&world, json!({"postgres": null})).await;
    let given_up = json!({"metadata": {"annotations": {"titan.dev/give-up-database": id}}});
    world.patch::<Cell>(&world.cell_name(1), given_up).await;
    let (ready, _) = settled(&world).await;
    assert!(ready.starts_with("True/"), "{ready}");
    let after = holding(&world).await;
    assert!(!after.contains_key("StatefulSet postgres"), "{after:?}");
    let told = environment(&world).await.unwrap();
    assert_eq!(told["PGHOST"], "127.0.0.1");

    // And back to one of the cell's own that has nothing: the data are still on the server.
    let own = json!({"postgres": {"members": 1, "storage": {"ephemeral": {}}}});
    set_databases(&world, own).await;
    settled(&world).await;
    let told = environment(&world).await.unwrap();
    assert_eq!(
        told["PGHOST"], "127.0.0.1",
        "until the new one is found to be the cell's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_for_the_cells_that_its_secret_names() {
    let world = World::new("permits").await;
    let (cell, other) = (world.cell_name(1), "orders, permits-002");
    world.annotate_secret("postgres", Some(other)).await;
    world.create::<Cell>(world.cell(1)).await;
    let (refused, writes) = settled(&world).await;
    assert!(
        refused.starts_with("False/ExternalSecretNotForCell"),
        "{refused}"
    );
    let command = format!(
        "kubectl -n titan-system annotate --overwrite secret permits-postgres titan.dev/for-cells='{other},{cell}'"
    );
    assert!(refused.contains(&command), "{refused}");
    let outside = |write: &&String| write.starts_with("postgres");
    assert_eq!(writes.iter().find(outside), None);
    assert_eq!(world.outside(1).await["postgres"], json!([]));

    // One that says nothing is for no new cell.
    world.annotate_secret("postgres", None).await;
    let (refused, _) = settled(&world).await;
    assert!(
        refused.starts_with("False/ExternalSecretNotForCell"),
        "{refused}"
    );
    world.annotate_secret("postgres", Some("permits-*")).await;
    let (ready, _) = settled(&world).await;
    assert!(ready.starts_with("True/"), "{ready}");

    // But a cell that uses it already goes on: it may be from before there was the annotation.
    world.annotate_secret("postgres", None).await;
    world.annotate_secret("redis", None).await;
    let (ready, writes) = settled(&world).await;
    assert!(ready.starts_with("True/"), "{ready}");
    assert_eq!(writes, Vec::<String>::new());

    // What was withdrawn is not dropped either.
    world.annotate_secret("postgres", Some("orders")).await;
    world.delete_cell(1).await;
    let book = Arc::new(Book::new());
    for _ in 0..4 {
        world.round(&world.view().await, &book).await.unwrap();
    }
    let stopped = condition(&world.get_cell(1).await.unwrap(), "Ready");
    assert!(stopped.starts_with("False/DatabaseNotDropped"), "{stopped}");
    assert_ne!(world.outside(1).await["postgres"], json!([]));
    world
        .annotate_secret("postgres", Some("orders,permits-001"))
        .await;
    world.settle(&book).await.unwrap();
    assert!(world.get_cell(1).await.is_none());
    assert_eq!(world.outside(1).await["postgres"], json!([]));
}
