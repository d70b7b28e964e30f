//! Which database holds the data of a cell, and whose it is.

use kube::ResourceExt;
use titan_crds::Cell;
use titan_planner::cell::names::{CELL_ENVIRONMENT, POSTGRES};
use titan_planner::cell::{PostgresPlan, StoreStorage, ValidatedCell};
use titan_planner::object::Kind;
use titan_planner::status::Step;
use titan_routing::Epoch;

use crate::error::ReconcileError;
use crate::execute::apply::LiveObjects;
use crate::run::context::Context;
use crate::stores::postgres::Claim;
use crate::stores::{Foreign, StoreError};

/// Gives up the data of a database: its id is the value.
const GIVE_UP_DATABASE: &str = "titan.dev/give-up-database";

/// The id of the database that the Cell's status names.
pub(super) fn recorded_database(cell: &Cell) -> Option<&str> {
    cell.status.as_ref()?.database_id.as_deref()
}

/// The database that holds the data, which must be there; `None` while there is none yet, where its storage was never meant
/// to outlive its pods, and when a person gave it up.
pub(super) fn known_database<'a>(
    cell: &'a Cell,
    valid: &ValidatedCell,
    live: &LiveObjects,
) -> Option<&'a str> {
    let ephemeral = matches!(
        &valid.postgres,
        PostgresPlan::Managed {
            storage: StoreStorage::Ephemeral { .. },
            ..
        }
    );
    // What services were given last is where the data are: it is written once a database was found to be the cell's.
    let environment = live.get(Kind::ConfigMap, CELL_ENVIRONMENT);
    let host = environment.map(|it| it.body()["data"]["PGHOST"].clone());
    let elsewhere = host.is_some_and(|host| host != POSTGRES);
    let fleeting = ephemeral && !elsewhere;
    let known = recorded_database(cell)?;
    let given_up = cell.annotations().get(GIVE_UP_DATABASE);
    (!fleeting && given_up.is_none_or(|id| id != known)).then_some(known)
}

/// Takes over a database that is for the cell of another cluster: the claim of that one is the value.
const TAKE_OVER_DATABASE: &str = "titan.dev/take-over-database";
/// The reason of a cell whose database is another cluster's.
pub(super) const OTHER_CLUSTER: &str = "OtherCluster";

/// Who asks for a database on a server outside of the cluster, to write at this epoch.
pub(super) async fn claim<'a>(
    cell: &'a Cell,
    epoch: Epoch,
    context: &'a Context,
) -> Result<Claim<'a>, ReconcileError> {
    Ok(Claim {
        cluster: context.cluster().await?,
        instead_of: cell
            .annotations()
            .get(TAKE_OVER_DATABASE)
            .map(String::as_str),
        epoch,
    })
}

/// What is said of a database of another cluster's cell.
pub(super) fn other_cluster(cell: &str, error: &StoreError, claim: &str) -> Step {
    Step::failed(
        OTHER_CLUSTER,
        format!(
            "{error}. Nothing was written. Have the cell's Secret name a server that the other cluster does not use, or make the cell under another name; if that cluster is gone for good, kubectl annotate --overwrite cell {cell} {TAKE_OVER_DATABASE}={}",
            quoted(claim)
        ),
    )
}

/// What is said of a database, role or schema of somebody else that has the name of one of the cell's.
pub(super) fn not_ours(foreign: Foreign, error: &StoreError) -> Step {
    let message = error.to_string();
    match foreign {
        Foreign::Database => Step::failed("DatabaseNotOurs", message),
        Foreign::Role => Step::failed("RoleNotOurs", message),
        Foreign::Schema => Step::failed("SchemaNotOurs", message),
    }
}

/// For a shell. Who may comment on a schema has a say in it.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What is said of another database, or none, in the place of the one with the data. To make an empty one there would be to
/// answer that nobody has ever ordered anything, and to take orders that a restored backup does not have.
pub(super) fn other_database(cell: &str, error: &StoreError, known: &str) -> Step {
    Step::failed(
        "OtherDatabase",
        format!(
            "{error}. Nothing was written. Restore that one, or have the cell's Secret name its server; to give its data up, kubectl annotate --overwrite cell {cell} {GIVE_UP_DATABASE}={}",
            quoted(known)
        ),
    )
}
