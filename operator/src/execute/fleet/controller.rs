//! When which CellFleet is reconciled.

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::ResourceExt;
use kube::runtime::controller::{Action, Config};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, watcher};
use titan_crds::CellFleet;

use crate::error::ReconcileError;
use crate::execute::fleet::reconcile;
use crate::run::context::Context;

const CONCURRENCY: u16 = 4;

/// The name in metrics and logs.
const CONTROLLER: &str = "fleet";

/// What makes fleets be looked at.
pub struct Triggers {
    /// Fleets as they change.
    pub fleets: BoxStream<'static, Result<CellFleet, watcher::Error>>,
    /// Cells and tables as they change, as the fleets that they belong to.
    pub members: BoxStream<'static, ObjectRef<CellFleet>>,
}

/// Reconciles CellFleets until `shutdown`, and ends when the last reconcile has.
pub async fn run(
    context: Arc<Context>,
    triggers: Triggers,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let Triggers { fleets, members } = triggers;
    let metrics = context.metrics.clone();
    Controller::for_stream(fleets, context.fleets.clone())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(members)
        .graceful_shutdown_on(shutdown)
        .run(attempt, retry, context)
        .for_each(|result| {
            metrics.heard("CellFleet", result);
            std::future::ready(())
        })
        .await;
}

async fn attempt(fleet: Arc<CellFleet>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let name = fleet.name_any();
    let reconcile = async {
        // A plan made from half of the cells would take the other half out of the table.
        context.cells_known.wait().await;
        reconcile(fleet, context.clone()).await
    };
    context.attempt(CONTROLLER, &name, reconcile).await
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the controller passes these by value"
)]
fn retry(fleet: Arc<CellFleet>, error: &ReconcileError, context: Arc<Context>) -> Action {
    context.retry(CONTROLLER, &fleet.name_any(), error)
}
