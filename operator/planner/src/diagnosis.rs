//! Why a pod does not run, or why a Deployment does not get its pods, told from their statuses.

use serde_json::Value;

use crate::cell::names::{COMPONENT_LABEL, Component, MIGRATE};

/// Why something does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// The condition reason.
    pub reason: &'static str,
    /// What does not run, and what the node or the Deployment's controller says.
    pub message: String,
    /// Whether it will stay so until a person does something.
    pub needs_person: bool,
}

/// Reads a pod; `None` when nothing is wrong with it, or nothing that time does not mend.
#[must_use]
pub fn diagnose(pod: &Value) -> Option<Diagnosis> {
    let name = pod.pointer("/metadata/name").and_then(Value::as_str)?;
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        return None;
    }
    unschedulable(pod, name)
        .or_else(|| {
            ["/status/initContainerStatuses", "/status/containerStatuses"]
                .iter()
                .filter_map(|pointer| pod.pointer(pointer)?.as_array())
                .flatten()
                .find_map(|container| {
                    stuck(container, name).or_else(|| crashing(container, pod, name))
                })
        })
        .or_else(|| held_open(pod, name))
}

/// A pod of a migration whose own container has ended well, while another one, which somebody else put there, still runs: the Job
/// ends only when every container has.
fn held_open(pod: &Value, name: &str) -> Option<Diagnosis> {
    let labels = pod.pointer("/metadata/labels")?;
    if labels[COMPONENT_LABEL] != Component::Migration.as_str() {
        return None;
    }
    let containers = pod.pointer("/status/containerStatuses")?.as_array()?;
    let mut ended = containers.iter().filter(|it| it["name"] == MIGRATE);
    ended.find(|it| it.pointer("/state/terminated/exitCode") == Some(&Value::from(0)))?;
    let other = containers
        .iter()
        .find(|it| it.pointer("/state/running").is_some())?["name"]
        .as_str()?;
    Some(Diagnosis {
        reason: "MigrationHeldOpen",
        message: format!(
            "the migration in pod {name} has ended, and container {other} still runs there, so that its Job does not end; keep {other} from being injected into pods with the label {COMPONENT_LABEL}={}, or inject it as an init container with restartPolicy Always",
            Component::Migration.as_str()
        ),
        needs_person: false,
    })
}

/// Reads a Deployment that lacks pods; `None` when its controller has given nothing up. To be asked where no pod says what
/// is wrong.
#[must_use]
pub fn diagnose_deployment(deployment: &Value) -> Option<Diagnosis> {
    let name = deployment
        .pointer("/metadata/name")
        .and_then(Value::as_str)?;
    let generation = |pointer| deployment.pointer(pointer).and_then(Value::as_i64);
    if generation("/status/observedGeneration") < generation("/metadata/generation") {
        return None;
    }
    let conditions = deployment.pointer("/status/conditions")?.as_array()?;
    let message = |condition: &Value| {
        condition["message"]
            .as_str()
            .unwrap_or("it says no more")
            .to_owned()
    };
    let with = |type_: &str, status: &str| {
        conditions
            .iter()
            .find(|condition| condition["type"] == type_ && condition["status"] == status)
    };
    if let Some(condition) = with("ReplicaFailure", "True") {
        return Some(Diagnosis {
            reason: "PodsNotCreated",
            message: format!(
                "Deployment {name} cannot make its pods: {}; check quotas and admission webhooks",
                message(condition)
            ),
            needs_person: true,
        });
    }
    let condition = with("Progressing", "False")
        .filter(|condition| condition["reason"] == "ProgressDeadlineExceeded")?;
    Some(Diagnosis {
        reason: "RolloutStuck",
        message: format!(
            "Deployment {name} makes no progress: {}; look at the readiness and the log of its newest pod",
            message(condition)
        ),
        needs_person: true,
    })
}

fn unschedulable(pod: &Value, name: &str) -> Option<Diagnosis> {
    let conditions = pod.pointer("/status/conditions")?.as_array()?;
    let condition = conditions.iter().find(|condition| {
        condition["type"] == "PodScheduled"
            && condition["status"] == "False"
            && condition["reason"] == "Unschedulable"
    })?;
    let why = condition["message"].as_str().unwrap_or("no node fits");
    let volume = ["PersistentVolumeClaim", "StorageClass", "storageclass"]
        .iter()
        .any(|word| why.contains(word));
    let advice = if volume {
        "check the storage's storageClassName against `kubectl get storageclass`: the StorageClass must exist, or be the default, and have room"
    } else {
        "lower its resources or add nodes"
    };
    Some(Diagnosis {
        reason: "Unschedulable",
        message: format!("pod {name} fits no node: {why}; {advice}"),
        needs_person: true,
    })
}

