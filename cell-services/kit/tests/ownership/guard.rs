//! What the guard lets through, what it refuses, and the race with a fence.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::Executor;

use crate::home::{CELL, Home, code, guard, insert, write};

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

    // The guard covers its owner and no other, not even of the same range, in both directions of an update.
    session.execute("BEGIN").await?;
    guard(&mut session, 0, CELL, 5).await.unwrap();
    insert(&mut session, 0).await.unwrap();
    session.execute("SAVEPOINT before").await?;
    assert_eq!(insert(&mut session, 999).await, Err("TC002".into()));
    session.execute("ROLLBACK TO before").await?;
    let taken = session
        .execute("UPDATE things SET owner_id = 0 WHERE owner_id = 7")
        .await
        .unwrap_err();
    assert_eq!(code(&taken), "TC002");
    session.execute("ROLLBACK TO before").await?;
    let moved = session
        .execute("UPDATE things SET owner_id = 1 WHERE owner_id = 0")
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
    let setting: String = sqlx::query_scalar("SELECT current_setting('titan.guarded_owners')")
        .fetch_one(&mut session)
        .await?;
    session.execute("COMMIT").await?;
    assert_eq!(
        insert(&mut session, 1).await,
        Err("TC002".into()),
        "the next transaction"
    );
    // Not even when somebody keeps the setting in the session.
    sqlx::query("SELECT set_config('titan.guarded_owners', $1, false)")
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
async fn several_owners_may_be_guarded_up_to_256_and_the_last_key_counts() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.activate(0, 999, CELL, 1).await.unwrap();
    home.activate(i64::MAX - 9, i64::MAX, CELL, 1)
        .await
        .unwrap();
    let mut session = home.connect().await?;
    session.execute("BEGIN").await?;
    let owners = [0, 1, 12, 999, i64::MAX - 9, i64::MAX];
    for owner in owners {
        guard(&mut session, owner, CELL, 1).await.unwrap();
    }
    for owner in owners {
        insert(&mut session, owner).await.unwrap();
    }
    // Neither a part of a noted number nor one of its neighbours.
    for owner in [2, 9, 99, 121, i64::MAX - 8] {
        session.execute("SAVEPOINT before").await?;
        assert_eq!(insert(&mut session, owner).await, Err("TC002".into()));
        session.execute("ROLLBACK TO before").await?;
    }
    session.execute("COMMIT").await?;
    assert_eq!(home.things().await?, 6);

    session.execute("BEGIN").await?;
    for owner in 0..256 {
        guard(&mut session, owner, CELL, 1).await.unwrap();
    }
    guard(&mut session, 255, CELL, 1).await.unwrap();
    assert_eq!(
        guard(&mut session, 256, CELL, 1).await,
        Err("TC003".into()),
        "one owner too many"
    );
    session.execute("ROLLBACK").await?;
    assert_eq!(
        guard(&mut session, -1, CELL, 1).await,
        Err("TC003".into()),
        "no key"
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
    assert_eq!(
        home.activate(0, 9, CELL, 7).await,
        Err("TC004".into()),
        "active for another cell: it has to be fenced first"
    );
    home.fence(0, 9, 7).await.unwrap();
    home.activate(0, 9, CELL, 7).await.unwrap();
    let row: (String, i64, String) = sqlx::query_as("SELECT cell, epoch, state FROM titan.ranges")
        .fetch_one(&home.pool)
        .await?;
    assert_eq!(row, (CELL.to_owned(), 7, "active".to_owned()));
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
