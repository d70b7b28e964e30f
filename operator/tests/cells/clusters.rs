//! Operators of two clusters that reach one PostgreSQL, with cells of one name.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt};
use serde_json::json;
use titan_crds::Cell;
use titan_operator::stores::postgres::ownership;

use crate::book::Book;
use crate::harness::{World, condition};

#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_another_clusters_cell_is_left_alone() {
    let world = World::new("clusters").await;
    world.create::<Cell>(world.cell(1)).await;
    assert!(settled(&world).await.0.starts_with("True/"));
    let system = Api::<Namespace>::all(world.client.clone())
        .get("kube-system")
        .await
        .unwrap();
    let here = system.uid().unwrap();
    let cell = world.cell_name(1);
    let database = cell.replace('-', "_");

    world.be_cluster(Some("elsewhere"));
    let (stranger, writes) = settled(&world).await;
    assert!(stranger.starts_with("False/OtherCluster"), "{stranger}");
    let command = format!("titan.dev/take-over-databases-from={here}");
    assert!(stranger.contains(&command), "{stranger}");
    let in_postgres = |write: &&String| write.contains("postgres");
    assert_eq!(writes.iter().find(in_postgres), None);

    take_over_from(&world, &here).await;
    let (heir, _) = settled(&world).await;
    assert!(heir.starts_with("True/"), "{heir}");

    world.be_cluster(None);
    let (outlived, _) = settled(&world).await;
    assert!(outlived.starts_with("False/OtherCluster"), "{outlived}");
    world.delete_cell(1).await;
    let book = Arc::new(Book::new());
    for _ in 0..4 {
        world.round(&world.view().await, &book).await.unwrap();
    }
    let refused = ready(&world).await;
    assert!(refused.starts_with("False/DatabaseNotDropped"), "{refused}");
    assert!(refused.contains("elsewhere"), "{refused}");
    assert!(
        ownership(&world.postgres(), &database).await.is_ok(),
        "it was dropped by a cluster that it is not for"
    );

    take_over_from(&world, "elsewhere").await;
    world.settle(&book).await.unwrap();
    assert!(world.get_cell(1).await.is_none());
    assert!(ownership(&world.postgres(), &database).await.is_err());
}

/// Whether the cell is ready once nothing changes any more, and what was written until then.
async fn settled(world: &World) -> (String, Vec<String>) {
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    (ready(world).await, book.writes())
}

async fn ready(world: &World) -> String {
    condition(&world.get_cell(1).await.unwrap(), "Ready")
}

async fn take_over_from(world: &World, cluster: &str) {
    let annotation = json!({"titan.dev/take-over-databases-from": cluster});
    let patch = json!({"metadata": {"annotations": annotation}});
    world.patch::<Cell>(&world.cell_name(1), patch).await;
}
