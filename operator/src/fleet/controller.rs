//! When which CellFleet is reconciled.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::ResourceExt;
use kube::runtime::controller::{Action, Config};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, watcher};
use titan_crds::CellFleet;

use crate::cell::{ReconcileError, limited};
use crate::context::Context;
use crate::fleet::reconcile;

const CONCURRENCY: u16 = 4;
/// How long to gather the changes of cells into one table and one status.
const DEBOUNCE: Duration = Duration::from_millis(200);

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
    Controller::for_stream(fleets, context.fleets.clone())
        .with_config(
            Config::default()
                .concurrency(CONCURRENCY)
                .debounce(DEBOUNCE),
        )
        .reconcile_on(members)
        .graceful_shutdown_on(shutdown)
        .run(timed, on_error, context)
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::debug!(%error, "fleet controller");
            }
        })
        .await;
}

async fn timed(fleet: Arc<CellFleet>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    // A plan made from half of the cells would take the other half out of the table.
    if context.cells.wait_until_ready().await.is_err() {
        return Ok(Action::await_change());
    }
    let began = Instant::now();
    let result = limited(reconcile(fleet, context.clone())).await;
    let outcome = if result.is_ok() { "ok" } else { "error" };
    context
        .metrics
        .reconcile_seconds
        .with_label_values(&["fleet", outcome])
        .observe(began.elapsed().as_secs_f64());
    result
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the controller passes these by value"
)]
fn on_error(fleet: Arc<CellFleet>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let name = fleet.name_any();
    let delay = context.failures.next_delay(&format!("fleet/{name}"));
    context
        .metrics
        .failures
        .with_label_values(&["fleet", error.category()])
        .inc();
    tracing::warn!(fleet = name, %error, retry_in = ?delay, "reconcile failed");
    Action::requeue(delay)
}
