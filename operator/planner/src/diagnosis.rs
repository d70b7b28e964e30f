//! Why a pod does not run, told from its status.

use serde_json::Value;

/// Why a pod does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// The condition reason.
    pub reason: &'static str,
    /// The pod, the container and what the node says.
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
    unschedulable(pod, name).or_else(|| {
        ["/status/initContainerStatuses", "/status/containerStatuses"]
            .iter()
            .filter_map(|pointer| pod.pointer(pointer)?.as_array())
            .flatten()
            .find_map(|container| stuck(container, name))
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
        "CrashLoopBackOff" => {
            let code = container
                .pointer("/lastState/terminated/exitCode")
                .and_then(Value::as_i64);
            let ended = container
                .pointer("/lastState/terminated/reason")
                .and_then(Value::as_str)
                .unwrap_or("ended");
            Some(Diagnosis {
                reason: "ServiceCrashing",
                message: format!(
                    "container {name} of pod {pod} keeps ending ({ended}, exit code {}): read its log with kubectl logs --previous",
                    code.map_or_else(|| "unknown".to_owned(), |code| code.to_string())
                ),
                needs_person: true,
            })
        }
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
}
