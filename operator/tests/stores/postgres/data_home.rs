//! The calls on a data home, and what the operator learns from their answers.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use titan_operator::stores::data_home::DataHome;
use titan_operator::stores::postgres::{
    Commit, FenceBudget, FenceOutcome, OwnershipRow, OwnershipState, ensure,
};
use titan_planner::cell::ServerCredentials;
use titan_routing::{Epoch, Key, KeyRange};

use super::{Book, connect, run, server};

fn key(number: u64) -> Key {
    Key::new(number).unwrap()
}

fn range(first: u64, last: u64) -> KeyRange {
    KeyRange::new(key(first), key(last)).unwrap()
}

fn row(first: u64, last: u64, cell: &str, epoch: u64, state: OwnershipState) -> OwnershipRow {
    OwnershipRow {
        range: range(first, last),
        cell: cell.to_owned(),
        epoch: Epoch(epoch),
        state,
    }
}

/// A database of that name, as a pass makes it.
async fn prepared(database: &str) -> ServerCredentials {
    let server = server();
    ensure(&server, database, &[], &BTreeMap::new(), &Book::new())
        .await
        .unwrap();
    server
}

const fn budget(closed: u32, quiet: u32) -> FenceBudget {
    FenceBudget { closed, quiet }
}

fn is_fenced(outcome: &FenceOutcome) -> bool {
    matches!(outcome, FenceOutcome::Fenced { .. })
}

#[tokio::test]
async fn ranges_are_activated_and_fenced_once_and_never_backwards() {
    let database = "cell_epochs";
    let server = prepared(database).await;
    let book = Book::new();
    let home = DataHome::new(server, database.to_owned(), &book, &Commit);
    let keys = range(0, 9_999);
    let (cell, other) = ("cell-epochs", "cell-other");
    assert!(home.activate(keys, cell, Epoch(7)).await.unwrap());
    assert!(!home.activate(keys, cell, Epoch(7)).await.unwrap());
    assert_eq!(book.len(), 1);
    assert_eq!(
        home.ownership().await.unwrap(),
        [row(0, 9_999, cell, 7, OwnershipState::Active)]
    );

    let stale = home.activate(keys, other, Epoch(6)).await.unwrap_err();
    assert_eq!(stale.category(), "refused");
    assert!(stale.to_string().contains("at epoch 7"), "{stale}");
    let unfenced = home.activate(keys, other, Epoch(8)).await.unwrap_err();
    assert!(unfenced.to_string().contains("TC004"), "{unfenced}");

    let live = budget(1_000, 1_000);
    assert!(is_fenced(&home.fence(keys, Epoch(8), live).await.unwrap()));
    assert!(is_fenced(&home.fence(keys, Epoch(8), live).await.unwrap()));
    assert_eq!(book.len(), 2, "{:?}", book.writes());
    assert_eq!(
        home.ownership().await.unwrap(),
        [row(0, 9_999, cell, 8, OwnershipState::Fenced)]
    );
    assert!(home.activate(keys, other, Epoch(8)).await.unwrap());
    let late = home.fence(keys, Epoch(8), live).await.unwrap_err();
    assert_eq!(late.category(), "refused");
    assert_eq!(
        home.ownership().await.unwrap(),
        [row(0, 9_999, other, 8, OwnershipState::Active)]
    );
    assert_eq!(book.len(), 3);
    let too_long = home
        .fence(keys, Epoch(9), budget(9_000, 9_000))
        .await
        .unwrap_err();
    assert_eq!(too_long.category(), "invalid");
}

#[tokio::test]
async fn a_part_moves_away_and_back_with_other_borders() {
    use OwnershipState::{Active, Fenced};
    let database = "cell_parts";
    let server = prepared(database).await;
    let book = Book::new();
    let home = DataHome::new(server, database.to_owned(), &book, &Commit);
    let cell = "cell-parts";
    home.activate(range(0, 9_999), cell, Epoch(1))
        .await
        .unwrap();
    let live = budget(1_000, 1_000);
    assert!(is_fenced(
        &home
            .fence(range(2_000, 4_999), Epoch(2), live)
            .await
            .unwrap()
    ));
    assert!(home.split(key(3_000)).await.unwrap());
    assert!(!home.split(key(3_000)).await.unwrap());
    assert_eq!(
        home.ownership().await.unwrap(),
        [
            row(0, 1_999, cell, 1, Active),
            row(2_000, 2_999, cell, 2, Fenced),
            row(3_000, 4_999, cell, 2, Fenced),
            row(5_000, 9_999, cell, 1, Active),
        ]
    );
    let active = home
        .remove(range(3_000, 5_999), Epoch(9))
        .await
        .unwrap_err();
    assert!(active.to_string().contains("TC004"), "{active}");
    assert!(home.remove(range(3_000, 4_999), Epoch(2)).await.unwrap());
    assert!(!home.remove(range(3_000, 4_999), Epoch(2)).await.unwrap());
    // Back: over a border, a row that is fenced, and a gap.
    assert!(
        home.activate(range(1_000, 3_999), cell, Epoch(3))
            .await
            .unwrap()
    );
    assert!(
        home.activate(range(0, 9_999), cell, Epoch(4))
            .await
            .unwrap()
    );
    home.split(key(5_000)).await.unwrap();
    assert!(home.merge(range(0, 9_999)).await.unwrap());
    assert!(!home.merge(range(0, 9_999)).await.unwrap());
    assert_eq!(
        home.ownership().await.unwrap(),
        [row(0, 9_999, cell, 4, Active)]
    );
}

async fn writer(server: &ServerCredentials, database: &str, key: u64, cell: &str) -> PgConnection {
    let mut writer = connect(server, database).await.unwrap();
    run(
        &mut writer,
        &format!("BEGIN; SELECT titan.guard({key}, '{cell}', 1)"),
    )
    .await
    .unwrap();
    writer
}

#[tokio::test]
async fn a_fence_names_who_is_in_its_way_and_ends_them_when_told() {
    let database = "cell_blocked";
    let server = prepared(database).await;
    let book = Book::new();
    let home = DataHome::new(server.clone(), database.to_owned(), &book, &Commit);
    let (cell, keys) = ("cell-blocked", range(0, 99));
    home.activate(range(0, 999), cell, Epoch(1)).await.unwrap();
    let mut in_the_way = writer(&server, database, 7, cell).await;
    let mut bystander = writer(&server, database, 500, cell).await;

    // Young enough to be waited for with the range closed; the fence gives up, and says for whom.
    let outcome = home.fence(keys, Epoch(2), budget(2_000, 0)).await.unwrap();
    let FenceOutcome::Reopened { blockers } = outcome else {
        panic!("{outcome:?}");
    };
    let blockers = blockers.unwrap();
    assert_eq!(blockers.len(), 1);
    assert_eq!(blockers[0].key, Some(7));
    // Too old by now: nothing is closed for it.
    let outcome = home.fence(keys, Epoch(2), budget(100, 50)).await.unwrap();
    let FenceOutcome::Busy { why, .. } = &outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(why, "writers");
    assert_eq!(
        book.len(),
        1,
        "a fence that fails is no write: {:?}",
        book.writes()
    );

    assert_eq!(home.terminate_writers(keys).await.unwrap(), 1);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let outcome = home.fence(keys, Epoch(2), budget(1_000, 1_000)).await;
        if is_fenced(outcome.as_ref().unwrap()) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{outcome:?}");
    }
    run(&mut bystander, "COMMIT").await.unwrap();
    assert!(run(&mut in_the_way, "COMMIT").await.is_err());
}
