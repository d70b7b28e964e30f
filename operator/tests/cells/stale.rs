//! The caches are behind, or were not told everything: nothing that lives is deleted for it, and nothing that was deleted is
//! made again (the other two patterns of Sieve, OSDI '22).

use std::sync::Arc;

use futures::{StreamExt, stream};
use serde_json::json;
use titan_crds::Cell;

use crate::book::Book;
use crate::crash::{Clean, Outcome, run};
use crate::harness::{View, World, condition};
use crate::observer::Observer;

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

/// Deletes a cell and its fleet; the operator dies after its k-th write, and the next one's caches begin with what there was
/// before: the deletion of all is hidden, then that of the fleet, then the cell is not there at all.
async fn back_in_time_after(k: usize, clean: &Clean, observer: &Observer) {
    let world = World::new(&format!("back-{k:02}")).await;
    world.create::<Cell>(world.cell(1)).await;
    run(&world, None, async |_| {}).await;
    let before = world.view().await;
    world.delete_fleet().await;
    world.delete_cell(1).await;
    let writes = run(&world, Some(k), async |book| {
        let now = world.view().await;
        let fleet_hidden = View {
            fleets: before.fleets.clone(),
            ..now.clone()
        };
        let cell_hidden = View {
            cells: Vec::new(),
            ..now
        };
        for view in [&before, &fleet_hidden, &cell_hidden] {
            world.round(view, book).await.unwrap();
        }
    })
    .await;
    let when = format!("deletion, back in time after write {k}");
    clean.assert_gone(&world, observer, &writes, &when).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_survives_caches_that_go_back_in_time() {
    let world = World::new("back-00").await;
    let observer = Observer::start(&world.client);
    let clean = Clean::life(&world, &observer).await;
    stream::iter(1..=clean.writes_down)
        .for_each_concurrent(12, |k| back_in_time_after(k, &clean, &observer))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_view_of_a_deletion_makes_the_cell_again() {
    let world = World::new("relived").await;
    let observer = Observer::start(&world.client);
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let mut views = vec![world.view().await];
    world.delete_cell(1).await;
    views.extend(world.settle_seeing(&book).await);
    let outcome = async |writes: &[String], topics| {
        let mut outcome = Outcome::of(&world, &observer, writes, topics).await;
        // That a table is written again is no harm; it only takes a new epoch.
        outcome.forget_epochs();
        outcome
    };
    let gone = outcome(&[], 0).await;
    for view in views.iter().chain(views.iter().rev()) {
        world.restart_operator();
        let stale = Arc::new(Book::new());
        world.round(view, &stale).await.unwrap();
        let now = outcome(&[], 0).await;
        now.assert_is(&gone, &format!("after {:#?}", stale.writes()));
    }

    // Another cell under the old name: the views of the old one do nothing to it that lasts.
    world.create::<Cell>(world.cell(1)).await;
    world.settle(&book).await.unwrap();
    let reborn = outcome(&[], 1).await;
    for view in views.iter().chain(views.iter().rev()) {
        world.restart_operator();
        let stale = Arc::new(Book::new());
        world.round(view, &stale).await.unwrap();
        world.settle(&stale).await.unwrap();
        let now = outcome(&[], 1).await;
        now.assert_is(&reborn, &format!("after {:#?}", stale.writes()));
    }
}
