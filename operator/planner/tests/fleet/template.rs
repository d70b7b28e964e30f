//! The cells of a template.

use proptest::prelude::*;
use serde_json::{Value, json};
use titan_crds::{Cell, CellFleetSpec};
use titan_planner::fleet::missing_cells;

fn fleet(template: &Value) -> CellFleetSpec {
    let mut whole = json!({
        "count": 3, "namePrefix": "cell", "firstKey": 0, "usersPerCell": 10,
        "spec": {"profile": "compact", "release": "1.0.0", "placement": {"region": "west"}},
    });
    for (name, value) in template.as_object().unwrap() {
        whole[name] = value.clone();
    }
    serde_json::from_value(json!({
        "kafka": {"bootstrap": "kafka:9092"},
        "template": whole,
    }))
    .unwrap()
}

fn missing(spec: &CellFleetSpec, cells: &[Cell]) -> Vec<(String, i64, i64)> {
    missing_cells("shop", spec, cells)
        .unwrap()
        .missing
        .into_iter()
        .map(|cell| {
            let range = cell.spec.user_range.unwrap();
            (cell.metadata.name.unwrap(), range.first, range.last)
        })
        .collect()
}

#[test]
fn a_fleet_without_a_template_makes_nothing() {
    let mut spec = fleet(&json!({}));
    let cells = missing_cells("shop", &spec, []).unwrap().missing;
    spec.template = None;
    let report = missing_cells("shop", &spec, &cells).unwrap();
    assert_eq!(report, titan_planner::fleet::TemplateReport::default());
}

#[test]
fn names_count_from_one_and_ranges_follow_each_other() {
    let made = missing(&fleet(&json!({"count": 2, "firstKey": 100})), &[]);
    let expected = [("cell-001", 100, 109), ("cell-002", 110, 119)];
    assert_eq!(
        made,
        expected.map(|(name, first, last)| (name.to_owned(), first, last))
    );
    let many = missing(&fleet(&json!({"count": 1000})), &[]);
    assert_eq!(many[999].0, "cell-1000");
    assert_eq!(missing(&fleet(&json!({"count": 0})), &[]), []);
}

#[test]
fn a_made_cell_is_what_the_template_says() {
    let report = missing_cells("shop", &fleet(&json!({"count": 1})), []).unwrap();
    let cell = serde_json::to_value(&report.missing[0]).unwrap();
    assert_eq!(
        cell["metadata"],
        json!({"name": "cell-001", "labels": {"titan.dev/fleet": "shop"}})
    );
    assert_eq!(cell["spec"]["fleet"], "shop");
    assert_eq!(cell["spec"]["profile"], "compact");
    assert_eq!(cell["spec"]["release"], "1.0.0");
    assert_eq!(cell["spec"]["placement"]["region"], "west");
    assert_eq!(
        cell["spec"]["reclaimPolicy"], "Retain",
        "data is safe unless said otherwise"
    );
}

#[test]
fn only_what_is_missing_is_made_and_what_differs_is_named() {
    let spec = fleet(&json!({}));
    let mut cells = missing_cells("shop", &spec, []).unwrap().missing;
    cells.remove(1);
    cells[0].spec.paused = true;
    cells[1].spec.release = "2.0.0".to_owned();
    let report = missing_cells("shop", &spec, &cells).unwrap();
    let names: Vec<_> = report
        .missing
        .iter()
        .map(|cell| cell.metadata.name.as_deref())
        .collect();
    assert_eq!(names, [Some("cell-002")]);
    assert_eq!(
        report.differing,
        ["cell-003"],
        "a paused cell does not differ"
    );
}

#[test]
fn cells_beyond_the_count_are_named_and_others_are_not_the_templates() {
    let mut cells = missing_cells("shop", &fleet(&json!({})), [])
        .unwrap()
        .missing;
    for name in [
        "cell-abc",
        "cell-12",
        "cells-004",
        "other-004",
        "cell-004-x",
    ] {
        let mut cell = cells[0].clone();
        cell.metadata.name = Some(name.to_owned());
        cells.push(cell);
    }
    let report = missing_cells("shop", &fleet(&json!({"count": 1})), &cells).unwrap();
    assert_eq!(report.missing, []);
    assert_eq!(report.beyond, ["cell-002", "cell-003"]);
}

#[test]
fn a_template_that_does_not_fit_the_keyspace_is_refused_whole() {
    let largest = i64::MAX;
    for (template, fits) in [
        (json!({"count": 1, "firstKey": largest - 9}), true),
        (json!({"count": 1, "firstKey": largest - 8}), false),
        (json!({"count": 2, "firstKey": largest - 10}), false),
        (json!({"count": 2, "usersPerCell": largest}), false),
        (
            json!({"count": 10_000, "usersPerCell": largest / 5_000}),
            false,
        ),
    ] {
        let result = missing_cells("shop", &fleet(&template), []);
        if fits {
            assert_eq!(
                result.unwrap().missing[0].spec.user_range.unwrap().last,
                largest
            );
        } else {
            let invalid = result.unwrap_err();
            assert_eq!(invalid.reason, "TemplateBeyondKeyspace");
            for word in ["spec.template", "cell-", "lower"] {
                assert!(invalid.message.contains(word), "{}", invalid.message);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ranges_are_contiguous_and_making_them_leaves_nothing_to_make(
        count in 0..200_i64,
        first in 0..i64::MAX / 2,
        users in 1..1_000_000_000_i64,
        present in prop::collection::vec(any::<bool>(), 200),
    ) {
        let spec = fleet(&json!({"count": count, "firstKey": first, "usersPerCell": users}));
        let mut cells = missing_cells("shop", &spec, []).unwrap().missing;
        prop_assert_eq!(cells.len(), usize::try_from(count).unwrap());
        let mut next = first;
        for cell in &cells {
            prop_assert_eq!(cell.spec.user_range.unwrap().first, next);
            next = cell.spec.user_range.unwrap().last + 1;
        }
        prop_assert_eq!(next, first + count * users);

        let all = cells.clone();
        let mut keep = present.into_iter();
        cells.retain(|_| keep.next().unwrap());
        let report = missing_cells("shop", &spec, &cells).unwrap();
        prop_assert_eq!(report.missing.len() + cells.len(), all.len());
        cells.extend(report.missing);
        let report = missing_cells("shop", &spec, &cells).unwrap();
        prop_assert_eq!(report, titan_planner::fleet::TemplateReport::default());
    }
}
