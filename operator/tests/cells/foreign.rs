//! A server on which somebody else has what a cell would be called.

use std::sync::Arc;

use serde_json::json;
use titan_crds::Cell;
use titan_planner::object::Kind;

use crate::book::Book;
use crate::harness::{World, condition};

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_another_team_survives_a_cell_of_its_name() {
    let world = World::new("foreign").await;
    let cell = world.cell_name(1);
    let database = cell.replace('-', "_");
    world
        .sql("postgres", &format!("CREATE DATABASE {database}"))
        .await;
    let theirs = "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS id";
    world.sql(&database, theirs).await;
    let role = format!("CREATE ROLE {database}_user LOGIN PASSWORD 'theirs'");
    world.sql("postgres", &role).await;
    let before = world.outside(1).await;

    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let refused = condition(&world.get_cell(1).await.unwrap(), "Ready");
    assert!(refused.starts_with("False/DatabaseNotOurs"), "{refused}");
    assert!(refused.contains(&database), "{refused}");
    let in_it = |write: &&String| write.starts_with("postgres");
    assert_eq!(book.writes().iter().find(in_it), None);
    assert!(world.objects(&cell, Kind::Deployment).await.is_empty());

    world.delete_cell(1).await;
    world.settle(&book).await.unwrap();
    assert!(world.get_cell(1).await.is_none(), "it never had a database");
    let after = world.outside(1).await;
    assert_eq!(after["postgres"], before["postgres"]);
    let rows = "DO $$BEGIN ASSERT (SELECT count(*) = 1000 FROM orders); END$$";
    world.sql(&database, rows).await;
    assert_eq!(after["topics"], json!({}));
}
