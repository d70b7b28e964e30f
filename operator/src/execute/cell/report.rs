//! The status of a Cell, and its Events.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use titan_crds::{Cell, CellStatus, ConditionType};
use titan_planner::Observed;
use titan_planner::status::{StatusInput, cell_status};

use crate::error::ReconcileError;
use crate::execute::apply::{is_conflict, is_not_found};
use crate::execute::cell::reconcile::Progress;
use crate::execute::status::patch_status;
use crate::ledger::{System, Write};
use crate::observe::note;
use crate::run::context::Context;

/// What came of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Reported {
    /// The Cell says so.
    Told,
    /// The Cell has changed since it was read. It may be by the operator itself, and then no event brings the next pass.
    Outdated,
}

/// Writes the status if it says anything new, and an Event if what `Ready` says is new.
pub(super) async fn report(
    cell: &Cell,
    context: &Context,
    progress: Progress,
) -> Result<Reported, ReconcileError> {
    let Progress {
        steps,
        ranges,
        database_id,
        services,
        revision,
    } = progress;
    let status = cell_status(StatusInput {
        name: &cell.name_any(),
        previous: cell.status.as_ref(),
        generation: cell
            .metadata
            .generation
            .ok_or(ReconcileError::Malformed("generation"))?,
        revision,
        now: Time(Timestamp::now()),
        paused: cell.spec.paused,
        steps,
        ranges: match &ranges {
            Observed::Known(rows) => Observed::Known(rows.as_slice()),
            Observed::Unknown => Observed::Unknown,
            Observed::Absent => Observed::Absent,
        },
        database_id,
        services,
    });
    write(cell, context, status).await
}

/// Writes a status if it differs from the one that the Cell has.
pub(super) async fn write(
    cell: &Cell,
    context: &Context,
    status: CellStatus,
) -> Result<Reported, ReconcileError> {
    if cell.status.as_ref() == Some(&status) {
        return Ok(Reported::Told);
    }
    let before = cell.status.as_ref().and_then(ready).cloned();
    let now = ready(&status).cloned();
    let name = cell.name_any();
    let written = patch_status(cell, cell.status.as_ref(), &status, &context.client).await;
    match written {
        Ok(written) => context
            .own_writes
            .note(written.metadata.resource_version.as_deref()),
        Err(error) if is_conflict(&error) || is_not_found(&error) => {
            tracing::debug!(
                cell = name,
                "a status was made from an old view and is dropped"
            );
            return Ok(Reported::Outdated);
        }
        Err(error) => return Err(error.into()),
    }
    context.ledger.record(Write {
        system: System::Kubernetes,
        verb: "status",
        target: format!("Cell {name}"),
    })?;
    if let Some(now) = now
        && before.is_none_or(|before| {
            (before.status, before.reason) != (now.status.clone(), now.reason.clone())
        })
    {
        announce(cell, context, &now).await;
    }
    Ok(Reported::Told)
}

fn ready(status: &CellStatus) -> Option<&Condition> {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == ConditionType::Ready.as_str())
}

/// An Event tells people; nothing depends on it, so one that cannot be written is only logged.
async fn announce(cell: &Cell, context: &Context, ready: &Condition) {
    let event = Event {
        type_: if ready.status == "False" {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: ready.reason.clone(),
        note: Some(note(&ready.message)),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    if let Err(error) = context
        .recorder
        .publish(&event, &cell.object_ref(&()))
        .await
    {
        tracing::warn!(%error, "cannot write an Event");
    }
}
