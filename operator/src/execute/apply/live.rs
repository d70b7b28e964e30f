//! What is in the namespace of a cell.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use titan_planner::object::{CELL_LABEL, DESIRED_HASH, Json, Kind, MANAGED_BY, MANAGER};

use crate::execute::apply::ObjectClient;

/// An object as the apiserver has it.
#[derive(Clone, Debug)]
pub struct LiveObject {
    /// The kind.
    pub kind: Kind,
    /// The name.
    pub name: String,
    /// The uid: two objects of one name in turn have two uids.
    pub uid: String,
    /// The version that was read.
    pub resource_version: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    /// Whether the operator is among its field managers.
    managed: bool,
    deleting: bool,
    json: Json,
}

/// What of every object is looked at in every pass.
#[derive(Deserialize)]
struct Head {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    uid: String,
    resource_version: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    managed_fields: Vec<ManagedField>,
    deletion_timestamp: Option<String>,
}

#[derive(Deserialize)]
struct ManagedField {
    #[serde(default)]
    manager: String,
}

impl LiveObject {
    /// Reads an object out of its JSON; `None` when it lacks the metadata that every object has.
    #[must_use]
    pub fn new(kind: Kind, json: Json) -> Option<Self> {
        let Head { metadata } = serde_json::from_str(json.text()).ok()?;
        Some(LiveObject {
            kind,
            name: metadata.name,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            labels: metadata.labels,
            annotations: metadata.annotations,
            managed: metadata
                .managed_fields
                .iter()
                .any(|field| field.manager == MANAGER),
            deleting: metadata.deletion_timestamp.is_some(),
            json,
        })
    }

    /// All of it as a tree.
    #[must_use]
    pub fn body(&self) -> Value {
        self.json.value()
    }

    /// The part of it that `T` names; its default where that part is not as every object of the kind has it.
    #[must_use]
    pub fn read<T: DeserializeOwned + Default>(&self) -> T {
        serde_json::from_str(self.json.text()).unwrap_or_default()
    }

    /// A label.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    /// The hash of the plan that it was last written from.
    #[must_use]
    pub fn desired_hash(&self) -> Option<&str> {
        self.annotation(DESIRED_HASH)
    }

    /// An annotation.
    #[must_use]
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(String::as_str)
    }

    /// Whether the operator made it for this cell, which has the name of the namespace.
    ///
    /// An object whose labels somebody took off or changed is still known by two marks: the operator's annotation, and the operator
    /// among its field managers. The next apply puts its labels back.
    #[must_use]
    pub fn is_ours(&self, cell: &str) -> bool {
        let labelled =
            self.label(MANAGED_BY) == Some(MANAGER) && self.label(CELL_LABEL) == Some(cell);
        labelled || self.managed && self.desired_hash().is_some()
    }

    /// Whether it is on its way out.
    #[must_use]
    pub const fn is_deleting(&self) -> bool {
        self.deleting
    }

    /// Its pods that are ready, as its status says; 0 where it says nothing.
    #[must_use]
    pub fn ready_replicas(&self) -> i64 {
        number(&self.body(), "/status/readyReplicas")
    }
}

/// A whole number somewhere in an object, 0 where there is none.
#[must_use]
pub fn number(body: &Value, pointer: &str) -> i64 {
    body.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// How many kinds are listed at once: each answer is held as text until it is read.
const PARALLEL_LISTS: usize = 3;

/// Everything that the operator made for a cell, by kind and name.
#[derive(Clone, Debug, Default)]
pub struct LiveObjects {
    objects: BTreeMap<(Kind, String), LiveObject>,
}

impl LiveObjects {
    /// Lists every kind in the namespace.
    ///
    /// # Errors
    /// When any kind cannot be listed: half a picture is no picture.
    pub async fn read(client: &ObjectClient<'_>) -> Result<Self, kube::Error> {
        let kinds = Kind::ALL
            .into_iter()
            .filter(|kind| *kind != Kind::Namespace)
            .map(|kind| client.list(kind));
        let mut live = LiveObjects::default();
        let mut lists = stream::iter(kinds).buffer_unordered(PARALLEL_LISTS);
        while let Some(list) = lists.next().await {
            list?.into_iter().for_each(|object| live.insert(object));
        }
        Ok(live)
    }

    /// Adds an object.
    pub fn insert(&mut self, object: LiveObject) {
        self.objects
            .insert((object.kind, object.name.clone()), object);
    }

    /// Adds all objects of another view, which is the newer one.
    pub fn extend(&mut self, newer: LiveObjects) {
        self.objects.extend(newer.objects);
    }

    /// One object.
    #[must_use]
    pub fn get(&self, kind: Kind, name: &str) -> Option<&LiveObject> {
        self.objects.get(&(kind, name.to_owned()))
    }

    /// All objects, by kind and name.
    pub fn iter(&self) -> impl Iterator<Item = &LiveObject> {
        self.objects.values()
    }
}
