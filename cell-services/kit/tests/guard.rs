//! The guard of a data home, in PostgreSQL: what it lets through, what it refuses, and the race with a fence.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection};

const CELL: &str = "cell-001";

struct Home {
    pool: PgPool,
    url: String,
}

impl Home {
    async fn new() -> anyhow::Result<Self> {
        let database = tokio::task::spawn_blocking(titan_testbed::postgres).await??;
        let url = database.url();
        let pool = PgPoolOptions::new()
            .max_connections(40)
            .connect(&url)
            .await?;
        sqlx::raw_sql(cell_kit::ownership::BOOTSTRAP_SQL)
            .execute(&pool)
            .await?;
        sqlx::raw_sql(
            "CREATE TABLE things (owner_id bigint NOT NULL, id uuid NOT NULL DEFAULT gen_random_uuid(), epoch bigint,
                                  PRIMARY KEY (owner_id, id));
             SELECT titan.protect('things');",
        )
        .execute(&pool)
        .await?;
        Ok(Home { pool, url })
    }

    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect(&self.url).await
    }

    async fn activate(&self, first: i64, last: i64, cell: &str, epoch: i64) -> Result<(), String> {
        sqlx::query("SELECT titan.activate($1, $2, $3, $4)")
            .bind(first)
            .bind(last)
            .bind(cell)
            .bind(epoch)
            .execute(&self.pool)
            .await
            .map(|_| ())
            .map_err(|error| code(&error))
    }

    async fn fence(&self, first: i64, last: i64, epoch: i64) -> Result<(), String> {
        sqlx::query("SELECT titan.fence($1, $2, $3)")
            .bind(first)
            .bind(last)
            .bind(epoch)
            .execute(&self.pool)
            .await
            .map(|_| ())
            .map_err(|error| code(&error))
    }

    async fn things(&self) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar("SELECT count(*) FROM things")
            .fetch_one(&self.pool)
            .await?)
    }

    /// Waits until so many sessions wait for an advisory lock.
    async fn wait_for_waiters(&self, at_least: i64) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'",
            )
            .fetch_one(&self.pool)
            .await?;
            if waiting >= at_least {
                return Ok(());
            }
            anyhow::ensure!(
                tokio::time::Instant::now() < deadline,
                "{waiting} sessions wait for the lock, not {at_least}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn code(error: &sqlx::Error) -> String {
    match error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
    {
        Some(code) => code.into_owned(),
        None => error.to_string(),
    }
}

async fn guard(
    connection: &mut PgConnection,
    owner: i64,
    cell: &str,
    epoch: i64,
) -> Result<(), String> {
    sqlx::query("SELECT titan.guard($1, $2, $3)")
        .bind(owner)
        .bind(cell)
        .bind(epoch)
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(|error| code(&error))
}

async fn insert(connection: &mut PgConnection, owner: i64) -> Result<(), String> {
    sqlx::query("INSERT INTO things (owner_id) VALUES ($1)")
        .bind(owner)
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(|error| code(&error))
}

