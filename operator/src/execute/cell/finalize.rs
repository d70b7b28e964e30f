//! Taking a cell apart: its route first, then topics, then what is in its namespace.
//!
//! Under `Retain` the databases stay as they are, running, with their Secrets and topics; what goes is what serves: routes,
//! services, accounts. Under `Delete` all of it goes.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use titan_crds::{Cell, CellStatus, ReclaimPolicy};
use titan_planner::Observed;
use titan_planner::assignment::recorded_rows;
use titan_planner::cell::{ExternalDatabase, NotValid, Permission, Product, external_database};
use titan_planner::object::Kind;
use titan_planner::status::{Step, deletion_status};

use crate::error::ReconcileError;
use crate::execute::apply::{
    Compared, LiveObject, LiveObjects, ObjectClient, Scope, is_forbidden, prune,
};
use crate::execute::cell::credentials::{external, not_permitted};
use crate::execute::cell::identity::recorded_database;
use crate::execute::cell::postgres::POSTGRES;
use crate::execute::cell::report;
use crate::execute::finalizer::{is_held, release};
use crate::ledger::System;
use crate::observe::{Dereferenced, as_ref, dereference};
use crate::run::context::Context;
use crate::run::dependencies::Dependency;
use crate::stores::StoreError;
use crate::stores::postgres::{self, Claim, Database};

/// Keeps a Cell until what it has outside of Kubernetes is gone.
pub(super) const FINALIZER: &str = "titan.dev/cell";
/// Lets a deletion go on although its topics cannot be deleted.
const ABANDON_TOPICS: &str = "titan.dev/abandon-topics";
/// Lets a deletion go on although its database on an external server cannot be dropped.
const ABANDON_DATABASE: &str = "titan.dev/abandon-database";

/// The reason of the last step: what is in the namespace goes with it.
const TERMINATING: &str = "NamespaceTerminating";

/// How soon to go on with a deletion that waits for the same thing: first, and at the latest. Watches tell of the table and of the
/// namespace.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(1));

/// Takes a cell apart as far as it goes now, and lets it go when nothing is left.
///
/// # Errors
/// When something did not work that may work the next time.
pub(super) async fn finalize(cell: &Cell, context: &Context) -> Result<Action, ReconcileError> {
    if !is_held(cell, FINALIZER) {
        return Ok(Action::await_change());
    }
    let name = cell.name_any();
    let object = format!("delete/{name}");
    if let Some(step) = take_apart(cell, context).await? {
        let reason = match &step {
            Step::Waiting { message, .. }
            | Step::Failed { message, .. }
            | Step::Unknown { message, .. }
            | Step::Done(message) => message.clone(),
            Step::NotReached => String::new(),
        };
        let mut status = status_of(cell, &step)?;
        if matches!(&step, Step::Waiting { reason, .. } if reason == TERMINATING) {
            // That comes after the database: there is none to look for any more.
            status.database_id = None;
        }
        let _ = report::write(cell, context, status).await?;
        let (first, longest) = AGAIN;
        return Ok(Action::requeue(
            context.failures.pause(&object, &reason, first, longest),
        ));
    }
    release(cell, FINALIZER, context).await?;
    context.unseen.forget(&name);
    context.failures.clear(&object);
    Ok(Action::await_change())
}

