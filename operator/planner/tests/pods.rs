//! Every pod of a cell passes Pod Security `restricted` and keeps the house rules.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by them.

mod common;

use common::{Setup, credentials, from_yaml};
use serde_json::Value;
use titan_planner::cell::build;
use titan_planner::object::{Kind, Object};

/// The pod specs of all workloads.
fn pods(setup: &Setup) -> Vec<(String, Object, Value)> {
    let cell = setup.valid();
    build(&cell, &credentials(&cell))
        .unwrap()
        .objects
        .into_iter()
        .filter(|o| matches!(o.kind, Kind::Deployment | Kind::StatefulSet | Kind::Job))
        .map(|object| {
            let pod = object.body()["spec"]["template"]["spec"].clone();
            (format!("{:?} {}", object.kind, object.name), object, pod)
        })
        .collect()
}

fn setups() -> [Setup; 3] {
    [Setup::quickstart(), Setup::standard(), Setup::web()]
}

/// The rules of <https://kubernetes.io/docs/concepts/security/pod-security-standards/>: baseline, then restricted.
fn violations(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut rule = |holds: bool, what: &str| {
        if !holds {
            found.push(what.to_owned());
        }
    };
    for host in ["hostNetwork", "hostPID", "hostIPC"] {
        rule(pod.get(host).is_none_or(|value| value == false), host);
    }
    let context = &pod["securityContext"];
    rule(context.get("sysctls").is_none(), "sysctls");
    rule(context.get("seLinuxOptions").is_none(), "seLinuxOptions");
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let allowed = [
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        ];
        let types: Vec<&String> = volume
            .as_object()
            .unwrap()
            .keys()
            .filter(|key| *key != "name")
            .collect();
        rule(
            types.iter().all(|kind| allowed.contains(&kind.as_str())),
            "volume type",
        );
    }
    let containers = ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| pod[list].as_array().into_iter().flatten());
    for container in containers {
        let own = &container["securityContext"];
        let effective = |field: &str| own.get(field).or_else(|| context.get(field));
        rule(
            own.get("privileged").is_none_or(|value| value == false),
            "privileged",
        );
        rule(
            own["allowPrivilegeEscalation"] == false,
            "allowPrivilegeEscalation",
        );
        rule(
            own["capabilities"]["drop"] == serde_json::json!(["ALL"]),
            "capabilities.drop",
        );
        let added = own["capabilities"]["add"].as_array().map_or(0, Vec::len);
        rule(added == 0, "capabilities.add");
        rule(
            effective("runAsNonRoot").is_some_and(|value| value == true),
            "runAsNonRoot",
        );
        rule(
            effective("runAsUser").is_none_or(|user| user != 0),
            "runAsUser",
        );
        let seccomp = effective("seccompProfile").and_then(|profile| profile["type"].as_str());
        rule(
            matches!(seccomp, Some("RuntimeDefault" | "Localhost")),
            "seccompProfile",
        );
        for port in container["ports"].as_array().into_iter().flatten() {
            rule(port.get("hostPort").is_none(), "hostPort");
        }
        rule(own.get("procMount").is_none(), "procMount");
    }
    found
}

#[test]
fn every_pod_passes_pod_security_restricted() {
    for setup in setups() {
        for (name, _, pod) in pods(&setup) {
            assert_eq!(violations(&pod), [""; 0], "{name}");
        }
    }
    // And the check is one: a pod that says nothing fails it.
    let bare = serde_json::json!({ "containers": [{ "name": "a" }], "volumes": [{ "name": "v", "hostPath": {} }] });
    assert_eq!(
        violations(&bare),
        [
            "volume type",
            "allowPrivilegeEscalation",
            "capabilities.drop",
            "runAsNonRoot",
            "seccompProfile"
        ]
    );
}

#[test]
fn every_pod_keeps_the_house_rules() {
    for setup in setups() {
        for (name, object, pod) in pods(&setup) {
            assert_eq!(pod["enableServiceLinks"], false, "{name}");
            let token = object.kind == Kind::StatefulSet && object.name == "postgres";
            assert_eq!(
                pod["automountServiceAccountToken"], token,
                "{name}: only Patroni talks to the apiserver"
            );
            let part = &object.body()["metadata"]["labels"]["app.kubernetes.io/name"];
            assert_eq!(pod["serviceAccountName"], *part, "{name}");
            for container in pod["containers"].as_array().unwrap() {
                assert_eq!(
                    container["securityContext"]["readOnlyRootFilesystem"], true,
                    "{name}"
                );
                let mounts = container["volumeMounts"].as_array().unwrap();
                let body = object.body();
                let claims = body["spec"]["volumeClaimTemplates"]
                    .as_array()
                    .into_iter()
                    .flatten();
                let volumes: Vec<&Value> = pod["volumes"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|volume| &volume["name"])
                    .chain(claims.map(|claim| &claim["metadata"]["name"]))
                    .collect();
                for mount in mounts {
                    assert!(volumes.contains(&&mount["name"]), "{name}: {mount}");
                }
                assert_eq!(
                    mounts.len(),
                    volumes.len(),
                    "{name}: a volume that is not mounted"
                );
                if object.kind != Kind::Job {
                    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                        assert!(container.get(probe).is_some(), "{name}: {probe}");
                    }
                }
            }
            // Selectors find the pods that the templates make.
            if object.kind != Kind::Job {
                let spec = &object.body()["spec"];
                let labels = &spec["template"]["metadata"]["labels"];
                for (key, value) in spec["selector"]["matchLabels"].as_object().unwrap() {
                    assert_eq!(labels[key], *value, "{name}");
                }
            }
        }
    }
}

