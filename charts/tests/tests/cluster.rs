//! The chart in a real apiserver: installed, upgraded and uninstalled by helm, its policies enforced.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod common;

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::{NAMESPACE, helm, of_kind, render, write_objects};
use serde_json::{Value, json};
use titan_testbed::Apiserver;

const OPERATOR: &str = "--as=system:serviceaccount:titan-system:titan-operator";

fn upgrade(cluster: &Apiserver, chart: &Path, values: &[&str]) -> String {
    let (chart, config) = (
        chart.display().to_string(),
        cluster.kubeconfig().display().to_string(),
    );
    let mut args = vec![
        "upgrade",
        "--install",
        "titan",
        &chart,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
    ];
    args.extend(["--kubeconfig", &config]);
    for value in values {
        args.extend(["--set", value]);
    }
    let output = helm(&args);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// An apiserver with the chart installed, shared by the tests that only look.
fn installed() -> &'static Apiserver {
    static CLUSTER: OnceLock<&Apiserver> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let cluster = titan_testbed::apiserver().unwrap();
        upgrade(
            cluster,
            &titan_chart_tests::chart(),
            &["argocd.healthChecks=true"],
        );
        cluster
    })
}

/// Applies an object as somebody; the error is what the apiserver said.
fn create(cluster: &Apiserver, object: &Value, more: &[&str]) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("object.yaml");
    write_objects(&file, std::slice::from_ref(object));
    let file = file.display().to_string();
    let args: Vec<&str> = ["create", "-f", &file]
        .into_iter()
        .chain(more.iter().copied())
        .collect();
    cluster.kubectl(&args).map_err(|error| error.to_string())
}

fn cell_namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn cell_labels(name: &str) -> Value {
    json!({
        "app.kubernetes.io/managed-by": "titan-operator",
        "titan.dev/cell": name,
        "pod-security.kubernetes.io/enforce": "restricted",
    })
}

fn binding(namespace: &str, role: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": role, "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": "titan-operator", "namespace": NAMESPACE}],
    })
}

/// Waits until the admission policy is in force, which takes the apiserver a moment after it is created.
fn wait_for_the_policy(cluster: &Apiserver) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let stranger = cell_namespace("stranger", &json!({}));
    while create(cluster, &stranger, &[OPERATOR, "--dry-run=server"]).is_ok() {
        assert!(
            Instant::now() < deadline,
            "the admission policy refuses nothing"
        );
    }
}

#[test]
fn pods_of_the_chart_pass_restricted() {
    let cluster = installed();
    let enforced = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    create(cluster, &cell_namespace("restricted", &enforced), &[]).unwrap();
    let pod_of = |deployment: &Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": deployment["metadata"]["name"], "namespace": "restricted"},
            "spec": deployment["spec"]["template"]["spec"],
        })
    };
    let objects = render(&[]);
    for deployment in of_kind(&objects, "Deployment") {
        let mut pod = pod_of(deployment);
        create(cluster, &pod, &["--dry-run=server"]).unwrap();
        // The same pod with more rights is refused: the check above can fail.
        pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
        let said = create(cluster, &pod, &["--dry-run=server"]).unwrap_err();
        assert!(said.contains("restricted"), "{said}");
    }
}

