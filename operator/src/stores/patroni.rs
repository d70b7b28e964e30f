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
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::ledger::{Ledger, System, Write};
use crate::stores::{Result, StoreError};

/// What is known of a member's pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    /// Nothing: the apiserver was not asked, or did not answer.
    Unknown,
    /// The apiserver has no such pod.
    Absent,
    /// The kubelet says that its containers have ended.
    Ended,
    /// It is there; whether it is ready, and since when it exists.
    Present {
        /// Whether it is ready: PostgreSQL answers and has its place in the cluster.
        ready: bool,
        /// When the apiserver made it.
        created: DateTime<Utc>,
    },
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// The name of its pod, by which Patroni knows it too.
    pub name: String,
    /// What is known of its pod.
    pub pod: PodState,
}

/// The lock of the leader, and who may follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockView {
    /// Who holds it; None when nobody does.
    pub holder: Option<String>,
    /// When it was last renewed, by the holder's clock.
    pub renewed: Option<DateTime<Utc>>,
    /// The version that was read.
    pub resource_version: String,
    /// The standbys that have every commit which the holder acknowledged.
    pub standbys: Vec<String>,
}

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

impl MemberView {
    /// A member by its pod, as the apiserver has it; None means that it has none.
    #[must_use]
    pub fn of(name: &str, pod: Option<&Pod>) -> Self {
        Self {
            name: name.to_owned(),
            pod: pod.map_or(PodState::Absent, pod_state),
        }
    }
}

fn pod_state(pod: &Pod) -> PodState {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let containers = status.and_then(|status| status.container_statuses.as_deref());
    let ended = containers.is_some_and(|containers| {
        let ended = |state: &k8s_openapi::api::core::v1::ContainerStatus| {
            state
                .state
                .as_ref()
                .is_some_and(|state| state.terminated.is_some())
        };
        !containers.is_empty() && containers.iter().all(ended)
    });
    if ended || matches!(phase, Some("Failed" | "Succeeded")) {
        return PodState::Ended;
    }
    let conditions = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let ready = conditions
        .iter()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    let created = pod.metadata.creation_timestamp.as_ref();
    let created = created.and_then(|time| DateTime::from_timestamp(time.0.as_second(), 0));
    match created {
        Some(created) => PodState::Present { ready, created },
        None => PodState::Unknown,
    }
}