async fn take_apart(cell: &Cell, context: &Context) -> Result<Option<Step>, ReconcileError> {
    let name = cell.name_any();
    let referred = dereference(cell, context).await;
    // Of a fleet that is gone nobody plans the table any more: to wait for it would be to wait for ever.
    let planned = !matches!(referred.fleet, Observed::Absent);
    if planned && let Some(message) = routed(cell, context) {
        return Ok(Some(Step::waiting("Unrouting", message)));
    }
    let delete = cell.spec.reclaim_policy == ReclaimPolicy::Delete;
    let client = ObjectClient::new(&context.client, context.ledger.as_ref(), &name);
    let namespace = client.get(Kind::Namespace, &name).await?;
    let ours = namespace.as_ref().is_none_or(|it| it.is_ours(&name));
    // Also of a cell whose namespace somebody else removes or has removed: its database may be somewhere else.
    let leaving = namespace.as_ref().is_none_or(LiveObject::is_deleting);
    if delete
        && ours
        && (!leaving || recorded_database(cell).is_some())
        && let Some(step) = drop_external_database(cell, context, &referred, &client).await?
    {
        return Ok(Some(step));
    }
    // After the database: one that is another cluster's says that the topics may be, too.
    if delete && let Some(step) = delete_topics(cell, context, &referred).await? {
        return Ok(Some(step));
    }
    if !ours {
        // The cell was refused because of it; nothing in it is ours.
        return Ok(None);
    }
    if !delete {
        return match namespace {
            Some(_) => retain(&client, &name, &context.compared).await,
            None => Ok(None),
        };
    }
    let Some(namespace) = namespace else {
        return Ok(None);
    };
    if !namespace.is_deleting() {
        client
            .delete(&namespace)
            .await
            .map_err(|error| match error {
                crate::execute::apply::ClientError::Kube(error) => ReconcileError::Kube(error),
                crate::execute::apply::ClientError::Interrupted(interrupted) => interrupted.into(),
            })?;
    }
    Ok(Some(Step::waiting(
        TERMINATING,
        format!("waiting for namespace {name} to be gone"),
    )))
}

/// What keeps a cell from being taken apart: rows of the routing table, or that it is not known whether there are any.
fn routed(cell: &Cell, context: &Context) -> Option<String> {
    match context.tables.rows_of(cell) {
        Observed::Known(rows) => {
            let row = rows.first()?;
            Some(format!(
                "waiting for the routing table to let go of {}, which cell {} serves from the databases of cell {}",
                row.range, row.cell, row.home
            ))
        }
        Observed::Unknown => Some(format!(
            "waiting until the RoutingTable of fleet {} has been read: while it may route to this cell, nothing is deleted",
            cell.spec.fleet
        )),
        // The table was lost, and is made again from what the statuses have of it.
        Observed::Absent if !recorded_rows(cell).is_empty() => Some(format!(
            "waiting until the RoutingTable of fleet {}, which was lost, has been written again",
            cell.spec.fleet
        )),
        Observed::Absent => None,
    }
}

/// Removes what serves and keeps what stores.
async fn retain(
    client: &ObjectClient<'_>,
    name: &str,
    compared: &Compared,
) -> Result<Option<Step>, ReconcileError> {
    let live = match LiveObjects::read(client).await {
        Ok(live) => live,
        // The RoleBinding of the operator, which stays with the data, was taken away: whether services still run is unknown.
        Err(error) if is_forbidden(&error) => {
            return Ok(Some(Step::failed(
                "ServicesNotDeleted",
                format!(
                    "what runs in namespace {name} cannot be looked at: {error}. Delete the services there, or the whole namespace with its data, or put back RoleBinding titan-operator there, as other cells have it"
                ),
            )));
        }
        Err(error) => return Err(error.into()),
    };
    let scope = Scope {
        client,
        cell: name,
        live: &live,
        compared,
    };
    prune(scope, &[], ReclaimPolicy::Retain).await?;
    Ok(None)
}

