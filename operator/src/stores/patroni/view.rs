//! Patroni's memory, read.

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use serde_json::Value;

use crate::execute::apply::number;

/// The StatefulSet of the members, as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetView {
    /// How many it should have by its spec.
    pub asked: i64,
    /// How many pods it has, those that are leaving included.
    pub pods: i64,
    /// How many of them are ready.
    pub ready: i64,
    /// Whether each of them was made from the template as it is, and none is to be replaced.
    pub rolled: bool,
    /// The revision of the template as it is; `None` while the controller has not seen it.
    pub revision: Option<String>,
}

impl SetView {
    /// Reads a StatefulSet.
    #[must_use]
    pub fn of(set: &Value) -> Self {
        let asked = number(set, "/spec/replicas");
        let seen = number(set, "/status/observedGeneration") >= number(set, "/metadata/generation");
        let revision = set
            .pointer("/status/updateRevision")
            .and_then(Value::as_str);
        SetView {
            asked,
            pods: number(set, "/status/replicas"),
            ready: number(set, "/status/readyReplicas"),
            // Of the two revisions, the current one is not told of pods that were deleted to be replaced.
            rolled: seen && number(set, "/status/updatedReplicas") >= asked,
            revision: revision.filter(|_| seen).map(str::to_owned),
        }
    }

    /// Whether there are more members than these.
    #[must_use]
    pub const fn exceed(&self, wanted: i64) -> bool {
        self.asked > wanted || self.pods > wanted
    }
}

/// What is known of a member's pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodState {
    /// Nothing: the apiserver was not asked, or did not answer.
    #[default]
    Unknown,
    /// The apiserver has no such pod.
    Absent,
    /// The kubelet says that its containers have ended.
    Ended,
    /// It is there; whether it is ready, and since when it exists.
    Present {
        /// Whether it is ready: PostgreSQL answers and has its place in the cluster, and the pod has not been told to go.
        ready: bool,
        /// When the apiserver made it.
        created: DateTime<Utc>,
    },
}

/// Those of tests, made long ago.
#[cfg(test)]
impl PodState {
    pub(super) const READY: Self = PodState::Present {
        ready: true,
        created: DateTime::UNIX_EPOCH,
    };
    pub(super) const UNREADY: Self = PodState::Present {
        ready: false,
        created: DateTime::UNIX_EPOCH,
    };
}

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberView {
    /// The name of its pod, by which Patroni knows it too.
    pub name: String,
    /// What is known of its pod.
    pub pod: PodState,
    /// Whether it says of itself that it holds no data: a new pod's, on a volume that went with the old pod.
    pub empty: bool,
    /// Whether Patroni has said anything of it: it has begun to run.
    pub began: bool,
    /// Whether its pod was told to go.
    pub leaving: bool,
    /// Whether its data is on a volume that outlives its pod.
    pub on_volume: bool,
    /// Which pod of its name it is.
    pub uid: Option<String>,
    /// The version of the pod.
    pub version: Option<String>,
    /// The revision of the template that its pod was made from.
    pub revision: Option<String>,
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
    /// Whether leaders wait for standbys: only then is there a record of them.
    pub synchronous: bool,
    /// The standbys that have every commit which the holder acknowledged.
    pub standbys: Vec<String>,
}

/// The annotation in which Patroni says how a member is.
const STATUS: &str = "status";
/// The label with the revision of the template that a StatefulSet made a pod from.
const REVISION: &str = "controller-revision-hash";
/// A leader that lives renews its lock every five seconds; that of one that is gone stays for twenty.
const RENEWED: TimeDelta = TimeDelta::seconds(10);

impl MemberView {
    /// A member by its pod, as the apiserver has it; None means that it has none.
    #[must_use]
    pub fn of(name: &str, pod: Option<&Pod>) -> Self {
        Self {
            name: name.to_owned(),
            pod: pod.map_or(PodState::Absent, pod_state),
            empty: pod.is_some_and(is_empty),
            began: pod.is_some_and(|pod| pod.annotations().contains_key(STATUS)),
            leaving: pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some()),
            on_volume: pod.is_some_and(claims_volume),
            uid: pod.and_then(ResourceExt::uid),
            version: pod.and_then(ResourceExt::resource_version),
            revision: pod.and_then(|pod| pod.labels().get(REVISION).cloned()),
        }
    }

    /// When its pod was made.
    #[must_use]
    pub const fn created(&self) -> Option<DateTime<Utc>> {
        match self.pod {
            PodState::Present { created, .. } => Some(created),
            PodState::Unknown | PodState::Absent | PodState::Ended => None,
        }
    }

    /// Whether its pod is ready.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        matches!(self.pod, PodState::Present { ready: true, .. })
    }
}

fn claims_volume(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref());
    let mut volumes = volumes.unwrap_or_default().iter();
    volumes.any(|volume| volume.persistent_volume_claim.is_some())
}

