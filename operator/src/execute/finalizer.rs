//! Finalizers: put on before anything is made that would outlive its resource, taken off when nothing is left of it.

use std::fmt::Debug;
use std::sync::Arc;

use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::error::ReconcileError;
use crate::ledger::{System, Write};
use crate::run::context::Context;

pub(crate) fn is_held<K: Resource>(object: &K, finalizer: &str) -> bool {
    object.finalizers().iter().any(|name| name == finalizer)
}

/// Puts a finalizer on, where it is not yet.
pub(crate) async fn hold<K>(
    object: Arc<K>,
    finalizer: &str,
    context: &Context,
) -> Result<Arc<K>, ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    if is_held(object.as_ref(), finalizer) {
        return Ok(object);
    }
    let mut finalizers = object.finalizers().to_vec();
    finalizers.push(finalizer.to_owned());
    write(object.as_ref(), &finalizers, "hold", context)
        .await
        .map(Arc::new)
}

/// Takes a finalizer off.
pub(crate) async fn release<K>(
    object: &K,
    finalizer: &str,
    context: &Context,
) -> Result<(), ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let mut finalizers = object.finalizers().to_vec();
    finalizers.retain(|name| name != finalizer);
    write(object, &finalizers, "release", context)
        .await
        .map(drop)
}

async fn write<K>(
    object: &K,
    finalizers: &[String],
    verb: &'static str,
    context: &Context,
) -> Result<K, ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let name = object.name_any();
    let patch = json!({ "metadata": {
        "finalizers": finalizers,
        "resourceVersion": object.resource_version(),
    }});
    let written = Api::<K>::all(context.client.clone())
        .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    context
        .own_writes
        .note(written.meta().resource_version.as_deref());
    context.ledger.record(Write {
        system: System::Kubernetes,
        verb,
        target: format!("{} {name}", K::kind(&())),
    })?;
    Ok(written)
}