async fn delete_topics(
    cell: &Cell,
    context: &Context,
    referred: &Dereferenced,
) -> Result<Option<Step>, ReconcileError> {
    let name = cell.name_any();
    if is_annotated(cell, ABANDON_TOPICS) {
        tracing::warn!(
            cell = name,
            "leaving the cell's topics in Kafka, as its annotation says"
        );
        return Ok(None);
    }
    let Observed::Known(fleet) = as_ref(&referred.fleet) else {
        return Ok(Some(Step::failed(
            "FleetNotFound",
            format!(
                "fleet {} does not exist, so it is unknown which Kafka holds the topics titan.{name}.*; create the fleet again, or set the annotation {ABANDON_TOPICS}: \"true\" to leave them",
                cell.spec.fleet
            ),
        )));
    };
    let gone = async {
        let kafka = context.kafka.get(&fleet.spec.kafka.bootstrap)?;
        let topics = kafka.existing(&name).await?;
        if topics.is_empty() {
            return Ok(());
        }
        kafka
            .delete(&topics, context.ledger.as_ref())
            .await
            .map(|_| ())
    };
    let dependency = Dependency::new(System::Kafka, &fleet.spec.kafka.bootstrap);
    match context.dependencies.ask(&dependency, gone).await {
        Ok(()) => Ok(None),
        Err(StoreError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(error) => Ok(Some(Step::failed(
            "TopicsNotDeleted",
            format!(
                "the topics titan.{name}.* could not be deleted: {error}. Mend Kafka, or set the annotation {ABANDON_TOPICS}: \"true\" to leave them"
            ),
        ))),
    }
}

/// A managed database goes with its namespace; one on an external server has to be dropped.
async fn drop_external_database(
    cell: &Cell,
    context: &Context,
    referred: &Dereferenced,
    client: &ObjectClient<'_>,
) -> Result<Option<Step>, ReconcileError> {
    let name = cell.name_any();
    if is_annotated(cell, ABANDON_DATABASE) {
        tracing::warn!(
            cell = name,
            "leaving the cell's database on its external server, if it has one there, as its annotation says"
        );
        return Ok(None);
    }
    let ExternalDatabase {
        secret_name,
        database,
    } = match external_database(cell, as_ref(&referred.profile)) {
        Ok(Some(external)) => external,
        Ok(None) => return Ok(None),
        Err(NotValid::Waiting(invalid)) => {
            return Ok(Some(Step::waiting(invalid.reason, invalid.message)));
        }
        Err(NotValid::Invalid(invalid)) => {
            let own = client.get(Kind::StatefulSet, POSTGRES).await?;
            if own.is_some_and(|live| live.is_ours(&name)) {
                return Ok(None);
            }
            return Ok(Some(Step::failed(
                "DatabaseNotDropped",
                format!(
                    "whether the cell has a database on an external server cannot be told: {}. Put that right, or set the annotation {ABANDON_DATABASE}: \"true\" to leave what there may be",
                    invalid.message
                ),
            )));
        }
    };
    let known = Database {
        name: &database,
        id: recorded_database(cell),
        claim: Some(Claim::of(context.cluster().await?)),
    };
    let mend = format!(
        "Mend the server, or set the annotation {ABANDON_DATABASE}: \"true\" to leave the database"
    );
    let server = match external(context, &secret_name, Product::Postgres).await? {
        Ok(external) => match external.permission(&name) {
            Permission::Granted => Ok(external.server),
            Permission::Unsaid if known.id.is_some() => Ok(external.server),
            // It was never used: the cell was refused because of it.
            Permission::Unsaid | Permission::Withheld if known.id.is_none() => return Ok(None),
            Permission::Unsaid | Permission::Withheld => {
                Err(not_permitted(context, &name, &secret_name, &external))
            }
        },
        Err(step) => Err(step),
    };
    let dropped = match server {
        Ok(server) => context
            .dependencies
            .ask(
                &Dependency::of(System::Postgres, &server),
                postgres::drop_database(&server, known, context.ledger.as_ref()),
            )
            .await
            .map_err(|error| match error {
                StoreError::Interrupted(interrupted) => Err(interrupted),
                StoreError::OtherCluster { .. } => Ok(format!(
                    "{error}. If the topics titan.{name}.* are that cluster's as well, leave them alone first, with the annotation {ABANDON_TOPICS}: \"true\", and then the database, with {ABANDON_DATABASE}: \"true\""
                )),
                error => Ok(format!("{error}. {mend}")),
            }),
        Err(Step::Failed { message, .. }) => Err(Ok(format!("{message}. {mend}"))),
        Err(step) => return Ok(Some(step)),
    };
    match dropped {
        Ok(_) => Ok(None),
        Err(Err(interrupted)) => Err(interrupted.into()),
        Err(Ok(problem)) => Ok(Some(Step::failed(
            "DatabaseNotDropped",
            format!("database {database} on the external server could not be dropped: {problem}"),
        ))),
    }
}

fn is_annotated(cell: &Cell, annotation: &str) -> bool {
    cell.annotations()
        .get(annotation)
        .is_some_and(|value| value == "true")
}

fn status_of(cell: &Cell, step: &Step) -> Result<CellStatus, ReconcileError> {
    let generation = cell
        .metadata
        .generation
        .ok_or(ReconcileError::Malformed("generation"))?;
    let now = Time(Timestamp::now());
    Ok(deletion_status(cell.status.as_ref(), generation, now, step))
}
