//! The database of a cell: a schema and a login role per service, and schema `titan`, which says who may write.
//!
//! One connection a reconcile, by simple statements. A first pair of queries reads everything that could differ; then
//! only what does differ is written, each role and schema in a transaction of its own, so that no crash leaves one of
//! them half made.
//!
//! It works with an administrator that is a superuser, as in a cluster run by Patroni, and with one that may only
//! create databases and roles, as on managed servers. Several cells may share a server: a role is ours by the
//! [comment](scram) that names its database, and a database by the comment on it. What has no such comment is somebody
//! else's: a cell that would need the name is refused before anything is written, and it is never altered or dropped.

mod look;
mod ownership;
mod plan;
mod proof;
mod scram;
mod session;

use std::collections::BTreeMap;

use titan_planner::cell::{ServerCredentials, ServiceSchema};
use titan_routing::Epoch;
use uuid::Uuid;

pub use ownership::{
    Blocker, Change, FenceBudget, FenceOutcome, OwnershipRow, OwnershipState, change, ownership,
};
pub(crate) use ownership::{fence, terminate_writers};
pub use proof::{Commit, Proof, Witnesses};

use self::look::{DatabaseState, RoleState};
pub(crate) use self::session::Session;
use self::session::{MAINTENANCE, Opened};
use crate::ledger::{Ledger, System};
use crate::stores::{Result, StoreError};

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseReport {
    /// Which database this is. One that was made after another of the same name was lost has another id; a restored
    /// one has that of its backup.
    pub id: String,
    /// Schemas that are as they should be.
    pub schemas: usize,
    /// Roles that were shut out, of services that are gone. Their schemas stay.
    pub retired: Vec<String>,
    /// Writes; 0 when nothing had drifted.
    pub writes: usize,
    /// Who may write which keys.
    pub owned: Vec<OwnershipRow>,
}

/// A database: by its name, and, where it must be one that is known, by its id.
#[derive(Clone, Copy, Debug)]
pub struct Database<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its id. Another database of this name is left alone, and a missing one is not made.
    pub id: Option<&'a str>,
    /// Who asks, on a server that operators of several clusters may reach.
    pub claim: Option<Claim<'a>>,
}

/// A cluster that asks for a database. A database remembers the first one and is not for others: two clusters may have cells
/// of the same name, and a Secret with the server may have been copied from one to the other.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Which cluster it is.
    pub cluster: &'a str,
    /// The claim of another cluster, `<cluster>/<nonce>`, in whose place this one is put. Each claim is another one, so that
    /// this can be said once.
    pub instead_of: Option<&'a str>,
    /// The epoch at which it will write. A database that knows a later one is not taken over.
    pub epoch: Epoch,
}

impl<'a> Claim<'a> {
    /// Of a cluster that takes nothing over.
    #[must_use]
    pub fn of(cluster: &'a str) -> Self {
        Claim {
            cluster,
            instead_of: None,
            epoch: Epoch(0),
        }
    }

    /// What a database is told that is claimed now.
    fn fresh(&self) -> String {
        format!("{}/{}", self.cluster, Uuid::now_v7())
    }

    fn holds(&self, claim: &str) -> bool {
        claim.split('/').next() == Some(self.cluster)
    }
}

impl<'a> From<&'a str> for Database<'a> {
    fn from(name: &'a str) -> Self {
        Database {
            name,
            id: None,
            claim: None,
        }
    }
}

impl Database<'_> {
    /// Fails unless what was found is what is known, and nobody else's.
    fn check(&self, server: &ServerCredentials, found: Option<&DatabaseState>) -> Result<()> {
        let address = || format!("{}:{}", server.host, server.port);
        if let Some(claim) = self.claim
            && let Some(other) = found.and_then(plan::claim)
            && !claim.holds(other)
            && claim.instead_of != Some(other)
        {
            return Err(StoreError::OtherCluster {
                address: address(),
                database: self.name.to_owned(),
                claim: other.to_owned(),
                cluster: claim.cluster.to_owned(),
            });
        }
        let id = found.and_then(plan::identity);
        if let Some(known) = self.id.filter(|known| id != Some(*known)) {
            return Err(StoreError::OtherDatabase {
                address: address(),
                database: self.name.to_owned(),
                found: id.map(str::to_owned),
                known: known.to_owned(),
            });
        }
        let checked = found.map_or(Ok(()), |found| plan::check_database(self.name, found));
        checked.map_err(|foreign| not_ours(server, foreign))
    }
}

