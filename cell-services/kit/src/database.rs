//! The pool of a service, which follows the leader of its PostgreSQL.
//!
//! Sessions are read-only unless a [`Tx`](crate::Tx) begins in them. A watcher asks the leader twice a second
//! who it is; when the answer is wrong or missing it makes a fresh pool as soon as there is a leader again and
//! aborts what still waits on the old one, so that nothing hangs on a connection to a server that is gone.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{Connection, PgConnection, Row};
use titan_routing::Key;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::Failure;
use crate::config::{ConfigError, PostgresConfig};
use crate::metrics::Metrics;
use crate::ownership::Ownership;
use crate::request::Caller;

/// How often the watcher asks the leader.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// How often it asks while there is none.
const SEARCH_EVERY: Duration = Duration::from_millis(200);
/// How long the leader may take to answer the watcher.
const ANSWER_WITHIN: Duration = Duration::from_millis(1_500);

/// What runs on a connection that may not write, and may run again.
pub type Query<'c, R> = BoxFuture<'c, Result<R, Failure>>;

/// A service's PostgreSQL.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    options: PgConnectOptions,
    connections: u32,
    attempt: Duration,
    /// How long a request goes on trying.
    budget: Duration,
    pool: ArcSwap<PgPool>,
    generation: watch::Sender<u64>,
    ownership: Ownership,
    outbox_written: Notify,
    metrics: Metrics,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("host", &self.inner.options.get_host())
            .finish_non_exhaustive()
    }
}

/// Connection options for the service's role, with its schema as search path.
///
/// # Errors
/// When PGSSLMODE is wrong.
pub fn connect_options(postgres: &PostgresConfig) -> Result<PgConnectOptions, ConfigError> {
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(&postgres.host)
        .port(postgres.port)
        .database(&postgres.database)
        .username(&postgres.user)
        .ssl_mode(postgres.ssl_mode()?)
        // Quoted, for `user` and `order` are reserved words.
        .options([("search_path", format!("\"{}\"", postgres.schema))]);
    if !postgres.ca.is_empty() {
        options = options.ssl_root_cert_from_pem(postgres.ca.clone().into_bytes());
    }
    if !postgres.password.reveal().is_empty() {
        options = options.password(postgres.password.reveal());
    }
    Ok(options)
}

impl Database {
    /// A pool that connects when it is first used.
    ///
    /// # Errors
    /// When the settings are wrong.
    pub fn new(
        postgres: &PostgresConfig,
        ownership: Ownership,
        metrics: Metrics,
    ) -> Result<Self, ConfigError> {
        let statement_timeout = postgres.statement_timeout_ms.max(1);
        let options = connect_options(postgres)?.options([
            ("statement_timeout", statement_timeout.to_string()),
            (
                "lock_timeout",
                (statement_timeout * 4 / 5).max(1).to_string(),
            ),
            (
                "idle_in_transaction_session_timeout",
                (statement_timeout * 2).to_string(),
            ),
            ("default_transaction_read_only", "on".to_owned()),
            ("tcp_keepalives_idle", "5".to_owned()),
            ("tcp_keepalives_interval", "2".to_owned()),
            ("tcp_keepalives_count", "3".to_owned()),
            ("tcp_user_timeout", "10000".to_owned()),
        ]);
        let pool = make_pool(&options, postgres.pool);
        Ok(Database {
            inner: Arc::new(Inner {
                options,
                connections: postgres.pool,
                attempt: Duration::from_millis(statement_timeout) + Duration::from_millis(500),
                budget: Duration::from_millis(postgres.request_budget_ms),
                pool: ArcSwap::from_pointee(pool),
                generation: watch::Sender::new(0),
                ownership,
                outbox_written: Notify::new(),
                metrics,
            }),
        })
    }

