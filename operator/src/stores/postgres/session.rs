//! One connection to one database, for one reconcile.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use titan_planner::cell::ServerCredentials;

use crate::ledger::{Ledger, System, Write};
use crate::stores::{Result, StoreError};

/// How long a connection may take: a server that is there answers in milliseconds.
const CONNECT: Duration = Duration::from_secs(3);
/// How long any statement may take, enforced here too because a server that hangs enforces nothing.
const STATEMENT: Duration = Duration::from_secs(20);

/// What is said where a connection fails for its protection.
const TLS: &str = " (sslmode in the Secret of the server says whether it has TLS, and ca.crt which authority to trust)";

/// The database that is always there to connect to while another is created or dropped.
pub(super) const MAINTENANCE: &str = "postgres";

/// A connection, and the words to say what went wrong on it.
pub(crate) struct Session {
    connection: PgConnection,
    address: String,
}

/// A connection, or the news that the database does not exist.
pub(crate) enum Opened {
    Session(Session),
    NoDatabase,
}

/// A write: what it is called in the ledger, and its statements, which take effect together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub verb: &'static str,
    pub target: String,
    pub sql: String,
}

/// A write that is one statement with one row and one column as its answer. It is no transaction of ours, for
/// procedures end theirs themselves.
pub(crate) struct Call<'q> {
    pub verb: &'static str,
    pub target: String,
    pub query: sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>,
}

impl Session {
    /// Connects, and tells a missing database apart from every other trouble.
    pub async fn open(server: &ServerCredentials, database: &str) -> Result<Opened> {
        let address = format!("{}:{}", server.host, server.port);
        let ssl: PgSslMode = match server.sslmode.as_str() {
            "" => PgSslMode::Prefer,
            mode => mode.parse().map_err(|_| StoreError::Invalid {
                system: System::Postgres,
                message: format!(
                    "sslmode {mode:?} in the Secret for PostgreSQL at {address} is none of disable, allow, prefer, \
                     require, verify-ca, verify-full"
                ),
            })?,
        };
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&server.host)
            .port(server.port)
            .username(&server.username)
            .password(&server.password)
            .database(database)
            .ssl_mode(ssl)
            .application_name("titan-operator")
            .options([("statement_timeout", "15s"), ("lock_timeout", "10s")])
            .disable_statement_logging();
        if !server.ca.is_empty() {
            options = options.ssl_root_cert_from_pem(server.ca.clone().into_bytes());
        }
        let connected = tokio::time::timeout(CONNECT, PgConnection::connect_with(&options)).await;
        match connected {
            Ok(Ok(connection)) => Ok(Opened::Session(Self {
                connection,
                address,
            })),
            Ok(Err(error)) if code(&error).as_deref() == Some("3D000") => Ok(Opened::NoDatabase),
            Ok(Err(error)) => Err(classify(
                &address,
                &format!("connect to database {database}"),
                &error,
            )),
            Err(_) => Err(unreachable(
                &address,
                format!("no connection within {} s", CONNECT.as_secs()),
            )),
        }
    }

    /// Connects to a database that has to be there.
    pub async fn open_existing(server: &ServerCredentials, database: &str) -> Result<Self> {
        match Self::open(server, database).await? {
            Opened::Session(session) => Ok(session),
            Opened::NoDatabase => Err(StoreError::Refused {
                system: System::Postgres,
                address: format!("{}:{}", server.host, server.port),
                doing: format!("connect to database {database}"),
                detail: "it does not exist".to_owned(),
            }),
        }
    }

    /// The rows of a query that changes nothing.
    pub async fn read(
        &mut self,
        doing: &str,
        query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) -> Result<Vec<PgRow>> {
        match tokio::time::timeout(STATEMENT, query.fetch_all(&mut self.connection)).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(classify(&self.address, doing, &error)),
            Err(_) => Err(self.hangs(doing)),
        }
    }

    /// Runs the statements of a step in one transaction, and enters them in the ledger.
    pub async fn write(&mut self, step: Step, ledger: &dyn Ledger) -> Result<()> {
        ledger.may_write()?;
        let doing = format!("{} {}", step.verb, step.target);
        // Several statements in one simple query are one transaction.
        let run = sqlx::raw_sql(AssertSqlSafe(step.sql)).execute(&mut self.connection);
        match tokio::time::timeout(STATEMENT, run).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(classify(&self.address, &doing, &error)),
            Err(_) => return Err(self.hangs(&doing)),
        }
        ledger.record(Write {
            system: System::Postgres,
            verb: step.verb,
            target: step.target,
        })?;
        Ok(())
    }

    /// Makes a call, and enters it in the ledger when its answer says that something was `written`.
    pub async fn call<T>(
        &mut self,
        call: Call<'_>,
        ledger: &dyn Ledger,
        written: impl Fn(&T) -> bool,
    ) -> Result<T>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        use sqlx::Row as _;
        ledger.may_write()?;
        let doing = format!("{} {}", call.verb, call.target);
        let run = call.query.fetch_one(&mut self.connection);
        let answer = match tokio::time::timeout(STATEMENT, run).await {
            Ok(answer) => answer.and_then(|row| row.try_get(0)),
            Err(_) => return Err(self.hangs(&doing)),
        };
        let answer = answer.map_err(|error| classify(&self.address, &doing, &error))?;
        if written(&answer) {
            ledger.record(Write {
                system: System::Postgres,
                verb: call.verb,
                target: call.target,
            })?;
        }
        Ok(answer)
    }

    /// Reads a column, with the same words as for a failed query.
    pub fn column<'r, T>(&self, row: &'r PgRow, name: &str) -> Result<T>
    where
        T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        use sqlx::Row as _;
        row.try_get(name)
            .map_err(|error| classify(&self.address, &format!("read column {name}"), &error))
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Says goodbye, so that the server does not log a lost connection. Its outcome changes nothing.
    pub async fn close(self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.connection.close()).await;
    }

    fn hangs(&self, doing: &str) -> StoreError {
        unreachable(
            &self.address,
            format!(
                "no answer within {} s when asked to {doing}",
                STATEMENT.as_secs()
            ),
        )
    }
}

pub(super) fn unreachable(address: &str, detail: String) -> StoreError {
    StoreError::Unreachable {
        system: System::Postgres,
        address: address.to_owned(),
        detail,
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// Sorts an error of the driver or the server by what can be done about it.
fn classify(address: &str, doing: &str, error: &sqlx::Error) -> StoreError {
    let Some(answer) = error.as_database_error() else {
        let mut detail = error.to_string();
        if matches!(error, sqlx::Error::Tls(_)) || detail.contains("certificate") {
            detail.push_str(TLS);
        }
        return unreachable(address, detail);
    };
    let code = answer.code().unwrap_or_default().into_owned();
    let detail = format!("{} (SQLSTATE {code})", answer.message());
    match code.as_str() {
        // Starting or stopping, out of connections, or a standby: the leader is about to be another one.
        // Or a fence is under way, for milliseconds.
        "57P01" | "57P02" | "57P03" | "53300" | "25006" | "TC005" => unreachable(address, detail),
        code if code.starts_with("28") => StoreError::Auth {
            system: System::Postgres,
            address: address.to_owned(),
            detail,
        },
        _ => StoreError::Refused {
            system: System::Postgres,
            address: address.to_owned(),
            doing: doing.to_owned(),
            detail,
        },
    }
}

/// An identifier in double quotes.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string constant that needs no backslash rule.
pub(super) fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_cannot_be_left() {
        assert_eq!(identifier(r#"order"; drop"#), r#""order""; drop""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r"E'a\\''b'");
    }
}
