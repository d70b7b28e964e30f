//! Settings of a cluster that was made before they were what they are now.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::classify;
use super::view::text;
use crate::ledger::{Ledger, System, Write};
use crate::stores::Result;

/// The annotation in which Patroni keeps the settings of the whole cluster, as JSON.
const CONFIG: &str = "config";

/// How often to try when Patroni changes its ConfigMap at the same moment: it writes its history there after each promotion.
const TRIES: u32 = 5;

/// Brings the settings that Patroni keeps in ConfigMap `name` to where they should be: `desired` has the text that should
/// stand instead of the one it is given, or None. Every member takes them up within seconds. Returns whether anything was
/// written; nothing is while Patroni has not made the cluster yet.
///
/// # Errors
/// The apiserver cannot be reached or refuses.
pub async fn reconfigure(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    desired: impl Fn(&str) -> Option<String>,
    ledger: &dyn Ledger,
) -> Result<bool> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let refused = |error: &kube::Error| classify("ConfigMap", namespace, name, error);
    let mut tries = 0;
    loop {
        tries += 1;
        let store = maps.get_opt(name).await.map_err(|error| refused(&error))?;
        let Some((store, current)) = store.and_then(|store| {
            let current = text(&store, CONFIG)?;
            Some((store, current))
        }) else {
            return Ok(false);
        };
        let Some(wanted) = desired(&current) else {
            return Ok(false);
        };
        let patch = json!({ "metadata": {
            "resourceVersion": store.metadata.resource_version,
            "annotations": { CONFIG: wanted },
        }});
        match maps
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => break,
            Err(kube::Error::Api(answer)) if answer.code == 409 && tries < TRIES => {}
            Err(error) => return Err(refused(&error)),
        }
    }
    ledger.record(Write {
        system: System::Kubernetes,
        verb: "reconfigure",
        target: format!("ConfigMap {namespace}/{name}"),
    })?;
    Ok(true)
}
