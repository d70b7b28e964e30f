//! The PostgreSQL that Patroni runs in a cell: what is left for the operator to do.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use titan_planner::cell::{
    PATRONI_STORE, PostgresPlan, StoreStorage, ValidatedCell, patroni_reconfiguration,
};
use titan_planner::object::Kind;
use titan_planner::status::Step;

use crate::cell::ReconcileError;
use crate::cluster::{LiveObject, LiveObjects};
use crate::context::Context;
use crate::stores::patroni::{MemberView, forget_lost_data, hasten_failover, reconfigure};

/// The name of the StatefulSet, which is also Patroni's scope.
pub(super) const POSTGRES: &str = "postgres";

/// Carries changed settings over, lets a standby take over at once where the leader's pod is gone, and lets a database
/// begin anew whose data went with its pods, which is a step of its own for people to see. Asks for no pods while every
/// member is ready.
pub(super) async fn tend(
    cell: &ValidatedCell,
    live: &LiveObjects,
    context: &Context,
) -> Result<Option<Step>, ReconcileError> {
    let PostgresPlan::Managed {
        members,
        synchronous,
        storage,
        ..
    } = &cell.postgres
    else {
        return Ok(None);
    };
    let client = &context.client;
    let ledger = context.ledger.as_ref();
    let desired = |current: &str| patroni_reconfiguration(cell, current);
    if reconfigure(client, &cell.name, PATRONI_STORE, desired, ledger).await? {
        tracing::info!(cell = cell.name, "PostgreSQL has new settings");
    }
    let ready = live
        .get(Kind::StatefulSet, POSTGRES)
        .map_or(0, LiveObject::ready_replicas);
    if ready >= i64::from(*members) {
        return Ok(None);
    }
    let ephemeral = matches!(storage, StoreStorage::Ephemeral { .. });
    if ready == 0 && ephemeral {
        let views = members_of(cell, *members, context).await?;
        if forget_lost_data(client, &cell.name, POSTGRES, &views, ledger).await? {
            return Ok(Some(Step::waiting(
                "DataLost",
                "PostgreSQL's data went with its pods, as storage.ephemeral has it; the database begins anew, empty",
            )));
        }
    } else if ready > 0 && *synchronous {
        let views = members_of(cell, *members, context).await?;
        let decision = hasten_failover(client, &cell.name, POSTGRES, &views, ledger).await?;
        tracing::info!(cell = cell.name, ?decision, "PostgreSQL lacks members");
    }
    Ok(None)
}

async fn members_of(
    cell: &ValidatedCell,
    members: i32,
    context: &Context,
) -> Result<Vec<MemberView>, ReconcileError> {
    let pods = Api::<Pod>::namespaced(context.client.clone(), &cell.name)
        .list(&ListParams::default().labels("app.kubernetes.io/name=postgres"))
        .await?
        .items;
    Ok((0..members)
        .map(|number| {
            let name = format!("{POSTGRES}-{number}");
            let pod = pods.iter().find(|pod| pod.name_any() == name);
            MemberView::of(&name, pod)
        })
        .collect())
}
