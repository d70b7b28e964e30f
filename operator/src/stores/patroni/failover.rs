//! A faster end for a PostgreSQL leader that is gone.
//!
//! Patroni's leader holds a lock, the annotations of ConfigMap `<scope>-leader`, and renews it. When a leader vanishes
//! without a word, its standbys wait until the lock has run out, 20 s and more. The apiserver knows earlier that the
//! leader's pod is gone. The operator then takes the leader's name off the lock, which is what Patroni itself does when
//! a leader steps down: the standbys see it at once and race for the lock by Patroni's own rules, health check and
//! synchronous standbys included. Nothing is promoted from here.
//!
//! Why this makes no second leader, and loses nothing: it is only done where replication is synchronous, when the
//! leader's pod is known to have ended, and only if the lock has not changed since it was read, as a renewal by a
//! living leader would change it. A pod that the apiserver no longer has may still run in one case: it was deleted by
//! force on a node that is cut off. That leader can no longer acknowledge a commit, for its standby follows another,
//! and steps down when it fails to renew. Where replication is not synchronous, the leader's disk may hold commits that
//! no standby has, and Patroni's patience with it is right.

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::classify;
use super::view::{LockView, MemberView, PodState};
use crate::ledger::{Ledger, System, Write};
use crate::stores::Result;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: there is a leader, or it is Patroni's turn.
    Leave,
    /// Nothing yet, for this reason.
    Wait(String),
    /// Take the name of a leader that is gone off the lock.
    Release {
        /// The leader that is gone.
        leader: String,
    },
}

/// Decides whether a leader is gone for good and a standby is there to follow. Pure.
#[must_use]
pub fn decide(lock: &LockView, members: &[MemberView]) -> Decision {
    let Some(leader) = &lock.holder else {
        return Decision::Leave;
    };
    let Some(member) = members.iter().find(|member| member.name == *leader) else {
        // Not one of ours, or a view of the members that is older than the lock.
        return Decision::Leave;
    };
    // Its clock and the apiserver's may differ by as much as would take the pod for its own successor; a pod that is
    // ready is never taken for one.
    let replaced = |created: DateTime<Utc>| lock.renewed.is_some_and(|renewed| created > renewed);
    let gone = match member.pod {
        PodState::Unknown => false,
        PodState::Ended | PodState::Absent => true,
        PodState::Present { ready, created } => !ready && replaced(created),
    };
    if !gone {
        return Decision::Leave;
    }
    let follows = |member: &MemberView| lock.standbys.contains(&member.name);
    if members
        .iter()
        .any(|member| follows(member) && member.is_ready())
    {
        return Decision::Release {
            leader: leader.clone(),
        };
    }
    Decision::Wait(format!(
        "PostgreSQL's leader {leader} is gone and no standby that has all of its data is ready; waiting for {}",
        if lock.standbys.is_empty() {
            leader.clone()
        } else {
            lock.standbys.join(" or ")
        }
    ))
}

/// Lets a standby take over at once where the leader of Patroni cluster `scope` is gone.
///
/// `members` are all that there are or should be. To be called only for a cell that replicates synchronously.
///
/// # Errors
/// The apiserver cannot be reached or refuses.
pub async fn hasten_failover(
    client: &kube::Client,
    namespace: &str,
    scope: &str,
    members: &[MemberView],
    ledger: &dyn Ledger,
) -> Result<Decision> {
    if members.iter().all(MemberView::is_ready) {
        return Ok(Decision::Leave);
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let name = format!("{scope}-leader");
    let Some(lock) = super::lock(client, namespace, scope).await? else {
        return Ok(Decision::Leave);
    };
    let decision = decide(&lock, members);
    if let Decision::Release { .. } = &decision {
        let patch = Patch::Merge(release(&lock));
        match maps.patch(&name, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            // It was renewed or taken since: there is a leader after all.
            Err(kube::Error::Api(answer)) if answer.code == 409 => return Ok(Decision::Leave),
            Err(error) => return Err(classify("ConfigMap", namespace, &name, &error)),
        }
        ledger.record(Write {
            system: System::Kubernetes,
            verb: "release leader lock",
            target: format!("ConfigMap {namespace}/{name}"),
        })?;
    }
    Ok(decision)
}

/// The patch that Patroni itself makes when a leader steps down.
fn release(lock: &LockView) -> Value {
    json!({ "metadata": {
        "resourceVersion": lock.resource_version,
        "annotations": { "leader": null },
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_000_000 + second, 0).unwrap()
    }

    fn members(pods: [PodState; 3]) -> Vec<MemberView> {
        let named = pods.into_iter().enumerate();
        named
            .map(|(number, pod)| MemberView {
                name: format!("postgres-{number}"),
                pod,
                ..MemberView::default()
            })
            .collect()
    }

    fn lock(standbys: &[&str]) -> LockView {
        LockView {
            holder: Some("postgres-0".to_owned()),
            renewed: Some(time(0)),
            resource_version: "7".to_owned(),
            standbys: standbys.iter().map(|name| (*name).to_owned()).collect(),
            synchronous: true,
        }
    }

    fn release() -> Decision {
        Decision::Release {
            leader: "postgres-0".to_owned(),
        }
    }

    #[test]
    fn the_lock_is_released_only_when_the_leader_is_known_to_be_gone() {
        let pod = |ready, second| PodState::Present {
            ready,
            created: time(second),
        };
        let cases = [
            ("there", PodState::READY, false),
            ("not ready, but the same pod", PodState::UNREADY, false),
            ("unknown", PodState::Unknown, false),
            ("ended", PodState::Ended, true),
            ("absent", PodState::Absent, true),
            ("replaced", pod(false, 5), true),
            ("older than the lock", pod(false, -5), false),
            (
                "its own successor by a clock, but ready",
                pod(true, 5),
                false,
            ),
        ];
        for (case, pod, released) in cases {
            let decision = decide(
                &lock(&["postgres-1"]),
                &members([pod, PodState::READY, PodState::READY]),
            );
            let expected = if released { release() } else { Decision::Leave };
            assert_eq!(decision, expected, "{case}");
        }
    }

    #[test]
    fn somebody_with_all_of_the_data_has_to_be_ready() {
        let gone = PodState::Absent;
        let decision = decide(
            &lock(&["postgres-1"]),
            &members([gone, PodState::UNREADY, PodState::READY]),
        );
        assert!(matches!(decision, Decision::Wait(why) if why.ends_with("waiting for postgres-1")));
        let decision = decide(
            &lock(&["postgres-1"]),
            &members([gone, PodState::Unknown, PodState::READY]),
        );
        assert!(matches!(decision, Decision::Wait(_)));
        let decision = decide(
            &lock(&[]),
            &members([gone, PodState::READY, PodState::READY]),
        );
        assert!(matches!(decision, Decision::Wait(why) if why.ends_with("waiting for postgres-0")));
        let both = lock(&["postgres-1", "postgres-2"]);
        assert_eq!(
            decide(&both, &members([gone, PodState::UNREADY, PodState::READY])),
            release()
        );
    }

    #[test]
    fn a_lock_without_a_holder_or_of_a_stranger_is_left() {
        let gone = members([PodState::Absent, PodState::READY, PodState::READY]);
        for holder in [None, Some("postgres-9".to_owned())] {
            let lock = LockView {
                holder,
                ..lock(&["postgres-1"])
            };
            assert_eq!(decide(&lock, &gone), Decision::Leave);
        }
    }
}