    /// Who owns what.
    #[must_use]
    pub fn ownership(&self) -> &Ownership {
        &self.inner.ownership
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// The pool of the moment. Its sessions refuse to write.
    pub(crate) fn pool(&self) -> Arc<PgPool> {
        self.inner.pool.load_full()
    }

    /// Rung when a transaction that wrote events has been committed.
    pub(crate) fn outbox_written(&self) -> &Notify {
        &self.inner.outbox_written
    }

    /// A connection of its own, outside the pool, that may write.
    pub(crate) async fn dedicated(&self) -> Result<PgConnection, sqlx::Error> {
        let options = self
            .inner
            .options
            .clone()
            .options([("default_transaction_read_only", "off")]);
        within(ANSWER_WITHIN, PgConnection::connect_with(&options)).await
    }

    /// Runs a query, and runs it again when the connection was at fault.
    ///
    /// # Errors
    /// Whatever the query answers, or that the database did not come back in time.
    pub async fn read<T, F>(&self, query: F) -> Result<T, Failure>
    where
        F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, Failure>> + Send + Sync,
        T: Send,
    {
        let query = &query;
        self.persist("the query", move || {
            Box::pin(async move {
                let mut connection = self.pool().acquire().await?;
                let result = query(&mut connection).await;
                if result.as_ref().is_err_and(Failure::is_transient) {
                    connection.close_on_drop();
                }
                result
            })
        })
        .await
    }

    /// Answers a request that changes nothing.
    ///
    /// # Errors
    /// Whatever the query answers, or that the database did not come back in time.
    pub async fn answer<M, R>(
        &self,
        request: Request<M>,
        query: impl for<'c> Fn(&'c mut PgConnection, Key, &'c M) -> Query<'c, R> + Send + Sync,
    ) -> Result<Response<R>, Status>
    where
        M: Send + Sync,
        R: Send,
    {
        let owner = Caller::of(&request)?.owner.key;
        let (message, query) = (request.get_ref(), &query);
        let answer = self
            .persist("the query", move || {
                Box::pin(async move {
                    let mut connection = self.pool().acquire().await?;
                    let result = query(&mut connection, owner, message).await;
                    if result.as_ref().is_err_and(Failure::is_transient) {
                        connection.close_on_drop();
                    }
                    result
                })
            })
            .await?;
        Ok(Response::new(answer))
    }

    /// Runs attempts until one gives an answer that another would not change.
    pub(crate) async fn persist<'a, T>(
        &self,
        what: &'static str,
        attempt: impl Fn() -> BoxFuture<'a, Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + self.inner.budget;
        let mut pause = Duration::from_millis(5);
        loop {
            let mut generation = self.inner.generation.subscribe();
            generation.mark_unchanged();
            let failure = tokio::select! {
                biased;
                result = attempt() => match result {
                    Err(failure) if failure.is_transient() => failure,
                    answer => return answer,
                },
                () = tokio::time::sleep(self.inner.attempt) => Failure::Timeout(what),
                _ = generation.changed() => Failure::Timeout(what),
            };
            if Instant::now() + pause >= deadline {
                return Err(failure);
            }
            self.inner.metrics.retried(failure.category());
            tracing::debug!(%failure, "trying again");
            // A fresh pool ends the pause.
            let _ = tokio::time::timeout(pause, generation.changed()).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    /// Watches the leader until `stop`.
    pub async fn watch(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.watch_forever() => {}
        }
    }

    async fn watch_forever(&self) {
        let mut session = self.find_leader().await;
        loop {
            self.inner.metrics.database_up(true);
            match Self::follow(&mut session).await {
                Some(error) => tracing::warn!(%error, "PostgreSQL does not answer"),
                None => tracing::warn!("PostgreSQL is no leader any more"),
            }
            self.inner.metrics.database_up(false);
            session = self.find_leader().await;
            tracing::info!("PostgreSQL has a leader again");
            let pool = make_pool(&self.inner.options, self.inner.connections);
            self.inner.pool.store(Arc::new(pool));
            self.inner
                .generation
                .send_modify(|generation| *generation += 1);
        }
    }

    /// Asks the leader again and again, until the answer is wrong or an error.
    async fn follow(session: &mut PgConnection) -> Option<sqlx::Error> {
        loop {
            match leads(session).await {
                Ok(true) => tokio::time::sleep(WATCH_EVERY).await,
                Ok(false) => return None,
                Err(error) => return Some(error),
            }
        }
    }

    /// Tries to connect until a leader answers. Attempts overlap: one that hangs holds nobody up.
    async fn find_leader(&self) -> PgConnection {
        let mut attempts = FuturesUnordered::new();
        loop {
            attempts.push(within(ANSWER_WITHIN, async {
                let mut session = PgConnection::connect_with(&self.inner.options).await?;
                Ok(leads(&mut session).await?.then_some(session))
            }));
            let next_attempt = tokio::time::sleep(SEARCH_EVERY);
            tokio::pin!(next_attempt);
            loop {
                tokio::select! {
                    Some(outcome) = attempts.next() => {
                        if let Ok(Some(session)) = outcome {
                            return session;
                        }
                    }
                    () = &mut next_attempt => break,
                }
            }
        }
    }

    /// Which of `versions` have not been migrated to; all of them when the schema is empty.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn missing_migrations(&self, versions: &[i64]) -> Result<Vec<i64>, Failure> {
        let applied = self
            .read(|connection| {
                Box::pin(async move {
                    let exists: bool =
                        sqlx::query("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
                            .fetch_one(&mut *connection)
                            .await?
                            .get(0);
                    if !exists {
                        return Ok(Vec::new());
                    }
                    Ok(sqlx::query_scalar::<_, i64>(
                        "SELECT version FROM _sqlx_migrations WHERE success",
                    )
                    .fetch_all(connection)
                    .await?)
                })
            })
            .await?;
        Ok(versions
            .iter()
            .copied()
            .filter(|version| !applied.contains(version))
            .collect())
    }
}

fn make_pool(options: &PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(2))
        .idle_timeout(Duration::from_secs(300))
        .max_lifetime(Duration::from_secs(1800))
        // A dead connection is found by its first statement, and the attempt is repeated.
        .test_before_acquire(false)
        .connect_lazy_with(options.clone())
}

async fn leads(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let question = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(connection);
    let recovering: bool = within(ANSWER_WITHIN, question).await?;
    Ok(!recovering)
}

pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}