/// Brings the database of a cell to where it should be.
///
/// `passwords` are by service name. Roles that were made for this database and are not among `schemas` can no longer
/// log in afterwards; schemas are never dropped.
///
/// # Errors
/// The server cannot be reached, refuses, or cannot be what is asked for; or the database is not the one that is known.
pub async fn ensure<'a>(
    server: &ServerCredentials,
    database: impl Into<Database<'a>>,
    schemas: &[ServiceSchema],
    passwords: &BTreeMap<String, String>,
    ledger: &dyn Ledger,
) -> Result<DatabaseReport> {
    let wanted = database.into();
    let database = wanted.name;
    plan::check(database, schemas, passwords).map_err(|impossible| invalid(server, impossible))?;
    let mut report = DatabaseReport::default();
    let mut session = match Session::open(server, database).await? {
        Opened::Session(session) => session,
        Opened::NoDatabase => {
            wanted.check(server, None)?;
            let mut maintenance = Session::open_existing(server, MAINTENANCE).await?;
            let created = create(&mut maintenance, server, wanted, schemas, ledger).await;
            maintenance.close().await;
            report.writes += created?;
            Session::open_existing(server, database).await?
        }
    };
    let done = settle(
        &mut session,
        server,
        wanted,
        schemas,
        passwords,
        ledger,
        &mut report,
    )
    .await;
    session.close().await;
    done?;
    Ok(report)
}

/// Makes the database, unless one of its roles is somebody else's. Returns how many writes it took.
async fn create(
    maintenance: &mut Session,
    server: &ServerCredentials,
    wanted: Database<'_>,
    schemas: &[ServiceSchema],
    ledger: &dyn Ledger,
) -> Result<usize> {
    for (want, state) in look::roles(maintenance, false, schemas).await? {
        // Schemas that were seen are those of the database for maintenance.
        let state = RoleState {
            schema_exists: false,
            ..state
        };
        check_role(server, wanted.name, false, &want, &state)?;
    }
    let unmarked = plan::unmarked(wanted.name);
    let begun = look::databases(maintenance, &[unmarked]).await?;
    let mut steps = Vec::new();
    if begun.is_empty() {
        steps.push(plan::create_database(wanted.name));
    }
    let claim = wanted.claim.map(|claim| claim.fresh());
    steps.push(plan::name_database(wanted.name, claim.as_deref()));
    let writes = steps.len();
    for step in steps {
        maintenance.write(step, ledger).await?;
    }
    Ok(writes)
}

async fn settle(
    session: &mut Session,
    server: &ServerCredentials,
    wanted: Database<'_>,
    schemas: &[ServiceSchema],
    passwords: &BTreeMap<String, String>,
    ledger: &dyn Ledger,
    report: &mut DatabaseReport,
) -> Result<()> {
    let state = look::database(session).await?;
    let DatabaseState {
        superuser,
        reads_verifiers,
        in_recovery,
        ..
    } = state;
    if in_recovery {
        return Err(StoreError::Unreachable {
            system: System::Postgres,
            address: session.address().to_owned(),
            detail: "a standby answered, there is no leader now".to_owned(),
        });
    }
    wanted.check(server, Some(&state))?;
    let database = wanted.name;
    report.id = plan::identity(&state).map_or_else(|| Uuid::now_v7().to_string(), str::to_owned);
    let claim = match wanted.claim {
        Some(claim) => Some(claimed(session, server, wanted, claim, &state).await?),
        None => None,
    };
    // All of it is looked at before any of it is changed.
    let roles = look::roles(session, reads_verifiers, schemas).await?;
    for (want, role) in &roles {
        check_role(server, database, state.titan.is_some(), want, role)?;
    }
    for step in plan::database(database, &state, &report.id, claim.as_deref()) {
        session.write(step, ledger).await?;
        report.writes += 1;
    }
    for (want, state) in roles {
        let password = passwords.get(&want.service).map_or("", String::as_str);
        if let Some(step) = plan::role(database, superuser, &want, &state, password) {
            session.write(step, ledger).await?;
            report.writes += 1;
        }
        report.schemas += 1;
    }
    for role in look::unwanted(session, database, schemas).await? {
        session.write(plan::retire(&role), ledger).await?;
        report.writes += 1;
        report.retired.push(role);
    }
    report.owned = ownership::rows(session).await?;
    Ok(())
}

