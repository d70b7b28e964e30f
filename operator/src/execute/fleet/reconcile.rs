//! One pass over one CellFleet.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};
use titan_crds::{Cell, CellFleet, CellFleetStatus, ConditionType};
use titan_planner::Observed;
use titan_planner::assignment::CellView;
use titan_planner::condition::is_true;
use titan_planner::fleet::{FleetStatusInput, TemplateReport, fleet_status, missing_cells};

use crate::commit::{Committed, commit};
use crate::error::ReconcileError;
use crate::execute::apply::is_conflict;
use crate::execute::finalizer::{hold, is_held, release};
use crate::execute::status::patch_status;
use crate::ledger::{System, Write};
use crate::run::attempt::jitter;
use crate::run::context::Context;

const RESYNC: Duration = Duration::from_mins(10);
/// How soon to plan again when the committed table could not be read.
const UNREAD: Duration = Duration::from_secs(2);
const PARALLEL_CREATES: usize = 8;

/// Keeps a CellFleet while Cells name it: somebody has to take their rows out of the table, and to know their Kafka.
const FINALIZER: &str = "titan.dev/fleet";

/// Makes the cells of the template, commits the routing table and sums the fleet up. A fleet that is being deleted makes no
/// cells any more, and goes when its last cell has.
///
/// # Errors
/// When something did not work that may work the next time.
pub async fn reconcile(
    fleet: Arc<CellFleet>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let deleting = fleet.metadata.deletion_timestamp.is_some();
    if deleting && !is_held(fleet.as_ref(), FINALIZER) {
        return Ok(Action::await_change());
    }
    let fleets = context.fleets.state();
    context.kafka.keep(|bootstrap| {
        let mut fleets = fleets.iter();
        fleets.any(|fleet| fleet.spec.kafka.bootstrap == bootstrap)
    });
    let fleet = if deleting {
        fleet
    } else {
        hold(fleet, FINALIZER, &context).await?
    };
    let name = fleet.name_any();
    let cells: Vec<Arc<Cell>> = context
        .cells
        .state()
        .into_iter()
        .filter(|cell| cell.spec.fleet == name)
        .collect();
    let template = if deleting {
        Ok(TemplateReport::default())
    } else {
        missing_cells(&name, &fleet.spec, cells.iter().map(AsRef::as_ref))
    };
    let missing = template
        .as_ref()
        .map_or(&[][..], |template| &template.missing);
    let created = create(missing, &context).await?;

    let views = cells
        .iter()
        .filter_map(|cell| CellView::of(cell, &fleet.spec.cluster_domain))
        .collect();
    let committed = commit(&fleet, views, &context).await;
    if let Err(error) = &committed
        && (error.is_interruption() || is_somebody_elses(error))
    {
        return committed.map(|_| Action::await_change());
    }
    if let Ok(Committed { report, .. }) = &committed
        && let Some(reason) = report.waiting_on
    {
        // What the status says still holds: not being able to look is no news of the fleet.
        tracing::warn!(fleet = name, "{reason}; planning again soon");
        return Ok(Action::requeue(jitter(UNREAD)));
    }
    let routes_nothing = match context.tables.get(&name) {
        Observed::Known(table) => table.assignments().is_empty(),
        Observed::Absent => true,
        Observed::Unknown => false,
    };
    if deleting
        && committed.is_ok()
        && cells.is_empty()
        && routes_nothing
        && is_empty(&name, &context).await?
    {
        release(fleet.as_ref(), FINALIZER, &context).await?;
        forget(&name, &context);
        return Ok(Action::await_change());
    }

    let is_ready = |cell: &&Arc<Cell>| {
        let status = cell.status.as_ref();
        status.is_some_and(|status| is_true(&status.conditions, ConditionType::Ready))
    };
    let status = fleet_status(FleetStatusInput {
        fleet: &fleet,
        generation: fleet
            .metadata
            .generation
            .ok_or(ReconcileError::Malformed("generation"))?,
        now: Time(Timestamp::now()),
        cells: cells.len() + created.count,
        ready: cells.iter().filter(is_ready).count(),
        template: template.as_ref(),
        not_created: created.failed.as_ref().map(NotCreated::to_string),
        committed: committed
            .as_ref()
            .map(|committed| committed.epoch)
            .map_err(ToString::to_string),
    });
    report(&fleet, &context, status).await?;
    let committed = committed?;
    tracing::trace!(fleet = name, report = %committed.report, "planned");
    if let Some(NotCreated { error, .. }) = created.failed {
        return Err(error);
    }
    Ok(Action::requeue(jitter(RESYNC)))
}

