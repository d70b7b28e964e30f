//! Desired Kubernetes objects as values.

use serde::Serialize;
use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

/// The name of the field manager, of the `managed-by` label and of the operator's ServiceAccount.
pub const MANAGER: &str = "titan-operator";
/// The annotation that holds the hash of the desired object.
pub const DESIRED_HASH: &str = "titan.dev/desired-hash";
/// The annotation of objects with [`Object::holds_data`], so that it is known of an object that no plan names any more.
pub const HOLDS_DATA: &str = "titan.dev/holds-data";
/// The label that says which program manages an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The label that says which cell an object belongs to.
pub const CELL_LABEL: &str = "titan.dev/cell";
/// The label that says which fleet an object belongs to.
pub const FLEET_LABEL: &str = "titan.dev/fleet";

/// The kinds that make up a cell, in the order in which they are created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// v1 Namespace.
    Namespace,
    /// rbac.authorization.k8s.io/v1 RoleBinding.
    RoleBinding,
    /// v1 ServiceAccount.
    ServiceAccount,
    /// v1 Secret.
    Secret,
    /// v1 ConfigMap.
    ConfigMap,
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
    /// v1 Service.
    Service,
    /// apps/v1 StatefulSet.
    StatefulSet,
    /// batch/v1 Job.
    Job,
    /// apps/v1 Deployment.
    Deployment,
    /// policy/v1 PodDisruptionBudget.
    PodDisruptionBudget,
    /// autoscaling/v2 HorizontalPodAutoscaler.
    HorizontalPodAutoscaler,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Kind; 12] = [
        Kind::Namespace,
        Kind::RoleBinding,
        Kind::ServiceAccount,
        Kind::Secret,
        Kind::ConfigMap,
        Kind::NetworkPolicy,
        Kind::Service,
        Kind::StatefulSet,
        Kind::Job,
        Kind::Deployment,
        Kind::PodDisruptionBudget,
        Kind::HorizontalPodAutoscaler,
    ];

    /// Group (empty for the core group), version, kind and plural.
    #[must_use]
    pub const fn names(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Kind::Namespace => ("", "v1", "Namespace", "namespaces"),
            Kind::RoleBinding => (
                "rbac.authorization.k8s.io",
                "v1",
                "RoleBinding",
                "rolebindings",
            ),
            Kind::ServiceAccount => ("", "v1", "ServiceAccount", "serviceaccounts"),
            Kind::Secret => ("", "v1", "Secret", "secrets"),
            Kind::ConfigMap => ("", "v1", "ConfigMap", "configmaps"),
            Kind::NetworkPolicy => (
                "networking.k8s.io",
                "v1",
                "NetworkPolicy",
                "networkpolicies",
            ),
            Kind::Service => ("", "v1", "Service", "services"),
            Kind::StatefulSet => ("apps", "v1", "StatefulSet", "statefulsets"),
            Kind::Job => ("batch", "v1", "Job", "jobs"),
            Kind::Deployment => ("apps", "v1", "Deployment", "deployments"),
            Kind::PodDisruptionBudget => (
                "policy",
                "v1",
                "PodDisruptionBudget",
                "poddisruptionbudgets",
            ),
            Kind::HorizontalPodAutoscaler => (
                "autoscaling",
                "v2",
                "HorizontalPodAutoscaler",
                "horizontalpodautoscalers",
            ),
        }
    }
}

/// When in a reconcile an object is applied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// First of all, and before anything can be read in the namespace: the namespace and the operator's own rights in it.
    Namespace,
    /// What everything else needs: accounts, Secrets, configuration, policies, Services.
    Foundation,
    /// PostgreSQL and Redis.
    Stores,
    /// The migration of one service: once the databases are ready.
    Migration(String),
    /// One service: once its migration is done.
    Service(String),
}

/// A desired object: complete, in canonical form, with its labels and its hash annotation.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// The kind.
    pub kind: Kind,
    /// The name. The namespace is that of the cell.
    pub name: String,
    /// When it is applied.
    pub stage: Stage,
    /// Whether it holds data or the way to it: kept when it is no longer desired and the reclaim policy is Retain.
    /// Such an object carries the annotation [`HOLDS_DATA`] with the value `true`.
    pub holds_data: bool,
    /// The hash in its [`DESIRED_HASH`] annotation.
    pub hash: String,
    /// The object as it is sent to the apiserver, `apiVersion` and `kind` included.
    pub body: Value,
}

