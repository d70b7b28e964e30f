//! The Secrets with which nodes log in to the registry of images, read from the operator's own namespace.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use titan_planner::cell::ValidatedCell;
use titan_planner::cell::names::{PULL_SECRET_KEY, PULL_SECRET_TYPE};
use titan_planner::status::Step;

use crate::error::ReconcileError;
use crate::run::context::Context;

/// What is in each of the Secrets that the fleet names. No other type than that of logins to registries is copied: whoever may
/// write a CellFleet could otherwise have any Secret of the operator's namespace copied into the namespaces of cells.
pub(super) async fn read(
    cell: &ValidatedCell,
    context: &Context,
) -> Result<Result<BTreeMap<String, String>, Step>, ReconcileError> {
    let namespace = &context.system_namespace;
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let mut found = BTreeMap::new();
    for name in &cell.pull_secrets {
        let Some(secret) = api.get_opt(name).await? else {
            return Ok(Err(Step::failed(
                "PullSecretNotFound",
                format!(
                    "Secret {namespace}/{name}, which images.pullSecrets of fleet {} names, does not exist; create it with kubectl -n {namespace} create secret docker-registry {name}",
                    cell.fleet
                ),
            )));
        };
        match login(secret) {
            Some(content) => found.insert(name.clone(), content),
            None => {
                return Ok(Err(Step::failed(
                    "PullSecretInvalid",
                    format!(
                        "Secret {namespace}/{name}, which images.pullSecrets of fleet {} names, is no login to a registry; create it anew with kubectl -n {namespace} create secret docker-registry {name}, which gives it the type {PULL_SECRET_TYPE}",
                        cell.fleet
                    ),
                )));
            }
        };
    }
    Ok(Ok(found))
}

fn login(secret: Secret) -> Option<String> {
    if secret.type_.as_deref() != Some(PULL_SECRET_TYPE) {
        return None;
    }
    let ByteString(content) = secret.data?.remove(PULL_SECRET_KEY)?;
    String::from_utf8(content).ok()
}
