//! What the guard costs a write transaction, next to the guard of the release before, in one run.
//!
//! `cargo test -p cell-kit --test ownership cost -- --ignored --nocapture`

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::home::Home;

const OLD: &str = include_str!("../fixtures/titan_v1.sql");
/// A transaction gets its number in any case: the guard only asks for it earlier.
const NONE: &str = "pg_current_xact_id()";
const GUARD: &str = "titan.guard(owner, 'cell-001', 1)";

/// Transactions of a round on the server, and rounds of each way, one after the other.
const LOOP: u32 = 2_000;
const ROUNDS: usize = 15;
const CLIENT_LOOP: u32 = 150;

struct Way {
    name: &'static str,
    home: Home,
    call: &'static str,
}

async fn ways() -> anyhow::Result<Vec<Way>> {
    let old = Home::with(OLD).await?;
    let new = Home::new().await?;
    for home in [&old, &new] {
        for range in 0..64 {
            let (first, last) = (range * 100, range * 100 + 99);
            sqlx::query("SELECT titan.activate($1, $2, 'cell-001', 1)")
                .bind(first)
                .bind(last)
                .execute(&home.pool)
                .await?;
        }
        home.pool.execute("ANALYZE").await?;
    }
    let unguarded = Home::new().await?;
    unguarded
        .pool
        .execute("ALTER TABLE things DISABLE TRIGGER USER")
        .await?;
    Ok(vec![
        Way {
            name: "none",
            home: unguarded,
            call: NONE,
        },
        Way {
            name: "old",
            home: old,
            call: GUARD,
        },
        Way {
            name: "new",
            home: new,
            call: GUARD,
        },
    ])
}

async fn session(way: &Way) -> anyhow::Result<PgConnection> {
    let mut session = way.home.connect().await?;
    session.execute("SET synchronous_commit = off").await?;
    Ok(session)
}

/// Microseconds a transaction, in a loop inside the server: guard alone, or with a row and its trigger.
async fn on_server(session: &mut PgConnection, way: &Way, insert: bool) -> anyhow::Result<f64> {
    let insert = if insert {
        "INSERT INTO things (owner_id, epoch) VALUES (owner, 1);"
    } else {
        ""
    };
    let sql = format!(
        "DO $$ DECLARE owner bigint; BEGIN FOR i IN 1..{LOOP} LOOP
             owner := (i * 37) % 6400; PERFORM {}; {insert} COMMIT;
         END LOOP; END $$",
        way.call
    );
    let started = Instant::now();
    session.execute(AssertSqlSafe(sql)).await?;
    Ok(started.elapsed().as_secs_f64() * 1e6 / f64::from(LOOP))
}

/// Microseconds a transaction as a service makes it: begin, guard, insert, commit.
async fn from_client(session: &mut PgConnection, way: &Way) -> anyhow::Result<f64> {
    let guard = format!("SELECT {}", way.call.replace("owner", "$1"));
    let guarded = way.name != "none";
    let started = Instant::now();
    for i in 0..CLIENT_LOOP {
        let owner = i64::from(i * 37 % 6_400);
        session.execute("BEGIN").await?;
        let mut guard = sqlx::query(AssertSqlSafe(guard.clone()));
        if guarded {
            guard = guard.bind(owner);
        }
        guard.execute(&mut *session).await?;
        sqlx::query("INSERT INTO things (owner_id, epoch) VALUES ($1, 1)")
            .bind(owner)
            .execute(&mut *session)
            .await?;
        session.execute("COMMIT").await?;
    }
    Ok(started.elapsed().as_secs_f64() * 1e6 / f64::from(CLIENT_LOOP))
}

fn quartiles(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 4], values[values.len() / 2])
}

fn print(what: &str, samples: &mut [Vec<f64>], ways: &[Way]) {
    let none = quartiles(&mut samples[0]);
    println!(
        "{what}: without a guard p25 {:.0} p50 {:.0} us a transaction",
        none.0, none.1
    );
    for (way, samples) in ways.iter().zip(samples).skip(1) {
        let with = quartiles(samples);
        println!(
            "    {} guard adds p25 {:.0} p50 {:.0} us",
            way.name,
            with.0 - none.0,
            with.1 - none.1
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn cost_of_the_guard() -> anyhow::Result<()> {
    let ways = ways().await?;
    for insert in [false, true] {
        let mut samples = vec![Vec::new(); ways.len()];
        for _ in 0..ROUNDS {
            for (way, samples) in ways.iter().zip(&mut samples) {
                let mut session = session(way).await?;
                samples.push(on_server(&mut session, way, insert).await?);
            }
        }
        let what = if insert {
            "on the server, guard, row and trigger"
        } else {
            "on the server, guard alone"
        };
        print(what, &mut samples, &ways);
    }
    for clients in [1, 16] {
        let mut samples = vec![Vec::new(); ways.len()];
        for _ in 0..ROUNDS {
            for (way, samples) in ways.iter().zip(&mut samples) {
                let runs = (0..clients).map(|_| async {
                    let mut session = session(way).await?;
                    from_client(&mut session, way).await
                });
                for run in futures::future::join_all(runs).await {
                    samples.push(run?);
                }
            }
        }
        print(&format!("{clients} clients"), &mut samples, &ways);
    }
    // The look of a fence: nothing else of it depends on how many write.
    let home = &ways[2].home;
    let mut writers = Vec::new();
    for owner in 0..300 {
        let mut writer = home.connect().await?;
        writer.execute("BEGIN").await?;
        sqlx::query("SELECT titan.guard($1, 'cell-001', 1)")
            .bind(owner)
            .execute(&mut writer)
            .await?;
        writers.push(writer);
    }
    let mut looks = Vec::new();
    for _ in 0..50 {
        let started = Instant::now();
        let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM titan.writers(0, 6399)")
            .fetch_one(&home.pool)
            .await?;
        looks.push(started.elapsed().as_secs_f64() * 1e6);
        assert_eq!(seen, 300);
    }
    let (_, median) = quartiles(&mut looks);
    println!("a look with 300 open write transactions: p50 {median:.0} us");
    assert!(
        Duration::from_micros(median as u64) < Duration::from_millis(15),
        "the look takes too long"
    );
    Ok(())
}
