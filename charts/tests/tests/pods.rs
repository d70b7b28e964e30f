//! Every pod passes Pod Security `restricted`, on a read-only root, and can be scheduled and drained safely.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod common;

use common::{EVERYTHING, object, of_kind, render};

#[test]
fn pods_are_locked_down() {
    let objects = render(&EVERYTHING);
    let mut seen = 0;
    for deployment in of_kind(&objects, "Deployment") {
        let name = deployment["metadata"]["name"].as_str().unwrap();
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(pod["securityContext"]["runAsUser"], 65532, "{name}");
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
            "{name}"
        );
        for shared in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod[shared].is_null(), "{name}: {shared}");
        }
        for volume in pod["volumes"].as_array().into_iter().flatten() {
            let kinds: Vec<&String> = volume
                .as_object()
                .unwrap()
                .keys()
                .filter(|key| *key != "name")
                .collect();
            let allowed = ["configMap", "emptyDir", "secret", "projected"];
            assert!(
                kinds.iter().all(|kind| allowed.contains(&kind.as_str())),
                "{name}: {kinds:?}"
            );
        }
        for container in pod["containers"].as_array().unwrap() {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(
                security["capabilities"]["drop"],
                serde_json::json!(["ALL"]),
                "{name}"
            );
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                assert!(
                    container[probe]["httpGet"]["path"].is_string(),
                    "{name}: {probe}"
                );
            }
            for amount in ["requests", "limits"] {
                assert!(
                    container["resources"][amount]["memory"].is_string(),
                    "{name}: {amount}"
                );
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 2);
}

#[test]
fn only_the_operator_gets_a_token() {
    let objects = render(&[]);
    for account in of_kind(&objects, "ServiceAccount") {
        assert_eq!(account["automountServiceAccountToken"], false);
    }
    let token = |name| &object(&objects, "Deployment", name)["spec"]["template"]["spec"]["automountServiceAccountToken"];
    assert_eq!(token("titan-operator"), true);
    assert_eq!(token("cell-router"), false);
}

#[test]
fn each_selector_finds_its_own_pods_alone() {
    let objects = render(&[]);
    let labels = |name| {
        object(&objects, "Deployment", name)["spec"]["template"]["metadata"]["labels"].clone()
    };
    let matches = |selector: &serde_json::Value, labels: &serde_json::Value| {
        selector
            .as_object()
            .unwrap()
            .iter()
            .all(|(key, value)| &labels[key] == value)
    };
    let (operator, router) = (labels("titan-operator"), labels("cell-router"));
    for (name, own, other) in [
        ("titan-operator", &operator, &router),
        ("cell-router", &router, &operator),
    ] {
        for kind in ["Deployment", "PodDisruptionBudget"] {
            let selector = &object(&objects, kind, name)["spec"]["selector"]["matchLabels"];
            assert!(
                matches(selector, own) && !matches(selector, other),
                "{kind} {name}"
            );
        }
        let selector =
            &object(&objects, "NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"];
        assert!(
            matches(selector, own) && !matches(selector, other),
            "NetworkPolicy {name}"
        );
    }
    for (service, own, other) in [
        ("titan-registry", &operator, &router),
        ("cell-router", &router, &operator),
    ] {
        let selector = &object(&objects, "Service", service)["spec"]["selector"];
        assert!(
            matches(selector, own) && !matches(selector, other),
            "Service {service}"
        );
    }
}

#[test]
fn services_reach_ports_that_the_pods_have() {
    let objects = render(&[]);
    for (service, deployment) in [
        ("titan-registry", "titan-operator"),
        ("cell-router", "cell-router"),
    ] {
        let container = &object(&objects, "Deployment", deployment)["spec"]["template"]["spec"]["containers"]
            [0];
        let names: Vec<&str> = container["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|port| port["name"].as_str().unwrap())
            .collect();
        for port in object(&objects, "Service", service)["spec"]["ports"]
            .as_array()
            .unwrap()
        {
            assert!(
                names.contains(&port["targetPort"].as_str().unwrap()),
                "{service}: {port}"
            );
        }
    }
}
