//! One pass over one CellFleet.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};
use titan_crds::{Cell, CellFleet, CellFleetStatus, ConditionType};
use titan_planner::fleet::{CellView, TemplateReport, missing_cells};
use titan_routing::{Epoch, Key, KeyRange};

use crate::cell::ReconcileError;
use crate::cluster::is_conflict;
use crate::context::{Context, jitter};
use crate::fleet::commit::commit;
use crate::ledger::{System, Write};

const RESYNC: Duration = Duration::from_mins(10);
const PARALLEL_CREATES: usize = 8;

/// Makes the cells of the template, commits the routing table and sums the fleet up.
///
/// # Errors
/// When something did not work that may work the next time.
pub async fn reconcile(
    fleet: Arc<CellFleet>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    if fleet.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let name = fleet.name_any();
    let cells: Vec<Arc<Cell>> = context
        .cells
        .state()
        .into_iter()
        .filter(|cell| cell.spec.fleet == name)
        .collect();
    let (template, problem) =
        match missing_cells(&name, &fleet.spec, cells.iter().map(AsRef::as_ref)) {
            Ok(template) => (template, None),
            Err(invalid) => (TemplateReport::default(), Some(invalid)),
        };
    create(&template.missing, &context).await?;

    let views = cells
        .iter()
        .filter_map(|cell| view(cell, &fleet.spec.cluster_domain))
        .collect();
    let committed = commit(&fleet, views, &context).await?;
    tracing::trace!(fleet = name, report = %committed.report, "planned");

    let ready = cells
        .iter()
        .filter(|cell| is_true(cell, ConditionType::Ready))
        .count();
    let total = cells.len() + template.missing.len();
    let (status, reason, message) = match &problem {
        Some(invalid) => ("False", invalid.reason.to_owned(), invalid.message.clone()),
        None => summary(ready, total, &template),
    };
    report(
        &fleet,
        &context,
        Summary {
            cells: total,
            ready,
            epoch: committed.epoch,
            status,
            reason,
            message,
            stalled: problem.is_some(),
        },
    )
    .await?;
    context.failures.clear(&format!("fleet/{name}"));
    Ok(Action::requeue(jitter(RESYNC)))
}

fn summary(
    ready: usize,
    total: usize,
    template: &TemplateReport,
) -> (&'static str, String, String) {
    let mut message = format!("{ready} of {total} cells are ready");
    if !template.differing.is_empty() {
        message.push_str(&format!(
            "; {} differ from the template, which is for new cells only",
            template.differing.len()
        ));
    }
    if !template.beyond.is_empty() {
        message.push_str(&format!(
            "; {} are beyond the template's count and stay until they are deleted by name",
            template.beyond.len()
        ));
    }
    if ready == total {
        ("True", "CellsReady".to_owned(), message)
    } else {
        ("Unknown", "CellsNotReady".to_owned(), message)
    }
}

async fn create(missing: &[Cell], context: &Context) -> Result<(), ReconcileError> {
    let cells: Api<Cell> = Api::all(context.client.clone());
    let creations: Vec<_> = missing
        .iter()
        .map(|cell| create_one(&cells, cell, context).boxed())
        .collect();
    stream::iter(creations)
        .buffer_unordered(PARALLEL_CREATES)
        .try_collect()
        .await
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

/// What the planner needs to know of a cell; `None` for one whose range is none, which its own reconcile reports.
fn view(cell: &Cell, cluster_domain: &str) -> Option<CellView> {
    let key = |value: i64| Key::new(value.cast_unsigned()).ok();
    let range = KeyRange::new(
        key(cell.spec.user_range.first)?,
        key(cell.spec.user_range.last)?,
    )
    .ok()?;
    let name = cell.name_any();
    let recorded = cell
        .status
        .as_ref()
        .filter(|_| is_true(cell, ConditionType::RangeAssigned))
        .filter(|_| was_served(cell))
        .and_then(|status| status.epoch)
        .map(Epoch);
    Some(CellView {
        created: cell
            .creation_timestamp()
            .map_or(i64::MAX, |time| time.0.as_second()),
        region: cell.spec.placement.region.clone(),
        endpoint: format!("{name}.svc.{cluster_domain}"),
        serving: is_true(cell, ConditionType::ServicesAvailable)
            && is_true(cell, ConditionType::DatabasesReady),
        deleting: cell.metadata.deletion_timestamp.is_some(),
        paused: cell.spec.paused,
        recorded,
        range,
        name,
    })
}

fn is_true(cell: &Cell, name: ConditionType) -> bool {
    cell.status.as_ref().is_some_and(|status| {
        status
            .conditions
            .iter()
            .any(|condition| condition.type_ == name.as_str() && condition.status == "True")
    })
}

/// Whether the cell has served its range: it is Ready, or it is not and says so of a cell that was.
fn was_served(cell: &Cell) -> bool {
    cell.status.as_ref().is_some_and(|status| {
        status.conditions.iter().any(|condition| {
            condition.type_ == ConditionType::Ready.as_str() && condition.status != "Unknown"
        })
    }) && !is_true(cell, ConditionType::Stalled)
}

struct Summary {
    cells: usize,
    ready: usize,
    epoch: Epoch,
    status: &'static str,
    reason: String,
    message: String,
    stalled: bool,
}

async fn report(
    fleet: &CellFleet,
    context: &Context,
    summary: Summary,
) -> Result<(), ReconcileError> {
    let Summary {
        cells,
        ready,
        epoch,
        status,
        reason,
        message,
        stalled,
    } = summary;
    let generation = fleet
        .metadata
        .generation
        .ok_or(ReconcileError::Malformed("generation"))?;
    let before: &[Condition] = fleet
        .status
        .as_ref()
        .map_or(&[], |status| status.conditions.as_slice());
    let condition = |name: ConditionType, status: &str| Condition {
        type_: name.as_str().to_owned(),
        status: status.to_owned(),
        reason: reason.clone(),
        message: message.clone(),
        observed_generation: Some(generation),
        last_transition_time: before
            .iter()
            .find(|old| old.type_ == name.as_str() && old.status == status)
            .map_or_else(
                || Time(Timestamp::now()),
                |old| old.last_transition_time.clone(),
            ),
    };
    let mut conditions = vec![condition(ConditionType::Ready, status)];
    if stalled {
        conditions.push(condition(ConditionType::Stalled, "True"));
    } else if status == "Unknown" {
        conditions.push(condition(ConditionType::Reconciling, "True"));
    }
    let status = CellFleetStatus {
        observed_generation: generation,
        conditions,
        cells: i32::try_from(cells).unwrap_or(i32::MAX),
        ready_cells: i32::try_from(ready).unwrap_or(i32::MAX),
        epoch: Some(epoch.0),
    };
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
    let updated = CellFleet {
        status: Some(status),
        ..fleet.clone()
    };
    Api::<CellFleet>::all(context.client.clone())
        .replace_status(&name, &PostParams::default(), &updated)
        .await?;
    context.ledger.record(Write {
        system: System::Kubernetes,
        verb: "status",
        target: format!("CellFleet {name}"),
    })?;
    Ok(())
}
