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
    let outside = |write: &&String| write.contains("postgres") || write.contains("kafka");
    assert_eq!(writes.iter().find(outside), None);

    // What the message says to do.
    let command = format!("kubectl annotate --overwrite cell {cell} titan.dev/take-over-database=");
    let (_, claim) = stranger.split_once(&command).unwrap();
    let claim = claim.trim_matches('\'');
    assert!(claim.starts_with(&here), "{claim}");
    let annotations = json!({"titan.dev/take-over-database": claim});
    let patch = json!({"metadata": {"annotations": annotations}});
    world.patch::<Cell>(&cell, patch).await;
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
    let outside = world.outside(1).await;
    assert_ne!(outside["topics"], json!({}), "topics of another cluster");
    assert!(
        ownership(&world.postgres(), &database).await.is_ok(),
        "it was dropped by a cluster that it is not for"
    );

    world.be_cluster(Some("elsewhere"));
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
