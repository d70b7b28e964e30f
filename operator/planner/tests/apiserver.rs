//! What is built, given to a real apiserver: it takes every object, and what it gives back is not drift.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by them.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use common::{Setup, credentials, from_yaml};
use serde_json::Value;
use titan_crds::Databases;
use titan_planner::cell::quantity::Quantity;
use titan_planner::cell::{ValidatedCell, build};
use titan_planner::object::{Kind, Object, drift, kept_volumes, on_live_volumes, takeover};
use titan_testbed::Apiserver;

const APPLY: [&str; 4] = [
    "apply",
    "--server-side",
    "--force-conflicts",
    "--field-manager=titan-operator",
];

fn named(mut setup: Setup, name: &str) -> ValidatedCell {
    setup.cell.metadata.name = Some(name.to_owned());
    setup.valid()
}

fn external(mut setup: Setup) -> Setup {
    setup.cell.spec.databases = from_yaml::<Databases>(
        "{ postgres: { external: { secretName: pg } }, redis: { external: { secretName: redis } } }",
    );
    setup
}

/// Sizes written as nobody should, but may.
fn oddly_sized(mut setup: Setup) -> Setup {
    setup.profile = from_yaml(
        "
apiVersion: titan.dev/v1alpha1
kind: ServiceProfile
metadata: { name: odd }
spec:
  databases:
    postgres:
      storage: { persistent: { size: 2048Mi, storageClassName: fast } }
      resources: { requests: { cpu: 0.25, memory: 0.5Gi }, limits: { cpu: 2000m, memory: 1073741824 } }
    redis:
      topology: Cluster
      storage: { ephemeral: { sizeLimit: 1024Mi } }
      resources: { limits: { cpu: '1.0', memory: 1.001Gi } }
  services:
  - name: user
    port: 50020
    replicas: 0
    resources: { requests: { cpu: 0.0005, memory: 64000k }, limits: { cpu: 15e-1, memory: 0.25Gi } }
    env: { EMPTY: '', NUMBER: '0012', YES: 'yes' }
  - name: cart
    port: 50003
    resources: { limits: { cpu: 1, memory: '129e6' } }
    stores: { postgres: true, redis: true, kafka: true }
    dependsOn: [user]
",
    );
    setup
}

fn create(apiserver: &Apiserver, objects: &[Object], args: &[&str]) {
    let mut text = String::new();
    for object in objects {
        writeln!(text, "---\n{}", object.body()).unwrap();
    }
    send(apiserver, &text, args);
}

fn send(apiserver: &Apiserver, text: &str, args: &[&str]) {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().display().to_string();
    let mut command: Vec<&str> = args.to_vec();
    command.extend(["--filename", &path]);
    apiserver.kubectl(&command).unwrap();
}

fn live(apiserver: &Apiserver, cell: &ValidatedCell) -> BTreeMap<(Kind, String), Value> {
    let mut found = BTreeMap::new();
    for kind in Kind::ALL {
        let (group, version, _, plural) = kind.names();
        let prefix = if group.is_empty() {
            format!("/api/{version}")
        } else {
            format!("/apis/{group}/{version}")
        };
        let path = if kind == Kind::Namespace {
            format!("{prefix}/{plural}")
        } else {
            format!("{prefix}/namespaces/{}/{plural}", cell.name)
        };
        let list = apiserver.kubectl(&["get", "--raw", &path]).unwrap();
        let list: Value = serde_json::from_str(&list).unwrap();
        for item in list["items"].as_array().unwrap() {
            let name = item["metadata"]["name"].as_str().unwrap().to_owned();
            found.insert((kind, name), item.clone());
        }
    }
    found
}

fn differences(objects: &[Object], live: &BTreeMap<(Kind, String), Value>) -> Vec<String> {
    objects
        .iter()
        .filter_map(|object| {
            let found = live
                .get(&(object.kind, object.name.clone()))
                .unwrap_or_else(|| panic!("{:?} {} is not there", object.kind, object.name));
            let difference = drift(found, &object.body())?;
            Some(format!("{:?} {}: {difference}", object.kind, object.name))
        })
        .collect()
}

#[test]
fn the_apiserver_takes_every_object_and_gives_it_back_without_drift() {
    let apiserver = titan_testbed::apiserver().unwrap();
    let cells = [
        named(Setup::quickstart(), "built-quickstart"),
        named(Setup::standard(), "built-standard"),
        named(Setup::web(), "built-web"),
        named(external(Setup::web()), "built-external"),
        named(oddly_sized(Setup::quickstart()), "built-odd"),
    ];
    for cell in &cells {
        let desired = build(cell, &credentials(cell)).unwrap();
        create(
            apiserver,
            &desired.objects,
            &["create", "--validate=strict"],
        );
        let created = live(apiserver, cell);
        assert_eq!(
            differences(&desired.objects, &created),
            [""; 0],
            "{}",
            cell.name
        );

        // Nor does it drift once it was applied on top.
        create(apiserver, &desired.objects, &APPLY);
        let applied = live(apiserver, cell);
        assert_eq!(
            differences(&desired.objects, &applied),
            [""; 0],
            "{}",
            cell.name
        );
    }
}