impl LockView {
    /// Reads the lock from ConfigMaps `<scope>-leader` and `<scope>-sync`.
    #[must_use]
    pub fn read(leader: &ConfigMap, sync: Option<&ConfigMap>) -> Self {
        let text = |map: &ConfigMap, name: &str| {
            let annotations = map.metadata.annotations.as_ref()?;
            annotations
                .get(name)
                .filter(|text| !text.is_empty())
                .cloned()
        };
        let holder = text(leader, "leader");
        // What an earlier leader left there says nothing of this one.
        let sync = sync.filter(|sync| holder.is_some() && text(sync, "leader") == holder);
        let standbys = sync.and_then(|sync| text(sync, "sync_standby"));
        let standbys = standbys.unwrap_or_default();
        let standbys = standbys.split(',').map(str::trim);
        let renewed = text(leader, "renewTime");
        Self {
            holder,
            renewed: renewed
                .and_then(|time| DateTime::parse_from_rfc3339(&time).ok())
                .map(|time| time.to_utc()),
            resource_version: leader.metadata.resource_version.clone().unwrap_or_default(),
            standbys: standbys
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    }
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
    let ready = |member: &MemberView| matches!(member.pod, PodState::Present { ready: true, .. });
    let follows = |member: &MemberView| lock.standbys.contains(&member.name);
    if members
        .iter()
        .any(|member| follows(member) && ready(member))
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
/// `members` are those that the StatefulSet should have. To be called only for a cell that replicates synchronously.
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
    let all_well =
        |member: &MemberView| matches!(member.pod, PodState::Present { ready: true, .. });
    if members.iter().all(all_well) {
        return Ok(Decision::Leave);
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let name = format!("{scope}-leader");
    let refused = |error: &kube::Error| classify(namespace, &name, error);
    let Some(leader) = maps.get_opt(&name).await.map_err(|error| refused(&error))? else {
        return Ok(Decision::Leave);
    };
    let sync = maps.get_opt(&format!("{scope}-sync")).await;
    let sync = sync.map_err(|error| refused(&error))?;
    let lock = LockView::read(&leader, sync.as_ref());
    let decision = decide(&lock, members);
    if let Decision::Release { .. } = &decision {
        let patch = Patch::Merge(release(&lock));
        match maps.patch(&name, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            // It was renewed or taken since: there is a leader after all.
            Err(kube::Error::Api(answer)) if answer.code == 409 => return Ok(Decision::Leave),
            Err(error) => return Err(refused(&error)),
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

fn classify(namespace: &str, name: &str, error: &kube::Error) -> StoreError {
    let (system, address) = (System::Kubernetes, "the apiserver".to_owned());
    match error {
        kube::Error::Api(answer) => StoreError::Refused {
            system,
            address,
            doing: format!("release the lock in ConfigMap {namespace}/{name}"),
            detail: answer.message.clone(),
        },
        error => StoreError::Unreachable {
            system,
            address,
            detail: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_000_000 + second, 0).unwrap()
    }

    const READY: PodState = PodState::Present {
        ready: true,
        created: DateTime::UNIX_EPOCH,
    };
    const UNREADY: PodState = PodState::Present {
        ready: false,
        created: DateTime::UNIX_EPOCH,
    };

    fn members(pods: [PodState; 3]) -> Vec<MemberView> {
        let named = pods.into_iter().enumerate();
        named
            .map(|(number, pod)| MemberView {
                name: format!("postgres-{number}"),
                pod,
            })
            .collect()
    }

    fn lock(standbys: &[&str]) -> LockView {
        LockView {
            holder: Some("postgres-0".to_owned()),
            renewed: Some(time(0)),
            resource_version: "7".to_owned(),
            standbys: standbys.iter().map(|name| (*name).to_owned()).collect(),
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
            ("there", READY, false),
            ("not ready, but the same pod", UNREADY, false),
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
            let decision = decide(&lock(&["postgres-1"]), &members([pod, READY, READY]));
            let expected = if released { release() } else { Decision::Leave };
            assert_eq!(decision, expected, "{case}");
        }
    }

    #[test]
    fn somebody_with_all_of_the_data_has_to_be_ready() {
        let gone = PodState::Absent;
        let decision = decide(&lock(&["postgres-1"]), &members([gone, UNREADY, READY]));
        assert!(matches!(decision, Decision::Wait(why) if why.ends_with("waiting for postgres-1")));
        let decision = decide(
            &lock(&["postgres-1"]),
            &members([gone, PodState::Unknown, READY]),
        );
        assert!(matches!(decision, Decision::Wait(_)));
        let decision = decide(&lock(&[]), &members([gone, READY, READY]));
        assert!(matches!(decision, Decision::Wait(why) if why.ends_with("waiting for postgres-0")));
        let both = lock(&["postgres-1", "postgres-2"]);
        assert_eq!(decide(&both, &members([gone, UNREADY, READY])), release());
    }

    #[test]
    fn a_lock_without_a_holder_or_of_a_stranger_is_left() {
        let gone = members([PodState::Absent, READY, READY]);
        for holder in [None, Some("postgres-9".to_owned())] {
            let lock = LockView {
                holder,
                ..lock(&["postgres-1"])
            };
            assert_eq!(decide(&lock, &gone), Decision::Leave);
        }
    }

    #[test]
    fn patroni_s_own_config_maps_are_read() {
        let leader: ConfigMap = serde_json::from_value(json!({ "metadata": {
            "name": "postgres-leader",
            "resourceVersion": "4711",
            "annotations": {
                "acquireTime": "2026-01-02T03:04:05.000006+00:00",
                "leader": "postgres-0",
                "optime": "67109120",
                "renewTime": "2026-01-02T03:05:06.789000+00:00",
                "transitions": "3",
                "ttl": "20",
            },
        }}))
        .unwrap();
        let sync = |of: &str| -> ConfigMap {
            serde_json::from_value(json!({ "metadata": {
                "annotations": { "leader": of, "sync_standby": "postgres-1,postgres-2" },
            }}))
            .unwrap()
        };
        let lock = LockView::read(&leader, Some(&sync("postgres-0")));
        assert_eq!(lock.holder.as_deref(), Some("postgres-0"));
        assert_eq!(lock.renewed.unwrap().timestamp(), 1_767_323_106);
        assert_eq!(lock.resource_version, "4711");
        assert_eq!(lock.standbys, ["postgres-1", "postgres-2"]);
        let stale = LockView::read(&leader, Some(&sync("postgres-2")));
        assert_eq!(
            stale.standbys,
            Vec::<String>::new(),
            "left by an earlier leader"
        );
        assert_eq!(LockView::read(&leader, None).standbys, Vec::<String>::new());
    }

    #[test]
    fn pods_are_read() {
        let pod = |status: Value| -> PodState {
            let created = "1970-01-01T00:00:00Z";
            let pod = json!({ "metadata": { "creationTimestamp": created }, "status": status });
            pod_state(&serde_json::from_value(pod).unwrap())
        };
        let ready =
            json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] });
        assert_eq!(pod(ready), READY);
        assert_eq!(pod(json!({ "phase": "Running" })), UNREADY);
        assert_eq!(pod(json!({ "phase": "Failed" })), PodState::Ended);
        let container = |state: Value| json!({ "name": "postgres", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state });
        let ended = container(json!({ "terminated": { "exitCode": 137 } }));
        let running = container(json!({ "running": {} }));
        assert_eq!(
            pod(json!({ "containerStatuses": [ended] })),
            PodState::Ended
        );
        assert_eq!(
            pod(json!({ "containerStatuses": [ended, running] })),
            UNREADY
        );
        assert_eq!(MemberView::of("postgres-0", None).pod, PodState::Absent);
    }
}
