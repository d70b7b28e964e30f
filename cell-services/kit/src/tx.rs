//! Write transactions: the only way in which a service writes.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use futures::future::BoxFuture;
use prost::Message;
use serde::Serialize;
use sqlx::pool::PoolConnection;
use sqlx::{Executor, PgConnection, Postgres};
use titan_routing::{Epoch, Key};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::database::Database;
use crate::idempotency::{self, Claim};
use crate::outbox::{self, Event};
use crate::ownership::{GuardRefusal, Owner};
use crate::request::Caller;
use crate::{Failure, headers};

/// How long a writer waits for a fence. A fence closes a range for 150 ms, unless it has a reason to take longer.
const HOLD: Duration = Duration::from_secs(1);

/// What runs in a transaction, and may run again from its start.
pub type Effect<'t, R> = BoxFuture<'t, Result<R, Failure>>;

/// A transaction that has passed the guard for one owner.
///
/// Dropped without commit, its connection is closed, and the server rolls it back.
pub struct Tx {
    connection: Option<PoolConnection<Postgres>>,
    owner: Owner,
    cell: String,
    traceparent: Option<String>,
    now: DateTime<Utc>,
    events: usize,
}

impl std::fmt::Debug for Tx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tx")
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

impl Tx {
    /// Begins a transaction for `owner` and passes the guard.
    ///
    /// While a fence has the range closed the guard refuses, and this waits without a connection until the fence is done
    /// or has given up: for a second at most.
    ///
    /// # Errors
    /// When the owner is not, or no longer, this cell's; a fence took longer than that; or the database does not answer.
    pub async fn begin(database: &Database, owner: Owner) -> Result<Self, Failure> {
        let held_until = Instant::now() + HOLD;
        let (mut owner, mut caught_up) = (owner, false);
        loop {
            let error = match Tx::pass_guard(database, owner).await {
                Err(Failure::Database(error)) => error,
                answer => return answer,
            };
            let Some((refusal, message)) = GuardRefusal::of(&error) else {
                return Err(error.into());
            };
            let ownership = database.ownership();
            match refusal.reason.as_str() {
                // A fence is looking at who writes here. It ends within milliseconds, one way or the other.
                "closing" => {
                    if refusal.overdue == Some(true) && reopen(database, owner.key).await? {
                        continue;
                    }
                    let pause = between_tries();
                    if Instant::now() + pause >= held_until {
                        database.metrics().refused("closing");
                        return Err(Failure::Closing(message));
                    }
                    database.metrics().retried("closing");
                    tokio::time::sleep(pause).await;
                }
                // The data home knows a newer assignment to this very cell: learn of it and try once more.
                "stale" if !caught_up => {
                    caught_up = true;
                    owner = ownership.catch_up(owner.key, Epoch(refusal.epoch)).await?;
                    if owner.epoch.0 < refusal.epoch {
                        database.metrics().refused("guard");
                        return Err(refusal.into_not_owned(message, ownership).into());
                    }
                }
                _ => {
                    database.metrics().refused("guard");
                    return Err(refusal.into_not_owned(message, ownership).into());
                }
            }
        }
    }

    async fn pass_guard(database: &Database, owner: Owner) -> Result<Self, Failure> {
        let mut tx = Tx::open(database, owner).await?;
        let passed = sqlx::query("SELECT titan.guard($1, $2, $3)")
            .bind(owner.key.as_i64())
            .bind(&tx.cell)
            .bind(owner.epoch.0.cast_signed())
            .execute(tx.connection()?)
            .await;
        if let Err(error) = passed {
            if !crate::error::is_transient(&error) {
                tx.rollback().await?;
            }
            return Err(error.into());
        }
        Ok(tx)
    }

    /// A transaction that has not passed the guard.
    async fn open(database: &Database, owner: Owner) -> Result<Self, Failure> {
        let connection = database.pool().acquire().await?;
        let mut tx = Tx {
            connection: Some(connection),
            owner,
            cell: database.ownership().cell().to_owned(),
            traceparent: None,
            now: Utc::now().trunc_subsecs(6),
            events: 0,
        };
        tx.connection()?
            .execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            .await?;
        Ok(tx)
    }

    /// The owner whose rows may be written.
    #[must_use]
    pub fn owner(&self) -> Key {
        self.owner.key
    }

    /// The time of the transaction, in microseconds: what PostgreSQL keeps.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// A new id, ordered by time.
    #[must_use]
    pub fn new_id(&self) -> Uuid {
        Uuid::now_v7()
    }