/// What the apiserver answers to a manifest that it may not keep; `None` when it refuses it.
fn try_out(apiserver: &Apiserver, manifest: &str) -> Option<Value> {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(file.path(), manifest).unwrap();
    let path = file.path().display().to_string();
    let args = [
        "create",
        "--dry-run=server",
        "--output=json",
        "--filename",
        &path,
    ];
    let answer = apiserver.kubectl(&args).ok()?;
    Some(serde_json::from_str(&answer).unwrap())
}

/// A Deployment with one amount, as a person would write it.
fn deployment(resource: &str, amount: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{ name: amount, namespace: default }}
spec:
  selector: {{ matchLabels: {{ a: b }} }}
  template:
    metadata: {{ labels: {{ a: b }} }}
    spec: {{ containers: [{{ name: user, image: i, resources: {{ requests: {{ {resource}: {amount} }} }} }}] }}
"
    )
}

fn requested(deployment: &Value, resource: &str) -> Value {
    let container = "/spec/template/spec/containers/0/resources/requests";
    deployment.pointer(container).unwrap()[resource].clone()
}

#[test]
fn a_profile_accepts_the_amounts_that_a_pod_accepts() {
    let apiserver = titan_testbed::apiserver().unwrap();
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crds/manifests");
    apiserver.apply(manifests.as_ref()).unwrap();
    let cpu = [
        "2", "'2'", "0.5", "'0.5'", "'0.0005'", "1e-1", "'1e-1'", ".5", "'.5'", "'1.'", "500u",
        "0.5m", "1500m", "'+1'", "2e0", "0.1k",
    ];
    let memory = [
        "1073741824",
        "'1073741824'",
        "1.5Gi",
        "10G",
        "1e9",
        "'1e9'",
        "1E9",
        "'12e6'",
        "0.5Gi",
        "1Ti",
        "900000k",
        "0.001Pi",
        "4294967296000m",
    ];
    let neither = [
        "true", "[1]", "[]", "{ a: 1 }", "{}", "-1", "'-1'", "1gi", "'1 Gi'", "1.5.2", "''", "x",
    ];
    let amounts = [("cpu", &cpu[..], true), ("memory", &memory[..], true)]
        .into_iter()
        .chain(["cpu", "memory"].map(|resource| (resource, &neither[..], false)));
    for (resource, amounts, right) in amounts {
        for amount in amounts {
            let pod = try_out(apiserver, &deployment(resource, amount));
            assert_eq!(pod.is_some(), right, "a Pod with {resource}: {amount}");
            let profile = format!(
                "
apiVersion: titan.dev/v1alpha1
kind: ServiceProfile
metadata: {{ name: amounts }}
spec: {{ services: [{{ name: user, port: 50020, resources: {{ requests: {{ {resource}: {amount} }} }} }}] }}
"
            );
            let profile = try_out(apiserver, &profile);
            assert_eq!(
                profile.is_some(),
                right,
                "a profile with {resource}: {amount}"
            );
            let Some((pod, profile)) = pod.zip(profile) else {
                continue;
            };
            let mut setup = Setup::quickstart();
            setup.profile = serde_json::from_value(profile).unwrap();
            let cell = setup.valid();
            let objects = build(&cell, &credentials(&cell)).unwrap().objects;
            let built = objects
                .iter()
                .find(|it| it.kind == Kind::Deployment)
                .unwrap();
            let sent = requested(&built.body(), resource);
            // What is sent comes back unchanged, and is as much as the Pod asks for.
            let answered = try_out(apiserver, &deployment(resource, &sent.to_string())).unwrap();
            assert_eq!(requested(&answered, resource), sent, "{resource}: {amount}");
            let read = |value: &Value| {
                let text = value.as_str().unwrap();
                match resource {
                    "cpu" => Quantity::cpu(text).unwrap().milli(),
                    _ => Quantity::bytes(text).unwrap().milli(),
                }
            };
            assert_eq!(
                read(&requested(&pod, resource)),
                read(&sent),
                "{resource}: {amount}"
            );
        }
    }
}

/// The members of a cell's PostgreSQL.
fn members(cell: &ValidatedCell) -> Object {
    let objects = build(cell, &credentials(cell)).unwrap().objects;
    let is = |object: &Object| object.kind == Kind::StatefulSet && object.name == "postgres";
    objects.into_iter().find(is).unwrap()
}

