//! The PostgreSQL that Patroni runs in a cell: what is left for the operator to do.

use std::time::Duration;

use chrono::Utc;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::Value;
use titan_planner::cell::{
    PATRONI_STORE, PostgresPlan, ServerCredentials, StoreStorage, ValidatedCell,
    patroni_reconfiguration,
};
use titan_planner::object::{Kind, Object};
use titan_planner::status::Step;

use crate::error::ReconcileError;
use crate::execute::apply::{LiveObject, LiveObjects, is_as_planned, number};
use crate::ledger::System;
use crate::run::context::Context;
use crate::run::dependencies::Dependency;
use crate::stores::StoreError;
use crate::stores::patroni::{
    self, LockView, MemberView, Move, Replaced, Rollout, SetView, forget_lost_data,
    hasten_failover, next_move, reconfigure, replace,
};

/// The name of the StatefulSet, which is also Patroni's scope.
pub(super) const POSTGRES: &str = "postgres";

/// A PostgreSQL that Patroni runs, as it is in a pass.
pub(super) struct ManagedPostgres<'a> {
    cell: &'a ValidatedCell,
    context: &'a Context,
    set: Option<&'a LiveObject>,
    budget: Option<&'a LiveObject>,
    there: SetView,
    /// How many members there should be.
    wanted: i64,
    synchronous: bool,
    storage: &'a StoreStorage,
    /// Where its leader is asked.
    server: &'a ServerCredentials,
}

/// What members are about to do.
#[derive(Default)]
pub(super) struct Members {
    /// The StatefulSet as it should be for now, where that is not as planned.
    pub(super) set: Option<Object>,
    /// What is waited for.
    pub(super) step: Option<Step>,
    /// For how long no member has been made.
    pub(super) unchanged: Duration,
}

impl<'a> ManagedPostgres<'a> {
    /// That of a cell; `None` where its server is external.
    pub(super) fn of(
        cell: &'a ValidatedCell,
        live: &'a LiveObjects,
        server: &'a ServerCredentials,
        context: &'a Context,
    ) -> Option<Self> {
        let PostgresPlan::Managed {
            members,
            synchronous,
            storage,
            resources: _,
        } = &cell.postgres
        else {
            return None;
        };
        let set = live.get(Kind::StatefulSet, POSTGRES);
        Some(ManagedPostgres {
            cell,
            context,
            set,
            budget: live.get(Kind::PodDisruptionBudget, POSTGRES),
            there: set.map_or_else(SetView::default, |set| SetView::of(&set.body())),
            wanted: i64::from(*members),
            synchronous: *synchronous,
            storage,
            server,
        })
    }

    /// Carries changed settings over, lets a standby take over at once where the leader's pod is gone, and lets a database
    /// begin anew whose data went with its pods, which is a step of its own for people to see. Asks for no pods while every
    /// member is ready.
    pub(super) async fn tend(&self) -> Result<Option<Step>, ReconcileError> {
        let there = &self.there;
        let (client, name) = (&self.context.client, &self.cell.name);
        let ledger = self.context.ledger.as_ref();
        let leaving = there.exceed(self.wanted);
        // While members leave, their replication stays as it was; and nobody waits for a standby before there is one.
        let alone = self.synchronous && there.ready < 2;
        if !leaving && !alone {
            let desired = |current: &str| patroni_reconfiguration(self.cell, current);
            if reconfigure(client, name, PATRONI_STORE, desired, ledger).await? {
                tracing::info!(cell = name, "PostgreSQL has new settings");
            }
        }
        // One that has to go may be the one with the data, or the leader.
        let all = self.wanted.max(there.asked).max(there.pods);
        if there.ready >= all {
            return Ok(None);
        }
        let ephemeral = matches!(self.storage, StoreStorage::Ephemeral { .. });
        if there.ready == 0 && ephemeral {
            let views = self.members(all).await?;
            if forget_lost_data(client, name, POSTGRES, &views, ledger).await? {
                return Ok(Some(Step::waiting(
                    "DataLost",
                    "PostgreSQL's data went with its pods, as storage.ephemeral has it; the database begins anew, empty",
                )));
            }
        } else if there.ready > 0 && (self.synchronous || leaving) {
            let views = self.members(all).await?;
            let decision = hasten_failover(client, name, POSTGRES, &views, ledger).await?;
            tracing::info!(cell = name, ?decision, "PostgreSQL lacks members");
        }
        Ok(None)
    }