/// Guard and insert in one transaction.
async fn write(connection: &mut PgConnection, owner: i64, epoch: i64) -> Result<(), String> {
    connection
        .execute("BEGIN")
        .await
        .map_err(|error| code(&error))?;
    let mut outcome = guard(connection, owner, CELL, epoch).await;
    if outcome.is_ok() {
        outcome = insert(connection, owner).await;
    }
    let end = if outcome.is_ok() {
        "COMMIT"
    } else {
        "ROLLBACK"
    };
    connection
        .execute(end)
        .await
        .map_err(|error| code(&error))?;
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_pass_the_guard_or_fail() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.activate(0, 999, CELL, 5).await.unwrap();
    home.activate(1000, 1999, "cell-002", 5).await.unwrap();
    let mut session = home.connect().await?;

    assert_eq!(write(&mut session, 7, 5).await, Ok(()));
    assert_eq!(
        write(&mut session, 7, 6).await,
        Ok(()),
        "a newer epoch with the row unchanged"
    );
    assert_eq!(
        write(&mut session, 7, 4).await,
        Err("TC001".into()),
        "an older epoch"
    );
    assert_eq!(
        write(&mut session, 1000, 5).await,
        Err("TC001".into()),
        "another cell's range"
    );
    assert_eq!(
        write(&mut session, 2000, 5).await,
        Err("TC001".into()),
        "nobody's range"
    );
    assert_eq!(
        insert(&mut session, 7).await,
        Err("TC002".into()),
        "no guard at all"
    );

    // The guard covers its range and no other, in both directions of an update.
    session.execute("BEGIN").await?;
    guard(&mut session, 0, CELL, 5).await.unwrap();
    insert(&mut session, 999).await.unwrap();
    session.execute("SAVEPOINT before").await?;
    assert_eq!(insert(&mut session, 1000).await, Err("TC002".into()));
    session.execute("ROLLBACK TO before").await?;
    let moved = session
        .execute("UPDATE things SET owner_id = 1000")
        .await
        .unwrap_err();
    assert_eq!(code(&moved), "TC002");
    session.execute("ROLLBACK").await?;
    let truncated = session.execute("TRUNCATE things").await.unwrap_err();
    assert_eq!(code(&truncated), "TC002");
    let deleted = session.execute("DELETE FROM things").await.unwrap_err();
    assert_eq!(code(&deleted), "TC002");
    assert_eq!(home.things().await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guard_does_not_outlive_its_transaction() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.activate(0, 999, CELL, 1).await.unwrap();
    let mut session = home.connect().await?;

    session.execute("BEGIN").await?;
    guard(&mut session, 1, CELL, 1).await.unwrap();
    let setting: String = sqlx::query_scalar("SELECT current_setting('titan.guarded')")
        .fetch_one(&mut session)
        .await?;
    session.execute("COMMIT").await?;
    assert_eq!(
        insert(&mut session, 1).await,
        Err("TC002".into()),
        "the next transaction"
    );
    // Not even when somebody keeps the setting in the session.
    sqlx::query("SELECT set_config('titan.guarded', $1, false)")
        .bind(&setting)
        .execute(&mut session)
        .await?;
    assert_eq!(
        insert(&mut session, 1).await,
        Err("TC002".into()),
        "a setting left over"
    );

    // A savepoint that is rolled back takes its guard along.
    session.execute("BEGIN").await?;
    session.execute("SAVEPOINT before").await?;
    guard(&mut session, 1, CELL, 1).await.unwrap();
    session.execute("ROLLBACK TO before").await?;
    assert_eq!(
        insert(&mut session, 1).await,
        Err("TC002".into()),
        "after the savepoint"
    );
    session.execute("ROLLBACK").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ranges_may_be_guarded_and_the_last_key_counts() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.activate(0, 999, CELL, 1).await.unwrap();
    home.activate(i64::MAX - 9, i64::MAX, CELL, 1)
        .await
        .unwrap();
    let mut session = home.connect().await?;
    session.execute("BEGIN").await?;
    guard(&mut session, i64::MAX, CELL, 1).await.unwrap();
    guard(&mut session, 0, CELL, 1).await.unwrap();
    for owner in [0, 999, i64::MAX - 9, i64::MAX] {
        insert(&mut session, owner).await.unwrap();
    }
    session.execute("SAVEPOINT before").await?;
    assert_eq!(
        insert(&mut session, i64::MAX - 10).await,
        Err("TC002".into())
    );
    session.execute("ROLLBACK TO before").await?;
    session.execute("COMMIT").await?;
    assert_eq!(home.things().await?, 4);

    assert_eq!(
        home.activate(500, 600, CELL, 9).await,
        Err("23P01".into()),
        "ranges must not overlap"
    );
    assert_eq!(
        home.activate(i64::MAX, i64::MAX, CELL, 9).await,
        Err("23P01".into())
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_read_committed_sees_a_fence_in_time() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.activate(0, 999, CELL, 1).await.unwrap();
    let mut session = home.connect().await?;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        session
            .execute(sqlx::AssertSqlSafe(format!(
                "BEGIN ISOLATION LEVEL {level}"
            )))
            .await?;
        assert_eq!(
            guard(&mut session, 1, CELL, 1).await,
            Err("TC003".into()),
            "{level}"
        );
        session.execute("ROLLBACK").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_only_grow_and_repetition_is_harmless() -> anyhow::Result<()> {
    let home = Home::new().await?;
    // A fence of what is not there yet keeps older activations out.
    home.fence(0, 9, 5).await.unwrap();
    assert_eq!(home.activate(0, 9, CELL, 4).await, Err("TC004".into()));
    home.activate(0, 9, CELL, 5).await.unwrap();
    home.activate(0, 9, CELL, 5).await.unwrap();
    assert_eq!(
        home.activate(0, 9, "cell-002", 5).await,
        Err("TC004".into()),
        "two cells at one epoch"
    );
    assert_eq!(
        home.fence(0, 9, 5).await,
        Err("TC004".into()),
        "a late fence of an epoch that is active"
    );
    assert_eq!(home.fence(0, 9, 4).await, Err("TC004".into()));
    home.fence(0, 9, 6).await.unwrap();
    home.fence(0, 9, 6).await.unwrap();
    assert_eq!(home.activate(0, 9, CELL, 5).await, Err("TC004".into()));
    home.activate(0, 9, "cell-002", 6).await.unwrap();
    home.activate(0, 9, CELL, 7).await.unwrap();
    let row: (String, i64, String) =
        sqlx::query_as("SELECT cell, epoch, state FROM titan.ownership")
            .fetch_one(&home.pool)
            .await?;
    assert_eq!(row, (CELL.to_owned(), 7, "active".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_waited_for_a_fence_sees_it() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.activate(0, 999, CELL, 1).await.unwrap();
    let mut operator = home.connect().await?;
    operator.execute("BEGIN").await?;
    operator.execute("SELECT titan.fence(0, 999, 2)").await?;
    let mut session = home.connect().await?;
    let writer = tokio::spawn(async move { write(&mut session, 1, 1).await });
    home.wait_for_waiters(1).await?;
    operator.execute("COMMIT").await?;
    assert_eq!(writer.await?, Err("TC001".into()));
    assert_eq!(home.things().await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_waits_for_writers_that_passed() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.activate(0, 999, CELL, 1).await.unwrap();
    let mut session = home.connect().await?;
    session.execute("BEGIN").await?;
    guard(&mut session, 1, CELL, 1).await.unwrap();
    insert(&mut session, 1).await.unwrap();

    let mut operator = home.connect().await?;
    let fence = tokio::spawn(async move {
        operator
            .execute("SELECT titan.fence(0, 999, 2)")
            .await
            .map(|_| ())
    });
    home.wait_for_waiters(1).await?;
    // Who comes after the fence waits behind it, and is refused.
    let mut late = home.connect().await?;
    let late = tokio::spawn(async move { write(&mut late, 2, 1).await });
    home.wait_for_waiters(2).await?;
    assert!(!fence.is_finished());
    session.execute("COMMIT").await?;
    fence.await??;
    assert_eq!(late.await?, Err("TC001".into()));
    assert_eq!(home.things().await?, 1, "the writer that passed is kept");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_lands_after_a_fence_among_thousands() -> anyhow::Result<()> {
    const WRITERS: usize = 16;
    const ROUNDS: i64 = 8;
    const WRITES_A_ROUND: usize = 400;
    let home = Arc::new(Home::new().await?);
    let mut written = 0;
    for round in 0..ROUNDS {
        let epoch = 2 * round + 1;
        home.activate(0, 999, CELL, epoch).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let (home, stop, done) = (home.clone(), stop.clone(), done.clone());
            writers.push(tokio::spawn(async move {
                let mut session = home.connect().await.unwrap();
                let (mut accepted, mut refused) = (0_i64, 0_usize);
                // Goes on for a while after the fence, for that is when it would matter.
                while !stop.load(Ordering::Relaxed) || refused < 20 {
                    match write(&mut session, (writer * 60) as i64, epoch).await {
                        Ok(()) => {
                            accepted += 1;
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(code) => {
                            assert_eq!(code, "TC001");
                            refused += 1;
                        }
                    }
                }
                accepted
            }));
        }
        while done.load(Ordering::Relaxed) < WRITES_A_ROUND {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        home.fence(0, 999, epoch + 1).await.unwrap();
        let at_fence = home.things().await?;
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            written += writer.await?;
        }
        assert_eq!(
            home.things().await?,
            at_fence,
            "round {round}: a write landed after the fence"
        );
        assert_eq!(
            at_fence, written,
            "round {round}: acknowledged and stored differ"
        );
    }
    assert!(written >= ROUNDS * WRITES_A_ROUND as i64);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_move_cannot_be_protected() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.pool
        .execute("CREATE TABLE wrong (id uuid PRIMARY KEY, owner_id bigint NOT NULL)")
        .await?;
    let error = home
        .pool
        .execute("SELECT titan.protect('wrong')")
        .await
        .unwrap_err();
    assert_eq!(code(&error), "TC003");
    Ok(())
}
