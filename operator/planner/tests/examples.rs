//! Every example of the repository is read by the types and accepted by the rules.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by them.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{documents, examples};
use serde_json::Value;
use titan_crds::{Cell, CellFleet, CellSpec, CellTemplateSpec, ServiceProfile, UserRange};
use titan_planner::Observed;
use titan_planner::cell::{build, validate};

fn all_documents(folder: &Path, found: &mut Vec<(String, Value)>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            all_documents(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "yaml") {
            let name = path.display().to_string();
            found.extend(documents(&path).into_iter().map(|d| (name.clone(), d)));
        }
    }
}

/// Reads a document and writes it again: what is not in the types would be missing.
fn read<T: serde::Serialize + for<'de> serde::Deserialize<'de>>(path: &str, document: &Value) -> T {
    let typed: T =
        serde_json::from_value(document.clone()).unwrap_or_else(|e| panic!("{path}: {e}"));
    let written = serde_json::to_value(&typed).unwrap();
    if let Some(difference) = titan_planner::object::drift(&written, document) {
        panic!("{path} has what the types do not know: {difference}");
    }
    typed
}

#[test]
fn every_example_is_valid() {
    let mut found = Vec::new();
    all_documents(&examples(), &mut found);
    let (mut cells, mut profiles, mut fleets) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for (path, document) in &found {
        let kind = document["kind"].as_str().unwrap_or_default();
        match kind {
            "Cell" => cells.push(read::<Cell>(path, document)),
            "ServiceProfile" => {
                let profile = read::<ServiceProfile>(path, document);
                profiles.insert(profile.metadata.name.clone().unwrap(), profile);
            }
            "CellFleet" => {
                let fleet = read::<CellFleet>(path, document);
                fleets.insert(fleet.metadata.name.clone().unwrap(), fleet);
            }
            _ => {}
        }
    }
    for fleet in fleets.values() {
        cells.extend(first_of_template(fleet));
    }
    assert!(cells.len() >= 4, "{}", cells.len());
    for cell in &cells {
        let profile = &profiles[&cell.spec.profile];
        let fleet = &fleets[&cell.spec.fleet];
        let valid = validate(cell, Observed::Known(profile), Observed::Known(fleet)).unwrap();
        let desired = build(&valid, &common::credentials(&valid)).unwrap();
        assert!(desired.objects.len() > 20, "{}", desired.objects.len());
    }
}

/// A cell as the template makes it.
fn first_of_template(fleet: &CellFleet) -> Option<Cell> {
    let template = fleet.spec.template.as_ref()?;
    let CellTemplateSpec {
        profile,
        release,
        overrides,
        placement,
        databases,
        failover,
        reclaim_policy,
    } = template.spec.clone();
    let name = format!("{}-001", template.name_prefix);
    Some(Cell::new(
        &name,
        CellSpec {
            fleet: fleet.metadata.name.clone()?,
            user_range: Some(UserRange {
                first: template.first_key,
                last: template.first_key + template.users_per_cell - 1,
            }),
            profile,
            release,
            overrides,
            placement,
            databases,
            failover,
            paused: false,
            reclaim_policy,
        },
    ))
}

#[test]
fn the_quickstart_is_the_one_that_the_readme_tells_of() {
    let cell: Cell = common::example("quickstart/cell.yaml");
    assert_eq!(cell.metadata.name.as_deref(), Some("cell-001"));
    assert_eq!(
        cell.spec.user_range,
        Some(UserRange {
            first: 1,
            last: 10_000
        })
    );
    let profile: ServiceProfile = common::example("quickstart/profile.yaml");
    let ports: BTreeMap<_, _> = profile
        .spec
        .services
        .iter()
        .map(|service| (service.name.as_str(), service.port))
        .collect();
    assert_eq!(
        ports,
        BTreeMap::from([("user", 50020), ("cart", 50003), ("order", 50001)])
    );
}
