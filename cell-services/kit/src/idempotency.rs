//! Idempotency keys: the same key and request is answered from what was saved, the same key with another
//! request is an error.
//!
//! The key is written in the transaction of the effect. A duplicate that arrives meanwhile waits at the unique
//! index until that transaction ends: then it finds the answer, or, after a roll-back, executes. A refused
//! request saves nothing and leaves its key free.

use std::time::Duration;

use prost::Message;
use sha2::{Digest, Sha256};
use sqlx::{Connection, Row};
use titan_routing::{Epoch, Key};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::Failure;
use crate::database::Database;
use crate::tx::Tx;

/// The longest key.
pub const MAX_KEY: usize = 255;

/// What to do with a mutation.
pub(crate) enum Claim {
    /// Execute it.
    Fresh,
    /// Answer with these bytes.
    Answered(Vec<u8>),
}

/// What two requests must share to be the same.
pub(crate) fn request_hash(method: &str, message: &impl Message) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update(method.as_bytes());
    hash.update([0]);
    hash.update(message.encode_to_vec());
    hash.finalize().to_vec()
}

pub(crate) async fn claim(
    tx: &mut Tx,
    key: &str,
    method: &str,
    hash: &[u8],
) -> Result<Claim, Failure> {
    let owner = tx.owner().as_i64();
    let inserted = sqlx::query(
        "INSERT INTO idempotency_keys (owner_id, key, method, request_hash) VALUES ($1, $2, $3, $4)
         ON CONFLICT (owner_id, key) DO NOTHING",
    )
    .bind(owner)
    .bind(key)
    .bind(method)
    .bind(hash)
    .execute(tx.connection()?)
    .await?;
    if inserted.rows_affected() == 1 {
        return Ok(Claim::Fresh);
    }
    // A new statement sees what the insert waited for.
    let row = sqlx::query(
        "SELECT method, request_hash, response FROM idempotency_keys WHERE owner_id = $1 AND key = $2",
    )
    .bind(owner)
    .bind(key)
    .fetch_optional(tx.connection()?)
    .await?;
    let Some(row) = row else {
        // Removed between the two statements, for its age.
        return Err(Failure::conflict(
            "the idempotency key has just expired; retry with a new one",
        ));
    };
    if row.get::<&[u8], _>("request_hash") != hash {
        return Err(Failure::refused(
            Code::AlreadyExists,
            format!(
                "idempotency key `{key}` was used for another request, to {}; use a new key for a new request",
                row.get::<&str, _>("method")
            ),
        ));
    }
    match row.get::<Option<Vec<u8>>, _>("response") {
        Some(bytes) => Ok(Claim::Answered(bytes)),
        None => Err(Failure::Corrupt(format!(
            "idempotency key `{key}` has no answer"
        ))),
    }
}

pub(crate) async fn answer(tx: &mut Tx, key: &str, response: &[u8]) -> Result<(), Failure> {
    sqlx::query("UPDATE idempotency_keys SET response = $3 WHERE owner_id = $1 AND key = $2")
        .bind(tx.owner().as_i64())
        .bind(key)
        .bind(response)
        .execute(tx.connection()?)
        .await?;
    Ok(())
}

/// How long a key is remembered.
const KEPT: &str = "7 days";

/// Removes keys that are too old, a batch at a time, by one replica.
pub(crate) async fn retention(database: Database, stop: CancellationToken) {
    let mut pause = Duration::from_secs(60);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = match remove_old(&database).await {
            Ok(0) => Duration::from_secs(600),
            Ok(removed) => {
                tracing::debug!(removed, "removed old idempotency keys");
                Duration::from_secs(1)
            }
            Err(error) => {
                tracing::debug!(%error, "cannot remove old idempotency keys now");
                Duration::from_secs(60)
            }
        };
    }
}