impl Object {
    /// A desired object from a typed one.
    ///
    /// # Errors
    /// When the typed object cannot be written as JSON, or has no name.
    pub fn new(
        kind: Kind,
        stage: Stage,
        holds_data: bool,
        typed: &impl Serialize,
    ) -> Result<Self, ObjectError> {
        let mut body = canonical(serde_json::to_value(typed)?);
        let hash = format!("{:016x}", xxh3_64(body.to_string().as_bytes()));
        let metadata = body
            .get_mut("metadata")
            .and_then(Value::as_object_mut)
            .ok_or(ObjectError::Nameless(kind))?;
        let name = metadata
            .get("name")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .ok_or(ObjectError::Nameless(kind))?
            .to_owned();
        let annotations = metadata
            .entry("annotations")
            .or_insert_with(|| Value::Object(Map::new()));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(DESIRED_HASH.to_owned(), Value::String(hash.clone()));
        }
        Ok(Object {
            kind,
            name,
            stage,
            holds_data,
            hash,
            body: canonical(body),
        })
    }
}

/// Why an object could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// It cannot be written as JSON.
    #[error("an object cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It has no name.
    #[error("a desired {0:?} has no name")]
    Nameless(Kind),
}

/// A value with its keys sorted and its nulls removed, so that equal objects have equal text.
#[must_use]
pub fn canonical(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, canonical(value)))
                .collect();
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(canonical).collect()),
        scalar => scalar,
    }
}

/// Whether the live object has everything that the desired one says, so that nothing needs to be written.
#[must_use]
pub fn covers(live: &Value, desired: &Value) -> bool {
    drift(live, desired).is_none()
}

/// The first place in which the live object does not have what the desired one says, and how: for people.
///
/// What the apiserver and others add beside it is no drift, as with server-side apply: maps need only hold the desired
/// entries, lists need the same number of items in the same order. Content of a ConfigMap or Secret is ours whole:
/// there, an entry more is drift too. Values of Secrets are not told.
#[must_use]
pub fn drift(live: &Value, desired: &Value) -> Option<String> {
    let content = matches!(
        desired.get("kind").and_then(Value::as_str),
        Some("ConfigMap" | "Secret")
    );
    let secret = desired.get("kind").and_then(Value::as_str) == Some("Secret");
    if content {
        for field in ["data", "binaryData"] {
            let extra = live
                .get(field)
                .and_then(Value::as_object)
                .into_iter()
                .flat_map(Map::keys)
                .find(|key| desired.get(field).and_then(|data| data.get(key)).is_none());
            if let Some(key) = extra {
                return Some(format!("{field}.{key}: not desired"));
            }
        }
    }
    let mut path = Vec::new();
    let difference = difference(live, desired, &mut path)?;
    let at = path.join(".").replace(".[", "[");
    if secret && at.starts_with("data.") {
        return Some(format!("{at}: another value"));
    }
    Some(format!("{at}: {difference}"))
}

fn difference(live: &Value, desired: &Value, path: &mut Vec<String>) -> Option<String> {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => {
            for (key, desired) in desired {
                path.push(key.clone());
                match live.get(key) {
                    Some(live) => {
                        if let Some(found) = difference(live, desired, path) {
                            return Some(found);
                        }
                    }
                    // The apiserver leaves out what is empty.
                    None if is_empty(desired) => {}
                    // The items of a list do not repeat what the list says of itself.
                    None if path.len() == 1 && matches!(key.as_str(), "apiVersion" | "kind") => {}
                    None => return Some(format!("{} is missing", brief(desired))),
                }
                path.pop();
            }
            None
        }
        (Value::Array(live), Value::Array(desired)) => {
            if live.len() != desired.len() {
                return Some(format!("{} items instead of {}", live.len(), desired.len()));
            }
            for (index, (live, desired)) in live.iter().zip(desired).enumerate() {
                path.push(format!("[{index}]"));
                if let Some(found) = difference(live, desired, path) {
                    return Some(found);
                }
                path.pop();
            }
            None
        }
        (live, desired) if live == desired => None,
        (live, desired) => Some(format!("{} instead of {}", brief(live), brief(desired))),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A value short enough for a message.
fn brief(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
