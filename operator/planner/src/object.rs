//! Desired Kubernetes objects as values.

mod claims;
mod drift;
mod json;

use serde::Serialize;
use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

pub use claims::{kept_volumes, on_live_volumes};
pub use drift::{covers, drift, takeover};
pub use json::Json;

/// The name of the field manager, of the `managed-by` label and of the operator's ServiceAccount.
pub const MANAGER: &str = "titan-operator";
/// The annotation that holds the hash of the desired object.
pub const DESIRED_HASH: &str = "titan.dev/desired-hash";
/// The annotation of objects with [`Object::holds_data`], so that it is known of an object that no plan names any more.
pub const HOLDS_DATA: &str = "titan.dev/holds-data";
/// The annotation of a migration Job that says for which database it is: another database needs it again.
pub const DATABASE_ID: &str = "titan.dev/database-id";
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
    pub json: Json,
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
        let name = body
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .ok_or(ObjectError::Nameless(kind))?
            .to_owned();
        if holds_data {
            annotate(&mut body, HOLDS_DATA, "true");
        }
        let hash = format!("{:016x}", xxh3_64(Json::from(&body).text().as_bytes()));
        annotate(&mut body, DESIRED_HASH, &hash);
        Ok(Object {
            kind,
            name,
            stage,
            holds_data,
            hash,
            json: Json::from(&body),
        })
    }

    /// The object as a tree.
    #[must_use]
    pub fn body(&self) -> Value {
        self.json.value()
    }

    /// The same with an annotation that became known after planning; the hash does not cover it.
    #[must_use]
    pub fn annotated(&self, annotation: &str, value: &str) -> Self {
        self.changed(|body| annotate(body, annotation, value))
    }

    /// The same with so many replicas instead of those that are planned; the hash does not cover it.
    #[must_use]
    pub fn with_replicas(&self, replicas: i64) -> Self {
        self.changed(|body| {
            if let Some(planned) = body.pointer_mut("/spec/replicas") {
                *planned = replicas.into();
            }
        })
    }

    fn changed(&self, change: impl FnOnce(&mut Value)) -> Self {
        let mut body = self.body();
        change(&mut body);
        Object {
            json: Json::from(&body),
            ..self.clone()
        }
    }
}

fn annotate(body: &mut Value, annotation: &str, value: &str) {
    if let Some(Value::Object(metadata)) = body.get_mut("metadata") {
        let annotations = metadata
            .entry("annotations")
            .or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(annotations) = annotations {
            annotations.insert(annotation.to_owned(), Value::String(value.to_owned()));
        }
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
pub fn canonical(mut value: Value) -> Value {
    remove_nulls(&mut value);
    value.sort_all_objects();
    value
}

fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
