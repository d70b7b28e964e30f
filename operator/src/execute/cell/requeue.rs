//! How soon to look at a cell again.

use std::time::Duration;

use kube::runtime::controller::Action;
use titan_planner::status::{Step, Steps};

use crate::run::attempt::jitter;

/// How soon to look again at a Cell of which an old view was looked at.
pub(super) const SHORTLY: Duration = Duration::from_secs(1);
/// How soon to look again at something that no watch tells of: a database that is starting.
const SOON: Duration = Duration::from_secs(3);
/// How soon to look whether a pod is stuck: see [`look_at_pods`](super::reconcile::look_at_pods).
const STUCK: Duration = Duration::from_secs(10);
/// How soon to look again at something that a person has to mend, and at something that has been going on for long: a
/// hundred cells that start at once are not looked at all the time.
pub(super) const LATER: Duration = Duration::from_secs(20);
/// The longest until then, for what has failed or not answered for long. What a person changes is looked at when it changes.
const LONGEST: Duration = Duration::from_mins(1);
/// How soon to look again at a cell that is as it should be, for drift outside of Kubernetes.
pub(super) const RESYNC: Duration = Duration::from_mins(10);

/// Whether there is nothing to be done but to wait until pods have started; whether the range may be served is another matter.
pub(super) fn is_waiting_for_pods(steps: &Steps) -> bool {
    let pods = [&steps.migrations, &steps.services];
    steps.stores_are_done()
        && pods
            .iter()
            .any(|step| matches!(step, Step::Waiting { .. } | Step::Unknown { .. }))
        && !pods.iter().any(|step| matches!(step, Step::Failed { .. }))
}

/// When to look at a cell again that is so far, and has been for so long.
pub(super) fn requeue(steps: &Steps, waited: Duration) -> Action {
    Action::requeue(jitter(match steps.decisive() {
        None => RESYNC,
        Some(Step::Failed { .. }) => (waited / 4).clamp(LATER, LONGEST),
        Some(Step::Unknown { lasted, .. }) => (*lasted / 4).clamp(SOON, LONGEST),
        // Watches tell how Jobs and Deployments get on, and only of a pod that is stuck they do not.
        Some(_) if steps.stores_are_done() => waited.clamp(STUCK, LATER),
        Some(_) => (waited / 4).clamp(SOON, LATER),
    }))
}
