//! The PostgreSQL that Patroni runs in a cell: what is left for the operator to do.

use chrono::Utc;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use titan_crds::Cell;
use titan_planner::cell::{
    PATRONI_STORE, PostgresPlan, StoreStorage, ValidatedCell, patroni_reconfiguration,
};
use titan_planner::object::{Kind, Object};
use titan_planner::status::Step;

use crate::cell::ReconcileError;
use crate::cluster::LiveObjects;
use crate::context::Context;
use crate::stores::StoreError;
use crate::stores::patroni::{
    self, MemberView, Next, SetView, forget_lost_data, hasten_failover, reconfigure,
};

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
    let wanted = i64::from(*members);
    let client = &context.client;
    let ledger = context.ledger.as_ref();
    let desired = |current: &str| patroni_reconfiguration(cell, current);
    let there = live
        .get(Kind::StatefulSet, POSTGRES)
        .map_or_else(SetView::default, |set| SetView::of(&set.body()));
    let leaving = there.exceed(wanted);
    // While members leave, their replication stays as it was; and nobody waits for a standby before there is one.
    let alone = *synchronous && there.ready < 2;
    if !leaving && !alone && reconfigure(client, &cell.name, PATRONI_STORE, desired, ledger).await?
    {
        tracing::info!(cell = cell.name, "PostgreSQL has new settings");
    }
    // One that has to go may be the one with the data, or the leader.
    let all = wanted.max(there.asked).max(there.pods);
    let ready = there.ready;
    if ready >= all {
        return Ok(None);
    }
    let ephemeral = matches!(storage, StoreStorage::Ephemeral { .. });
    if ready == 0 && ephemeral {
        let views = members_of(cell, all, context).await?;
        if forget_lost_data(client, &cell.name, POSTGRES, &views, ledger).await? {
            return Ok(Some(Step::waiting(
                "DataLost",
                "PostgreSQL's data went with its pods, as storage.ephemeral has it; the database begins anew, empty",
            )));
        }
    } else if ready > 0 && (*synchronous || leaving) {
        let views = members_of(cell, all, context).await?;
        let decision = hasten_failover(client, &cell.name, POSTGRES, &views, ledger).await?;
        tracing::info!(cell = cell.name, ?decision, "PostgreSQL lacks members");
    }
    Ok(None)
}

/// Members that are too many, and have to go one by one.
pub(super) struct Leaving {
    /// The StatefulSet as it should be for now.
    pub(super) set: Object,
    /// What is waited for.
    pub(super) step: Step,
}

/// The members that have to go; `None` where there are no more of them than planned.
pub(super) async fn members_leaving(
    cell: &ValidatedCell,
    desired: &[Object],
    live: &LiveObjects,
    context: &Context,
) -> Result<Option<Leaving>, ReconcileError> {
    let PostgresPlan::Managed { members, .. } = &cell.postgres else {
        return Ok(None);
    };
    let wanted = i64::from(*members);
    let is_set = |object: &&Object| object.kind == Kind::StatefulSet && object.name == POSTGRES;
    let (Some(set), Some(planned)) = (
        live.get(Kind::StatefulSet, POSTGRES),
        desired.iter().find(is_set),
    ) else {
        return Ok(None);
    };
    let mut members = SetView::of(&set.body());
    if !members.exceed(wanted) {
        return Ok(None);
    }
    members.rolled &= set.desired_hash() == Some(planned.hash.as_str());
    let next = if members.asked > wanted {
        let pods = members_of(cell, members.asked, context).await?;
        let lock = patroni::lock(&context.client, &cell.name, POSTGRES).await?;
        patroni::next(
            POSTGRES,
            &members,
            &pods,
            &lock.unwrap_or_default(),
            Utc::now(),
        )
    } else {
        Next::Keep("waiting for members that are leaving".to_owned())
    };
    let (replicas, why) = match next {
        Next::Keep(why) => (members.asked.max(wanted), why),
        Next::Without(member) => {
            tracing::info!(cell = cell.name, member, "PostgreSQL lets a member go");
            (members.asked - 1, format!("{member} is leaving"))
        }
    };
    Ok(Some(Leaving {
        set: planned.with_replicas(replicas),
        step: Step::waiting("MembersLeaving", why),
    }))
}

/// Gives up the data of a database: its id is the value.
const GIVE_UP_DATABASE: &str = "titan.dev/give-up-database";

/// The id of the database that the Cell's status names.
pub(super) fn recorded_database(cell: &Cell) -> Option<&str> {
    cell.status.as_ref()?.database_id.as_deref()
}

/// The database that holds the data, which must be there; `None` while there is none yet, where its storage was never meant
/// to outlive its pods, and when a person gave it up.
pub(super) fn known_database<'a>(cell: &'a Cell, valid: &ValidatedCell) -> Option<&'a str> {
    let fleeting = matches!(
        &valid.postgres,
        PostgresPlan::Managed {
            storage: StoreStorage::Ephemeral { .. },
            ..
        }
    );
    let known = recorded_database(cell)?;
    let given_up = cell.annotations().get(GIVE_UP_DATABASE);
    (!fleeting && given_up.is_none_or(|id| id != known)).then_some(known)
}

/// What is said of another database, or none, in the place of the one with the data. To make an empty one there would be to
/// answer that nobody has ever ordered anything, and to take orders that a restored backup does not have.
pub(super) fn other_database(cell: &str, error: &StoreError, known: &str) -> Step {
    Step::failed(
        "OtherDatabase",
        format!(
            "{error}. Nothing was written. Restore that one, or have the cell's Secret name its server; to give its data up, kubectl annotate cell {cell} {GIVE_UP_DATABASE}={known}"
        ),
    )
}

async fn members_of(
    cell: &ValidatedCell,
    members: i64,
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
