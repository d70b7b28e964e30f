//! The operator lives through everything a cell can go through with the rights of the chart, and needs each of them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{NAMESPACE, helm, object, render, strings, write_objects};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use titan_operator::metrics::{CountingLedger, Metrics};
use titan_operator::run::replica::{Settings, operate};
use titan_testbed::{Apiserver, Redis};
use tokio_util::sync::CancellationToken;

const OPERATOR: &str = "system:serviceaccount:titan-system:titan-operator";

/// What the operator may do and this test does not make it do.
const UNSEEN: [&str; 1] = [
    // An Event that repeats within minutes is patched to count on.
    "patch events.k8s.io/events",
];

struct Scene {
    cluster: Apiserver,
    folder: tempfile::TempDir,
}

impl Scene {
    fn apply(&self, object: &Value) {
        let file = self.folder.path().join("object.yaml");
        write_objects(&file, std::slice::from_ref(object));
        self.kubectl(&["apply", "-f", &file.display().to_string()]);
    }

    fn kubectl(&self, args: &[&str]) -> String {
        self.cluster.kubectl(args).unwrap()
    }

    fn list(&self, namespace: &str, kind: &str) -> Vec<Value> {
        let Ok(text) = self
            .cluster
            .kubectl(&["-n", namespace, "get", kind, "-o", "json"])
        else {
            return Vec::new();
        };
        let list: Value = serde_json::from_str(&text).unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    fn count(&self, namespace: &str, kind: &str) -> usize {
        self.list(namespace, kind).len()
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_mins(3);
        while !done(self) {
            if Instant::now() > deadline {
                let cells = self.kubectl(&["get", "cells", "-o", "wide"]);
                panic!("waited in vain for: {what}\n{cells}");
            }
        }
    }

    /// Has a member of PostgreSQL that was made from the template of this revision, which then becomes another one, and waits
    /// until it is gone.
    fn outdate_member(&self, namespace: &str, revisions: [&str; 2], ready: bool) {
        let [old, new] = revisions;
        let secure = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "postgres-0", "namespace": namespace, "labels": {
                "app.kubernetes.io/name": "postgres", "app.kubernetes.io/component": "postgres",
                "controller-revision-hash": old,
            }},
            "spec": {
                "containers": [{"name": "postgres", "image": "none", "securityContext": secure}],
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            },
        }));
        let status = if ready { "True" } else { "False" };
        let condition = json!({"type": "Ready", "status": status});
        self.patch_statuses(
            namespace,
            "pod",
            &json!({"status": {"phase": "Running", "conditions": [condition]}}),
        );
        self.patch_statuses(
            namespace,
            "pdb",
            &json!({"status": {
                "observedGeneration": 9, "disruptionsAllowed": 1,
                "currentHealthy": 1, "desiredHealthy": 0, "expectedPods": 1,
            }}),
        );
        self.patch_statuses(
            namespace,
            "statefulset",
            &json!({"status": {
                "observedGeneration": 9, "replicas": 1, "updatedReplicas": 0, "updateRevision": new,
            }}),
        );
        self.wait("replacement of a member", |scene| {
            scene.count(namespace, "pod") == 0
        });
    }

    /// What a Job controller and a kubelet would do.
    fn finish_jobs(&self, namespace: &str) {
        let at = "2026-01-01T00:00:00Z";
        let condition =
            |name: &str| json!({"type": name, "status": "True", "lastTransitionTime": at});
        let status = json!({"status": {
            "startTime": at, "completionTime": at, "succeeded": 1,
            "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
        }});
        self.patch_statuses(namespace, "job", &status);
    }

    fn start_deployments(&self, namespace: &str) {
        let status = json!({"status": {
            "observedGeneration": 9, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
        }});
        self.patch_statuses(namespace, "deployment", &status);
    }

    fn patch_statuses(&self, namespace: &str, kind: &str, status: &Value) {
        for object in self.list(namespace, kind) {
            let name = object["metadata"]["name"].as_str().unwrap();
            let patch = status.to_string();
            // A Job that is complete cannot be completed again.
            let _ = self.cluster.kubectl(&[
                "-n",
                namespace,
                "patch",
                kind,
                name,
                "--subresource=status",
                "--type=merge",
                "-p",
                &patch,
            ]);
        }
    }
}

/// The kinds that the operator keeps in a cell's namespace.
const KINDS: &str = "secrets,rolebindings,serviceaccounts,configmaps,networkpolicies,services,statefulsets,jobs,\
                     deployments,poddisruptionbudgets,horizontalpodautoscalers";