#[test]
fn the_operator_may_make_cells_and_nothing_around_them() {
    let cluster = installed();
    wait_for_the_policy(cluster);
    let can = |verb: &str, what: &str, namespace: &str| {
        cluster
            .kubectl(&["auth", "can-i", verb, what, "-n", namespace, OPERATOR])
            .is_ok()
    };

    // A cell: its namespace, its own rights in it, then everything in it.
    create(
        cluster,
        &cell_namespace("cell-001", &cell_labels("cell-001")),
        &[OPERATOR],
    )
    .unwrap();
    assert!(!can("create", "secrets", "cell-001"));
    create(
        cluster,
        &binding("cell-001", "titan-operator-cell"),
        &[OPERATOR],
    )
    .unwrap();
    create(
        cluster,
        &binding("cell-001", "titan-cell-postgres"),
        &[OPERATOR],
    )
    .unwrap();
    for what in [
        "secrets",
        "deployments.apps",
        "statefulsets.apps",
        "jobs.batch",
        "networkpolicies.networking.k8s.io",
    ] {
        assert!(can("create", what, "cell-001"), "{what}");
        assert!(!can("create", what, "default"), "{what}");
    }
    assert!(!can("get", "secrets", "default"));
    assert!(!can("list", "secrets", NAMESPACE));

    // Not a namespace that enforces nothing, nor one without a cell.
    for labels in [
        json!({}),
        json!({"app.kubernetes.io/managed-by": "titan-operator", "titan.dev/cell": "cell-002"}),
    ] {
        let said = create(cluster, &cell_namespace("cell-002", &labels), &[OPERATOR]).unwrap_err();
        assert!(said.contains("ValidatingAdmissionPolicy"), "{said}");
    }
    // Not a binding outside of cells, nor another role inside.
    let said = create(
        cluster,
        &binding("kube-system", "titan-operator-cell"),
        &[OPERATOR],
    )
    .unwrap_err();
    assert!(said.contains("namespaces of cells alone"), "{said}");
    let said = create(cluster, &binding("cell-001", "cluster-admin"), &[OPERATOR]).unwrap_err();
    assert!(said.contains("orbidden"), "{said}");
    // It puts back the labels of a cell's namespace that it marked; of one that it did not, it does not.
    let relabel = |name: &str| {
        let labels = ["app.kubernetes.io/managed-by=titan-operator", "--overwrite"];
        let command = ["label", "namespace", name, labels[0], labels[1], OPERATOR];
        cluster.kubectl(&command).map_err(|error| error.to_string())
    };
    let mut marked = cell_namespace("cell-004", &cell_labels("cell-004"));
    marked["metadata"]["labels"]["app.kubernetes.io/managed-by"] = json!("Helm");
    create(cluster, &marked, &[]).unwrap();
    let said = relabel("cell-004").unwrap_err();
    assert!(said.contains("namespaces of cells alone"), "{said}");
    let mark = [
        "annotate",
        "namespace",
        "cell-004",
        "titan.dev/desired-hash=1",
    ];
    cluster.kubectl(&mark).unwrap();
    relabel("cell-004").unwrap();
    // Not the namespaces of others, whatever it would make of them.
    create(cluster, &cell_namespace("shop", &json!({})), &[]).unwrap();
    let said = cluster
        .kubectl(&["delete", "namespace", "shop", "--dry-run=server", OPERATOR])
        .unwrap_err();
    assert!(
        said.to_string().contains("namespaces of cells alone"),
        "{said}"
    );
    let label = [
        "label",
        "namespace",
        "shop",
        "app.kubernetes.io/managed-by=titan-operator",
        "titan.dev/cell=shop",
        "pod-security.kubernetes.io/enforce=restricted",
        OPERATOR,
    ];
    let said = cluster.kubectl(&label).unwrap_err();
    assert!(
        said.to_string().contains("namespaces of cells alone"),
        "{said}"
    );
    // Its own namespaces stay restricted.
    let relabel = [
        "label",
        "namespace",
        "cell-001",
        "pod-security.kubernetes.io/enforce=privileged",
        "--overwrite",
        OPERATOR,
    ];
    let said = cluster.kubectl(&relabel).unwrap_err();
    assert!(said.to_string().contains("restricted"), "{said}");
    // Nobody else is held to this.
    cluster
        .kubectl(&["delete", "namespace", "shop", "--wait=false"])
        .map(drop)
        .unwrap();
}

/// The command of docs/operations.md.
#[test]
fn the_health_checks_merge_into_the_configuration_of_argo_cd() {
    let cluster = installed();
    create(cluster, &cell_namespace("argocd", &json!({})), &[]).unwrap();
    let theirs = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm", "namespace": "argocd"},
        "data": {"url": "https://argocd.example"},
    });
    create(cluster, &theirs, &[]).unwrap();
    let checks = [
        "-n",
        NAMESPACE,
        "get",
        "configmap",
        "titan-argocd-health",
        "-o",
        "jsonpath={.data}",
    ];
    let patch = format!("{{\"data\":{}}}", cluster.kubectl(&checks).unwrap());
    cluster
        .kubectl(&[
            "-n",
            "argocd",
            "patch",
            "configmap",
            "argocd-cm",
            "--type",
            "merge",
            "--patch",
            &patch,
        ])
        .unwrap();
    let merged = cluster
        .kubectl(&[
            "-n",
            "argocd",
            "get",
            "configmap",
            "argocd-cm",
            "-o",
            "json",
        ])
        .unwrap();
    let merged: Value = serde_json::from_str(&merged).unwrap();
    assert_eq!(merged["data"]["url"], "https://argocd.example");
    for kind in ["Cell", "CellFleet"] {
        let script = merged["data"][format!("resource.customizations.health.titan.dev_{kind}")]
            .as_str()
            .unwrap();
        assert!(script.contains("Progressing"), "{script}");
    }
}