/// The claim that a database shall have: the one that it has, or a new one where it had none or that of another cluster.
async fn claimed(
    session: &mut Session,
    server: &ServerCredentials,
    wanted: Database<'_>,
    claim: Claim<'_>,
    state: &DatabaseState,
) -> Result<String> {
    match plan::claim(state) {
        Some(ours) if claim.holds(ours) => return Ok(ours.to_owned()),
        Some(other) => {
            let rows = ownership::rows(session).await?;
            if let Some(row) = rows.iter().find(|row| row.epoch > claim.epoch) {
                return Err(invalid(
                    server,
                    plan::Impossible(format!(
                        "database {} is not taken over from cluster {other}: it has {} at epoch {}, and the routing table \
                         here is at epoch {}. Restore the RoutingTable of that cluster here first",
                        wanted.name, row.range, row.epoch, claim.epoch
                    )),
                ));
            }
        }
        None => {}
    }
    Ok(claim.fresh())
}

/// Drops the database of a cell and its roles, and ends their sessions. Returns how many writes it took.
///
/// # Errors
/// The server cannot be reached or refuses; or the database is not the one that is known, or not known to be this cluster's.
/// One that no operator made is left alone, and is no error: the cell never had it.
pub async fn drop_database<'a>(
    server: &ServerCredentials,
    database: impl Into<Database<'a>>,
    ledger: &dyn Ledger,
) -> Result<usize> {
    let asked = database.into();
    let wanted = Database {
        // To take it over in order to drop it is nobody's wish.
        claim: asked.claim.map(|claim| Claim::of(claim.cluster)),
        ..asked
    };
    let database = wanted.name;
    let mut ours = true;
    if let Opened::Session(mut session) = Session::open(server, database).await? {
        let state = look::database(&mut session).await;
        session.close().await;
        let state = state?;
        match wanted.check(server, Some(&state)) {
            Err(StoreError::NotOurs { .. }) => ours = false,
            checked => checked?,
        }
        if wanted.claim.is_some() && wanted.id.is_none() && plan::claim(&state).is_none() {
            match plan::identity(&state) {
                Some(id) => {
                    return Err(invalid(
                        server,
                        plan::Impossible(format!(
                            "database {database} has the id {id}, and nothing says that this cell ever had it"
                        )),
                    ));
                }
                // Prepared for the cell, which never came to use it.
                None => ours = false,
            }
        }
    }
    let mut session = Session::open_existing(server, MAINTENANCE).await?;
    let done = drop_all(&mut session, database, ours, ledger).await;
    session.close().await;
    done
}

/// Drops the database, where it is ours, what is left of making it, and the roles that carry our mark.
async fn drop_all(
    session: &mut Session,
    database: &str,
    ours: bool,
    ledger: &dyn Ledger,
) -> Result<usize> {
    let named = ours.then(|| database.to_owned());
    let candidates: Vec<String> = named
        .into_iter()
        .chain([plan::unmarked(database)])
        .collect();
    let found = look::databases(session, &candidates).await?;
    let mut steps: Vec<_> = found.iter().map(|name| plan::drop_database(name)).collect();
    steps.extend(
        look::ours(session, database)
            .await?
            .iter()
            .map(|role| plan::drop_role(role)),
    );
    let writes = steps.len();
    for step in steps {
        session.write(step, ledger).await?;
    }
    Ok(writes)
}

fn check_role(
    server: &ServerCredentials,
    database: &str,
    made: bool,
    want: &ServiceSchema,
    state: &RoleState,
) -> Result<()> {
    plan::check_mark(database, want, state).map_err(|impossible| invalid(server, impossible))?;
    plan::check_role(database, made, want, state).map_err(|found| not_ours(server, found))
}

fn not_ours(server: &ServerCredentials, found: plan::NotOurs) -> StoreError {
    StoreError::NotOurs {
        address: format!("{}:{}", server.host, server.port),
        foreign: found.foreign,
        what: found.what,
        remedy: found.remedy,
    }
}

fn invalid(server: &ServerCredentials, plan::Impossible(message): plan::Impossible) -> StoreError {
    StoreError::Invalid {
        system: System::Postgres,
        message: format!("PostgreSQL at {}:{}: {message}", server.host, server.port),
    }
}
