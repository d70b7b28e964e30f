//! What a leader and its standbys show by a commit.
//!
//! That a pod is ready, and that its lock was renewed, was true some seconds ago: ten of them after its node lost power, and
//! up to a minute before anybody else knows. Who lets a member go on such news may let the last one go that lives. So the leader is
//! asked to commit something, and a standby has to have flushed it: that they live is true now, and so is that the standby has
//! everything that was acknowledged before.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use titan_planner::cell::ServerCredentials;
use tokio::time::{Instant, sleep, timeout};

use super::session::{MAINTENANCE, Session, unreachable};
use crate::ledger::Ledger;
use crate::stores::Result;

/// For how long to wait for the leader: one that lives takes milliseconds. Longer than for its connection alone, of which the
/// session tells.
const COMMIT: Duration = Duration::from_secs(5);
/// For how long to wait for a standby after that, and how often to ask.
const FLUSH: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);

/// Who has to show that they live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Witnesses {
    /// Nobody.
    Nobody,
    /// The leader.
    Leader,
    /// The leader, and one of these standbys, by their `application_name`.
    OneOf(Vec<String>),
}

/// Asks for a proof of life.
pub trait Proof: Send + Sync {
    /// Has the leader commit a transaction that changes nothing, if there have to be witnesses.
    ///
    /// # Errors
    /// No leader commits within five seconds, or none of the standbys has that on its disk three seconds later.
    fn commit<'a>(
        &'a self,
        server: &'a ServerCredentials,
        witnesses: &'a Witnesses,
        ledger: &'a dyn Ledger,
    ) -> BoxFuture<'a, Result<()>>;
}

/// The proof that PostgreSQL gives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commit;

impl Proof for Commit {
    fn commit<'a>(
        &'a self,
        server: &'a ServerCredentials,
        witnesses: &'a Witnesses,
        ledger: &'a dyn Ledger,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let standbys = match witnesses {
                Witnesses::Nobody => return Ok(()),
                Witnesses::Leader => None,
                Witnesses::OneOf(standbys) => Some(standbys),
            };
            ledger.may_write()?;
            let (mut session, at) = timeout(COMMIT, commit(server)).await.unwrap_or_else(|_| {
                let address = format!("{}:{}", server.host, server.port);
                let limit = COMMIT.as_secs();
                let detail = format!("its leader did not commit within {limit} s");
                Err(unreachable(&address, detail))
            })?;
            let flushed = match standbys {
                None => Ok(()),
                Some(standbys) => await_flush(&mut session, &at, standbys).await,
            };
            session.close().await;
            flushed
        }
        .boxed()
    }
}

/// Commits a message. Returns where in the log it is.
async fn commit(server: &ServerCredentials) -> Result<(Session, String)> {
    let mut session = Session::open_existing(server, MAINTENANCE).await?;
    // Nobody can be made to stop waiting for a standby inside of a commit: the server would keep this session for as long.
    let alone = sqlx::query("SET synchronous_commit TO local");
    session.read("commit without waiting", alone).await?;
    // Into the log, and into nothing else.
    let message = "SELECT pg_logical_emit_message(true, 'titan.proof', '')::text AS at";
    let rows = session
        .read("commit a message", sqlx::query(message))
        .await?;
    let at = rows
        .first()
        .map(|row| session.column(row, "at"))
        .transpose()?;
    Ok((session, at.unwrap_or_default()))
}

async fn await_flush(session: &mut Session, at: &str, standbys: &[String]) -> Result<()> {
    let deadline = Instant::now() + FLUSH;
    while Instant::now() < deadline {
        let flushed = sqlx::query(
            "SELECT FROM pg_stat_replication WHERE application_name = ANY ($1) AND flush_lsn >= $2::text::pg_lsn",
        )
        .bind(standbys.to_vec())
        .bind(at.to_owned());
        if !session.read("look for standbys", flushed).await?.is_empty() {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
    let standbys = match standbys {
        [] => "no standby that may lead".to_owned(),
        names => format!("no standby ({})", names.join(", ")),
    };
    let limit = FLUSH.as_secs();
    let detail = format!("{standbys} had what its leader committed after {limit} s");
    Err(unreachable(session.address(), detail))
}
