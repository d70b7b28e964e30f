//! Requests for objects of the kinds that make up a cell.
//!
//! Thinner than `kube::Api` for one reason: the answer to a write is thrown away, so the apiserver is asked for the
//! object's metadata alone, and what it sends is not decoded into a whole object.

use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use kube::{Client, Error};
use serde::Deserialize;
use serde_json::{Value, json};
use titan_planner::object::{Kind, MANAGER, Object, on_live_volumes, takeover};

use crate::execute::apply::LiveObject;
use crate::execute::apply::json::Lean;
use crate::ledger::{Ledger, System, Write};
use crate::observe::own_writes::OwnWrites;

const METADATA_ONLY: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// How many objects a LIST asks for at a time.
const PAGE: u32 = 200;

/// Reads and writes the objects of one cell.
#[derive(Clone)]
pub struct ObjectClient<'a> {
    client: &'a Client,
    ledger: &'a dyn Ledger,
    own_writes: Option<&'a OwnWrites>,
    namespace: &'a str,
}

/// Why a request did not succeed, or why nothing may follow it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The apiserver refused, or did not answer.
    #[error(transparent)]
    Kube(#[from] Error),
    /// The ledger ended the reconcile.
    #[error(transparent)]
    Interrupted(#[from] crate::ledger::Interrupted),
}

impl<'a> ObjectClient<'a> {
    /// A client for the namespace of a cell.
    #[must_use]
    pub fn new(client: &'a Client, ledger: &'a dyn Ledger, namespace: &'a str) -> Self {
        ObjectClient {
            client,
            ledger,
            own_writes: None,
            namespace,
        }
    }

    /// Has the client's writes noted, so that their events cause no pass.
    #[must_use]
    pub fn recording(self, own_writes: &'a OwnWrites) -> Self {
        ObjectClient {
            own_writes: Some(own_writes),
            ..self
        }
    }

    /// All objects of a kind in the namespace that the operator made. The cell has the name of the namespace. No selector of labels
    /// is sent: labels may have been taken off, and of what others made there is little in the namespace of a cell.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn list(&self, kind: Kind) -> Result<Vec<LiveObject>, Error> {
        let request = self.request(kind);
        let mut parameters = ListParams::default().limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let request = request.list(&parameters).map_err(Error::BuildRequest)?;
            let page: Page = self.client.request(request).await?;
            objects.extend(
                page.items
                    .into_iter()
                    .filter_map(|Lean(item)| LiveObject::new(kind, item))
                    .filter(|object| object.is_ours(self.namespace)),
            );
            match page.metadata.continue_token {
                Some(token) if !token.is_empty() => parameters.continue_token = Some(token),
                _ => return Ok(objects),
            }
        }
    }

    /// One object, if it exists.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn get(&self, kind: Kind, name: &str) -> Result<Option<LiveObject>, Error> {
        let request = self
            .request(kind)
            .get(name, &kube::api::GetParams::default())
            .map_err(Error::BuildRequest)?;
        match self.client.request(request).await {
            Ok(Lean(body)) => Ok(LiveObject::new(kind, body)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates an object.
    ///
    /// # Errors
    /// A conflict when it exists already.
    pub async fn create(&self, object: &Object) -> Result<(), ClientError> {
        let parameters = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        let body = object.json.text().as_bytes().to_vec();
        let request = self
            .request(object.kind)
            .create(&parameters, body)
            .map_err(Error::BuildRequest)?;
        self.write("create", object.kind, &object.name, request)
            .await
    }

    /// Applies an object over what is there, taking over every field that the plan names.
    ///
    /// What `create` wrote counts as an update, not as an apply, in the object's managed fields; were that left so, a
    /// field dropped from the plan would stay for ever. It is therefore turned into an apply first, as
    /// client-go's csaupgrade does. What others have added where nothing may be added, and an apply would leave as theirs,
    /// goes in the same request.
    ///
    /// # Errors
    /// When the apiserver refuses, or the object changed since it was read.
    pub async fn apply(&self, object: &Object, live: &LiveObject) -> Result<(), ClientError> {
        let live = live.body();
        let desired = on_what_is_there(&live, object.body());
        if let Some(patch) = preparation(&live, &desired) {
            let parameters = PatchParams {
                field_manager: Some(MANAGER.to_owned()),
                ..PatchParams::default()
            };
            let request = self
                .request(object.kind)
                .patch(
                    &object.name,
                    &parameters,
                    &Patch::Json::<()>(serde_json::from_value(patch).map_err(Error::SerdeError)?),
                )
                .map_err(Error::BuildRequest)?;
            self.write("take over", object.kind, &object.name, request)
                .await?;
        }
        let request = self
            .request(object.kind)
            .patch(
                &object.name,
                &PatchParams::apply(MANAGER).force(),
                &Patch::Apply(desired),
            )
            .map_err(Error::BuildRequest)?;
        self.write("apply", object.kind, &object.name, request)
            .await
    }

    /// Deletes exactly the object that was read: not a later version of it, and not another one of its name.
    ///
    /// # Errors
    /// A conflict when it changed since. An object that is gone is no error.
    pub async fn delete(&self, live: &LiveObject) -> Result<(), ClientError> {
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(live.uid.clone()),
                resource_version: Some(live.resource_version.clone()),
            }),
            ..DeleteParams::background()
        };
        let request = self
            .request(live.kind)
            .delete(&live.name, &parameters)
            .map_err(Error::BuildRequest)?;
        match self.write("delete", live.kind, &live.name, request).await {
            Err(ClientError::Kube(error)) if is_not_found(&error) => Ok(()),
            other => other,
        }
    }

    async fn write(
        &self,
        verb: &'static str,
        kind: Kind,
        name: &str,
        mut request: http::Request<Vec<u8>>,
    ) -> Result<(), ClientError> {
        request.headers_mut().insert(ACCEPT, METADATA_ONLY);
        request
            .headers_mut()
            .entry(CONTENT_TYPE)
            .or_insert(HeaderValue::from_static("application/json"));
        let written: Written = self.client.request(request).await?;
        if let Some(own_writes) = self.own_writes {
            own_writes.note(written.metadata.resource_version.as_deref());
        }
        let (_, _, kind_name, _) = kind.names();
        self.ledger.record(Write {
            system: System::Kubernetes,
            verb,
            target: format!("{kind_name} {}/{name}", self.namespace),
        })?;
        Ok(())
    }

    fn request(&self, kind: Kind) -> Request {
        let (group, version, _, plural) = kind.names();
        let root = if group.is_empty() {
            format!("/api/{version}")
        } else {
            format!("/apis/{group}/{version}")
        };
        Request::new(if kind == Kind::Namespace {
            format!("{root}/{plural}")
        } else {
            format!("{root}/namespaces/{}/{plural}", self.namespace)
        })
    }
}

