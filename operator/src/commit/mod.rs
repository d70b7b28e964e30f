//! Committing the routing table: the one write after which there is no way back.

use std::collections::{BTreeMap, BTreeSet};

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::events::{Event, EventType};
use kube::{Api, Resource, ResourceExt};
use titan_crds::{Cell, CellFleet, RoutingTable as TableResource};
use titan_planner::Observed;
use titan_planner::assignment::{CellView, Plan, PlanInput, PlanReport, plan};
use titan_planner::fleet::{from_resource, mode_from_resource, to_resource};
use titan_routing::{Epoch, RoutingTable};

use crate::error::ReconcileError;
use crate::ledger::{System, Write};
use crate::observe;
use crate::run::context::Context;

/// How many cells are looked up at once.
const PARALLEL_LOOKUPS: usize = 16;

/// What committing came to.
pub(crate) struct Committed {
    pub(crate) report: PlanReport,
    /// The epoch of the table that is committed now.
    pub(crate) epoch: Epoch,
}

/// Plans the next table from what is committed and what cells there are, and writes it if it is another one.
///
/// The table is read from the apiserver, not from a cache, and written by compare-and-swap on its resourceVersion: of two
/// operators that think they lead, one gets a conflict and plans again.
pub(crate) async fn commit(
    fleet: &CellFleet,
    views: Vec<CellView>,
    context: &Context,
) -> Result<Committed, ReconcileError> {
    let name = fleet.name_any();
    let tables: Api<TableResource> = Api::all(context.client.clone());
    let (resource, base) = match tables.get_opt(&name).await {
        Ok(resource) => {
            let base = base(fleet, resource.as_ref(), context).await;
            (resource, base)
        }
        Err(error) => {
            tracing::warn!(fleet = name, %error, "cannot read the RoutingTable");
            (None, Base::unknown())
        }
    };
    let (views, gone) = confirm(&base.table, views, context).await?;

    let mut input = PlanInput {
        mode: mode_from_resource(fleet.spec.keyspace.mode),
        table: base.table,
        epoch_floor: base.epoch_floor,
        rewrite: base.rewrite,
        cells: views,
        gone,
        region: None,
    };
    let (plan, report) = confirmed_plan(&mut input, fleet, context).await?;
    let Some(next) = plan.table else {
        let epoch = match &input.table {
            Observed::Known(table) => table.epoch(),
            _ => Epoch::default(),
        };
        // A replica that has just begun may not have been told by its watch yet.
        if let Some(resource) = &resource {
            context.tables.take_in(resource);
        }
        return Ok(Committed { report, epoch });
    };
    let written = write(&tables, &name, resource, &next, context).await?;
    tracing::info!(fleet = name, epoch = next.epoch().0, %report, "committed a routing table");
    context.tables.take_in(&written);
    Ok(Committed {
        report,
        epoch: next.epoch(),
    })
}

/// What to plan on.
struct Base {
    table: Observed<RoutingTable>,
    epoch_floor: Epoch,
    rewrite: bool,
}

impl Base {
    /// The table could not be read.
    const fn unknown() -> Self {
        Base {
            table: Observed::Unknown,
            epoch_floor: Epoch(0),
            rewrite: false,
        }
    }
}

/// The committed table; where somebody has edited it, the last good one, to be written again with a larger epoch.
async fn base(fleet: &CellFleet, resource: Option<&TableResource>, context: &Context) -> Base {
    let name = fleet.name_any();
    let known = match context.tables.get(&name) {
        Observed::Known(table) => Some(table).filter(|it| it.epoch() > Epoch::default()),
        Observed::Unknown | Observed::Absent => None,
    };
    // Survives a table that was deleted while no operator ran: consumers never take an older one than they had.
    let reported = fleet.status.as_ref().and_then(|status| status.epoch);
    let reported = Epoch(reported.unwrap_or_default());
    let Some(resource) = resource else {
        // Never committed, or deleted by hand: then the last good one is written again.
        return Base {
            table: known
                .as_deref()
                .cloned()
                .map_or(Observed::Absent, Observed::Known),
            epoch_floor: reported,
            rewrite: known.is_some(),
        };
    };
    match from_resource(&resource.spec) {
        Ok(table) => Base {
            table: Observed::Known(table),
            epoch_floor: Epoch::default(),
            rewrite: false,
        },
        Err(error) => {
            let from = if known.is_some() {
                "the last good one"
            } else {
                "the statuses of the Cells"
            };
            let note = format!("RoutingTable {name}: {error}. It is written anew from {from}");
            tracing::error!(fleet = name, "{note}");
            let event = Event {
                type_: EventType::Warning,
                reason: "RoutingTableEdited".to_owned(),
                note: Some(observe::note(&note)),
                action: "Commit".to_owned(),
                secondary: None,
            };
            if let Err(error) = context
                .recorder
                .publish(&event, &fleet.object_ref(&()))
                .await
            {
                tracing::warn!(%error, "cannot write an Event");
            }
            Base {
                table: known
                    .as_deref()
                    .cloned()
                    .map_or(Observed::Absent, Observed::Known),
                epoch_floor: reported.max(Epoch(resource.spec.epoch)),
                rewrite: true,
            }
        }
    }
}

