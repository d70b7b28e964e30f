//! Objects of another version of the operator.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use titan_testbed::Apiserver;

use crate::replica::{PATIENCE, Replica, prepare, until};

fn cell(name: &str, first: i64) -> Value {
    json!({
        "apiVersion": "titan.dev/v1alpha1", "kind": "Cell",
        "metadata": {"name": name},
        "spec": {
            "fleet": "shop", "profile": "standard", "release": "1.0.0",
            "userRange": {"first": first, "last": first + 9},
        },
    })
}

/// CRDs of a version that is newer than the operator's: with a policy that it does not know, and fields in the status.
fn newer(apiserver: &Apiserver) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/manifests/cells.titan.dev.yaml");
    let crd = std::fs::read_to_string(file).unwrap();
    let mut crd: Value =
        serde_json::to_value(serde_yaml::from_str::<serde_yaml::Value>(&crd).unwrap()).unwrap();
    let version = "/spec/versions/0/schema/openAPIV3Schema/properties";
    let policies = format!("{version}/spec/properties/reclaimPolicy");
    let policy = crd.pointer_mut(&policies).unwrap();
    *policy = json!({"type": "string", "default": "Retain"});
    let status = format!("{version}/status/properties");
    crd.pointer_mut(&status).unwrap()["ofTomorrow"] = json!({"type": "string"});
    let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    std::fs::write(file.path(), crd.to_string()).unwrap();
    apiserver.apply(file.path()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_another_version_blinds_nothing() {
    let apiserver = Apiserver::start().unwrap();
    let config = prepare(&apiserver).await;
    tokio::task::block_in_place(|| newer(&apiserver));
    let client = Client::try_from(config.clone()).unwrap();
    let resource = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("titan.dev", "v1alpha1", "Cell"),
        "cells",
    );
    let cells: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let create = async |name: &str, first: i64, policy: &str| {
        let mut cell = cell(name, first);
        cell["spec"]["reclaimPolicy"] = policy.into();
        let cell: DynamicObject = serde_json::from_value(cell).unwrap();
        cells.create(&PostParams::default(), &cell).await.unwrap();
    };
    create("strange", 10, "ArchiveToTape").await;
    create("known", 20, "Retain").await;
    // As a newer version would have left it.
    let status = json!({"status": {"ofTomorrow": "kept", "home": "gone"}});
    cells
        .patch_status("known", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();

    let replica = Replica::start(config, "one");
    let status_of = async |name: &str| {
        let cell = cells.get(name).await.unwrap();
        cell.data["status"].clone()
    };
    let observed = async |name: &str| status_of(name).await["observedGeneration"] == 1;
    until("the other cell is looked at", PATIENCE, async || {
        observed("known").await
    })
    .await;
    let status = status_of("known").await;
    assert_eq!(status["ofTomorrow"], "kept", "{status}");

    let events: Api<Event> = Api::all(client);
    let told = async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        events
            .into_iter()
            .find(|event| event.reason.as_deref() == Some("Unreadable"))
    };
    until("an Event tells of it", PATIENCE, async || {
        told().await.is_some()
    })
    .await;
    let event = told().await.unwrap();
    assert_eq!(event.regarding.unwrap().name.as_deref(), Some("strange"));
    let note = event.note.unwrap();
    assert!(note.contains("ArchiveToTape"), "{note}");
    let unreadable = || {
        replica
            .metrics
            .unreadable
            .with_label_values(&["Cell"])
            .get()
    };
    assert_eq!(unreadable(), 1);

    // One that was readable becomes unreadable while the watch goes on, and the other way round.
    let policy = async |name: &str, policy: &str| {
        let patch = Patch::Merge(json!({"spec": {"reclaimPolicy": policy}}));
        cells
            .patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap()
    };
    policy("known", "ArchiveToTape").await;
    until("two are unreadable", PATIENCE, async || unreadable() == 2).await;
    policy("strange", "Retain").await;
    until("it is looked at", PATIENCE, async || {
        status_of("strange").await["observedGeneration"] == 2
    })
    .await;
    until("one is unreadable", Duration::from_secs(10), async || {
        unreadable() == 1
    })
    .await;
    assert!(replica.is_running() && cells.get("known").await.unwrap().name_any() == "known");
    replica.stop().await;
}
