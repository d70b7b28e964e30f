//! A new start for a PostgreSQL whose data is gone.
//!
//! Patroni remembers that its cluster was made once, in annotation `initialize` of ConfigMap `<scope>-config`, and then
//! makes no other: a member without data waits for one that has it, which is right while a volume may come back. Where
//! storage is ephemeral, and every member there should be says that it has none, there is nothing to wait for. The
//! operator then takes the annotation off, which is what `patronictl remove` is for, and Patroni begins anew.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::classify;
use super::view::{LockView, MemberView, text};
use crate::ledger::{Ledger, System, Write};
use crate::stores::Result;

/// Whether no member of a cluster that was made has any data left. Pure.
#[must_use]
pub fn is_lost(made: bool, lock: &LockView, members: &[MemberView]) -> bool {
    made && lock.holder.is_none()
        && !members.is_empty()
        && members.iter().all(|member| member.empty)
}

/// Whether Patroni cluster `scope` was made once, and has not been let go since.
///
/// # Errors
/// The apiserver cannot be reached or refuses.
pub async fn was_made(client: &kube::Client, namespace: &str, scope: &str) -> Result<bool> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let name = config_of(scope);
    match maps.get_opt(&name).await {
        Ok(config) => Ok(config.is_some_and(|config| remembers(&config))),
        Err(error) => Err(classify("ConfigMap", namespace, &name, &error)),
    }
}

/// The ConfigMap in which Patroni keeps what its cluster is.
fn config_of(scope: &str) -> String {
    format!("{scope}-config")
}

fn remembers(config: &ConfigMap) -> bool {
    text(config, "initialize").is_some()
}

/// Lets Patroni cluster `scope` be made anew where all of its data is lost. Returns whether it was.
///
/// `members` are all that there are or should be. To be called only for ephemeral storage: a volume that is away
/// may come back.
///
/// # Errors
/// The apiserver cannot be reached or refuses.
pub async fn forget_lost_data(
    client: &kube::Client,
    namespace: &str,
    scope: &str,
    members: &[MemberView],
    ledger: &dyn Ledger,
) -> Result<bool> {
    if !members.iter().all(|member| member.empty) {
        return Ok(false);
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let name = config_of(scope);
    let refused = |error: &kube::Error| classify("ConfigMap", namespace, &name, error);
    let config = maps.get_opt(&name).await.map_err(|error| refused(&error))?;
    let Some(config) = config else {
        return Ok(false);
    };
    let leader = maps.get_opt(&format!("{scope}-leader")).await;
    let leader = leader.map_err(|error| refused(&error))?.unwrap_or_default();
    let made = remembers(&config);
    if !is_lost(made, &LockView::read(&leader, None), members) {
        return Ok(false);
    }
    let patch = json!({ "metadata": {
        "resourceVersion": config.metadata.resource_version,
        "annotations": { "initialize": null },
    }});
    match maps
        .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(_) => {}
        // Patroni changed it since: somebody has data after all.
        Err(kube::Error::Api(answer)) if answer.code == 409 => return Ok(false),
        Err(error) => return Err(refused(&error)),
    }
    ledger.record(Write {
        system: System::Kubernetes,
        verb: "forget lost data",
        target: format!("ConfigMap {namespace}/{name}"),
    })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(empty: &[bool]) -> Vec<MemberView> {
        let numbered = empty.iter().enumerate();
        numbered
            .map(|(number, empty)| MemberView {
                name: format!("postgres-{number}"),
                empty: *empty,
                ..MemberView::default()
            })
            .collect()
    }

    #[test]
    fn data_is_lost_only_when_nobody_can_have_any() {
        let free = LockView::default();
        let held = LockView {
            holder: Some("postgres-0".to_owned()),
            ..LockView::default()
        };
        assert!(is_lost(true, &free, &members(&[true])));
        assert!(is_lost(true, &free, &members(&[true, true, true])));
        assert!(
            !is_lost(true, &free, &members(&[true, false, true])),
            "one has data, or says nothing"
        );
        assert!(!is_lost(true, &held, &members(&[true])), "somebody leads");
        assert!(!is_lost(false, &free, &members(&[true])), "never made");
        assert!(!is_lost(true, &free, &[]), "no members are known");
    }
}
