//! When which Cell is reconciled.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::core::PartialObjectMeta;
use kube::runtime::controller::{Action, Config};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use titan_crds::Cell;
use titan_planner::object::{CELL_LABEL, MANAGED_BY, MANAGER};

use crate::error::ReconcileError;
use crate::execute::cell::reconcile::{look_at_pods, reconcile};
use crate::observe::{Debounce, debounce};
use crate::run::context::Context;

/// Passes under way at once. Each holds all objects of its cell in memory, twice: as they are and as they should be.
const CONCURRENCY: u16 = 16;
/// How long to gather events of a cell before looking at it: its services become ready one after another.
const DEBOUNCE: Debounce = Debounce {
    quiet: Duration::from_millis(250),
    max_wait: Duration::from_secs(2),
};
/// How many objects a watch's first LIST asks for at a time.
const PAGE: u32 = 500;

/// The name in metrics and logs.
const CONTROLLER: &str = "cell";

/// What makes Cells be looked at, besides their own objects.
pub struct Triggers {
    /// Cells as they change.
    pub cells: BoxStream<'static, Result<Cell, watcher::Error>>,
    /// Profiles, fleets and routing tables as they change, as the Cells that they matter to.
    pub references: BoxStream<'static, ObjectRef<Cell>>,
}

/// Reconciles Cells until `shutdown`, and ends when the last reconcile has.
pub async fn run(
    context: Arc<Context>,
    triggers: Triggers,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let Triggers { cells, references } = triggers;
    let metrics = context.metrics.clone();
    let (by_itself, by_reference, by_object) = (context.clone(), context.clone(), context.clone());
    let cells = cells.inspect_ok(move |cell| by_itself.pass_cache.invalidate(&cell.name_any()));
    let references = references.inspect(move |cell| by_reference.pass_cache.invalidate(&cell.name));
    let objects = debounce(owned_objects(&context), DEBOUNCE)
        .inspect(move |cell| by_object.pass_cache.invalidate(&cell.name));
    Controller::for_stream(cells, context.cells.clone())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(references)
        .reconcile_on(objects)
        .graceful_shutdown_on(shutdown)
        .run(attempt, retry, context)
        .for_each(|result| {
            metrics.heard("Cell", result);
            std::future::ready(())
        })
        .await;
}

async fn attempt(cell: Arc<Cell>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let name = cell.name_any();
    let reconcile = match context.pass_cache.get(&cell) {
        Some(found) => look_at_pods(cell, context.clone(), found).boxed(),
        None => reconcile(cell, context.clone()).boxed(),
    };
    context.attempt(CONTROLLER, &name, reconcile).await
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the controller passes these by value"
)]
fn retry(cell: Arc<Cell>, error: &ReconcileError, context: Arc<Context>) -> Action {
    context.retry(CONTROLLER, &cell.name_any(), error)
}

/// Every change that somebody else made to an object of the operator, as the Cell that it belongs to. Only metadata is watched: what is in
/// the objects is read when their cell is reconciled, so nothing of it is kept in memory.
///
/// Secrets are not watched: that would take the right to read every Secret of the cluster.
fn owned_objects(context: &Context) -> BoxStream<'static, ObjectRef<Cell>> {
    stream::select_all([
        owned::<Namespace>(context),
        owned::<RoleBinding>(context),
        owned::<ServiceAccount>(context),
        owned::<ConfigMap>(context),
        owned::<NetworkPolicy>(context),
        owned::<Service>(context),
        owned::<StatefulSet>(context),
        owned::<Job>(context),
        owned::<Deployment>(context),
        owned::<PodDisruptionBudget>(context),
        owned::<HorizontalPodAutoscaler>(context),
    ])
    .boxed()
}

fn owned<K>(context: &Context) -> BoxStream<'static, ObjectRef<Cell>>
where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let config = watcher::Config::default()
        .labels(&format!("{MANAGED_BY}={MANAGER},{CELL_LABEL}"))
        .page_size(PAGE);
    let events = watcher(
        Api::<PartialObjectMeta<K>>::all(context.client.clone()),
        config,
    )
    .default_backoff()
    .modify(|object| object.managed_fields_mut().clear());
    let metrics = context.metrics.clone();
    context
        .own_writes
        .clone()
        .without(events)
        .touched_objects()
        .filter_map(move |object| {
            std::future::ready(match object {
                // The cell has the name of the namespace, whatever somebody has made of the label.
                Ok(object) => {
                    let cell = object.namespace().unwrap_or_else(|| object.name_any());
                    Some(ObjectRef::new(&cell))
                }
                Err(error) => {
                    metrics.watch_interrupted(&K::kind(&()), &error);
                    None
                }
            })
        })
        .boxed()
}