#[test]
fn zones_bind_every_pod() {
    for (name, _, pod) in pods(&Setup::standard()) {
        let terms =
            &pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let values = &terms["nodeSelectorTerms"][0]["matchExpressions"][0]["values"];
        assert_eq!(*values, serde_json::json!(["zone-a", "zone-b"]), "{name}");
    }
}

#[test]
fn an_autoscaled_service_leaves_its_replicas_to_the_autoscaler() {
    let mut setup = Setup::quickstart();
    setup.profile.spec.services[0].autoscaling = from_yaml("{ minReplicas: 2, maxReplicas: 5 }");
    for (name, object, _) in pods(&setup) {
        let spec = &object.body()["spec"];
        let replicas = spec.get("replicas");
        match name.as_str() {
            "Deployment user" => assert_eq!(replicas, None),
            name if name.starts_with("Deployment") => assert_eq!(replicas.unwrap(), 1),
            _ => {}
        }
    }
}

#[test]
fn a_service_has_drained_before_its_node_kills_it() {
    for grace in [1, 5, 30, 3600] {
        let mut setup = Setup::quickstart();
        for service in &mut setup.profile.spec.services {
            service.termination_grace_period_seconds = grace;
        }
        let services = pods(&setup)
            .into_iter()
            .filter(|(_, object, _)| object.kind == Kind::Deployment);
        let mut seen = 0;
        for (name, _, pod) in services {
            let milliseconds = |variable: &str| -> i64 {
                let variables = pod["containers"][0]["env"].as_array().unwrap();
                let found = variables.iter().find(|it| it["name"] == variable).unwrap();
                found["value"].as_str().unwrap().parse().unwrap()
            };
            let delay = milliseconds("TITAN_DRAIN_DELAY_MS");
            let timeout = milliseconds("TITAN_DRAIN_TIMEOUT_MS");
            assert!(delay > 0 && timeout >= delay, "{name}: {delay}, {timeout}");
            assert!(delay + timeout < grace * 1000, "{name}: {delay}, {timeout}");
            seen += 1;
        }
        assert!(seen > 0);
    }
}

/// A fleet whose cells run on nodes of their own, with images from a registry with a login.
fn particular() -> Setup {
    let mut setup = Setup::standard();
    setup.fleet.spec.images.pull_secrets = vec!["registry".to_owned()];
    setup.fleet.spec.pods = from_yaml(
        "
nodeSelector: { pool: cells }
tolerations: [{ key: cells, operator: Exists, effect: NoSchedule }]
priorityClassName: cells
annotations: { sidecar.istio.io/inject: 'false', titan.dev/config-checksum: theirs }
",
    );
    setup
}

#[test]
fn all_pods_are_placed_and_pull_as_the_fleet_says() {
    let setup = particular();
    let cell = setup.valid();
    let objects = build(&cell, &credentials(&cell)).unwrap().objects;
    let copy = objects
        .iter()
        .find(|object| object.kind == Kind::Secret && object.name == "image-pull.registry")
        .unwrap();
    assert_eq!(copy.body()["type"], "kubernetes.io/dockerconfigjson");
    assert!(copy.holds_data, "retained databases pull their image, too");
    let mut kinds = 0;
    for (what, object, pod) in pods(&setup) {
        kinds += 1;
        assert_eq!(
            pod["imagePullSecrets"][0]["name"], "image-pull.registry",
            "{what}"
        );
        assert_eq!(pod["nodeSelector"]["pool"], "cells", "{what}");
        assert_eq!(pod["tolerations"][0]["key"], "cells", "{what}");
        assert_eq!(pod["priorityClassName"], "cells", "{what}");
        let annotations = object.body()["spec"]["template"]["metadata"]["annotations"].clone();
        assert_eq!(annotations["sidecar.istio.io/inject"], "false", "{what}");
        if object.kind != Kind::Job {
            assert_ne!(annotations["titan.dev/config-checksum"], "theirs", "{what}");
        }
        assert_eq!(violations(&pod), [""; 0], "{what}");
    }
    assert!(kinds > 5);
    for (what, object, pod) in pods(&Setup::standard()) {
        for field in [
            "imagePullSecrets",
            "nodeSelector",
            "tolerations",
            "priorityClassName",
        ] {
            assert!(pod.get(field).is_none(), "{what}: {field}");
        }
        let annotations = &object.body()["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(annotations.is_null(), object.kind == Kind::Job, "{what}");
    }
}

#[test]
fn a_platform_that_gives_ids_is_asked_for_none() {
    let mut setup = Setup::standard();
    let ids = |setup: &Setup| -> Vec<usize> {
        pods(setup)
            .iter()
            .map(|(_, _, pod)| {
                let context = &pod["securityContext"];
                let fields = ["runAsUser", "runAsGroup", "fsGroup"];
                fields
                    .iter()
                    .filter(|field| context.get(**field).is_some())
                    .count()
            })
            .collect()
    };
    assert!(ids(&setup).iter().all(|count| *count == 3));
    setup.fleet.spec.pods.user_ids = titan_crds::UserIds::Platform;
    assert!(ids(&setup).iter().all(|count| *count == 0));
    for (what, _, pod) in pods(&setup) {
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{what}");
        assert_eq!(violations(&pod), [""; 0], "{what}");
    }
}