    /// The connection, for statements.
    ///
    /// # Errors
    /// Never while the transaction is open.
    pub fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        self.connection
            .as_deref_mut()
            .ok_or(sqlx::Error::PoolClosed)
    }

    /// Writes an event to the outbox: it is published if, and only if, this transaction commits.
    ///
    /// # Errors
    /// When the event cannot be written, or is larger than Kafka takes.
    pub async fn emit(&mut self, event: &Event<'_, impl Serialize + Sync>) -> Result<(), Failure> {
        let row = outbox::Row {
            owner: self.owner,
            cell: &self.cell,
            event_id: Uuid::now_v7(),
            at: self.now,
            traceparent: self.traceparent.as_deref(),
        };
        let connection = self
            .connection
            .as_deref_mut()
            .ok_or(sqlx::Error::PoolClosed)?;
        outbox::write(connection, &row, event).await?;
        self.events += 1;
        Ok(())
    }

    /// Commits.
    ///
    /// # Errors
    /// When the commit is not known to have happened.
    pub async fn commit(mut self, database: &Database) -> Result<(), Failure> {
        self.finish("COMMIT").await?;
        if self.events > 0 {
            database.outbox_written().notify_one();
        }
        Ok(())
    }

    /// Rolls back and keeps the connection.
    ///
    /// # Errors
    /// When the connection is lost; the transaction is gone all the same.
    pub async fn rollback(mut self) -> Result<(), Failure> {
        self.finish("ROLLBACK").await
    }

    async fn finish(&mut self, statement: &'static str) -> Result<(), Failure> {
        self.connection()?.execute(statement).await?;
        // Back to the pool.
        self.connection = None;
        Ok(())
    }
}

/// Opens a range again whose fence is gone. Returns whether it was closed.
async fn reopen(database: &Database, key: Key) -> Result<bool, Failure> {
    let owner = Owner {
        key,
        epoch: Epoch(0),
    };
    let mut tx = Tx::open(database, owner).await?;
    // Nothing is lost with it: a range that is closed again has its fence overdue again.
    tx.connection()?
        .execute("SET LOCAL synchronous_commit TO local")
        .await?;
    let reopened = sqlx::query_scalar("SELECT titan.reopen($1)")
        .bind(key.as_i64())
        .fetch_one(tx.connection()?)
        .await?;
    tx.finish("COMMIT").await?;
    Ok(reopened)
}

/// 5 to 15 ms, for writers that were refused together must not come back together.
fn between_tries() -> Duration {
    let random = Uuid::now_v7().as_u128() % 10_000;
    Duration::from_micros(5_000 + u64::try_from(random).unwrap_or_default())
}

impl Drop for Tx {
    fn drop(&mut self) {
        // Neither committed nor rolled back: nobody knows what the session is in the middle of.
        if let Some(connection) = &mut self.connection {
            connection.close_on_drop();
        }
    }
}

impl Database {
    /// Executes a mutation in a guarded transaction, together with its idempotency key.
    ///
    /// The effect runs again from its start when the connection or a conflict was at fault; the key makes that
    /// safe even when the first attempt had been committed. A request that was answered before is answered the
    /// same, and not executed.
    ///
    /// # Errors
    /// What the effect refuses, a missing or reused idempotency key, an owner that is not this cell's.
    pub async fn mutate<M, R, F>(
        &self,
        request: Request<M>,
        effect: F,
    ) -> Result<Response<R>, Status>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
        F: for<'t> Fn(&'t mut Tx, &'t M) -> BoxFuture<'t, Result<R, Failure>> + Send + Sync,
    {
        let caller = Caller::of(&request)?.clone();
        let key = caller.idempotency_key()?.to_owned();
        let message = request.into_inner();
        let hash = idempotency::request_hash(&caller.method, &message);

        let (caller, key, hash, message, effect) = (&caller, &key, &hash, &message, &effect);
        let (answer, replayed) = self
            .persist("the transaction", move || {
                Box::pin(async move {
                    let mut tx = Tx::begin(self, caller.owner).await?;
                    tx.traceparent.clone_from(&caller.traceparent);
                    match execute(&mut tx, &caller.method, key, hash, message, effect).await {
                        Ok((answer, false)) => {
                            tx.commit(self).await?;
                            Ok((answer, false))
                        }
                        Ok((answer, true)) => {
                            tx.rollback().await?;
                            Ok((answer, true))
                        }
                        Err(failure) if failure.is_transient() => Err(failure),
                        Err(failure) => {
                            tx.rollback().await?;
                            Err(failure)
                        }
                    }
                })
            })
            .await?;
        let mut response = Response::new(answer);
        if replayed {
            self.metrics().replayed();
            response.metadata_mut().insert(
                headers::REPLAYED,
                tonic::metadata::MetadataValue::from_static("true"),
            );
        }
        Ok(response)
    }
}

async fn execute<M, R, F>(
    tx: &mut Tx,
    method: &str,
    key: &str,
    hash: &[u8],
    message: &M,
    effect: &F,
) -> Result<(R, bool), Failure>
where
    M: Message,
    R: Message + Default,
    F: for<'t> Fn(&'t mut Tx, &'t M) -> BoxFuture<'t, Result<R, Failure>>,
{
    match idempotency::claim(tx, key, method, hash).await? {
        Claim::Answered(bytes) => {
            let answer = R::decode(&*bytes).map_err(|error| Failure::Corrupt(error.to_string()))?;
            Ok((answer, true))
        }
        Claim::Fresh => {
            let answer = effect(tx, message).await?;
            idempotency::answer(tx, key, &answer.encode_to_vec()).await?;
            Ok((answer, false))
        }
    }
}