/// Patroni writes what it finds into annotation `status` of its pod; its role is `uninitialized` while its data directory
/// is empty, or cannot be read.
fn is_empty(pod: &Pod) -> bool {
    let status = pod
        .annotations()
        .get(STATUS)
        .and_then(|status| serde_json::from_str::<Value>(status).ok());
    pod.metadata.deletion_timestamp.is_none()
        && status.is_some_and(|status| status["role"] == "uninitialized")
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
        .any(|c| c.type_ == "Ready" && c.status == "True")
        && pod.metadata.deletion_timestamp.is_none();
    let created = pod.metadata.creation_timestamp.as_ref();
    let created = created.and_then(|time| DateTime::from_timestamp(time.0.as_second(), 0));
    match created {
        Some(created) => PodState::Present { ready, created },
        None => PodState::Unknown,
    }
}

impl LockView {
    /// Who leads, and has said so lately.
    ///
    /// # Errors
    /// Why nobody is known to.
    pub fn living_leader(&self, now: DateTime<Utc>) -> Result<&str, String> {
        let Some(leader) = &self.holder else {
            return Err("nobody leads now".to_owned());
        };
        if self.renewed.is_none_or(|renewed| now - renewed > RENEWED) {
            return Err(format!("{leader} has not said lately that it leads"));
        }
        Ok(leader)
    }

    /// Reads the lock from ConfigMaps `<scope>-leader` and `<scope>-sync`.
    #[must_use]
    pub fn read(leader: &ConfigMap, sync: Option<&ConfigMap>) -> Self {
        let holder = text(leader, "leader");
        let synchronous = sync.is_some_and(|sync| text(sync, "leader").is_some());
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
            synchronous,
            standbys: standbys
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    }
}

/// An annotation that says something.
pub(super) fn text(map: &ConfigMap, name: &str) -> Option<String> {
    let annotations = map.metadata.annotations.as_ref()?;
    annotations
        .get(name)
        .filter(|text| !text.is_empty())
        .cloned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
        let asynchronous = LockView::read(&leader, None);
        assert_eq!(asynchronous.standbys, Vec::<String>::new());
        assert!(lock.synchronous && stale.synchronous && !asynchronous.synchronous);
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
        assert_eq!(pod(ready), PodState::READY);
        assert_eq!(pod(json!({ "phase": "Running" })), PodState::UNREADY);
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
            PodState::UNREADY
        );
        assert_eq!(MemberView::of("postgres-0", None).pod, PodState::Absent);
    }

    #[test]
    fn a_pod_without_data_says_so_itself() {
        let empty = |metadata: Value| -> bool {
            MemberView::of(
                "postgres-0",
                serde_json::from_value(json!({ "metadata": metadata }))
                    .ok()
                    .as_ref(),
            )
            .empty
        };
        let says = |role: &str| {
            let status =
                json!({ "conn_url": "postgres://10.0.0.1", "state": "stopped", "role": role });
            json!({ "annotations": { "status": status.to_string() } })
        };
        assert!(empty(says("uninitialized")));
        assert!(!empty(says("replica")));
        assert!(!empty(json!({ "annotations": { "status": "garbage" } })));
        assert!(!empty(json!({})), "it has said nothing yet");
        let mut leaving = says("uninitialized");
        leaving["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
        assert!(!empty(leaving));
        assert!(!MemberView::of("postgres-0", None).empty);
    }

    #[test]
    fn a_statefulset_is_read() {
        let set = |observed: i64, updated: i64| {
            SetView::of(&json!({
                "metadata": {"generation": 4}, "spec": {"replicas": 3},
                "status": {
                    "observedGeneration": observed, "replicas": 3, "readyReplicas": 3,
                    // Behind for ever where pods are deleted to be replaced.
                    "currentRevision": "a", "updateRevision": "b", "updatedReplicas": updated,
                },
            }))
        };
        let three = SetView {
            asked: 3,
            pods: 3,
            ready: 3,
            rolled: true,
            revision: Some("b".to_owned()),
        };
        assert_eq!(set(4, 3), three);
        assert!(!set(3, 3).rolled && !set(4, 2).rolled);
        assert_eq!(set(3, 3).revision, None, "that of an older template");
        assert!(three.exceed(1) && !three.exceed(3));
        let leaving = SetView { asked: 1, ..three };
        assert!(leaving.exceed(1));
    }

    #[test]
    fn a_pod_says_what_it_was_made_from_and_whether_it_stays() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {
            "uid": "u", "labels": {"controller-revision-hash": "postgres-1a"},
            "annotations": {"status": "{}"},
        }, "spec": {"containers": [], "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "data-postgres-0"}},
        ]}}))
        .unwrap();
        let member = MemberView::of("postgres-0", Some(&pod));
        assert_eq!(member.revision.as_deref(), Some("postgres-1a"));
        assert_eq!(member.uid.as_deref(), Some("u"));
        assert!(member.began && !member.leaving && member.on_volume);
        let new = MemberView::of("postgres-0", Some(&Pod::default()));
        assert!(!new.began, "Patroni does not run yet");
        assert!(!new.on_volume);
        let mut pod = pod;
        pod.metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-01-02T03:04:05Z")).unwrap());
        assert!(MemberView::of("postgres-0", Some(&pod)).leaving);
    }
}