/// Makes sure, at the source and one by one, of those cells that would lose their rows: a cache may lag, and taking a living
/// cell out of the table would be an outage. Returns the views without the mistaken ones, and the cells that are really gone.
///
/// A cell that turns out to live although the cache shows it deleted is left out of this plan: its row stays, and the next
/// event of its watch brings it back.
async fn confirm(
    table: &Observed<RoutingTable>,
    mut views: Vec<CellView>,
    context: &Context,
) -> Result<(Vec<CellView>, BTreeSet<String>), ReconcileError> {
    let mut gone = BTreeSet::new();
    let Observed::Known(table) = table else {
        return Ok((views, gone));
    };
    let cells: Api<Cell> = Api::all(context.client.clone());
    let seen: BTreeMap<String, bool> = views
        .iter()
        .map(|view| (view.name.clone(), view.deleting))
        .collect();
    for name in table.cells_in_use() {
        let deleting = seen.get(name);
        if deleting == Some(&false) {
            continue;
        }
        let seen_deleting = deleting.is_some();
        // Metadata alone: a Cell that this version cannot read lives.
        match cells.get_metadata_opt(name).await? {
            None => {
                gone.insert(name.to_owned());
            }
            Some(cell) if seen_deleting && cell.metadata.deletion_timestamp.is_none() => {
                tracing::warn!(cell = name, "the cache shows as deleted a cell that lives");
                views.retain(|view| view.name != name);
            }
            Some(_) => {}
        }
    }
    Ok((views, gone))
}

/// Plans, and makes sure, at the source, of those cells that would get a row: with a row a cell's namespace, database and
/// topics are made, and nobody would ever take those of a cell apart that only an old cache shows. Such cells are taken out of
/// the input, and their watch brings back what they are now.
async fn confirmed_plan(
    input: &mut PlanInput,
    fleet: &CellFleet,
    context: &Context,
) -> Result<(Plan, PlanReport), ReconcileError> {
    let cells: Api<Cell> = Api::all(context.client.clone());
    let mut confirmed = BTreeSet::new();
    loop {
        let (next, report) = plan(input).map_err(|error| {
            let fleet = fleet.name_any();
            tracing::error!(fleet, %error, "planner bug: the next routing table is invalid");
            ReconcileError::Planner { fleet, error }
        })?;
        let claims = report
            .claims()
            .filter(|name| !confirmed.contains(*name))
            .map(str::to_owned);
        let lookups: Vec<_> = claims
            .map(|name| {
                let cells = &cells;
                async move { cells.get_opt(&name).await.map(|cell| (name, cell)) }.boxed()
            })
            .collect();
        let found: Vec<(String, Option<Cell>)> = stream::iter(lookups)
            .buffer_unordered(PARALLEL_LOOKUPS)
            .try_collect()
            .await?;
        let mut mistaken = BTreeSet::new();
        let views: BTreeMap<&str, &CellView> = input
            .cells
            .iter()
            .map(|view| (view.name.as_str(), view))
            .collect();
        for (name, cell) in found {
            let view = views.get(name.as_str());
            let now = cell.and_then(|cell| CellView::of(&cell, &fleet.spec.cluster_domain));
            if now.is_some_and(|now| view.is_some_and(|view| is_same(view, &now))) {
                confirmed.insert(name);
            } else {
                tracing::warn!(
                    cell = name,
                    "the cache shows a cell that is gone or another one by now"
                );
                mistaken.insert(name);
            }
        }
        if mistaken.is_empty() {
            return Ok((next, report));
        }
        input.cells.retain(|view| !mistaken.contains(&view.name));
    }
}

/// Whether a cell is still the one that was seen, and claims what it claimed.
fn is_same(seen: &CellView, now: &CellView) -> bool {
    !now.deleting
        && now.created == seen.created
        && now.claim == seen.claim
        && now.granted == seen.granted
}

async fn write(
    tables: &Api<TableResource>,
    name: &str,
    resource: Option<TableResource>,
    next: &RoutingTable,
    context: &Context,
) -> Result<TableResource, ReconcileError> {
    let spec = to_resource(name, next);
    let (verb, written) = match resource {
        Some(resource) => {
            let resource = TableResource { spec, ..resource };
            let written = tables
                .replace(name, &PostParams::default(), &resource)
                .await?;
            ("commit", written)
        }
        None => {
            let resource = TableResource {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    ..ObjectMeta::default()
                },
                spec,
            };
            let written = tables.create(&PostParams::default(), &resource).await?;
            ("create", written)
        }
    };
    context.ledger.record(Write {
        system: System::Kubernetes,
        verb,
        target: format!("RoutingTable {name}"),
    })?;
    Ok(written)
}
