//! The routing table as a resource.

use proptest::prelude::*;
use serde_json::{Value, json};
use titan_crds::RoutingTableSpec;
use titan_planner::fleet::{TableResourceError, from_resource, to_resource};
use titan_routing::{
    Assignment, AssignmentState, CellEndpoint, Epoch, Key, KeyOverride, KeyspaceMode, RoutingTable,
};

use crate::range;

fn state() -> impl Strategy<Value = AssignmentState> {
    prop::sample::select(vec![
        AssignmentState::Pending,
        AssignmentState::Active,
        AssignmentState::Moving,
        AssignmentState::Fenced,
    ])
}

/// Any table with at least one of everything.
fn table() -> impl Strategy<Value = RoutingTable> {
    let row = (
        0..1_000_u64,
        1..1_000_u64,
        state(),
        0..1_000_u64,
        0..5_usize,
        0..5_usize,
    );
    let rows = prop::collection::vec(row, 1..8);
    let pins = prop::collection::btree_map(0..i64::MAX.cast_unsigned(), 0..5_usize, 1..4);
    let mode = prop::sample::select(vec![KeyspaceMode::UserId, KeyspaceMode::Hash]);
    (0..i64::MAX.cast_unsigned(), mode, rows, pins).prop_map(|(epoch, mode, rows, pins)| {
        let name = |number: usize| format!("cell-{number:03}");
        let mut next = 0;
        let rows = rows
            .into_iter()
            .map(|(gap, length, state, epoch, cell, home)| {
                let first = next + gap;
                next = first + length;
                Assignment {
                    range: range(first, next - 1),
                    cell: name(cell),
                    home: name(home),
                    state,
                    epoch: Epoch(epoch),
                }
            })
            .collect();
        let cells = (0..5)
            .map(|number| CellEndpoint {
                cell: name(number),
                region: format!("region-{}", number % 2),
                endpoint: format!("{}.svc.cluster.local", name(number)),
            })
            .collect();
        let pins = pins
            .into_iter()
            .map(|(key, cell)| KeyOverride {
                key: Key::new(key).unwrap(),
                cell: name(cell),
            })
            .collect();
        RoutingTable::new(Epoch(epoch), mode, rows, cells, pins).unwrap()
    })
}

/// The value changed as little as its type allows.
fn nudged(value: &Value) -> Value {
    match value {
        Value::String(text) => match text.as_str() {
            "Pending" | "Moving" | "Fenced" => json!("Active"),
            "Active" => json!("Fenced"),
            "UserId" => json!("Hash"),
            "Hash" => json!("UserId"),
            other => json!(format!("{other}x")),
        },
        Value::Number(number) => {
            let number = number.as_i64().unwrap();
            json!(if number == 0 { 1 } else { number - 1 })
        }
        other => panic!("no such value in a table: {other}"),
    }
}

/// The paths of all leaves, and of all items of lists.
fn places(value: &Value, at: &str, leaves: &mut Vec<String>, items: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                places(field, &format!("{at}/{name}"), leaves, items);
            }
        }
        Value::Array(list) => {
            for (index, item) in list.iter().enumerate() {
                items.push(format!("{at}/{index}"));
                places(item, &format!("{at}/{index}"), leaves, items);
            }
        }
        _ => leaves.push(at.to_owned()),
    }
}

fn read(content: Value) -> Result<RoutingTable, TableResourceError> {
    let spec: RoutingTableSpec = serde_json::from_value(content).unwrap();
    from_resource(&spec)
}

/// Signs content as the operator does, by way of the checksum that a table of the same content would get.
fn resigned(mut content: Value) -> Value {
    content["checksum"] = json!("");
    let text =
        serde_json::to_vec(&serde_json::from_value::<RoutingTableSpec>(content.clone()).unwrap())
            .unwrap();
    content["checksum"] = json!(format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&text)));
    content
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_table_survives_being_written_and_read(table in table()) {
        let spec = to_resource("shop", &table);
        prop_assert_eq!(&spec, &to_resource("shop", &table));
        prop_assert_eq!(from_resource(&spec), Ok(table.clone()));
        // And by way of the text that the apiserver keeps.
        let text = serde_json::to_string(&spec).unwrap();
        let read: RoutingTableSpec = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(from_resource(&read), Ok(table));
    }

    #[test]
    fn every_edit_of_one_field_is_noticed(table in table()) {
        let spec = serde_json::to_value(to_resource("shop", &table)).unwrap();
        let (mut leaves, mut items) = (Vec::new(), Vec::new());
        places(&spec, "", &mut leaves, &mut items);
        prop_assert!(leaves.len() > 20);
        for leaf in leaves {
            let mut edited = spec.clone();
            let value = edited.pointer_mut(&leaf).unwrap();
            *value = nudged(value);
            prop_assert_eq!(read(edited), Err(TableResourceError::Edited), "{}", leaf);
        }
        for item in items {
            let (list, index) = item.rsplit_once('/').unwrap();
            let mut edited = spec.clone();
            edited.pointer_mut(list).unwrap().as_array_mut().unwrap().remove(index.parse().unwrap());
            prop_assert_eq!(read(edited), Err(TableResourceError::Edited), "{}", item);
        }
    }
}

#[test]
fn a_signed_table_that_is_none_is_refused_all_the_same() {
    let content = |rows: Value| {
        resigned(json!({
            "fleet": "shop", "epoch": 3, "mode": "UserId", "assignments": rows,
            "cells": [{"name": "a", "region": "local", "endpoint": "a"}],
            "overrides": [], "checksum": "",
        }))
    };
    let row = |first: i64, last: i64, cell: &str| json!({"first": first, "last": last, "cell": cell, "home": "a", "state": "Active", "epoch": 1});
    assert!(read(content(json!([row(0, 9, "a")]))).is_ok());
    for rows in [
        json!([row(0, 9, "a"), row(9, 19, "a")]),
        json!([row(0, 9, "b")]),
    ] {
        assert!(matches!(
            read(content(rows)),
            Err(TableResourceError::Table(_))
        ));
    }
    for rows in [json!([row(9, 0, "a")]), json!([row(-1, 0, "a")])] {
        assert!(matches!(
            read(content(rows)),
            Err(TableResourceError::Range(_))
        ));
    }
}
