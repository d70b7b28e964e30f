//! A pass over a paused cell: it looks, and writes nothing but the status.

use kube::ResourceExt;
use titan_crds::Cell;
use titan_planner::object::Kind;

use crate::error::ReconcileError;
use crate::execute::apply::{LiveObjects, ObjectClient, is_forbidden};
use crate::execute::cell::reconcile::Progress;
use crate::execute::cell::services::{
    Deployments, diagnose_pods, explain, fill_in, lacks_pods, rollup_unplanned, services_step,
};
use crate::run::context::Context;

/// What is known of a paused cell: its row, and how its services are. By what there is, not by a plan: the spec may have been
/// changed, or may name what does not exist any more.
pub(super) async fn look(cell: &Cell, context: &Context) -> Result<Progress, ReconcileError> {
    let name = cell.name_any();
    let mut progress = Progress::new();
    progress.ranges = context.tables.rows_of(cell);

    let client = ObjectClient::new(&context.client, context.ledger.as_ref(), &name);
    let mut live = LiveObjects::default();
    match client.list(Kind::Deployment).await {
        Ok(deployments) => deployments.into_iter().for_each(|it| live.insert(it)),
        // Paused before it had a namespace: the right to look comes with that.
        Err(error) if is_forbidden(&error) => return Ok(progress),
        Err(error) => return Err(error.into()),
    }
    let known = cell.status.as_ref().map_or(&[][..], |it| &it.services);
    let deployments = Deployments::read(&live);
    let mut services = rollup_unplanned(known, &deployments);
    if services.is_empty() {
        return Ok(progress);
    }
    let mut diagnoses = Default::default();
    if services.iter().any(lacks_pods) {
        diagnoses = diagnose_pods(context, &name).await?;
        fill_in(&mut diagnoses, &deployments.diagnoses());
        explain(&mut services, &diagnoses);
    }
    progress.steps.services = services_step(&name, &services, &diagnoses, &context.unseen);
    progress.services = Some(services.into_iter().map(|it| it.status).collect());
    Ok(progress)
}
