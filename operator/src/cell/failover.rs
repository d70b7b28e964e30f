//! The failover of a cell's PostgreSQL, made quicker.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use titan_planner::cell::{PostgresPlan, ValidatedCell};
use titan_planner::object::Kind;

use crate::cell::ReconcileError;
use crate::cluster::LiveObjects;
use crate::context::Context;
use crate::stores::patroni::{MemberView, hasten_failover};

/// The name of the StatefulSet, which is also Patroni's scope.
const POSTGRES: &str = "postgres";

/// Lets a standby take over at once where the leader's pod is gone: left alone, Patroni waits for the leader's lock to run
/// out. Asks nothing while every member is ready.
pub(super) async fn hasten(
    cell: &ValidatedCell,
    live: &LiveObjects,
    context: &Context,
) -> Result<(), ReconcileError> {
    let PostgresPlan::Managed {
        members,
        synchronous: true,
        ..
    } = &cell.postgres
    else {
        return Ok(());
    };
    let ready = live
        .get(Kind::StatefulSet, POSTGRES)
        .map_or(0, |set| set.number("/status/readyReplicas"));
    if ready == 0 || ready >= i64::from(*members) {
        return Ok(());
    }
    let pods = Api::<Pod>::namespaced(context.client.clone(), &cell.name)
        .list(&ListParams::default().labels("app.kubernetes.io/name=postgres"))
        .await?
        .items;
    let views: Vec<MemberView> = (0..*members)
        .map(|number| {
            let name = format!("{POSTGRES}-{number}");
            let pod = pods.iter().find(|pod| pod.name_any() == name);
            MemberView::of(&name, pod)
        })
        .collect();
    let ledger = context.ledger.as_ref();
    let decision = hasten_failover(&context.client, &cell.name, POSTGRES, &views, ledger).await?;
    tracing::info!(cell = cell.name, ?decision, "PostgreSQL lacks members");
    Ok(())
}
