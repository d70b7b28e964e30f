//! The operator dies right after its k-th write, for every k, and a new one goes on: the end is that of a run without a
//! crash, and nothing was created or deleted more often (Sieve, OSDI '22).

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, stream};
use serde_json::{Value, json};
use titan_crds::Cell;

use crate::book::Book;
use crate::harness::{World, condition};

/// How often each thing was created and deleted, with the cell's own name taken out.
fn counts(writes: &[String], cell: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for write in writes {
        // The table is the fleet's, and made once.
        if write.contains("RoutingTable") {
            continue;
        }
        if write.contains(" create ") || write.contains(" delete ") || write.contains(" drop ") {
            let name = write
                .replace(cell, "CELL")
                .replace(&cell.replace('-', "_"), "CELL");
            let name = match name.split_once("-migrate-") {
                Some((name, _)) => name.to_owned(),
                None => name,
            };
            *counts.entry(name).or_insert(0) += 1;
        }
    }
    counts
}

/// Says what was done more often than in a clean run. A write that was under way when the operator died is in nobody's book, so
/// less often is no fault; that nothing is missing shows in what is there in the end.
fn excess(counts: &BTreeMap<String, usize>, clean: &BTreeMap<String, usize>) -> Vec<String> {
    counts
        .iter()
        .filter(|(write, count)| clean.get(*write).is_none_or(|expected| *count > expected))
        .map(|(write, count)| format!("{count} x {write}"))
        .collect()
}

/// Runs the operator to rest; the first one dies right after its `limit`-th write. Returns all writes.
async fn run(world: &World, limit: Option<usize>) -> Vec<String> {
    let mut writes = Vec::new();
    let mut limit = limit;
    loop {
        let book = Arc::new(limit.map_or_else(Book::new, Book::crashing_after));
        let result = world.settle(&book).await;
        writes.extend(book.writes());
        if result.is_ok() {
            return writes;
        }
        world.restart_operator();
        // One crash a run: what comes after is a clean life.
        limit = None;
    }
}

/// What a clean run does and leads to.
struct Clean {
    up: BTreeMap<String, usize>,
    down: BTreeMap<String, usize>,
    essence: BTreeMap<String, Value>,
}

/// Creates a cell and deletes it with its fleet in a world of its own, with a crash after the k-th write of either.
async fn crash_after(k: usize, clean: &Clean) {
    let world = World::new(&format!("crash-{k:02}")).await;
    world.create::<Cell>(world.cell(1)).await;
    let writes = run(&world, Some(k)).await;
    let name = world.cell_name(1);
    let twice = excess(&counts(&writes, &name), &clean.up);
    assert!(
        twice.is_empty(),
        "creation, crash after write {k}: {twice:#?}"
    );
    let ready = condition(&world.get_cell(1).await.unwrap(), "Ready");
    assert!(
        ready.starts_with("True/"),
        "creation, crash after write {k}: {ready}"
    );
    let essence = world.essence(1).await;
    assert_eq!(essence, clean.essence, "creation, crash after write {k}");

    world.delete_fleet().await;
    world.delete_cell(1).await;
    let writes = run(&world, Some(k)).await;
    let twice = excess(&counts(&writes, &name), &clean.down);
    assert!(
        twice.is_empty(),
        "deletion, crash after write {k}: {twice:#?}"
    );
    assert!(
        world.get_cell(1).await.is_none() && world.get_fleet().await.is_none(),
        "deletion, crash after write {k}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_any_write_changes_nothing() {
    let world = World::new("crash-00").await;
    world.create::<Cell>(world.cell(1)).await;
    let clean_up = run(&world, None).await;
    let essence = world.essence(1).await;
    world.delete_fleet().await;
    world.delete_cell(1).await;
    let clean_down = run(&world, None).await;
    let name = world.cell_name(1);
    let clean = Clean {
        up: counts(&clean_up, &name),
        down: counts(&clean_down, &name),
        essence,
    };
    assert!(
        clean.up.len() > 20,
        "a cell is more than that: {:#?}",
        clean.up
    );

    let points = 1..=clean_up.len().max(clean_down.len());
    stream::iter(points)
        .for_each_concurrent(12, |k| crash_after(k, &clean))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_view_deletes_nothing_that_lives() {
    let world = World::new("stale").await;
    let before_any = world.view().await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let table = world.table().await.unwrap();

    // The caches know nothing of the cell, as after a LIST from an apiserver that lags.
    let stale = Arc::new(Book::new());
    world.round(&before_any, &stale).await.unwrap();
    let after = world.table().await.unwrap();
    assert_eq!(
        after.spec,
        table.spec,
        "a living cell is not taken out of the table: {:?}",
        stale.writes()
    );

    // The caches still hold the cell as it was before its spec changed; the write of its status must not undo anything.
    let old = world.view().await;
    world
        .patch::<Cell>(&world.cell_name(1), json!({"spec": {"release": "2.0.0"}}))
        .await;
    world.settle(&book).await.unwrap();
    let stale = Arc::new(Book::new());
    world.round(&old, &stale).await.unwrap();
    world.settle(&book).await.unwrap();
    let cell = world.get_cell(1).await.unwrap();
    assert_eq!(cell.status.unwrap().release.as_deref(), Some("2.0.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_made_anew_under_an_old_name_is_another_cell() {
    let world = World::new("reborn").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let old_view = world.view().await;
    world.delete_cell(1).await;
    world.settle(&book).await.unwrap();
    world.create::<Cell>(world.cell(1)).await;
    world.settle(&book).await.unwrap();
    let reborn = world.essence(1).await;

    // The deletion of the old one was hidden from the caches, which show it as it was, and then as it was deleted.
    let mut deleting = old_view.clone();
    for cell in &mut deleting.cells {
        cell.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                k8s_openapi::jiff::Timestamp::now(),
            ));
    }
    let stale = Arc::new(Book::new());
    for view in [&old_view, &deleting] {
        world.round(view, &stale).await.unwrap();
    }
    world.settle(&book).await.unwrap();
    assert_eq!(world.essence(1).await, reborn, "{:#?}", stale.writes());
    let cell = world.get_cell(1).await.unwrap();
    assert!(
        condition(&cell, "Ready").starts_with("True/"),
        "{}",
        condition(&cell, "Ready")
    );
}
