//! Writing the status of our resources.

use std::fmt::Debug;

use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use titan_planner::merge_patch::merge_patch;

/// Writes a status, unless the object has changed since it was read: a status made from an old view is refused. Fields that
/// another version of the operator wrote and this one does not know stay as they are.
///
/// # Errors
/// When the apiserver refuses or does not answer.
pub(crate) async fn patch_status<K, S>(
    object: &K,
    before: Option<&S>,
    status: &S,
    client: &Client,
) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    S: Serialize,
{
    let json = |status| serde_json::to_value(status).map_err(kube::Error::SerdeError);
    let before = before.map(json).transpose()?.unwrap_or_else(|| json!({}));
    let patch = json!({
        "metadata": {"resourceVersion": object.resource_version()},
        "status": merge_patch(&before, &json(status)?),
    });
    Api::<K>::all(client.clone())
        .patch_status(
            &object.name_any(),
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await
}
