//! The data home of a cell: who may write its keys.
//!
//! It needs the server's credentials and the name of the database, and nothing else of the cell: a range is fenced, moved
//! and activated also when the cell's spec is not valid, when the cell is paused, and when a pass over it hangs.

use titan_planner::cell::ServerCredentials;
use titan_routing::{Epoch, Key, KeyRange};

use super::postgres::{
    self, Change, FenceBudget, FenceOutcome, OwnershipRow, Proof, Session, Witnesses,
};
use crate::ledger::Ledger;
use crate::stores::Result;

/// A data home.
pub struct DataHome<'a> {
    server: ServerCredentials,
    database: String,
    ledger: &'a dyn Ledger,
    proof: &'a dyn Proof,
}

impl std::fmt::Debug for DataHome<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataHome")
            .field("host", &self.server.host)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

impl<'a> DataHome<'a> {
    /// The data home in a database.
    #[must_use]
    pub fn new(
        server: ServerCredentials,
        database: String,
        ledger: &'a dyn Ledger,
        proof: &'a dyn Proof,
    ) -> Self {
        DataHome {
            server,
            database,
            ledger,
            proof,
        }
    }

    /// Who may write what.
    ///
    /// # Errors
    /// The server cannot be reached or refuses, or the table holds what this version does not understand.
    pub async fn ownership(&self) -> Result<Vec<OwnershipRow>> {
        postgres::ownership(&self.server, &self.database).await
    }

    /// Stops every writer of the range, from `epoch` on.
    ///
    /// `Fenced` is proven: the synchronous standby has it on its disk, so no failover of the database takes it back. A fence
    /// whose proof fails may be repeated, and has to be: nothing may be told of it before.
    ///
    /// # Errors
    /// The server cannot be reached, knows a newer epoch, or no synchronous standby had the fence within seconds.
    pub async fn fence(
        &self,
        range: KeyRange,
        epoch: Epoch,
        budget: FenceBudget,
    ) -> Result<FenceOutcome> {
        let mut session = Session::open_existing(&self.server, &self.database).await?;
        let outcome = self
            .fence_and_prove(&mut session, range, epoch, budget)
            .await;
        session.close().await;
        outcome
    }

    async fn fence_and_prove(
        &self,
        session: &mut Session,
        range: KeyRange,
        epoch: Epoch,
        budget: FenceBudget,
    ) -> Result<FenceOutcome> {
        let outcome = postgres::fence(session, range, epoch, budget, self.ledger).await?;
        if matches!(outcome, FenceOutcome::Fenced { .. }) {
            // Whatever the COMMIT of the fence said: who cancels it makes it report success.
            let witnesses = synchronous_standbys(session).await?;
            self.proof
                .commit(&self.server, &witnesses, self.ledger)
                .await?;
        }
        Ok(outcome)
    }

    /// Lets `cell` write the range from `epoch` on. Returns whether there was anything to do.
    ///
    /// # Errors
    /// The server cannot be reached, knows a newer epoch, or has the range active for another cell.
    pub async fn activate(&self, range: KeyRange, cell: &str, epoch: Epoch) -> Result<bool> {
        self.change(Change::Activate(range, cell, epoch)).await
    }

    /// Makes `at` the first key of a row. Returns whether there was anything to do.
    ///
    /// # Errors
    /// The server cannot be reached, or a fence of the row is under way.
    pub async fn split(&self, at: Key) -> Result<bool> {
        self.change(Change::Split(at)).await
    }

    /// Makes one row of those inside the range, when they agree. Returns whether there was anything to do.
    ///
    /// # Errors
    /// The server cannot be reached, or a fence in the range is under way.
    pub async fn merge(&self, range: KeyRange) -> Result<bool> {
        self.change(Change::Merge(range)).await
    }

    /// Forgets a fenced range that was given away at `epoch` or before. Returns whether there was anything to do.
    ///
    /// # Errors
    /// The server cannot be reached, or some of the range is active or of a newer epoch.
    pub async fn remove(&self, range: KeyRange, epoch: Epoch) -> Result<bool> {
        self.change(Change::Remove(range, epoch)).await
    }

    /// Ends the sessions that write keys of the range, for a fence that they were in the way of too often. Returns how many.
    ///
    /// # Errors
    /// The server cannot be reached, or the administrator may not end sessions of services.
    pub async fn terminate_writers(&self, range: KeyRange) -> Result<i64> {
        let mut session = Session::open_existing(&self.server, &self.database).await?;
        let ended = postgres::terminate_writers(&mut session, range, self.ledger).await;
        session.close().await;
        ended
    }

    async fn change(&self, change: Change<'_>) -> Result<bool> {
        postgres::change(&self.server, &self.database, change, self.ledger).await
    }
}

/// Who has to have what the leader has: a synchronous standby, where commits wait for one.
async fn synchronous_standbys(session: &mut Session) -> Result<Witnesses> {
    let query = sqlx::query(
        "SELECT current_setting('synchronous_standby_names') <> '' AS wanted,
                ARRAY(SELECT application_name::text FROM pg_stat_replication
                       WHERE sync_state IN ('sync', 'quorum')) AS standbys",
    );
    let rows = session.read("look for synchronous standbys", query).await?;
    let Some(row) = rows.first() else {
        return Ok(Witnesses::Leader);
    };
    Ok(if session.column(row, "wanted")? {
        Witnesses::OneOf(session.column(row, "standbys")?)
    } else {
        Witnesses::Leader
    })
}
