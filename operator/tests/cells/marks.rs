//! Objects of a cell that somebody took for something else: labels that were taken off or changed, and quotas.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use titan_crds::{Cell, CellFleet, ServiceProfile};
use titan_planner::object::{CELL_LABEL, DESIRED_HASH, Kind, MANAGED_BY};

use crate::book::Book;
use crate::harness::{World, condition};

/// The namespace of the operator.
const SYSTEM: &str = "titan-system";

/// Objects that each cell has.
const LABELLED: [(Kind, &str); 5] = [
    (Kind::Deployment, "order"),
    (Kind::Secret, "order-credentials"),
    (Kind::ConfigMap, "cell-environment"),
    (Kind::NetworkPolicy, "default-deny"),
    (Kind::RoleBinding, "titan-operator"),
];

async fn label(world: &World, kind: Kind, name: &str, labels: Value) {
    world
        .api(&world.cell_name(1), kind)
        .patch(
            name,
            &PatchParams::default(),
            &Patch::Merge(json!({"metadata": {"labels": labels}})),
        )
        .await
        .unwrap();
}

async fn change_namespace(world: &World, metadata: Value) {
    Api::<Namespace>::all(world.client.clone())
        .patch(
            &world.cell_name(1),
            &PatchParams::default(),
            &Patch::Merge(json!({"metadata": metadata})),
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_somebody_took_off_or_changed_are_put_back() {
    let world = World::new("labels").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let before = world.essence(1).await;
    let password = async || {
        let secrets = world.api(&world.cell_name(1), Kind::Secret);
        secrets.get("order-credentials").await.unwrap().data["data"]["PGPASSWORD"].clone()
    };
    let made_with = password().await;
    for labels in [
        json!({CELL_LABEL: null}),
        json!({CELL_LABEL: "another"}),
        json!({MANAGED_BY: "Helm"}),
        json!({CELL_LABEL: null, MANAGED_BY: null}),
    ] {
        for (kind, name) in LABELLED {
            label(&world, kind, name, labels.clone()).await;
        }
        change_namespace(&world, json!({"labels": labels})).await;
        world.settle(&book).await.unwrap();
        let cell = world.get_cell(1).await.unwrap();
        let ready = condition(&cell, "Ready");
        assert!(ready.starts_with("True/"), "{labels}: {ready}");
        assert_eq!(world.essence(1).await, before, "{labels}");
        assert_eq!(password().await, made_with, "{labels}: a password is kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_mark_left_is_named_with_the_labels_to_put_back() {
    let world = World::new("unmarked").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let name = world.cell_name(1);
    let bare = |labels: Value| json!({"labels": labels, "annotations": {DESIRED_HASH: null}});
    let ready = async || {
        world.settle(&book).await.unwrap();
        condition(&world.get_cell(1).await.unwrap(), "Ready")
    };

    let deployments = world.api(&name, Kind::Deployment);
    let strip = json!({"metadata": bare(json!({CELL_LABEL: null}))});
    deployments
        .patch("order", &PatchParams::default(), &Patch::Merge(strip))
        .await
        .unwrap();
    let said = ready().await;
    assert!(said.starts_with("False/ObjectNotOurs"), "{said}");
    let command =
        format!("kubectl -n {name} label Deployment order --overwrite {CELL_LABEL}={name}");
    assert!(said.contains(&command), "{said}");
    label(&world, Kind::Deployment, "order", json!({CELL_LABEL: name})).await;
    assert!(
        ready().await.starts_with("True/"),
        "the labels alone bring it back"
    );

    change_namespace(&world, bare(json!({MANAGED_BY: "Helm"}))).await;
    let said = ready().await;
    assert!(said.starts_with("False/NamespaceNotOurs"), "{said}");
    let command = format!("kubectl label namespace {name} --overwrite {CELL_LABEL}={name}");
    assert!(said.contains(&command), "{said}");
    assert!(!said.contains("delete"), "a living cell: {said}");
    change_namespace(&world, json!({"labels": {MANAGED_BY: "titan-operator"}})).await;
    assert!(ready().await.starts_with("True/"));

    // Labels that name other users do not make a living cell's namespace somebody else's.
    change_namespace(&world, json!({"labels": {"titan.dev/range-first": "7"}})).await;
    assert!(ready().await.starts_with("True/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_without_room_is_named() {
    let world = World::new("quota").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let name = world.cell_name(1);
    let quotas =
        Api::<k8s_openapi::api::core::v1::ResourceQuota>::namespaced(world.client.clone(), &name);
    let quota = json!({
        "metadata": {"name": "no-jobs"}, "spec": {"hard": {"count/jobs.batch": "0"}},
    });
    quotas
        .create(
            &PostParams::default(),
            &serde_json::from_value(quota).unwrap(),
        )
        .await
        .unwrap();
    // What the controller of quotas does, which does not run here.
    let counted = json!({"status": {
        "hard": {"count/jobs.batch": "0"}, "used": {"count/jobs.batch": "0"},
    }});
    quotas
        .patch_status("no-jobs", &PatchParams::default(), &Patch::Merge(counted))
        .await
        .unwrap();
    world
        .patch::<Cell>(&name, json!({"spec": {"release": "2.0.0"}}))
        .await;
    world.settle(&book).await.unwrap();
    let cell = world.get_cell(1).await.unwrap();
    let migrated = condition(&cell, "Migrated");
    assert!(migrated.starts_with("False/QuotaExceeded"), "{migrated}");
    assert!(migrated.contains("no-jobs"), "{migrated}");
    quotas
        .delete("no-jobs", &kube::api::DeleteParams::default())
        .await
        .unwrap();
    world.settle(&book).await.unwrap();
    let ready = condition(&world.get_cell(1).await.unwrap(), "Ready");
    assert!(ready.starts_with("True/"), "{ready}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_of_a_profile_is_work_and_no_failure() {
    let world = World::new("profile-rolls").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let generation = world.get_cell(1).await.unwrap().metadata.generation;
    let mut services = world.profile()["spec"]["services"].clone();
    services[0]["env"] = json!({"MODE": "other"});
    world
        .patch::<ServiceProfile>(&world.name, json!({"spec": {"services": services}}))
        .await;
    // The pass that applies the change, and one while no new pod is there.
    for pass in 1..=2 {
        world.round(&world.view().await, &book).await.unwrap();
        let cell = world.get_cell(1).await.unwrap();
        let ready = condition(&cell, "Ready");
        assert!(ready.starts_with("Unknown/"), "pass {pass}: {ready}");
        assert!(
            condition(&cell, "Reconciling").starts_with("True/"),
            "pass {pass}"
        );
        assert_eq!(cell.metadata.generation, generation);
    }
    world.settle(&book).await.unwrap();
    let ready = condition(&world.get_cell(1).await.unwrap(), "Ready");
    assert!(ready.starts_with("True/"), "{ready}");
    // Pods that go after that are a failure.
    let gone = json!({"status": {"replicas": 0, "updatedReplicas": 0, "readyReplicas": 0, "availableReplicas": 0}});
    world
        .patch_status(&world.cell_name(1), Kind::Deployment, "order", gone)
        .await;
    world.round(&world.view().await, &book).await.unwrap();
    let ready = condition(&world.get_cell(1).await.unwrap(), "Ready");
    assert!(ready.starts_with("False/ServicesStarting"), "{ready}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_of_registries_are_copied_and_nothing_else_is() {
    let world = World::new("pulls").await;
    let secrets = Api::<Secret>::namespaced(world.client.clone(), SYSTEM);
    let name = format!("{}-registry", world.name);
    let put = async |type_: &str, key: &str, value: &str| {
        let _ = secrets.delete(&name, &Default::default()).await;
        let secret = json!({"metadata": {"name": name}, "type": type_, "stringData": {key: value}});
        secrets
            .create(
                &PostParams::default(),
                &serde_json::from_value(secret).unwrap(),
            )
            .await
            .unwrap();
    };
    world
        .patch::<CellFleet>(
            &world.name,
            json!({"spec": {"images": {"pullSecrets": [name]}}}),
        )
        .await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    let ready = async || {
        world.settle(&book).await.unwrap();
        condition(&world.get_cell(1).await.unwrap(), "Ready")
    };
    let said = ready().await;
    assert!(said.starts_with("False/PullSecretNotFound"), "{said}");
    assert!(said.contains(&name), "{said}");
    put("Opaque", ".dockerconfigjson", "{}").await;
    let said = ready().await;
    assert!(said.starts_with("False/PullSecretInvalid"), "{said}");

    let copied = async || {
        let copies = world.api(&world.cell_name(1), Kind::Secret);
        let copy = copies.get(&format!("image-pull.{name}")).await.unwrap();
        copy.data["data"][".dockerconfigjson"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let type_ = "kubernetes.io/dockerconfigjson";
    put(type_, ".dockerconfigjson", r#"{"auths":{}}"#).await;
    let said = ready().await;
    assert!(said.starts_with("True/"), "{said}");
    let first = copied().await;
    put(type_, ".dockerconfigjson", r#"{"auths":{"r":{}}}"#).await;
    assert!(ready().await.starts_with("True/"));
    assert_ne!(copied().await, first, "a new login is copied, too");
    secrets.delete(&name, &Default::default()).await.unwrap();
}