/// One page of a LIST.
#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    items: Vec<Lean>,
}

#[derive(Deserialize)]
struct PageMetadata {
    #[serde(rename = "continue")]
    continue_token: Option<String>,
}

/// What is read of the answer to a write: metadata, or the Status of a deletion.
#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    metadata: WrittenMetadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMetadata {
    resource_version: Option<String>,
}

/// What is desired, with what is there of that which the plan leaves to somebody else, or which nobody can change.
///
/// The replicas of a Deployment that an autoscaler sets: a field that was ours and is not named any more would be removed, and
/// the apiserver's default of one pod would take its place. As soon as the autoscaler sets another number, it is the
/// autoscaler's. And the volumes of a StatefulSet, so that its cell is kept up and upgraded whatever its spec says of them.
pub(super) fn on_what_is_there(live: &Value, desired: Value) -> Value {
    let mut desired = on_live_volumes(live, desired);
    let replicas = live.pointer("/spec/replicas").cloned();
    if desired["kind"] == "Deployment"
        && let Some(replicas) = replicas
        && let Some(spec) = desired.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.entry("replicas").or_insert(replicas);
    }
    desired
}

/// The JSON patch that has to come before an apply; `None` where none has to. It fails when the object changed since it
/// was read.
fn preparation(live: &Value, desired: &Value) -> Option<Value> {
    let mut operations = takeover(live, desired);
    operations.extend(another_strategy(live, desired));
    operations.extend(own_updates_as_apply(live));
    if operations.is_empty() {
        return None;
    }
    let version = live.pointer("/metadata/resourceVersion")?;
    operations
        .push(json!({ "op": "replace", "path": "/metadata/resourceVersion", "value": version }));
    Some(Value::Array(operations))
}

