//! Migrations across releases.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::borrow::Cow;
use std::sync::LazyLock;

use cell_kit::config::Config;
use cell_kit::{Context, IDEMPOTENCY_KEYS, Service, StartError, Store};
use clap::Parser;
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Connection, PgConnection};

fn migration(version: i64, description: &'static str, sql: &'static str) -> Migration {
    Migration::new(
        version,
        Cow::Borrowed(description),
        MigrationType::Simple,
        sql.into_sql_str(),
        false,
    )
}

fn first() -> Migration {
    migration(1001, "first", "CREATE TABLE things (id bigint PRIMARY KEY)")
}

static OLD: LazyLock<Migrator> = LazyLock::new(|| Migrator::with_migrations(vec![first()]));
static NEW: LazyLock<Migrator> = LazyLock::new(|| {
    let second = migration(1002, "second", "ALTER TABLE things ADD note text");
    Migrator::with_migrations(vec![first(), second])
});

fn release(migrations: &'static Migrator) -> Service {
    Service {
        name: "things",
        port: 50099,
        grpc: &[],
        descriptor: &[],
        migrations,
        tables: &[IDEMPOTENCY_KEYS],
        topics: &[],
        stores: &[Store::Postgres],
        workers: &[],
        build: |_: Context| {
            Box::pin(async { Err(StartError::Other("it does not serve".to_owned())) })
        },
    }
}

#[tokio::test]
async fn a_release_that_is_older_than_the_schema_is_no_failure() -> anyhow::Result<()> {
    let database = tokio::task::spawn_blocking(titan_testbed::postgres).await??;
    let mut connection = PgConnection::connect(&database.url()).await?;
    sqlx::raw_sql(cell_kit::ownership::BOOTSTRAP_SQL)
        .execute(&mut connection)
        .await?;
    let port = database.port.to_string();
    let config = Config::parse_from([
        "things",
        "--pg-host",
        &database.host,
        "--pg-port",
        &port,
        "--pg-database",
        &database.name,
        "--pg-user",
        &database.user,
        "--pg-password",
        &database.password,
        "--pg-schema",
        "public",
    ]);
    cell_kit::migrate(&release(&NEW), &config).await?;
    // On call goes back to the release before.
    cell_kit::migrate(&release(&OLD), &config).await?;
    sqlx::query("SELECT note FROM things")
        .execute(&mut connection)
        .await?;
    Ok(())
}
