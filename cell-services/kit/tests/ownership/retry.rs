//! What a service does while a fence has its range closed.

use std::sync::Arc;
use std::time::Duration;

use cell_kit::config::Config;
use cell_kit::metrics::Metrics;
use cell_kit::ownership::{Owner, Ownership};
use cell_kit::{Database, Failure, Tx};
use clap::Parser;
use sqlx::{Executor, PgConnection};
use titan_routing::{
    Assignment, AssignmentState, CellEndpoint, Epoch, Key, KeyRange, KeyspaceMode, RoutingTable,
};
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::failpoint::pausing;
use crate::home::{CELL, Home, fence};

const OWNER: Owner = Owner {
    key: Key::MAX,
    epoch: Epoch(1),
};
const RANGE: (i64, i64) = (i64::MAX - 9, i64::MAX);

/// A data home, and a service with a single connection to it.
async fn service() -> anyhow::Result<(Home, Database)> {
    let home = Home::with(&pausing()).await?;
    home.activate(RANGE.0, RANGE.1, CELL, 1).await.unwrap();
    let url: sqlx::postgres::PgConnectOptions = home.url.parse()?;
    let config = Config::parse_from([
        "test",
        "--pg-host",
        url.get_host(),
        "--pg-port",
        &url.get_port().to_string(),
        "--pg-database",
        url.get_database().unwrap_or_default(),
        "--pg-user",
        url.get_username(),
        "--pg-password",
        "testbed",
        "--pg-schema",
        "public",
        "--pg-pool",
        "1",
    ]);
    let range = KeyRange::new(Key::new(RANGE.0.cast_unsigned())?, Key::MAX)?;
    let table = RoutingTable::new(
        Epoch(1),
        KeyspaceMode::UserId,
        vec![Assignment {
            range,
            cell: CELL.to_owned(),
            home: CELL.to_owned(),
            state: AssignmentState::Active,
            epoch: Epoch(1),
        }],
        vec![CellEndpoint {
            cell: CELL.to_owned(),
            region: String::new(),
            endpoint: String::new(),
        }],
        Vec::new(),
    )?;
    let (_, tables) = watch::channel(Arc::new(table));
    let ownership = Ownership::new(CELL, CELL, tables);
    let database = Database::new(&config.postgres, ownership, Metrics::new("test", &[])?)?;
    Ok((home, database))
}

/// A fence that has closed the range, and goes on when the returned session lets it.
async fn closed(home: &Home, budget: i32) -> anyhow::Result<PgConnection> {
    let mut gate = home.connect().await?;
    gate.execute("SELECT pg_advisory_lock(4242, 1)").await?;
    let mut session = home.connect().await?;
    session.execute("SET test.pause = 'fence_closed'").await?;
    tokio::spawn(async move {
        let _ = fence(&mut session, RANGE, 2, budget, 0).await;
    });
    home.wait_until_closing().await?;
    Ok(gate)
}

async fn begin(database: &Database) -> Result<(), Failure> {
    let tx = Tx::begin(database, OWNER).await?;
    tx.commit(database).await
}

/// The service's only connection is free between the tries: somebody else can read with it.
async fn read(database: &Database) -> anyhow::Result<()> {
    database
        .read(|connection| Box::pin(async move { Ok(connection.execute("SELECT 1").await?) }))
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_waits_without_a_connection_and_passes_when_the_fence_gives_up()
-> anyhow::Result<()> {
    let (home, database) = service().await?;
    let mut in_the_way = home.connect().await?;
    in_the_way.execute("BEGIN").await?;
    crate::home::guard(&mut in_the_way, i64::MAX - 1, CELL, 1)
        .await
        .unwrap();
    let mut gate = closed(&home, 1_500).await?;
    let writer = tokio::spawn({
        let database = database.clone();
        async move { begin(&database).await }
    });
    for _ in 0..10 {
        read(&database).await?;
    }
    assert!(!writer.is_finished());
    // Given up, as the fence does.
    home.pool
        .execute("SELECT titan.give_up(attempt, false) FROM (SELECT DISTINCT attempt FROM titan.ranges) a WHERE attempt IS NOT NULL")
        .await?;
    writer.await??;
    gate.execute("SELECT pg_advisory_unlock(4242, 1)").await?;
    in_the_way.execute("ROLLBACK").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_is_told_when_the_fence_is_done() -> anyhow::Result<()> {
    let (home, database) = service().await?;
    let mut gate = closed(&home, 5_000).await?;
    let writer = tokio::spawn({
        let database = database.clone();
        async move { begin(&database).await }
    });
    read(&database).await?;
    gate.execute("SELECT pg_advisory_unlock(4242, 1)").await?;
    let failure = writer.await?.unwrap_err();
    assert!(matches!(failure, Failure::NotOwned(_)), "{failure:?}");
    assert_eq!(Status::from(failure).code(), Code::FailedPrecondition);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_opens_a_range_whose_fence_died() -> anyhow::Result<()> {
    let (home, database) = service().await?;
    let _gate = closed(&home, 100).await?;
    home.pool
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
              WHERE query LIKE 'CALL titan.fence%' AND datname = current_database()",
        )
        .await?;
    begin(&database).await?;
    assert_eq!(
        home.rows().await?,
        [format!("{}..={} {CELL}@1 active", RANGE.0, RANGE.1)]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_waits_for_a_second_and_no_longer() -> anyhow::Result<()> {
    let (home, database) = service().await?;
    let _gate = closed(&home, 9_000).await?;
    let started = tokio::time::Instant::now();
    let failure = begin(&database).await.unwrap_err();
    assert!(matches!(failure, Failure::Closing(_)), "{failure:?}");
    assert!(
        !failure.is_transient(),
        "it has been tried again for long enough"
    );
    assert!(
        started.elapsed() > Duration::from_millis(900),
        "{:?}",
        started.elapsed()
    );
    let status = Status::from(failure);
    assert_eq!(status.code(), Code::Unavailable);
    Ok(())
}
