//! What a leader and its standbys show by a commit.
//!
//! That a pod is ready, and that its lock was renewed, was true some seconds ago: ten of them after its node lost power, and
//! up to a minute before anybody else knows. Who lets a member go on such news may let the last one go that lives. So the leader is
//! asked to commit something, and its standbys are asked whether they have it: that is how things are now.

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use titan_planner::cell::ServerCredentials;
use tokio::time::{sleep, timeout};

use super::session::{MAINTENANCE, Session, unreachable};
use crate::ledger::Ledger;
use crate::stores::Result;

/// For how long to wait for the leader and its standbys: those that live take milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often to ask for the standbys meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks a leader for a proof of life.
pub trait Proof: Send + Sync {
    /// Has the leader commit a transaction that changes nothing. Returns the standbys, by their `application_name`, that have it
    /// on their disks; waits until there is one where `wanted`.
    ///
    /// # Errors
    /// There is no leader that commits, or no such standby, within three seconds.
    fn followers<'a>(
        &'a self,
        server: &'a ServerCredentials,
        wanted: bool,
        ledger: &'a dyn Ledger,
    ) -> BoxFuture<'a, Result<Vec<String>>>;
}

/// The proof that PostgreSQL gives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commit;

impl Proof for Commit {
    fn followers<'a>(
        &'a self,
        server: &'a ServerCredentials,
        wanted: bool,
        ledger: &'a dyn Ledger,
    ) -> BoxFuture<'a, Result<Vec<String>>> {
        async move {
            ledger.may_write()?;
            timeout(PATIENCE, followers(server, wanted))
                .await
                .unwrap_or_else(|_| {
                    let address = format!("{}:{}", server.host, server.port);
                    let who = if wanted { "standby" } else { "leader" };
                    let limit = PATIENCE.as_secs();
                    let detail = format!("no {who} confirmed a commit within {limit} s");
                    Err(unreachable(&address, detail))
                })
        }
        .boxed()
    }
}

async fn followers(server: &ServerCredentials, wanted: bool) -> Result<Vec<String>> {
    let mut session = Session::open_existing(server, MAINTENANCE).await?;
    let found = ask(&mut session, wanted).await;
    session.close().await;
    found
}

async fn ask(session: &mut Session, wanted: bool) -> Result<Vec<String>> {
    // Nobody can be made to stop waiting for a standby inside of a commit: the server would keep this session for as long.
    let alone = sqlx::query("SET synchronous_commit TO local");
    session.read("commit without waiting", alone).await?;
    // Into the log, and into nothing else.
    let commit = sqlx::query("SELECT pg_logical_emit_message(true, 'titan.proof', '')::text AS at");
    let rows = session.read("commit a message", commit).await?;
    let mut at = String::new();
    for row in &rows {
        at = session.column(row, "at")?;
    }
    loop {
        let have = sqlx::query(
            "SELECT application_name AS name FROM pg_stat_replication WHERE flush_lsn >= $1::text::pg_lsn",
        )
        .bind(at.clone());
        let rows = session.read("look for standbys", have).await?;
        let names: Result<Vec<String>> =
            rows.iter().map(|row| session.column(row, "name")).collect();
        let names = names?;
        if !names.is_empty() || !wanted {
            return Ok(names);
        }
        sleep(PAUSE).await;
    }
}
