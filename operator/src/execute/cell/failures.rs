//! What an error says in a Cell's status.

use std::time::Duration;

use titan_planner::status::{Step, Steps};

use crate::error::ReconcileError;
use crate::execute::apply::ApplyError;
use crate::execute::cell::identity::{not_ours, other_cluster, other_database};
use crate::ledger::System;
use crate::stores::StoreError;

/// A store that has not answered for so long is not known; anything else it says is for a person.
pub(super) fn store_step(
    cell: &str,
    error: StoreError,
    unseen: Duration,
) -> Result<Step, ReconcileError> {
    match error {
        StoreError::Interrupted(interrupted) => Err(interrupted.into()),
        error => Ok(step_of_store(cell, &error, unseen)),
    }
}

fn step_of_store(cell: &str, error: &StoreError, unseen: Duration) -> Step {
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
        Step::Unknown {
            reason,
            message,
            lasted: unseen,
        }
    } else {
        Step::Failed { reason, message }
    }
}

/// What is said of an error that ended a pass. Passes have not come to their end for so long.
pub(super) fn step_of_error(cell: &str, error: &ReconcileError, unseen: Duration) -> Step {
    match error {
        ReconcileError::Apply(refused @ ApplyError::NotOurs { .. }) => {
            Step::failed("ObjectNotOurs", refused.to_string())
        }
        ReconcileError::Apply(refused @ ApplyError::Refused { .. }) => {
            Step::failed("ObjectRefused", refused.to_string())
        }
        ReconcileError::Apply(refused @ ApplyError::QuotaExceeded { .. }) => {
            Step::failed("QuotaExceeded", refused.to_string())
        }
        ReconcileError::Store(error) => step_of_store(cell, error, unseen),
        timeout @ ReconcileError::TimedOut => {
            Step::unknown("PassTimedOut", timeout.to_string(), unseen)
        }
        other => Step::unknown("ApiServerError", other.to_string(), unseen),
    }
}

/// Writes an error into the first step that was not reached: that is where the pass was. Where nothing is known because of it,
/// nothing is known of the later steps either.
pub(super) fn note_error(cell: &str, steps: &mut Steps, error: &ReconcileError, unseen: Duration) {
    let unreached = |(_, step): &(_, &mut Step)| **step == Step::NotReached;
    let Some((name, step)) = steps.named_mut().into_iter().find(unreached) else {
        return;
    };
    *step = step_of_error(cell, error, unseen);
    if let Step::Unknown { message, .. } = step {
        *message = format!(
            "the pass over the cell ended at the step `{name}`: {message}. It is tried again"
        );
        let unknown = step.clone();
        steps.end_with(&unknown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_that_takes_too_long_says_how_far_it_came() {
        let done = || Step::Done("done".to_owned());
        let mut steps = Steps {
            accepted: done(),
            range: done(),
            ..Steps::none()
        };
        note_error(
            "cell-001",
            &mut steps,
            &ReconcileError::TimedOut,
            Duration::from_secs(70),
        );
        let Step::Unknown {
            reason,
            message,
            lasted,
        } = &steps.databases
        else {
            panic!("{steps:?}");
        };
        assert_eq!((&**reason, lasted.as_secs()), ("PassTimedOut", 70));
        assert!(
            message.contains("`databases`") && message.contains("60 s"),
            "{message}"
        );
        assert_eq!(steps.serving, steps.databases);
        assert!(steps.range.is_done());
    }
}
