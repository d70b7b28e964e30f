//! What an error says in a Cell's status.

use titan_planner::status::{Step, Steps};

use crate::error::ReconcileError;
use crate::execute::apply::ApplyError;
use crate::execute::cell::identity::{not_ours, other_cluster, other_database};
use crate::ledger::System;
use crate::stores::StoreError;

/// A store that does not answer may only be starting; anything else it says is for a person.
pub(super) fn store_step(cell: &str, error: StoreError) -> Result<Step, ReconcileError> {
    match error {
        StoreError::Interrupted(interrupted) => Err(interrupted.into()),
        error => Ok(step_of_store(cell, &error)),
    }
}

fn step_of_store(cell: &str, error: &StoreError) -> Step {
    let product = match error.system() {
        Some(System::Postgres) => "Postgres",
        Some(System::Kafka) => "Kafka",
        Some(System::Redis) => "Redis",
        _ => "Store",
    };
    let what = match error {
        StoreError::Unreachable { .. } => "Unreachable",
        StoreError::Auth { .. } => "LoginRefused",
        StoreError::Refused { .. } => "Refused",
        StoreError::OtherDatabase { known, .. } => return other_database(cell, error, known),
        StoreError::OtherCluster { claim, .. } => return other_cluster(cell, error, claim),
        StoreError::NotOurs { foreign, .. } => return not_ours(*foreign, error),
        StoreError::Invalid { .. } | StoreError::Interrupted(_) => "Invalid",
    };
    let reason = format!("{product}{what}");
    let message = error.to_string();
    if error.is_unreachable() {
        Step::Waiting { reason, message }
    } else {
        Step::Failed { reason, message }
    }
}

/// What is said of an error that ended a pass.
pub(super) fn step_of_error(cell: &str, error: &ReconcileError) -> Step {
    match error {
        ReconcileError::Apply(refused @ ApplyError::NotOurs { .. }) => {
            Step::failed("ObjectNotOurs", refused.to_string())
        }
        ReconcileError::Apply(refused @ ApplyError::Refused { .. }) => {
            Step::failed("ObjectRefused", refused.to_string())
        }
        ReconcileError::Store(error) => step_of_store(cell, error),
        other => Step::waiting("ApiServerError", other.to_string()),
    }
}

/// Writes an error into the first step that is not done: that is where the pass was.
pub(super) fn note_error(cell: &str, steps: &mut Steps, error: &ReconcileError) {
    let Steps {
        accepted,
        range,
        databases,
        topics,
        migrations,
        services,
        serving,
    } = steps;
    let order = [
        accepted, range, databases, topics, migrations, services, serving,
    ];
    if let Some(step) = order.into_iter().find(|step| **step == Step::NotReached) {
        *step = step_of_error(cell, error);
    }
}