    /// Replaces members that were made from an older template, and lets those go that are too many, one at a time.
    pub(super) async fn take_turns(&self, desired: &[Object]) -> Result<Members, ReconcileError> {
        let there = &self.there;
        let leaving = there.exceed(self.wanted);
        let is_set = |object: &&Object| object.kind == Kind::StatefulSet && object.name == POSTGRES;
        let (Some(set), Some(planned)) = (self.set, desired.iter().find(is_set)) else {
            return Ok(Members::default());
        };
        if there.rolled && !leaving {
            return Ok(Members::default());
        }
        let (next, unchanged) = self.confirmed_move(set, planned).await?;
        let (replicas, step) = match next {
            Move::Nothing => return Ok(Members::default()),
            Move::WaitToReplace(why) => (there.asked, Step::waiting("MembersRolling", why)),
            Move::WaitToLeave(why) => (there.asked, Step::waiting("MembersLeaving", why)),
            Move::Replace(next) => {
                let why = self.replace(&next).await?;
                (there.asked, Step::waiting("MembersRolling", why))
            }
            Move::Leave(member) => {
                let name = &self.cell.name;
                tracing::info!(cell = name, member, "PostgreSQL lets a member go");
                let why = format!("{member} is leaving");
                (there.asked - 1, Step::waiting("MembersLeaving", why))
            }
        };
        Ok(Members {
            set: leaving.then(|| planned.with_replicas(replicas.max(self.wanted))),
            step: Some(step),
            unchanged,
        })
    }

    /// What members do next, confirmed by PostgreSQL where one of them goes, and for how long none has been made.
    async fn confirmed_move(
        &self,
        set: &LiveObject,
        planned: &Object,
    ) -> Result<(Move, Duration), ReconcileError> {
        let there = &self.there;
        let leaving = there.exceed(self.wanted);
        if leaving && there.pods > there.asked {
            let why = format!("waiting for {POSTGRES}-{} to be gone", there.pods - 1);
            return Ok((Move::WaitToLeave(why), Duration::MAX));
        }
        // Else its template is about to be another one.
        let as_planned = is_as_planned(&planned.with_replicas(there.asked), set);
        let Some(revision) = there.revision.as_ref().filter(|_| as_planned) else {
            let why = "waiting for the StatefulSet to be as planned".to_owned();
            let next = if leaving {
                Move::WaitToLeave(why)
            } else {
                Move::Nothing
            };
            return Ok((next, Duration::MAX));
        };
        let members = self.members(there.asked).await?;
        let lock = self.lock().await?;
        let now = Utc::now();
        let newest = members.iter().filter_map(MemberView::created).max();
        let unchanged = newest.and_then(|newest| (now - newest).to_std().ok());
        let rollout = Rollout {
            revision,
            members: &members,
            lock: &lock,
            synchronous: self.synchronous,
            expendable: self
                .budget
                .is_some_and(|budget| lets_one_go(&budget.body())),
        };
        let next = next_move(POSTGRES, &rollout, there.asked > self.wanted, now);
        let witnesses = next.witnesses(&members, &lock);
        let proof = self.context.proof.as_ref();
        let ledger = self.context.ledger.as_ref();
        let server = Dependency::of(System::Postgres, self.server);
        let confirmed = self
            .context
            .dependencies
            .ask(&server, proof.commit(self.server, &witnesses, ledger));
        let confirmed = match confirmed.await {
            Ok(()) => next,
            Err(StoreError::Interrupted(interrupted)) => return Err(interrupted.into()),
            Err(error) => next.unconfirmed(&error.to_string()),
        };
        Ok((confirmed, unchanged.unwrap_or_default()))
    }

    /// Replaces a member; what is waited for then.
    async fn replace(&self, next: &Replaced) -> Result<String, ReconcileError> {
        let (client, name) = (&self.context.client, &self.cell.name);
        let member = &next.member;
        let refused = replace(client, name, next, self.context.ledger.as_ref()).await?;
        Ok(if let Some(why) = refused {
            format!("{member} has to be replaced, but {why}")
        } else {
            tracing::info!(cell = name, member, "PostgreSQL has a member replaced");
            format!("{member} is being replaced")
        })
    }

    async fn lock(&self) -> Result<LockView, ReconcileError> {
        let lock = patroni::lock(&self.context.client, &self.cell.name, POSTGRES).await?;
        Ok(lock.unwrap_or_default())
    }

    /// The first so many members.
    async fn members(&self, members: i64) -> Result<Vec<MemberView>, ReconcileError> {
        let pods = Api::<Pod>::namespaced(self.context.client.clone(), &self.cell.name)
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
}

/// Whether a disruption budget lets one more pod go, by its status.
fn lets_one_go(budget: &Value) -> bool {
    let seen =
        number(budget, "/status/observedGeneration") >= number(budget, "/metadata/generation");
    seen && number(budget, "/status/disruptionsAllowed") > 0
}
