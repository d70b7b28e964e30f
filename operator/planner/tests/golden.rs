//! Every object of two cells, as text to review.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by them.

mod common;

use common::{Setup, credentials};
use titan_planner::cell::{ValidatedCell, build, render, render_objects};
use titan_planner::object::{Object, Stage};

fn stage_name(object: &Object) -> String {
    match &object.stage {
        Stage::Namespace => "1-namespace".to_owned(),
        Stage::Foundation => "2-foundation".to_owned(),
        Stage::Stores => "3-stores".to_owned(),
        Stage::Migration(service) => format!("4-migration-{service}"),
        Stage::Service(service) => format!("5-service-{service}"),
    }
}

fn golden(what: &str, cell: &ValidatedCell) {
    let desired = build(cell, &credentials(cell)).unwrap();
    for stage in desired
        .objects
        .chunk_by(|a, b| stage_name(a) == stage_name(b))
    {
        insta::assert_snapshot!(
            format!("{what}-{}", stage_name(&stage[0])),
            render_objects(stage)
        );
    }
}

#[test]
fn quickstart() {
    golden("quickstart", &Setup::quickstart().valid());
}

#[test]
fn standard() {
    golden("standard", &Setup::standard().valid());
}

#[test]
fn what_is_rendered_holds_no_password() {
    let cell = Setup::standard().valid();
    let credentials = credentials(&cell);
    let text = render(&cell, &credentials).unwrap();
    assert!(text.contains("kind: Secret"), "{text}");
    let secrets = [
        &credentials.postgres.password,
        &credentials.redis.password,
        &credentials.replication_password,
        &credentials.salt,
    ];
    for secret in secrets.into_iter().chain(credentials.services.values()) {
        let encoded = serde_json::to_value(k8s_openapi::ByteString(secret.clone().into_bytes()));
        for form in [secret.as_str(), encoded.unwrap().as_str().unwrap()] {
            assert!(!text.contains(form), "{form}");
        }
        assert!(
            !format!("{credentials:?}").contains(secret.as_str()),
            "{secret}"
        );
    }
}

#[test]
fn stages_come_in_order_and_services_after_what_they_call() {
    let cell = Setup::web().valid();
    let order: Vec<&str> = cell.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(
        order,
        [
            "feed",
            "fraud",
            "static-pages",
            "user",
            "cart",
            "order",
            "checkout"
        ]
    );
    let desired = build(&cell, &credentials(&cell)).unwrap();
    let stages: Vec<String> = desired.objects.iter().map(stage_name).collect();
    let mut seen: Vec<&String> = Vec::new();
    for stage in &stages {
        if seen.last() != Some(&stage) {
            assert!(!seen.contains(&stage), "{stage} comes twice");
            seen.push(stage);
        }
    }
    let names: Vec<&str> = seen.iter().map(|stage| stage.as_str()).collect();
    assert_eq!(
        names,
        [
            "1-namespace",
            "2-foundation",
            "3-stores",
            "4-migration-user",
            "4-migration-cart",
            "4-migration-order",
            "4-migration-checkout",
            "5-service-feed",
            "5-service-fraud",
            "5-service-static-pages",
            "5-service-user",
            "5-service-cart",
            "5-service-order",
            "5-service-checkout"
        ]
    );
}
