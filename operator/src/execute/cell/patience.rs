//! For how long a cell has been waited for, and what it was too long for: a person is asked to look.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use titan_crds::{Cell, ConditionType};
use titan_planner::status::Step;

/// For how long a database or Kafka may take to come up, or to come back, before somebody should look. A start takes seconds,
/// the election of another leader less than a minute.
const PATIENCE: Duration = Duration::from_mins(5);

/// For how long `Ready` has been what it is.
pub(super) fn waited(cell: &Cell) -> Duration {
    lasted(cell, ConditionType::Ready, |_| true)
}

/// For how long this has not been so.
pub(super) fn unready_for(cell: &Cell, what: ConditionType) -> Duration {
    lasted(cell, what, |status| status != "True")
}

/// For how long a condition has had its status, if that is one that counts, as the Cell has it.
fn lasted(cell: &Cell, name: ConditionType, counts: impl Fn(&str) -> bool) -> Duration {
    cell.status
        .iter()
        .flat_map(|status| &status.conditions)
        .find(|condition| condition.type_ == name.as_str())
        .filter(|condition| counts(&condition.status))
        .map(|condition| Timestamp::now().duration_since(condition.last_transition_time.0))
        .and_then(|lasted| Duration::try_from(lasted).ok())
        .unwrap_or_default()
}

/// What is said of a store in the cell that has no ready pod, and of which no pod says what is wrong.
pub(super) fn starting(cell: &str, store: &str, waited: Duration) -> Step {
    if waited < PATIENCE {
        return Step::waiting(
            "DatabasesStarting",
            format!("waiting for {store} to become ready"),
        );
    }
    Step::failed(
        "DatabaseNotReady",
        format!(
            "{store} has not become ready for more than {} minutes, and no pod of it says why; look at `kubectl logs -n {cell} {store}-0` and `kubectl describe -n {cell} pod/{store}-0 statefulset/{store}`. The operator goes on by itself when it is ready",
            PATIENCE.as_secs() / 60
        ),
    )
}

/// What is said of a store that does not answer: after a while it is for a person, and stays so until it answers.
pub(super) fn unanswered(cell: &Cell, step: Step, waited: Duration) -> Step {
    match step {
        Step::Waiting { reason, message }
        | Step::Unknown {
            reason, message, ..
        } if waited >= PATIENCE || is_stalled(cell, &reason) => Step::Failed {
            reason,
            message: format!(
                "{message}. It has been so for more than {} minutes",
                PATIENCE.as_secs() / 60
            ),
        },
        step => step,
    }
}

/// Whether a person was asked to look for this reason.
fn is_stalled(cell: &Cell, reason: &str) -> bool {
    let conditions = cell.status.iter().flat_map(|status| &status.conditions);
    let mut stalled = conditions.filter(|it| it.type_ == ConditionType::Stalled.as_str());
    stalled.any(|it| it.status == "True" && it.reason == reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_too_long_is_for_a_person() {
        let reason = |step: &Step| match step {
            Step::Waiting { reason, .. } => format!("waits: {reason}"),
            Step::Failed { reason, .. } => format!("fails: {reason}"),
            Step::NotReached | Step::Done(_) | Step::Unknown { .. } => String::new(),
        };
        let (soon, late) = (PATIENCE - Duration::from_secs(1), PATIENCE);
        let start = |waited| reason(&starting("cell-001", "postgres", waited));
        assert_eq!(start(soon), "waits: DatabasesStarting");
        assert_eq!(start(late), "fails: DatabaseNotReady");
        let away = || Step::waiting("PostgresUnreachable", "no answer");
        let mut cell = Cell::new(
            "cell-001",
            serde_json::from_value(serde_json::json!({
                "fleet": "f", "profile": "p", "release": "1",
            }))
            .unwrap(),
        );
        assert_eq!(unanswered(&cell, away(), soon), away());
        let late = unanswered(&cell, away(), late);
        assert_eq!(reason(&late), "fails: PostgresUnreachable");
        // The condition is another one from then on, and the time begins anew; what was said stays.
        let stalled = serde_json::json!({"conditions": [{
            "type": "Stalled", "status": "True", "reason": "PostgresUnreachable", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]});
        cell.status = serde_json::from_value(stalled).unwrap();
        assert_eq!(unanswered(&cell, away(), soon), late);
    }
}