fn stuck(container: &Value, pod: &str) -> Option<Diagnosis> {
    let name = container["name"].as_str().unwrap_or("?");
    let image = container["image"].as_str().unwrap_or("?");
    let waiting = container.pointer("/state/waiting")?;
    let reason = waiting["reason"].as_str()?;
    let detail = waiting["message"].as_str().unwrap_or(reason);
    match reason {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
            Some(Diagnosis {
                reason: "ImagePullFailed",
                message: format!(
                    "pod {pod} cannot get image {image}: {detail}; check spec.release, spec.overrides and the fleet's spec.images"
                ),
                needs_person: true,
            })
        }
        "CrashLoopBackOff" => Some(keeps_ending(
            container.pointer("/lastState/terminated"),
            name,
            pod,
        )),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Some(Diagnosis {
                reason: "ContainerNotCreated",
                message: format!("container {name} of pod {pod} cannot be created: {detail}"),
                needs_person: true,
            })
        }
        _ => None,
    }
}

/// A container that has ended before and runs again, or has just ended, without having been ready since: a crash loop between
/// two of its waits. Were it taken for a new start each time, the cell would be Stalled and not by turns.
fn crashing(container: &Value, pod: &Value, pod_name: &str) -> Option<Diagnosis> {
    /// One restart may have been an accident.
    const RESTARTS: i64 = 2;
    let restarts = container["restartCount"].as_i64().unwrap_or(0);
    if restarts < RESTARTS || container["ready"] == true {
        return None;
    }
    let name = container["name"].as_str().unwrap_or("?");
    if let Some(ended) = container.pointer("/state/terminated") {
        let failed = ended["exitCode"].as_i64().is_some_and(|code| code != 0);
        return failed.then(|| keeps_ending(Some(ended), name, pod_name));
    }
    let started = container.pointer("/state/running/startedAt")?.as_str()?;
    let ended = container.pointer("/lastState/terminated")?;
    let conditions = pod.pointer("/status/conditions")?.as_array()?;
    let unready_since = conditions
        .iter()
        .find(|condition| condition["type"] == "Ready" && condition["status"] == "False")?
        ["lastTransitionTime"]
        .as_str()?;
    // Times of the apiserver are all of one form, so that their text has their order.
    (unready_since <= started).then(|| keeps_ending(Some(ended), name, pod_name))
}