#[tokio::test(flavor = "multi_thread")]
async fn every_right_is_enough_and_none_is_too_much() {
    let scene = tokio::task::spawn_blocking(install).await.unwrap();
    let stop = CancellationToken::new();
    let operator = tokio::spawn(run_operator(
        scene.cluster.kubeconfig().to_owned(),
        stop.clone(),
    ));
    let scene = tokio::task::spawn_blocking(move || {
        live(&scene);
        scene
    })
    .await
    .unwrap();
    stop.cancel();
    operator.await.unwrap();

    let (used, refused) = writes(&scene.cluster.audit_log());
    assert!(refused.is_empty(), "the operator was refused: {refused:#?}");
    let granted = granted();
    let idle: Vec<&String> = granted
        .difference(&used)
        .filter(|right| !UNSEEN.contains(&right.as_str()))
        .collect();
    assert!(
        idle.is_empty(),
        "the chart grants what the operator does not need: {idle:#?}"
    );
}

fn install() -> Scene {
    let scene = Scene {
        cluster: Apiserver::start().unwrap(),
        folder: tempfile::tempdir().unwrap(),
    };
    let chart = titan_chart_tests::chart().display().to_string();
    let config = scene.cluster.kubeconfig().display().to_string();
    let install = [
        "upgrade",
        "--install",
        "titan",
        &chart,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        "--kubeconfig",
        &config,
    ];
    let output = helm(&install);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    scene.kubectl(&[
        "wait",
        "crd",
        "--all",
        "--for=condition=Established",
        "--timeout=30s",
    ]);
    scene
}

async fn run_operator(kubeconfig: std::path::PathBuf, stop: CancellationToken) {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
    config.auth_info.impersonate = Some(OPERATOR.to_owned());
    let metrics = Metrics::new().unwrap();
    let ledger = Arc::new(CountingLedger(metrics.clone()));
    let listen = || ([127, 0, 0, 1], titan_testbed::process::free_port().unwrap()).into();
    let settings = Settings {
        registry_listen: listen(),
        metrics_listen: listen(),
        identity: "test".to_owned(),
        namespace: NAMESPACE.to_owned(),
    };
    operate(config, settings, metrics, ledger, stop)
        .await
        .unwrap();
}

