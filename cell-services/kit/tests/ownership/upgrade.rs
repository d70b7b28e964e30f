//! From the ownership of the release before, with its writers open; and not back.

use sqlx::{AssertSqlSafe, Executor};

use crate::failpoint::replaced;
use crate::home::{CELL, Home, code, guard, insert, write};

const OLD: &str = include_str!("../fixtures/titan_v1.sql");
const NEW: &str = cell_kit::ownership::BOOTSTRAP_SQL;

async fn install(home: &Home, sql: &str) -> Result<(), String> {
    let mut session = home.connect().await.unwrap();
    // An open writer must not hold it up, for everybody would queue behind it.
    session.execute("SET lock_timeout = '1s'").await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut session)
        .await
        .map(|_| ())
        .map_err(|error| code(&error))
}

async fn old_home() -> anyhow::Result<Home> {
    let home = Home::with(OLD).await?;
    home.pool
        .execute("SELECT titan.activate(0, 999, 'cell-001', 5)")
        .await?;
    home.pool
        .execute("SELECT titan.fence(1000, 1999, 7)")
        .await?;
    Ok(home)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_taken_over_and_a_second_run_changes_nothing() -> anyhow::Result<()> {
    let home = old_home().await?;
    let rows = ["0..=999 cell-001@5 active", "1000..=1999 @7 fenced"];
    for _ in 0..3 {
        install(&home, NEW).await.unwrap();
        assert_eq!(home.rows().await?, rows);
    }
    let mut session = home.connect().await?;
    assert_eq!(write(&mut session, 7, 5).await, Ok(()));
    assert_eq!(write(&mut session, 7, 4).await, Err("TC001".into()));
    home.fence(0, 99, 8).await.unwrap();
    install(&home, NEW).await.unwrap();
    assert_eq!(home.rows().await?.len(), 3, "the old rows do not come back");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_of_the_old_guard_goes_on_and_a_fence_sees_it() -> anyhow::Result<()> {
    // Once more without the look at old locks: that the fence sees the writer is no accident.
    let blind = replaced(
        NEW,
        "old_guard := EXISTS (SELECT FROM titan.old_writers());",
        "old_guard := false;",
    );
    for (sql, sees) in [(NEW, true), (&blind, false)] {
        let home = old_home().await?;
        let mut old = home.connect().await?;
        old.execute("BEGIN").await?;
        guard(&mut old, 7, CELL, 5).await.unwrap();
        install(&home, sql).await.unwrap();
        // By the note of its range, which it had all of.
        insert(&mut old, 7).await.unwrap();
        insert(&mut old, 8).await.unwrap();
        old.execute("SAVEPOINT s").await?;
        assert_eq!(insert(&mut old, 1_000).await, Err("TC002".into()));
        old.execute("ROLLBACK TO s").await?;
        let answer = home.try_fence(0, 999, 9, 200, 0).await.unwrap();
        assert_eq!(answer["outcome"] == "reopened", sees, "{answer}");
        old.execute("COMMIT").await?;
        if sees {
            assert!(answer["blockers"][0]["pid"].is_number(), "{answer}");
            home.wait_until("SELECT bool_and(rest_until IS NULL OR rest_until < clock_timestamp()) FROM titan.ranges")
                .await?;
            home.fence(0, 999, 9).await.unwrap();
        }
        assert_eq!(home.things().await?, 2);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_the_old_guard_that_was_under_way_is_refused() -> anyhow::Result<()> {
    let home = old_home().await?;
    // The old body under another name stands for a call that began before the new one was committed.
    let start = OLD.find("CREATE OR REPLACE FUNCTION titan.guard(").unwrap();
    let end = start + OLD[start..].find("\n$$;").unwrap() + 4;
    let body = OLD[start..end]
        .replace("titan.guard(", "titan.old_guard(")
        .replace("guard.cell", "old_guard.cell")
        .replace("guard.epoch", "old_guard.epoch");
    sqlx::raw_sql(AssertSqlSafe(body))
        .execute(&home.pool)
        .await?;
    home.pool
        .execute("SELECT titan.old_guard(7, 'cell-001', 5)")
        .await?;
    install(&home, NEW).await.unwrap();
    let refusal = home
        .pool
        .execute("SELECT titan.old_guard(7, 'cell-001', 5)")
        .await
        .unwrap_err();
    assert_eq!(code(&refusal), "TC001");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_release_before_cannot_put_its_guard_back() -> anyhow::Result<()> {
    for home in [old_home().await?, Home::new().await?] {
        install(&home, NEW).await.unwrap();
        home.activate(0, 999, CELL, 8).await.unwrap();
        let rows = home.rows().await?;
        let mut writer = home.connect().await?;
        writer.execute("BEGIN").await?;
        guard(&mut writer, 7, CELL, 8).await.unwrap();
        assert_eq!(install(&home, OLD).await, Err("42P13".into()));
        insert(&mut writer, 7).await.unwrap();
        writer.execute("COMMIT").await?;
        assert_eq!(home.rows().await?, rows);
        home.fence(0, 999, 9).await.unwrap();
        let mut late = home.connect().await?;
        assert_eq!(write(&mut late, 7, 8).await, Err("TC001".into()));
    }
    Ok(())
}
