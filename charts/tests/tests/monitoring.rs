//! The cells' services are scraped: what the PodMonitor selects is what the operator makes, and its policies let a scrape in.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

#[path = "../../../operator/planner/tests/common/mod.rs"]
mod cells;
mod common;

use cells::{Setup, credentials};
use common::{EVERYTHING, object, render};
use serde_json::Value;
use titan_planner::cell::build;
use titan_planner::object::Kind;

/// Whether labels hold everything that `matchLabels` asks for; where there is none, nothing is asked for.
fn selects(selector: &Value, labels: &Value) -> bool {
    selector["matchLabels"]
        .as_object()
        .is_none_or(|wanted| wanted.iter().all(|(name, value)| labels[name] == *value))
}

#[test]
fn services_of_cells_are_scraped_and_nothing_else_in_them() {
    let chart = render(&EVERYTHING);
    let monitor = &object(&chart, "PodMonitor", "titan-cells")["spec"];
    assert_eq!(monitor["namespaceSelector"]["any"], true);
    let endpoint = &monitor["podMetricsEndpoints"][0];
    let port = endpoint["port"].as_str().unwrap();

    let cell = Setup::quickstart().valid();
    let desired = build(&cell, &credentials(&cell)).unwrap();
    let (mut scraped, mut left) = (0, 0);
    for planned in &desired.objects {
        let body = planned.body();
        let template = &body["spec"]["template"];
        if template.is_null() {
            continue;
        }
        let labels = &template["metadata"]["labels"];
        let is_service = planned.kind == Kind::Deployment;
        assert_eq!(
            selects(&monitor["selector"], labels),
            is_service,
            "{:?} {}",
            planned.kind,
            planned.name
        );
        if !is_service {
            left += 1;
            continue;
        }
        scraped += 1;
        let ports = template["spec"]["containers"][0]["ports"]
            .as_array()
            .unwrap();
        let number = ports
            .iter()
            .find(|it| it["name"] == port)
            .map(|it| it["containerPort"].clone())
            .unwrap();
        for relabeling in endpoint["relabelings"].as_array().unwrap() {
            let source = relabeling["sourceLabels"][0].as_str().unwrap();
            let named = labels.as_object().unwrap().keys().any(|label| {
                let meta = label.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
                source == format!("__meta_kubernetes_pod_label_{meta}")
            });
            assert!(named, "{source} is no label of {}", planned.name);
        }
        let opened = desired.objects.iter().any(|other| {
            let policy = other.body();
            other.kind == Kind::NetworkPolicy
                && selects(&policy["spec"]["podSelector"], labels)
                && policy["spec"]["ingress"].as_array().is_some_and(|rules| {
                    rules.iter().any(|rule| {
                        let peer = &rule["from"][0]["namespaceSelector"]["matchLabels"];
                        peer["titan.dev/monitoring"] == "true" && rule["ports"][0]["port"] == number
                    })
                })
        });
        assert!(opened, "no policy lets a scrape of {} in", planned.name);
    }
    assert!(scraped >= 3 && left >= 2, "{scraped} scraped, {left} not");
}