/// Whether no Cell names the fleet, asked at the source: a cache may lag, and a cell that is still being deleted needs its
/// fleet to know which Kafka has its topics.
async fn is_empty(fleet: &str, context: &Context) -> Result<bool, ReconcileError> {
    let one = ListParams::default()
        .fields(&format!("spec.fleet={fleet}"))
        .limit(1);
    let cells = Api::<Cell>::all(context.client.clone());
    Ok(cells.list_metadata(&one).await?.items.is_empty())
}

/// Whether another operator committed first; this one plans again, which is no news for anybody.
fn is_somebody_elses(error: &ReconcileError) -> bool {
    matches!(error, ReconcileError::Kube(error) if is_conflict(error))
}

/// What came of making cells.
#[derive(Default)]
struct Created {
    count: usize,
    /// The first by name of those that were refused.
    failed: Option<NotCreated>,
}

/// A cell that could not be made.
struct NotCreated {
    cell: String,
    error: ReconcileError,
}

impl fmt::Display for NotCreated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cell, error } = self;
        match error {
            ReconcileError::Kube(kube::Error::Api(status)) => {
                write!(f, "{cell}: the apiserver says: {}", status.message)
            }
            error => write!(f, "{cell}: {error}"),
        }
    }
}

/// Makes cells. One that is refused holds up neither the others nor the table that those which exist are waiting for.
///
/// # Errors
/// When this pass was interrupted.
async fn create(missing: &[Cell], context: &Context) -> Result<Created, ReconcileError> {
    let cells: Api<Cell> = Api::all(context.client.clone());
    let creations: Vec<_> = missing
        .iter()
        .map(|cell| async { (cell.name_any(), create_one(&cells, cell, context).await) }.boxed())
        .collect();
    let mut outcomes = stream::iter(creations).buffer_unordered(PARALLEL_CREATES);
    let mut created = Created::default();
    while let Some((cell, outcome)) = outcomes.next().await {
        match outcome {
            Ok(()) => created.count += 1,
            Err(error) if error.is_interruption() => return Err(error),
            // Always the same one is told, whichever was refused sooner.
            Err(error) => match &created.failed {
                Some(other) if other.cell < cell => {}
                _ => created.failed = Some(NotCreated { cell, error }),
            },
        }
    }
    Ok(created)
}

async fn create_one(
    cells: &Api<Cell>,
    cell: &Cell,
    context: &Context,
) -> Result<(), ReconcileError> {
    match cells.create(&PostParams::default(), cell).await {
        Ok(_) => Ok(context.ledger.record(Write {
            system: System::Kubernetes,
            verb: "create",
            target: format!("Cell {}", cell.name_any()),
        })?),
        // It is there already, and our cache has not heard of it yet.
        Err(error) if is_conflict(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Says nothing more of a fleet that is gone.
fn forget(fleet: &str, context: &Context) {
    let metrics = &context.metrics;
    for gauge in [&metrics.fleet_cells, &metrics.fleet_cells_ready] {
        // There is nothing to remove when it was never reported.
        let _ = gauge.remove_label_values(&[fleet]);
    }
}

async fn report(
    fleet: &CellFleet,
    context: &Context,
    status: CellFleetStatus,
) -> Result<(), ReconcileError> {
    let name = fleet.name_any();
    let metrics = &context.metrics;
    for (gauge, count) in [
        (&metrics.fleet_cells, status.cells),
        (&metrics.fleet_cells_ready, status.ready_cells),
    ] {
        gauge.with_label_values(&[&name]).set(i64::from(count));
    }
    if fleet.status.as_ref() == Some(&status) {
        return Ok(());
    }
    patch_status(fleet, fleet.status.as_ref(), &status, &context.client).await?;
    context.ledger.record(Write {
        system: System::Kubernetes,
        verb: "status",
        target: format!("CellFleet {name}"),
    })?;
    Ok(())
}
