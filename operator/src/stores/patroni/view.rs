//! Patroni's memory, read.

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::Value;

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
        /// Whether it is ready: PostgreSQL answers and has its place in the cluster, and the pod has not been told to go.
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
    /// Whether it says of itself that it holds no data: a new pod's, on a volume that went with the old pod.
    pub empty: bool,
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

impl MemberView {
    /// A member by its pod, as the apiserver has it; None means that it has none.
    #[must_use]
    pub fn of(name: &str, pod: Option<&Pod>) -> Self {
        Self {
            name: name.to_owned(),
            pod: pod.map_or(PodState::Absent, pod_state),
            empty: pod.is_some_and(is_empty),
        }
    }

    /// Whether its pod is ready.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        matches!(self.pod, PodState::Present { ready: true, .. })
    }
}

/// Patroni writes what it finds into annotation `status` of its pod; its role is `uninitialized` while its data directory
/// is empty, and never again afterwards, for the annotation and an ephemeral volume both go with the pod.
fn is_empty(pod: &Pod) -> bool {
    let status = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get("status"))
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
    /// Reads the lock from ConfigMaps `<scope>-leader` and `<scope>-sync`.
    #[must_use]
    pub fn read(leader: &ConfigMap, sync: Option<&ConfigMap>) -> Self {
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

    const READY: PodState = PodState::Present {
        ready: true,
        created: DateTime::UNIX_EPOCH,
    };
    const UNREADY: PodState = PodState::Present {
        ready: false,
        created: DateTime::UNIX_EPOCH,
    };

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
}