/// The operation that gives a StatefulSet another strategy of updates. What the apiserver added to the old one by default would
/// outlive an apply, and is not allowed beside the new one.
fn another_strategy(live: &Value, desired: &Value) -> Option<Value> {
    let path = "/spec/updateStrategy";
    let (live, wanted) = (live.pointer(path)?, desired.pointer(path)?);
    (live["type"] != wanted["type"])
        .then(|| json!({ "op": "replace", "path": path, "value": wanted }))
}

/// The operation that turns our `Update` entry in the managed fields into an `Apply` entry; `None` where there is none.
fn own_updates_as_apply(live: &Value) -> Option<Value> {
    let entries = live.pointer("/metadata/managedFields")?.as_array()?;
    let index = entries.iter().position(|entry| {
        entry.get("manager").and_then(Value::as_str) == Some(MANAGER)
            && entry.get("operation").and_then(Value::as_str) == Some("Update")
            && entry.get("subresource").is_none()
    })?;
    let has_apply = entries.iter().any(|entry| {
        entry.get("manager").and_then(Value::as_str) == Some(MANAGER)
            && entry.get("operation").and_then(Value::as_str) == Some("Apply")
    });
    Some(if has_apply {
        // Two entries of one manager cannot both be Apply; the apply that follows claims every field anyway.
        json!({ "op": "remove", "path": format!("/metadata/managedFields/{index}") })
    } else {
        json!({ "op": "replace", "path": format!("/metadata/managedFields/{index}/operation"), "value": "Apply" })
    })
}

fn has_code(error: &Error, code: u16) -> bool {
    matches!(error, Error::Api(status) if status.code == code)
}

/// Whether the object was not there.
#[must_use]
pub fn is_not_found(error: &Error) -> bool {
    has_code(error, 404)
}

/// Whether the object was there already, or was changed by somebody else.
#[must_use]
pub fn is_conflict(error: &Error) -> bool {
    has_code(error, 409)
}

/// Whether the operator lacks the right.
#[must_use]
pub fn is_forbidden(error: &Error) -> bool {
    has_code(error, 403)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_create_wrote_becomes_an_apply() {
        let live = json!({"metadata": {"resourceVersion": "7", "managedFields": [
            {"manager": "kubelet", "operation": "Update"},
            {"manager": MANAGER, "operation": "Update", "subresource": "status"},
            {"manager": MANAGER, "operation": "Update"},
        ]}});
        let patch = preparation(&live, &json!({})).unwrap();
        assert_eq!(patch[0]["path"], "/metadata/managedFields/2/operation");
        assert_eq!(
            patch[1]["value"], "7",
            "the patch must fail when the object changed"
        );
    }

    #[test]
    fn replicas_that_nobody_plans_stay_what_they_are() {
        let live = json!({"spec": {"replicas": 7}});
        let planned = |spec: Value| json!({"kind": "Deployment", "spec": spec});
        let replicas = |desired| on_what_is_there(&live, desired)["spec"]["replicas"].clone();
        assert_eq!(replicas(planned(json!({}))), 7);
        assert_eq!(replicas(planned(json!({"replicas": 3}))), 3);
        let set = json!({"kind": "StatefulSet", "spec": {}});
        assert_eq!(on_what_is_there(&live, set.clone()), set);
    }

    #[test]
    fn an_applied_object_is_left_alone() {
        let live = json!({"metadata": {"resourceVersion": "7", "managedFields": [
            {"manager": MANAGER, "operation": "Apply"},
        ]}});
        assert_eq!(preparation(&live, &json!({})), None);
    }

    #[test]
    fn what_one_strategy_has_by_default_does_not_outlive_it() {
        let of = |strategy: Value| json!({"spec": {"updateStrategy": strategy}, "metadata": {"resourceVersion": "7"}});
        let rolling = of(json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}));
        let by_us = of(json!({"type": "OnDelete"}));
        let patch = preparation(&rolling, &by_us).unwrap();
        assert_eq!(patch[0]["value"], json!({"type": "OnDelete"}));
        let planned = of(json!({"type": "RollingUpdate"}));
        assert_eq!(preparation(&rolling, &planned), None);
    }

    #[test]
    fn what_others_added_to_content_goes_first() {
        let live = json!({"data": {"theirs": "x"}, "metadata": {"resourceVersion": "7"}});
        let desired = json!({"kind": "ConfigMap", "data": {}});
        assert_eq!(
            preparation(&live, &desired).unwrap(),
            json!([
                {"op": "remove", "path": "/data/theirs"},
                {"op": "replace", "path": "/metadata/resourceVersion", "value": "7"},
            ])
        );
    }
}
