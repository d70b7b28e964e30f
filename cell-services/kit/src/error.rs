//! What can go wrong at start, and in a request.

use tonic::{Code, Status};

use crate::config::ConfigError;
use crate::ownership::{NotOwned, UNGUARDED};

/// Why a process does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The environment is incomplete.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The logger or the tracer.
    #[error("cannot set up telemetry: {0}")]
    Telemetry(String),
    /// A port that cannot be bound.
    #[error("cannot listen on port {port}: {source}; is another process on it?")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
    /// A migration failed.
    #[error("cannot migrate schema {schema} of database {database} at {host}: {source}")]
    Migrate {
        /// The schema.
        schema: String,
        /// The database.
        database: String,
        /// The server.
        host: String,
        /// Why.
        source: Box<sqlx::migrate::MigrateError>,
    },
    /// PostgreSQL.
    #[error("cannot use PostgreSQL at {host}: {source}")]
    Database {
        /// The server.
        host: String,
        /// Why.
        source: Box<sqlx::Error>,
    },
    /// Redis.
    #[error("cannot use Redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// Kafka.
    #[error("cannot set up Kafka's client: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// The server ended by itself.
    #[error("the gRPC server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// Anything else of the operating system.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The service's own reason.
    #[error("{0}")]
    Other(String),
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The request is at fault, or a rule of the business refuses it.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    /// The key is not served here.
    #[error(transparent)]
    NotOwned(#[from] NotOwned),
    /// A fence has had the key's range closed for longer than a request waits.
    #[error("{0}")]
    Closing(String),
    /// PostgreSQL.
    #[error("PostgreSQL: {0}")]
    Database(#[from] sqlx::Error),
    /// Redis.
    #[error("Redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// Stored data that cannot be read.
    #[error("stored data cannot be read: {0}")]
    Corrupt(String),
    /// Nothing came back in time.
    #[error("{0} took longer than allowed")]
    Timeout(&'static str),
}

impl Failure {
    /// A refusal.
    #[must_use]
    pub fn refused(code: Code, message: impl Into<String>) -> Self {
        Failure::Refused(Box::new(Status::new(code, message)))
    }

    /// The argument is wrong.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Failure::refused(Code::InvalidArgument, message)
    }

    /// There is no such thing.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Failure::refused(Code::NotFound, message)
    }

    /// The state of things does not allow it.
    #[must_use]
    pub fn precondition(message: impl Into<String>) -> Self {
        Failure::refused(Code::FailedPrecondition, message)
    }

    /// Another writer was faster.
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Failure::refused(Code::Aborted, message)
    }

    /// The name under which it is counted.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Failure::Refused(_) => "refused",
            Failure::NotOwned(_) => "not_owned",
            Failure::Closing(_) => "closing",
            Failure::Database(_) => "database",
            Failure::Redis(_) => "redis",
            Failure::Corrupt(_) => "corrupt",
            Failure::Timeout(_) => "timeout",
        }
    }

    /// Whether the same transaction may succeed when it is run again from its start.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Failure::Database(error) => is_transient(error),
            Failure::Timeout(_) => true,
            Failure::Refused(_)
            | Failure::NotOwned(_)
            | Failure::Closing(_)
            | Failure::Redis(_)
            | Failure::Corrupt(_) => false,
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Failure::Refused(Box::new(status))
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(status) => *status,
            Failure::NotOwned(refusal) => refusal.into(),
            Failure::Closing(message) => Status::unavailable(format!("{message}; retry")),
            Failure::Database(error) => {
                let code = if is_transient(&error) {
                    Code::Unavailable
                } else {
                    Code::Internal
                };
                if error
                    .as_database_error()
                    .and_then(sqlx::error::DatabaseError::code)
                    .as_deref()
                    == Some(UNGUARDED)
                {
                    tracing::error!(%error, "a write did not pass the ownership guard: this is a bug");
                } else {
                    tracing::warn!(%error, "database error");
                }
                Status::new(
                    code,
                    if code == Code::Unavailable {
                        "the database is not available; retry"
                    } else {
                        "internal error"
                    },
                )
            }
            Failure::Redis(error) => {
                tracing::warn!(%error, "Redis error");
                Status::unavailable("the cache is not available; retry")
            }
            Failure::Corrupt(error) => {
                tracing::error!(%error, "stored data cannot be read");
                Status::internal("internal error")
            }
            Failure::Timeout(what) => {
                Status::unavailable(format!("{what} took longer than allowed; retry"))
            }
        }
    }
}

/// Whether an error of PostgreSQL or of the way to it may go away by itself.
pub(crate) fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            matches!(
                &*code,
                // serialization failure, deadlock, lock time-out, statement cancelled by time-out
                "40001" | "40P01" | "55P03" | "57014"
                // shutdowns, starting up, too many connections, a leader that no longer is one
                | "57P01" | "57P02" | "57P03" | "57P05" | "53300" | "25006"
            ) || code.starts_with("08")
        }),
        _ => false,
    }
}