/// A fleet whose template makes a cell; a cell with databases of its own; drift everywhere; services and databases that
/// go; cells that go.
fn live(scene: &Scene) {
    let namespaces = scene
        .cluster
        .start_controllers(&["namespace-controller", "garbage-collector-controller"])
        .unwrap();
    let database = titan_testbed::postgres().unwrap();
    let redis = titan_testbed::redis().unwrap();
    let kafka = titan_testbed::kafka().unwrap();
    let secret = |name: &str, data: &Value| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE, "annotations": {"titan.dev/for-cells": "*"}}, "stringData": data});
    scene.apply(&secret(
        "postgres",
        &json!({
            "host": "127.0.0.1", "port": database.port.to_string(),
            "username": database.user, "password": database.password, "sslmode": "disable",
        }),
    ));
    scene.apply(&secret(
        "redis",
        &json!({
            "host": redis.host(), "port": redis.port().to_string(), "password": Redis::PASSWORD,
            "sslmode": "disable",
        }),
    ));
    let external = json!({
        "postgres": {"external": {"secretName": "postgres"}},
        "redis": {"external": {"secretName": "redis"}},
    });
    let user = json!({"name": "user", "port": 50020, "stores": {"postgres": true}});
    let cart = json!({
        "name": "cart", "port": 50003, "stores": {"postgres": true, "redis": true},
        "resources": {"requests": {"cpu": "10m"}}, "autoscaling": {"minReplicas": 1, "maxReplicas": 3},
    });
    let profile = |services: &[&Value]| {
        json!({
            "apiVersion": "titan.dev/v1alpha1", "kind": "ServiceProfile", "metadata": {"name": "small"},
            "spec": {"databases": external, "services": services},
        })
    };
    scene.apply(&profile(&[&user, &cart]));
    scene.apply(&json!({
        "apiVersion": "titan.dev/v1alpha1", "kind": "CellFleet", "metadata": {"name": "shop"},
        "spec": {
            "kafka": {"bootstrap": kafka.bootstrap(), "replicationFactor": 1},
            "template": {"count": 1, "usersPerCell": 100, "spec": {
                "profile": "small", "release": "1.0.0", "reclaimPolicy": "Delete",
            }},
        },
    }));
    scene.wait("migrations of the template's cell", |scene| {
        scene.count("cell-001", "job") == 2
    });
    scene.finish_jobs("cell-001");
    scene.wait("services of the template's cell", |scene| {
        scene.count("cell-001", "deployment") == 2 && scene.count("cell-001", "hpa") == 1
    });
    scene.start_deployments("cell-001");
    scene.kubectl(&[
        "wait",
        "cell/cell-001",
        "--for=condition=Ready",
        "--timeout=60s",
    ]);

    scene.apply(&json!({
        "apiVersion": "titan.dev/v1alpha1", "kind": "Cell", "metadata": {"name": "own-stores"},
        "spec": {
            "fleet": "shop", "profile": "small", "release": "1.0.0", "reclaimPolicy": "Delete",
            "userRange": {"first": 1000, "last": 1999},
            "databases": {
                "postgres": {"members": 1, "storage": {"ephemeral": {}}},
                "redis": {"topology": "Single", "storage": {"ephemeral": {}}},
            },
        },
    }));
    scene.wait("databases of the second cell", |scene| {
        scene.count("own-stores", "statefulset") == 2
    });

    // Drift of every object of every kind.
    for namespace in ["cell-001", "own-stores"] {
        scene.kubectl(&[
            "-n",
            namespace,
            "label",
            KINDS,
            "-l",
            "titan.dev/cell",
            "titan.dev/fleet-",
        ]);
        scene.kubectl(&["label", "namespace", namespace, "titan.dev/fleet-"]);
        scene.wait("repair", |scene| {
            let lacking = [
                "-n",
                namespace,
                "get",
                KINDS,
                "-l",
                "titan.dev/cell,!titan.dev/fleet",
                "-o",
                "name",
            ];
            let namespaces = [
                "get",
                "namespaces",
                "-l",
                "titan.dev/cell,!titan.dev/fleet",
                "-o",
                "name",
            ];
            scene.kubectl(&lacking).is_empty() && scene.kubectl(&namespaces).is_empty()
        });
    }

    // A member of PostgreSQL is to be made anew: one that is broken is deleted, one that serves is evicted.
    scene.outdate_member("own-stores", ["a", "b"], false);
    scene.outdate_member("own-stores", ["b", "c"], true);

    // A service goes, and databases of the cell's own.
    scene.apply(&profile(&[&user]));
    scene.wait("removal of a service", |scene| {
        scene.count("cell-001", "deployment") == 1 && scene.count("cell-001", "hpa") == 0
    });
    let patch = json!({"spec": {"databases": {"postgres": {
        "members": null, "storage": null, "external": {"secretName": "postgres"},
    }, "redis": {
        "topology": null, "storage": null, "external": {"secretName": "redis"},
    }}}});
    scene.kubectl(&[
        "patch",
        "cell",
        "own-stores",
        "--type=merge",
        "-p",
        &patch.to_string(),
    ]);
    scene.wait("removal of databases", |scene| {
        scene.count("own-stores", "statefulset") == 0
    });

    // At once, as of a folder of manifests: the fleet waits for its cells.
    let everything = ["delete", "cellfleets,cells", "--all", "--timeout=60s"];
    scene.kubectl(&everything);
    assert!(
        scene
            .kubectl(&["get", "namespaces", "-l", "titan.dev/cell", "-o", "name"])
            .is_empty()
    );
    drop(namespaces);
}

/// Writes of the operator in the audit log, as `verb group/resource`: those that worked, and those refused for lack of a
/// right.
fn writes(log: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut used = BTreeSet::new();
    let mut refused = BTreeSet::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let target = &event["objectRef"];
        if event["impersonatedUser"]["username"] != OPERATOR || event["stage"] != "ResponseComplete"
        {
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut resource = text(&target["resource"]);
        if target["subresource"].is_string() {
            resource = format!("{resource}/{}", text(&target["subresource"]));
        }
        let right = format!(
            "{} {}/{resource}",
            text(&event["verb"]),
            text(&target["apiGroup"])
        );
        match event["responseStatus"]["code"].as_i64() {
            Some(200..300) => used.insert(right),
            Some(403) => refused.insert(right),
            _ => false,
        };
    }
    (used, refused)
}

/// Every right to write that the chart gives to the operator, as `verb group/resource`.
fn granted() -> BTreeSet<String> {
    let objects = render(&[]);
    let roles = [
        ("ClusterRole", "titan-operator"),
        ("ClusterRole", "titan-operator-cell"),
        ("Role", "titan-operator"),
    ];
    let mut granted = BTreeSet::new();
    for (kind, name) in roles {
        for rule in object(&objects, kind, name)["rules"].as_array().unwrap() {
            for verb in strings(&rule["verbs"]) {
                // Reads are not in the audit log, and a bind shows as the role binding that it allowed.
                if ["get", "list", "watch", "bind"].contains(&verb) {
                    continue;
                }
                for group in strings(&rule["apiGroups"]) {
                    for resource in strings(&rule["resources"]) {
                        granted.insert(format!("{verb} {group}/{resource}"));
                    }
                }
            }
        }
    }
    granted
}
