//! A fence is proven on the synchronous standby before anybody is told.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use titan_operator::ledger::Ledger;
use titan_operator::stores::Result;
use titan_operator::stores::data_home::DataHome;
use titan_operator::stores::postgres::{
    Commit, FenceBudget, FenceOutcome, OwnershipState, Proof, Witnesses, ensure, ownership,
};
use titan_planner::cell::ServerCredentials;
use titan_routing::{Epoch, Key, KeyRange};
use titan_testbed::{Postgres, Standby};

use super::{Book, connect, credentials, run};

const DATABASE: &str = "cell_standby";

/// What an operator does that believes the answer.
struct Belief;

impl Proof for Belief {
    fn commit<'a>(
        &'a self,
        _: &'a ServerCredentials,
        _: &'a Witnesses,
        _: &'a dyn Ledger,
    ) -> BoxFuture<'a, Result<()>> {
        async { Ok(()) }.boxed()
    }
}

fn range(first: u64, last: u64) -> KeyRange {
    KeyRange::new(Key::new(first).unwrap(), Key::new(last).unwrap()).unwrap()
}

fn reach(database: &titan_testbed::Database) -> ServerCredentials {
    credentials(
        &database.host,
        database.port,
        &database.user,
        &database.password,
    )
}

/// Waits until the fence's COMMIT waits for the standby, and cancels it.
async fn cancel_the_commit(server: &ServerCredentials) {
    let mut session = connect(server, DATABASE).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let cancelled: i64 = sqlx::query_scalar(
            "SELECT count(*) FILTER (WHERE pg_cancel_backend(pid)) FROM pg_stat_activity
              WHERE query LIKE 'CALL titan.fence%' AND wait_event = 'SyncRep'",
        )
        .fetch_one(&mut session)
        .await
        .unwrap();
        if cancelled > 0 {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "the fence never waited for the standby"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_the_standby_does_not_have_is_none() {
    let mut primary = Postgres::start().unwrap();
    let server = reach(&primary.maintenance());
    let book = Book::new();
    ensure(&server, DATABASE, &[], &BTreeMap::new(), &book)
        .await
        .unwrap();
    let standby = Standby::of(&primary, "postgres-1").unwrap();
    primary
        .sql("ALTER SYSTEM SET synchronous_standby_names = '\"postgres-1\"'")
        .unwrap();
    primary.sql("SELECT pg_reload_conf()").unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while primary
        .sql("SELECT sync_state FROM pg_stat_replication")
        .unwrap()
        .trim()
        != "sync"
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the standby never was synchronous"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let budget = FenceBudget {
        closed: 1_000,
        quiet: 0,
    };
    let proving = DataHome::new(server.clone(), DATABASE.to_owned(), &book, &Commit);
    let believing = DataHome::new(server.clone(), DATABASE.to_owned(), &book, &Belief);
    proving
        .activate(range(0, 999), "cell-standby", Epoch(1))
        .await
        .unwrap();
    let fenced = |outcome: &FenceOutcome| matches!(outcome, FenceOutcome::Fenced { .. });

    // The standby hangs, and somebody cancels the COMMIT that waits for it: it reports success.
    let frozen = standby.freeze(&primary).unwrap();
    let (outcome, ()) = tokio::join!(
        proving.fence(range(0, 99), Epoch(2), budget),
        cancel_the_commit(&server)
    );
    let unproven = outcome.unwrap_err();
    assert!(
        unproven.is_unreachable() && unproven.to_string().contains("postgres-1"),
        "{unproven}"
    );
    // Bystanders do not notice: they register and read.
    let mut bystander = connect(&server, DATABASE).await.unwrap();
    run(
        &mut bystander,
        "BEGIN; SELECT titan.guard(500, 'cell-standby', 1); ROLLBACK",
    )
    .await
    .unwrap();
    frozen.thaw().unwrap();
    let outcome = proving.fence(range(0, 99), Epoch(2), budget).await.unwrap();
    assert!(
        fenced(&outcome),
        "again, with the standby back: {outcome:?}"
    );

    // The same, and then the primary is lost. Who believed the answer was wrong.
    let frozen = standby.freeze(&primary).unwrap();
    let (outcome, ()) = tokio::join!(
        believing.fence(range(100, 199), Epoch(3), budget),
        cancel_the_commit(&server)
    );
    assert!(
        fenced(&outcome.unwrap()),
        "the answer alone says that it is done"
    );
    proving
        .fence(range(100, 199), Epoch(3), budget)
        .await
        .unwrap_err();
    primary.server().crash().unwrap();
    frozen.kill().unwrap();
    let successor = reach(&standby.maintenance());
    let mut session = connect(&successor, "postgres").await.unwrap();
    run(&mut session, "SELECT pg_promote()").await.unwrap();
    let rows = ownership(&successor, DATABASE).await.unwrap();
    let state = |first| {
        rows.iter()
            .find(|row| row.range.first() == Key::new(first).unwrap())
            .map(|row| (row.state, row.epoch))
    };
    assert_eq!(
        state(0),
        Some((OwnershipState::Fenced, Epoch(2))),
        "proven: {rows:?}"
    );
    let lost = rows.iter().find(|row| {
        row.range.first() <= Key::new(150).unwrap() && Key::new(150).unwrap() <= row.range.last()
    });
    assert!(
        lost.is_some_and(|row| row.state != OwnershipState::Fenced && row.epoch == Epoch(1)),
        "{rows:?}"
    );
    // The fence is repeated at the new primary.
    let home = DataHome::new(successor, DATABASE.to_owned(), &book, &Belief);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !fenced(&home.fence(range(100, 199), Epoch(3), budget).await.unwrap()) {
        assert!(
            tokio::time::Instant::now() < deadline,
            "never fenced at the new primary"
        );
    }
}