#[test]
fn other_volumes_hold_up_nothing_else() {
    let apiserver = titan_testbed::apiserver().unwrap();
    let stored = |storage: &str, memory: &str| {
        let mut setup = Setup::standard();
        setup.cell.spec.databases = from_yaml(&format!(
            "{{ postgres: {{ storage: {storage}, resources: {{ limits: {{ memory: {memory} }} }} }} }}"
        ));
        setup
    };
    let storages = [
        "{ persistent: { size: 10Gi } }",
        "{ persistent: { size: 20Gi } }",
        "{ persistent: { size: 10Gi, storageClassName: fast } }",
        "{ ephemeral: { sizeLimit: 10Gi } }",
    ];
    for (number, before) in storages.into_iter().enumerate() {
        let name = format!("built-volumes-{number}");
        let cell = named(stored(before, "2Gi"), &name);
        let created = build(&cell, &credentials(&cell)).unwrap().objects;
        create(apiserver, &created, &["create"]);
        for after in storages {
            // And with the change comes another, which has to get there.
            let planned = members(&named(stored(after, "3Gi"), &name));
            let found = || -> Value {
                let path = format!("/apis/apps/v1/namespaces/{name}/statefulsets/postgres");
                let text = apiserver.kubectl(&["get", "--raw", &path]).unwrap();
                serde_json::from_str(&text).unwrap()
            };
            let was = found();
            assert_eq!(
                kept_volumes(&was, &planned.body()).is_some(),
                before != after
            );
            let kept = on_live_volumes(&was, planned.body());
            send(apiserver, &kept.to_string(), &APPLY);
            let now = found();
            assert_eq!(drift(&now, &kept), None, "{before} to {after}");
            assert_eq!(drift(&now, &on_live_volumes(&now, planned.body())), None);
            let volumes = |set: &Value| {
                [
                    set["spec"]["volumeClaimTemplates"].clone(),
                    set["spec"]["template"]["spec"]["volumes"].clone(),
                ]
            };
            assert_eq!(volumes(&now), volumes(&was), "{before} to {after}");
            let limits = &now["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"];
            assert_eq!(limits["memory"], "3Gi");
        }
    }
}

#[test]
fn a_change_by_somebody_else_is_drift() {
    let apiserver = titan_testbed::apiserver().unwrap();
    let cell = named(Setup::standard(), "built-drift");
    let desired = build(&cell, &credentials(&cell)).unwrap();
    create(apiserver, &desired.objects, &["create"]);
    let patches = [
        ("deployment/order", r#"{"spec":{"replicas":1}}"#),
        (
            "deployment/cart",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"cart","image":"other"}]}}}}"#,
        ),
        (
            "deployment/user",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"spy","image":"spy"}]}}}}"#,
        ),
        (
            "service/postgres",
            r#"{"spec":{"selector":{"role":"replica"}}}"#,
        ),
        (
            "secret/cart-credentials",
            r#"{"data":{"PGPASSWORD":"b3RoZXI="}}"#,
        ),
        ("secret/user-credentials", r#"{"data":{"MORE":"b3RoZXI="}}"#),
        (
            "configmap/cell-environment",
            r#"{"data":{"TITAN_CELL":null}}"#,
        ),
        ("networkpolicy/default-deny", r#"{"spec":{"ingress":[{}]}}"#),
        (
            "networkpolicy/redis",
            r#"{"spec":{"podSelector":{"matchLabels":{"more":"narrow"}}}}"#,
        ),
        (
            "namespace/built-drift",
            r#"{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"baseline"}}}"#,
        ),
        (
            "serviceaccount/user",
            r#"{"automountServiceAccountToken":true}"#,
        ),
        (
            "poddisruptionbudget/cart",
            r#"{"spec":{"maxUnavailable":3}}"#,
        ),
        (
            "horizontalpodautoscaler/cart",
            r#"{"spec":{"maxReplicas":4}}"#,
        ),
        ("statefulset/redis", r#"{"spec":{"replicas":3}}"#),
    ];
    for (target, patch) in patches {
        apiserver
            .kubectl(&["patch", target, "--namespace", &cell.name, "--patch", patch])
            .unwrap();
    }
    let changed = live(apiserver, &cell);
    let found = differences(&desired.objects, &changed);
    assert_eq!(found.len(), patches.len());
    insta::assert_snapshot!(found.join("\n"));

    // The takeover and an apply make it all as it was.
    for object in &desired.objects {
        let found = &changed[&(object.kind, object.name.clone())];
        let operations = takeover(found, &object.body());
        if !operations.is_empty() {
            let (_, _, kind, _) = object.kind.names();
            let target = format!("{kind}/{}", object.name);
            let patch = Value::Array(operations).to_string();
            let command = [
                "patch",
                &target,
                "--type=json",
                "--namespace",
                &cell.name,
                "--patch",
                &patch,
            ];
            apiserver.kubectl(&command).unwrap();
        }
    }
    create(apiserver, &desired.objects, &APPLY);
    assert_eq!(
        differences(&desired.objects, &live(apiserver, &cell)),
        [""; 0]
    );
}