fn keeps_ending(ended: Option<&Value>, container: &str, pod: &str) -> Diagnosis {
    let code = ended.and_then(|ended| ended["exitCode"].as_i64());
    let how = ended
        .and_then(|ended| ended["reason"].as_str())
        .unwrap_or("ended");
    Diagnosis {
        reason: "ServiceCrashing",
        message: format!(
            "container {container} of pod {pod} keeps ending ({how}, exit code {}): read its log with kubectl logs --previous",
            code.map_or_else(|| "unknown".to_owned(), |code| code.to_string())
        ),
        needs_person: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn waiting(reason: &str) -> Value {
        json!({
            "metadata": {"name": "order-1"},
            "status": {"containerStatuses": [{
                "name": "order", "image": "titan/order:nope",
                "state": {"waiting": {"reason": reason, "message": "not found"}},
                "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}},
            }]},
        })
    }

    #[test]
    fn each_way_to_be_stuck_has_its_reason() {
        for (waiting_reason, reason) in [
            ("ImagePullBackOff", "ImagePullFailed"),
            ("ErrImagePull", "ImagePullFailed"),
            ("CrashLoopBackOff", "ServiceCrashing"),
            ("CreateContainerConfigError", "ContainerNotCreated"),
        ] {
            let diagnosis = diagnose(&waiting(waiting_reason)).unwrap();
            assert_eq!(diagnosis.reason, reason);
            assert!(
                diagnosis.message.contains("order-1"),
                "{}",
                diagnosis.message
            );
        }
    }

    #[test]
    fn a_migration_that_a_sidecar_holds_open_names_the_sidecar() {
        let pod = |component: &str, exit: i64, other: &Value| {
            json!({
                "metadata": {"name": "cart-migrate-1", "labels": {"app.kubernetes.io/component": component}},
                "status": {"containerStatuses": [
                    {"name": "migrate", "image": "i", "state": {"terminated": {"exitCode": exit}}},
                    {"name": "mesh-proxy", "image": "i", "state": other},
                ]},
            })
        };
        let running = json!({"running": {"startedAt": "t"}});
        let held = diagnose(&pod("migration", 0, &running)).unwrap();
        assert_eq!(held.reason, "MigrationHeldOpen");
        assert!(held.message.contains("mesh-proxy"), "{}", held.message);
        let ended = json!({"terminated": {"exitCode": 0}});
        for pod in [
            pod("migration", 0, &ended),
            pod("migration", 1, &running),
            pod("service", 0, &running),
        ] {
            assert_eq!(diagnose(&pod), None, "{pod}");
        }
    }

    #[test]
    fn a_pod_that_is_only_starting_is_not_stuck() {
        assert_eq!(diagnose(&waiting("ContainerCreating")), None);
    }

    #[test]
    fn a_pod_on_its_way_out_is_not_stuck() {
        let mut pod = waiting("CrashLoopBackOff");
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(diagnose(&pod), None);
    }

    #[test]
    fn an_unschedulable_pod_says_what_the_scheduler_says_and_what_to_do() {
        for (said, advice) in [
            (
                "0/1 nodes are available: 1 Insufficient memory.",
                "lower its resources",
            ),
            (
                "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
                "storageClassName",
            ),
        ] {
            let pod = json!({
                "metadata": {"name": "order-1"},
                "status": {"conditions": [{
                    "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                    "message": said,
                }]},
            });
            let diagnosis = diagnose(&pod).unwrap();
            assert_eq!(diagnosis.reason, "Unschedulable");
            assert!(diagnosis.message.contains(said));
            assert!(diagnosis.message.contains(advice), "{}", diagnosis.message);
        }
    }

    fn restarted(state: &Value, unready_since: &str, ready: bool, restarts: i64) -> Value {
        json!({
            "metadata": {"name": "order-1"},
            "status": {
                "conditions": [{
                    "type": "Ready", "status": if ready { "True" } else { "False" },
                    "lastTransitionTime": unready_since,
                }],
                "containerStatuses": [{
                    "name": "order", "image": "titan/order:1.0.0", "ready": ready,
                    "restartCount": restarts, "state": state,
                    "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}},
                }],
            },
        })
    }

    #[test]
    fn a_crash_loop_is_one_between_its_waits_too() {
        let crashed = diagnose(&waiting("CrashLoopBackOff")).unwrap();
        let running = json!({"running": {"startedAt": "2026-01-01T10:00:00Z"}});
        let (before, after) = ("2026-01-01T09:00:00Z", "2026-01-01T11:00:00Z");
        assert_eq!(
            diagnose(&restarted(&running, before, false, 5)).as_ref(),
            Some(&crashed),
            "the same words, or each restart would be a write"
        );
        let ended = json!({"terminated": {"exitCode": 3, "reason": "Error"}});
        assert_eq!(
            diagnose(&restarted(&ended, before, false, 5)).as_ref(),
            Some(&crashed)
        );

        assert_eq!(diagnose(&restarted(&running, before, true, 5)), None);
        assert_eq!(
            diagnose(&restarted(&running, before, false, 1)),
            None,
            "once is no loop"
        );
        assert_eq!(
            diagnose(&restarted(&running, after, false, 5)),
            None,
            "it was ready since it was last started"
        );
    }

    #[test]
    fn a_deployment_that_gave_up_says_why() {
        let deployment = |observed: i64, type_: &str, status: &str, reason: &str| {
            json!({
                "metadata": {"name": "order", "generation": 2},
                "status": {"observedGeneration": observed, "conditions": [
                    {"type": type_, "status": status, "reason": reason, "message": "as it is"},
                ]},
            })
        };
        let reason = |deployment: &Value| diagnose_deployment(deployment).map(|it| it.reason);
        let stuck = deployment(2, "Progressing", "False", "ProgressDeadlineExceeded");
        assert_eq!(reason(&stuck), Some("RolloutStuck"));
        let refused = deployment(2, "ReplicaFailure", "True", "FailedCreate");
        assert_eq!(reason(&refused), Some("PodsNotCreated"));
        let older = deployment(1, "Progressing", "False", "ProgressDeadlineExceeded");
        assert_eq!(reason(&older), None, "it speaks of an older template");
        let going = deployment(2, "Progressing", "True", "ReplicaSetUpdated");
        assert_eq!(reason(&going), None);
    }
}