async fn remove_old(database: &Database) -> Result<u64, Failure> {
    let mut lease = database.dedicated().await?;
    let leads: bool = sqlx::query_scalar(
        "SELECT pg_try_advisory_lock(hashtext('idempotency ' || current_schema()), 1)",
    )
    .fetch_one(&mut lease)
    .await?;
    if !leads {
        return Ok(0);
    }
    let owners: Vec<i64> = sqlx::query_scalar(
        "SELECT DISTINCT owner_id FROM (SELECT owner_id FROM idempotency_keys
          WHERE created_at < now() - $1::interval LIMIT 1000) old",
    )
    .bind(KEPT)
    .fetch_all(&mut lease)
    .await?;
    let mut removed = 0;
    for owner in owners {
        let Ok(key) = Key::new(owner.cast_unsigned()) else {
            continue;
        };
        // Rows of owners that have moved away are not ours to touch.
        let Ok(owner) = database.ownership().check(key, Epoch(0)).await else {
            continue;
        };
        let mut tx = Tx::begin(database, owner).await?;
        removed += sqlx::query(
            "DELETE FROM idempotency_keys WHERE owner_id = $1 AND created_at < now() - $2::interval",
        )
        .bind(key.as_i64())
        .bind(KEPT)
        .execute(tx.connection()?)
        .await?
        .rows_affected();
        tx.commit(database).await?;
    }
    lease.close().await?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;
    use sqlx::Connection;
    use titan_routing::{
        Assignment, AssignmentState, CellEndpoint, KeyRange, KeyspaceMode, RoutingTable,
    };
    use tokio::sync::watch;

    use super::*;
    use crate::config::Config;
    use crate::metrics::Metrics;
    use crate::ownership::{BOOTSTRAP_SQL, Ownership};

    #[tokio::test(flavor = "multi_thread")]
    async fn old_keys_of_own_keys_are_removed() {
        let postgres = titan_testbed::postgres().unwrap();
        let mut admin = sqlx::PgConnection::connect(&postgres.url()).await.unwrap();
        sqlx::raw_sql(BOOTSTRAP_SQL)
            .execute(&mut admin)
            .await
            .unwrap();
        sqlx::raw_sql(include_str!("../migrations/0001_idempotency_keys.sql"))
            .execute(&mut admin)
            .await
            .unwrap();
        sqlx::raw_sql(
            "SELECT titan.activate(0, 9, 'cell-001', 1); SELECT titan.activate(10, 19, 'cell-002', 1);
             SET session_replication_role = replica;
             INSERT INTO idempotency_keys
             SELECT owner, age::text, '', '', '', now() - age * interval '1 day'
               FROM unnest(ARRAY[1, 2, 11]) owner, unnest(ARRAY[1, 6, 8, 30]) age;",
        )
        .execute(&mut admin)
        .await
        .unwrap();
        let port = postgres.port.to_string();
        let config = Config::parse_from([
            "test",
            "--pg-host",
            &postgres.host,
            "--pg-port",
            &port,
            "--pg-database",
            &postgres.name,
            "--pg-user",
            &postgres.user,
            "--pg-password",
            &postgres.password,
            "--pg-schema",
            "public",
        ]);
        let row = |first, last, cell: &str| Assignment {
            range: KeyRange::new(Key::new(first).unwrap(), Key::new(last).unwrap()).unwrap(),
            cell: cell.to_owned(),
            home: cell.to_owned(),
            state: AssignmentState::Active,
            epoch: Epoch(1),
        };
        let endpoint = |cell: &str| CellEndpoint {
            cell: cell.to_owned(),
            region: String::new(),
            endpoint: String::new(),
        };
        let table = RoutingTable::new(
            Epoch(1),
            KeyspaceMode::UserId,
            vec![row(0, 9, "cell-001"), row(10, 19, "cell-002")],
            vec![endpoint("cell-001"), endpoint("cell-002")],
            Vec::new(),
        )
        .unwrap();
        let (_sender, tables) = watch::channel(Arc::new(table));
        let ownership = Ownership::new("cell-001", "cell-001", tables);
        let database = Database::new(
            &config.postgres,
            ownership,
            Metrics::new("test", &[]).unwrap(),
        )
        .unwrap();

        assert_eq!(remove_old(&database).await.unwrap(), 4);
        assert_eq!(remove_old(&database).await.unwrap(), 0);
        let left: Vec<(i64, String)> = sqlx::query_as(
            "SELECT owner_id, key FROM idempotency_keys ORDER BY owner_id, key::int",
        )
        .fetch_all(&mut admin)
        .await
        .unwrap();
        let expected: Vec<(i64, String)> = [
            (1, "1"),
            (1, "6"),
            (2, "1"),
            (2, "6"),
            (11, "1"),
            (11, "6"),
            (11, "8"),
            (11, "30"),
        ]
        .map(|(owner, key)| (owner, key.to_owned()))
        .to_vec();
        assert_eq!(
            left, expected,
            "another cell's rows, or young ones, were touched"
        );
    }
}