#[test]
fn the_list_of_the_operators_rights_holds_no_wildcard() {
    let cluster = installed();
    let list = cluster
        .kubectl(&["auth", "can-i", "--list", "-n", "default", OPERATOR])
        .unwrap();
    assert!(list.contains("cells.titan.dev"), "{list}");
    for line in list.lines() {
        // What every service account gets: discovery, by URL.
        let by_url = line.contains("[/");
        assert!(by_url || !line.contains('*'), "{line}");
        assert!(!line.contains("secrets"), "{line}");
    }
}

#[test]
fn an_upgrade_reaches_the_definitions_and_an_uninstall_leaves_them() {
    let cluster = Apiserver::start().unwrap();
    let original = titan_chart_tests::chart();
    let notes = upgrade(
        &cluster,
        &original,
        &["images.tag=v1", "kafka.bootstrap=kafka.example:9092"],
    );
    for wanted in [
        "kafka.example:9092",
        "release: \"v1\"",
        "kubectl wait --for=condition=Ready cell/cell-001",
    ] {
        assert!(
            notes.contains(wanted),
            "{wanted} is not in the notes:\n{notes}"
        );
    }
    cluster
        .kubectl(&[
            "wait",
            "crd",
            "--all",
            "--for=condition=Established",
            "--timeout=30s",
        ])
        .unwrap();

    // The next release of the chart, in which a definition says more.
    let folder = tempfile::tempdir().unwrap();
    let next = folder.path().join("titan");
    copy(&original, &next);
    let file = next.join("files/crds/cells.titan.dev.yaml");
    let definition = std::fs::read_to_string(&file).unwrap();
    let changed = definition.replacen("    - tc\n", "    - tc\n    - titancell\n", 1);
    assert_ne!(definition, changed);
    std::fs::write(&file, changed).unwrap();
    upgrade(&cluster, &next, &["images.tag=v2"]);
    let names = [
        "get",
        "crd",
        "cells.titan.dev",
        "-o",
        "jsonpath={.spec.names.shortNames}",
    ];
    assert_eq!(cluster.kubectl(&names).unwrap(), r#"["tc","titancell"]"#);

    // Uninstalled, the definitions and what they define stay; installed again, the release takes them back.
    let fleet = json!({
        "apiVersion": "titan.dev/v1alpha1", "kind": "CellFleet", "metadata": {"name": "main"},
        "spec": {"kafka": {"bootstrap": "kafka.example:9092"}},
    });
    cluster
        .kubectl(&[
            "wait",
            "crd",
            "--all",
            "--for=condition=Established",
            "--timeout=30s",
        ])
        .unwrap();
    create(&cluster, &fleet, &[]).unwrap();
    let config = cluster.kubeconfig().display().to_string();
    let output = helm(&[
        "uninstall",
        "titan",
        "--namespace",
        NAMESPACE,
        "--kubeconfig",
        &config,
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        cluster
            .kubectl(&["get", "deployments", "-n", NAMESPACE, "-o", "name"])
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        cluster
            .kubectl(&["get", "cellfleets", "-o", "name"])
            .unwrap()
            .trim(),
        "cellfleet.titan.dev/main"
    );
    upgrade(&cluster, &original, &["images.tag=v1"]);
    assert_eq!(cluster.kubectl(&names).unwrap(), r#"["tc"]"#);
    assert_eq!(
        cluster
            .kubectl(&["get", "cellfleets", "-o", "name"])
            .unwrap()
            .trim(),
        "cellfleet.titan.dev/main"
    );
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
