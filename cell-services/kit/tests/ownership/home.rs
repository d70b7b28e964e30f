//! A data home, and what is done to it.

use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

pub const CELL: &str = "cell-001";

/// A table that services write, and the trigger on it.
const THINGS: &str =
    "CREATE TABLE things (owner_id bigint NOT NULL, id uuid NOT NULL DEFAULT gen_random_uuid(), epoch bigint,
                          PRIMARY KEY (owner_id, id));
     SELECT titan.protect('things');";

pub struct Home {
    pub pool: PgPool,
    pub url: String,
}

impl Home {
    /// A data home as the operator makes it, in a database of its own.
    pub async fn new() -> anyhow::Result<Self> {
        Self::with(cell_kit::ownership::BOOTSTRAP_SQL).await
    }

    /// A data home by other SQL.
    pub async fn with(sql: &str) -> anyhow::Result<Self> {
        let database = tokio::task::spawn_blocking(titan_testbed::postgres).await??;
        Self::at(&database.url(), sql).await
    }

    /// A data home in a given database.
    pub async fn at(url: &str, sql: &str) -> anyhow::Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(40)
            .connect(url)
            .await?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&pool)
            .await?;
        sqlx::raw_sql(THINGS).execute(&pool).await?;
        let url = url.to_owned();
        Ok(Home { pool, url })
    }

    pub async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect(&self.url).await
    }

    pub async fn activate(
        &self,
        first: i64,
        last: i64,
        cell: &str,
        epoch: i64,
    ) -> Result<bool, String> {
        sqlx::query_scalar("SELECT titan.activate($1, $2, $3, $4)")
            .bind(first)
            .bind(last)
            .bind(cell)
            .bind(epoch)
            .fetch_one(&self.pool)
            .await
            .map_err(|error| code(&error))
    }

    /// Fences, and fails unless that is the outcome. A range that an earlier fence gave up stays open for as long as it was
    /// closed, so the fence is called again while the range rests.
    pub async fn fence(&self, first: i64, last: i64, epoch: i64) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let answer = self.try_fence(first, last, epoch, 2_000, 2_000).await?;
            if answer["outcome"] == "fenced" {
                return Ok(());
            }
            if answer["why"] != "resting" || Instant::now() > deadline {
                return Err(answer.to_string());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Calls the fence, and returns its answer.
    pub async fn try_fence(
        &self,
        first: i64,
        last: i64,
        epoch: i64,
        budget: i32,
        quiet: i32,
    ) -> Result<Value, String> {
        let mut session = self.connect().await.map_err(|error| code(&error))?;
        fence(&mut session, (first, last), epoch, budget, quiet)
            .await
            .map_err(|error| code(&error))
    }

    pub async fn things(&self) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar("SELECT count(*) FROM things")
            .fetch_one(&self.pool)
            .await?)
    }

    /// The rows as `first..=last cell@epoch state`.
    pub async fn rows(&self) -> anyhow::Result<Vec<String>> {
        Ok(sqlx::query_scalar(
            "SELECT format('%s..=%s %s@%s %s', range_first, range_last, cell, epoch, state)
               FROM titan.ranges ORDER BY range_first",
        )
        .fetch_all(&self.pool)
        .await?)
    }

    /// Waits until a query says true.
    pub async fn wait_until(&self, query: &str) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let yes: bool = sqlx::query_scalar(AssertSqlSafe(query.to_owned()))
                .fetch_one(&self.pool)
                .await?;
            if yes {
                return Ok(());
            }
            anyhow::ensure!(tokio::time::Instant::now() < deadline, "never: {query}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until a row is being closed.
    pub async fn wait_until_closing(&self) -> anyhow::Result<()> {
        self.wait_until("SELECT EXISTS (SELECT FROM titan.ranges WHERE state = 'closing')")
            .await
    }
}

pub async fn fence(
    session: &mut PgConnection,
    (first, last): (i64, i64),
    epoch: i64,
    budget: i32,
    quiet: i32,
) -> Result<Value, sqlx::Error> {
    sqlx::query_scalar("CALL titan.fence($1, $2, $3, $4, $5)")
        .bind(first)
        .bind(last)
        .bind(epoch)
        .bind(budget)
        .bind(quiet)
        .fetch_one(session)
        .await
}

pub fn code(error: &sqlx::Error) -> String {
    match error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
    {
        Some(code) => code.into_owned(),
        None => error.to_string(),
    }
}

/// What the guard says in its DETAIL.
pub fn detail(error: &sqlx::Error) -> Value {
    error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>())
        .and_then(sqlx::postgres::PgDatabaseError::detail)
        .and_then(|detail| serde_json::from_str(detail).ok())
        .unwrap_or_default()
}

pub async fn raw_guard(
    connection: &mut PgConnection,
    owner: i64,
    cell: &str,
    epoch: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT titan.guard($1, $2, $3)")
        .bind(owner)
        .bind(cell)
        .bind(epoch)
        .execute(connection)
        .await
        .map(|_| ())
}

pub async fn guard(
    connection: &mut PgConnection,
    owner: i64,
    cell: &str,
    epoch: i64,
) -> Result<(), String> {
    let passed = raw_guard(connection, owner, cell, epoch).await;
    passed.map_err(|error| code(&error))
}

pub async fn insert(connection: &mut PgConnection, owner: i64) -> Result<(), String> {
    sqlx::query("INSERT INTO things (owner_id) VALUES ($1)")
        .bind(owner)
        .execute(connection)
        .await
        .map(|_| ())
        .map_err(|error| code(&error))
}

/// Guard and insert in one transaction.
pub async fn write(connection: &mut PgConnection, owner: i64, epoch: i64) -> Result<(), String> {
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
