//! What a fence does to writers, and what it does not do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Executor, PgConnection};

use crate::failpoint::pausing;
use crate::home::{CELL, Home, code, detail, fence, guard, insert, raw_guard, write};

/// A transaction that has written a row of the owner and stays open.
async fn open_writer(home: &Home, owner: i64, epoch: i64) -> anyhow::Result<PgConnection> {
    let mut session = home.connect().await?;
    session.execute("BEGIN").await?;
    guard(&mut session, owner, CELL, epoch).await.unwrap();
    insert(&mut session, owner).await.unwrap();
    Ok(session)
}

/// A fence that stops at a failpoint for as long as the returned session holds its lock.
async fn paused_fence(
    home: &Home,
    at: &'static str,
    range: (i64, i64),
    epoch: i64,
    budget: i32,
) -> anyhow::Result<(
    PgConnection,
    tokio::task::JoinHandle<Result<serde_json::Value, String>>,
)> {
    let mut gate = home.connect().await?;
    gate.execute("SELECT pg_advisory_lock(4242, 1)").await?;
    let mut session = home.connect().await?;
    session
        .execute(sqlx::AssertSqlSafe(format!("SET test.pause = '{at}'")))
        .await?;
    let fence = tokio::spawn(async move {
        let answer = fence(&mut session, range, epoch, budget, 0).await;
        answer.map_err(|error| code(&error))
    });
    home.wait_until(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 4242 AND NOT granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
    )
    .await?;
    Ok((gate, fence))
}

async fn open_gate(gate: &mut PgConnection) -> anyhow::Result<()> {
    gate.execute("SELECT pg_advisory_unlock(4242, 1)").await?;
    Ok(())
}

