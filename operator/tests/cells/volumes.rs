//! The volumes of a cell's databases, changed in the spec of a cell that has them.

use std::sync::Arc;

use kube::Api;
use kube::api::{DeleteParams, DynamicObject, PropagationPolicy};
use serde_json::{Value, json};
use titan_crds::Cell;
use titan_planner::object::Kind;

use crate::book::Book;
use crate::harness::{World, condition};

async fn settled(world: &World) -> String {
    world.settle(&Arc::new(Book::new())).await.unwrap();
    let quiet = Arc::new(Book::new());
    world.round(&world.view().await, &quiet).await.unwrap();
    assert_eq!(quiet.writes(), Vec::<String>::new(), "it rests");
    condition(&world.get_cell(1).await.unwrap(), "Ready")
}

async fn size(sets: &Api<DynamicObject>, name: &str) -> Value {
    let set = sets.get(name).await.unwrap();
    let claim = &set.data["spec"]["volumeClaimTemplates"][0];
    claim["spec"]["resources"]["requests"]["storage"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_another_size_hold_up_nothing_and_come_with_a_new_statefulset() {
    let world = World::new("grows").await;
    let databases = |size: &str, memory: &str| {
        let store = json!({
            "storage": {"persistent": {"size": size}},
            "resources": {"limits": {"memory": memory}},
        });
        json!({"postgres": store, "redis": store})
    };
    let mut cell = world.cell(1);
    cell["spec"]["databases"] = databases("1Gi", "1Gi");
    world.create::<Cell>(cell).await;
    settled(&world).await;

    let changed = json!({"spec": {"databases": databases("2Gi", "3Gi")}});
    world.patch::<Cell>(&world.cell_name(1), changed).await;
    let ready = settled(&world).await;
    assert!(ready.contains("DatabasesStarting"), "{ready}");
    let sets = world.api(&world.cell_name(1), Kind::StatefulSet);
    for name in ["postgres", "redis"] {
        assert_eq!(size(&sets, name).await, "1Gi", "{name} stays on its claims");
        let set = sets.get(name).await.unwrap();
        let container = &set.data["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["resources"]["limits"]["memory"], "3Gi");
    }

    // What the runbook says: without its pods, which stay.
    let orphan = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    sets.delete("postgres", &orphan).await.unwrap();
    while sets
        .get_opt("postgres")
        .await
        .unwrap()
        .is_some_and(|set| set.metadata.deletion_timestamp.is_some())
    {
        // The operator does not hold it up.
        world.settle(&Arc::new(Book::new())).await.unwrap();
    }
    settled(&world).await;
    assert_eq!(size(&sets, "postgres").await, "2Gi");
    assert_eq!(size(&sets, "redis").await, "1Gi");
}
