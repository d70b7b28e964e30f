//! What a cell's namespace comes to, so that two of them can be compared.

use std::collections::BTreeMap;

use kube::ResourceExt;
use serde_json::{Value, json};
use titan_planner::object::Kind;

use crate::harness::World;

impl World {
    /// Everything in a cell's namespace that the operator is answerable for, without what differs from one run to the
    /// next: uids, versions, times, passwords and the namespace's own name.
    pub async fn essence(&self, number: i64) -> BTreeMap<String, Value> {
        let namespace = self.cell_name(number);
        let mut essence = BTreeMap::new();
        for kind in Kind::ALL {
            if kind == Kind::Namespace {
                continue;
            }
            for object in self.objects(&namespace, kind).await {
                let name = object.name_any();
                if ["kube-root-ca.crt", "default"].contains(&name.as_str()) {
                    continue;
                }
                let mut value = json!({
                    "labels": object.metadata.labels,
                    "data": object.data,
                });
                if let Some(fields) = value["data"].as_object_mut() {
                    fields.remove("status");
                    if kind == Kind::Secret {
                        let keys: Vec<Value> = fields["data"]
                            .as_object()
                            .into_iter()
                            .flat_map(|data| data.keys().cloned().map(Value::String))
                            .collect();
                        fields.insert("data".to_owned(), Value::Array(keys));
                    }
                }
                strip(&mut value);
                let text = value
                    .to_string()
                    .replace(&namespace, "CELL")
                    .replace(&namespace.replace('-', "_"), "CELL")
                    .replace(&self.name, "FLEET");
                let key = format!("{kind:?} {}", migration_name(&name));
                essence.insert(key, serde_json::from_str(&text).unwrap());
            }
        }
        essence
    }
}

/// A migration Job's name ends in a hash over its namespace, too.
pub fn migration_name(name: &str) -> String {
    match name.split_once("-migrate-") {
        Some((service, _)) => format!("{service}-migrate"),
        None => name.to_owned(),
    }
}

/// Drops what the apiserver or chance puts into an object.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| {
                !name.contains("checksum")
                    && ![
                        "controller-uid",
                        "batch.kubernetes.io/controller-uid",
                        "job-name",
                        "batch.kubernetes.io/job-name",
                        "desired-hash",
                        "clusterIP",
                        "clusterIPs",
                        "TITAN_RANGE_FIRST",
                        "first",
                        "last",
                    ]
                    .contains(&name.as_str())
            });
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}
