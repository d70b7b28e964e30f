//! The chart's copies of the CRDs are those of the `crds` crate, and stay when a release goes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod common;

use common::{object, of_kind, render};

#[test]
fn the_chart_carries_the_generated_definitions() {
    let stale = titan_chart_tests::generate(true).unwrap();
    assert!(
        stale.is_empty(),
        "out of date: {stale:?}. Run `cargo run -p titan-chart-tests --bin chartgen`."
    );
}

#[test]
fn rendered_definitions_are_the_types_plus_the_keep_annotation() {
    let objects = render(&[]);
    let definitions = titan_crds::definitions();
    assert_eq!(
        of_kind(&objects, "CustomResourceDefinition").count(),
        definitions.len()
    );
    for definition in definitions {
        let mut wanted = serde_json::to_value(&definition).unwrap();
        wanted["metadata"]["annotations"]["helm.sh/resource-policy"] = "keep".into();
        let name = wanted["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(
            *object(&objects, "CustomResourceDefinition", &name) == wanted,
            "the rendered {name} differs from the types in crds/src"
        );
    }
}

#[test]
fn definitions_can_be_left_to_others() {
    assert_eq!(
        of_kind(
            &render(&[r#"crds={"install":false}"#]),
            "CustomResourceDefinition"
        )
        .count(),
        0
    );
}