const OVERDUE: &str = "SELECT coalesce(bool_and(closing_until < clock_timestamp()), false) FROM titan.ranges WHERE state = 'closing'";

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_writer_makes_nobody_wait() -> anyhow::Result<()> {
    let home = Arc::new(Home::new().await?);
    home.activate(0, 999, CELL, 1).await.unwrap();
    let mut slow = open_writer(&home, 1, 1).await?;
    let mut short = home.connect().await?;
    // Who waits for a lock fails.
    short.execute("SET lock_timeout = '100ms'").await?;
    let fencing = tokio::spawn({
        let home = home.clone();
        async move { home.try_fence(0, 99, 2, 1_000, 0).await }
    });
    home.wait_until_closing().await?;
    assert_eq!(
        write(&mut short, 500, 1).await,
        Ok(()),
        "beside the range, in what was one row"
    );
    short.execute("BEGIN").await?;
    let refusal = raw_guard(&mut short, 2, CELL, 1).await.unwrap_err();
    assert_eq!(detail(&refusal)["reason"], "closing", "{refusal}");
    short.execute("ROLLBACK").await?;
    let answer = fencing.await?.unwrap();
    assert_eq!(answer["outcome"], "reopened", "{answer}");
    assert_eq!(answer["blockers"][0]["key"], 1, "{answer}");
    assert_eq!(
        write(&mut short, 2, 1).await,
        Ok(()),
        "the slow writer is still there"
    );
    // The range has been closed, so it stays open for as long.
    let answer = home.try_fence(0, 99, 2, 1_000, 0).await.unwrap();
    assert_eq!(answer["outcome"], "busy", "{answer}");
    slow.execute("COMMIT").await?;
    home.wait_until(
        "SELECT bool_and(rest_until IS NULL OR rest_until < clock_timestamp()) FROM titan.ranges",
    )
    .await?;
    home.fence(0, 99, 2).await.unwrap();
    assert_eq!(write(&mut short, 2, 1).await, Err("TC001".into()));
    assert_eq!(home.things().await?, 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_writer_is_waited_for_while_nobody_is_refused() -> anyhow::Result<()> {
    let home = Arc::new(Home::new().await?);
    home.activate(0, 999, CELL, 1).await.unwrap();
    let mut slow = open_writer(&home, 1, 1).await?;
    home.wait_until(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'idle in transaction'
        AND datname = current_database() AND xact_start < clock_timestamp() - interval '50 ms')",
    )
    .await?;
    let answer = home.try_fence(0, 999, 2, 100, 0).await.unwrap();
    assert_eq!(
        (&answer["outcome"], &answer["why"]),
        (&"busy".into(), &"writers".into())
    );
    assert!(answer["blockers"][0]["pid"].is_number(), "{answer}");
    assert_eq!(home.rows().await?, ["0..=999 cell-001@1 active"]);
    let fencing = tokio::spawn({
        let home = home.clone();
        async move { home.try_fence(0, 999, 2, 100, 20_000).await }
    });
    let mut short = home.connect().await?;
    for _ in 0..20 {
        assert_eq!(write(&mut short, 2, 1).await, Ok(()));
    }
    slow.execute("COMMIT").await?;
    assert_eq!(fencing.await?.unwrap()["outcome"], "fenced");
    Ok(())
}

/// Keys at which borders are drawn, 0 and the largest among them.
const BORDERS: [i64; 9] = [0, 1, 499, 500, 501, 999, 1_000, i64::MAX - 1, i64::MAX];

#[tokio::test(flavor = "multi_thread")]
async fn ranges_move_away_and_back_with_any_borders() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.activate(1, 999, "a", 1).await.unwrap();
    // Who has each of the keys: nobody outside of the row above.
    let mut owners = BORDERS.map(|key| (1..=999).contains(&key).then_some("a"));
    let mut random = 12_345_u64;
    let mut pick = |below: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % below
    };
    for epoch in 2..60 {
        let (x, y) = (pick(BORDERS.len()), pick(BORDERS.len()));
        let (x, y) = (x.min(y), x.max(y));
        let (first, last) = (BORDERS[x], BORDERS[y]);
        home.fence(first, last, epoch).await.unwrap();
        owners[x..=y].fill(None);
        home.fence(first, last, epoch).await.unwrap();
        if pick(3) > 0 {
            let cell = ["a", "b"][pick(2)];
            home.activate(first, last, cell, epoch).await.unwrap();
            owners[x..=y].fill(Some(cell));
        }
        let mut session = home.connect().await?;
        for (key, owner) in BORDERS.into_iter().zip(owners) {
            for cell in ["a", "b"] {
                let expected = if owner == Some(cell) {
                    Ok(())
                } else {
                    Err("TC001".to_owned())
                };
                let answer = guard(&mut session, key, cell, epoch).await;
                assert_eq!(
                    answer,
                    expected,
                    "{key} for {cell} after {first}..={last} at {epoch}: {:?}",
                    home.rows().await?
                );
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_of_rows_hides_a_writer() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.activate(0, 999, CELL, 1).await.unwrap();
    sqlx::query("SELECT titan.split(500)")
        .execute(&home.pool)
        .await?;
    let mut old = open_writer(&home, 700, 1).await?;
    sqlx::query("SELECT titan.merge(0, 999)")
        .execute(&home.pool)
        .await?;
    assert_eq!(home.rows().await?, ["0..=999 cell-001@1 active"]);
    home.activate(0, 999, CELL, 2).await.unwrap();
    sqlx::query("SELECT titan.split(700)")
        .execute(&home.pool)
        .await?;
    let answer = home.try_fence(600, 999, 3, 100, 0).await.unwrap();
    assert_ne!(answer["outcome"], "fenced", "{answer}");
    old.execute("COMMIT").await?;
    home.fence(600, 999, 3).await.unwrap();
    assert_eq!(
        home.things().await?,
        1,
        "its row is there when the fence is done"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_do_not_notice_splits_and_merges() -> anyhow::Result<()> {
    let home = Arc::new(Home::new().await?);
    home.activate(0, 999, CELL, 1).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let (home, stop) = (home.clone(), stop.clone());
            tokio::spawn(async move {
                let mut session = home.connect().await.unwrap();
                let mut written = 0;
                while !stop.load(Ordering::Relaxed) {
                    let owner = (writer * 61 + written * 7) % 1_000;
                    assert_eq!(write(&mut session, owner, 1).await, Ok(()), "of {owner}");
                    written += 1;
                }
                written
            })
        })
        .collect();
    let started = Instant::now();
    let mut changes = 0;
    while started.elapsed() < Duration::from_secs(2) {
        let at = 1 + (changes * 37) % 998;
        sqlx::query("SELECT titan.split($1)")
            .bind(at)
            .execute(&home.pool)
            .await?;
        if changes % 3 == 2 {
            sqlx::query("SELECT titan.merge(0, 999)")
                .execute(&home.pool)
                .await?;
        }
        changes += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await?;
    }
    assert!(
        changes > 20 && written > 100,
        "{changes} changes, {written} writes"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_dies_leaves_the_range_open_or_to_be_opened() -> anyhow::Result<()> {
    for at in ["fence_quiet", "fence_closed", "fence_drained"] {
        let home = Home::with(&pausing()).await?;
        home.activate(0, 999, CELL, 1).await.unwrap();
        let (_gate, fencing) = paused_fence(&home, at, (100, 199), 2, 200).await?;
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL titan.fence%' AND datname = current_database()",
        )
        .execute(&home.pool)
        .await?;
        assert!(fencing.await?.is_err());
        let mut session = home.connect().await?;
        if at == "fence_quiet" {
            assert_eq!(write(&mut session, 150, 1).await, Ok(()), "{at}");
        } else {
            session.execute("BEGIN").await?;
            let refusal = raw_guard(&mut session, 150, CELL, 1).await.unwrap_err();
            assert_eq!(detail(&refusal)["reason"], "closing", "{at}");
            session.execute("ROLLBACK").await?;
            home.wait_until(OVERDUE).await?;
            let refusal = raw_guard(&mut session, 150, CELL, 1).await.unwrap_err();
            assert_eq!(detail(&refusal)["overdue"], true, "{at}");
            let reopened: bool = sqlx::query_scalar("SELECT titan.reopen(199)")
                .fetch_one(&mut session)
                .await?;
            assert!(reopened, "{at}");
            assert_eq!(write(&mut session, 150, 1).await, Ok(()), "{at}");
        }
        home.wait_until("SELECT bool_and(rest_until IS NULL OR rest_until < clock_timestamp()) FROM titan.ranges")
            .await?;
        home.fence(100, 199, 2).await.unwrap();
        assert_eq!(
            write(&mut session, 150, 1).await,
            Err("TC001".into()),
            "{at}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_is_too_slow_is_lost_also_when_another_closed_the_range() -> anyhow::Result<()>
{
    for closed_again in [false, true] {
        let home = Home::with(&pausing()).await?;
        home.activate(0, 999, CELL, 1).await.unwrap();
        let (mut gate, slow) = paused_fence(&home, "fence_drained", (0, 999), 3, 100).await?;
        home.wait_until(OVERDUE).await?;
        assert!(
            sqlx::query_scalar::<_, bool>("SELECT titan.reopen(7)")
                .fetch_one(&home.pool)
                .await?
        );
        let mut writer = open_writer(&home, 7, 1).await?;
        if closed_again {
            // Another fence, while the first sleeps and the writer is open: as if the first had closed it.
            sqlx::query(
                "UPDATE titan.ranges SET state = 'closing', reopen_as = 'active', attempt = nextval('titan.attempts'),
                    closing_until = clock_timestamp() + interval '1 min'",
            )
            .execute(&home.pool)
            .await?;
        }
        open_gate(&mut gate).await?;
        assert_eq!(
            slow.await?.unwrap()["outcome"],
            "lost",
            "closed again: {closed_again}"
        );
        writer.execute("COMMIT").await?;
        let state = if closed_again { "closing" } else { "active" };
        assert_eq!(home.rows().await?, [format!("0..=999 cell-001@1 {state}")]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_fences_one_is_put_off_and_a_stale_one_closes_nothing() -> anyhow::Result<()> {
    let home = Home::with(&pausing()).await?;
    home.activate(0, 999, CELL, 5).await.unwrap();
    assert_eq!(home.fence(0, 99, 4).await, Err("TC004".into()));
    assert_eq!(home.fence(0, 99, 5).await, Err("TC004".into()));
    assert_eq!(home.rows().await?, ["0..=999 cell-001@5 active"]);

    let (mut gate, first) = paused_fence(&home, "fence_closed", (0, 499), 6, 5_000).await?;
    for (range, epoch) in [((0, 499), 6), ((200, 700), 6), ((499, 499), 7)] {
        let answer = home
            .try_fence(range.0, range.1, epoch, 100, 0)
            .await
            .unwrap();
        assert_eq!(answer["why"], "closing", "{range:?}: {answer}");
    }
    assert_eq!(home.activate(0, 99, CELL, 9).await, Err("TC005".into()));
    for change in [
        "SELECT titan.split(10)",
        "SELECT titan.merge(0, 999)",
        "SELECT titan.remove(0, 9, 9)",
    ] {
        let error = sqlx::query(change).execute(&home.pool).await.unwrap_err();
        assert_eq!(code(&error), "TC005", "{change}");
    }
    home.fence(500, 600, 6).await.unwrap();
    open_gate(&mut gate).await?;
    assert_eq!(first.await?.unwrap()["outcome"], "fenced");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_given_up_leaves_no_trace_but_cuts() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.activate(100, 199, CELL, 1).await.unwrap();
    home.fence(300, 399, 2).await.unwrap();
    let before = home.rows().await?;
    let mut writer = open_writer(&home, 150, 1).await?;
    let answer = home.try_fence(0, i64::MAX, 9, 1_000, 0).await.unwrap();
    assert_eq!(answer["outcome"], "reopened", "{answer}");
    assert_eq!(
        home.rows().await?,
        before,
        "gaps and older fences are what they were"
    );
    home.activate(200, 299, CELL, 3).await.unwrap();
    writer.execute("COMMIT").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_passed_stays_passed_and_new_owners_are_refused() -> anyhow::Result<()> {
    let home = Home::with(&pausing()).await?;
    home.activate(0, 999, CELL, 1).await.unwrap();
    let (mut gate, fencing) = {
        let mut writer = open_writer(&home, 1, 1).await?;
        let (gate, fencing) = paused_fence(&home, "fence_closed", (0, 999), 2, 5_000).await?;
        assert_eq!(
            guard(&mut writer, 1, CELL, 1).await,
            Ok(()),
            "still registered"
        );
        insert(&mut writer, 1).await.unwrap();
        writer.execute("SAVEPOINT s").await?;
        assert_eq!(guard(&mut writer, 2, CELL, 1).await, Err("TC001".into()));
        writer.execute("ROLLBACK TO s").await?;
        writer.execute("COMMIT").await?;
        (gate, fencing)
    };
    open_gate(&mut gate).await?;
    assert_eq!(fencing.await?.unwrap()["outcome"], "fenced");
    assert_eq!(home.things().await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_keeps_its_place() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.activate(0, 999, CELL, 1).await.unwrap();
    let mut writer = open_writer(&home, 1, 1).await?;
    writer
        .execute("PREPARE TRANSACTION 'ownership prepared'")
        .await?;
    drop(writer);
    let answer = home.try_fence(0, 999, 2, 100, 0).await.unwrap();
    assert_eq!(answer["outcome"], "reopened", "{answer}");
    assert!(answer["blockers"][0]["pid"].is_null(), "{answer}");
    home.pool
        .execute("COMMIT PREPARED 'ownership prepared'")
        .await?;
    home.wait_until(
        "SELECT bool_and(rest_until IS NULL OR rest_until < clock_timestamp()) FROM titan.ranges",
    )
    .await?;
    home.fence(0, 999, 2).await.unwrap();
    assert_eq!(home.things().await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_stand_alone_closes_nothing() -> anyhow::Result<()> {
    let home = Home::new().await?;
    home.activate(0, 999, CELL, 1).await.unwrap();
    for sql in [
        "BEGIN; CALL titan.fence(0, 999, 2, 100, 0)",
        "SELECT 1; CALL titan.fence(0, 999, 2, 100, 0)",
        "CALL titan.fence(0, 999, 2, 5, 0)",
        "CALL titan.fence(9, 0, 2, 100, 0)",
        "CALL titan.fence(0, 999, NULL, 100, 0)",
    ] {
        let mut session = home.connect().await?;
        assert!(
            sqlx::raw_sql(sql).execute(&mut session).await.is_err(),
            "{sql}"
        );
    }
    assert_eq!(home.rows().await?, ["0..=999 cell-001@1 active"]);
    Ok(())
}
