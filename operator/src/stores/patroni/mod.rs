//! What the operator does for the PostgreSQL that Patroni runs in a cell: what Patroni, which sees its own pods only,
//! cannot know or must not decide.
//!
//! Patroni keeps the memory of its cluster in annotations of ConfigMaps and pods of the namespace. All that is done here
//! is done to those and to pods, never to PostgreSQL, and only if they have not changed since they were read. Whether a member may
//! go is decided here by what Kubernetes and Patroni say; PostgreSQL has the last word, see `Proof`.

mod failover;
mod loss;
mod moves;
mod rollout;
mod settings;
mod shrink;
mod view;

pub use failover::{Decision, decide, hasten_failover};
pub use loss::{forget_lost_data, is_lost, was_made};
pub use moves::{Move, next_move};
pub use rollout::{Replaced, Rollout, replace};
pub use settings::reconfigure;
pub use view::{LockView, MemberView, PodState, SetView};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;

use crate::ledger::System;
use crate::stores::{Result, StoreError};

/// The lock of Patroni cluster `scope`; `None` while Patroni has not made the cluster yet.
///
/// # Errors
/// The apiserver cannot be reached or refuses.
pub async fn lock(client: &kube::Client, namespace: &str, scope: &str) -> Result<Option<LockView>> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let read = async |name: String| {
        let map = maps.get_opt(&name).await;
        map.map_err(|error| classify("ConfigMap", namespace, &name, &error))
    };
    let Some(leader) = read(format!("{scope}-leader")).await? else {
        return Ok(None);
    };
    let sync = read(format!("{scope}-sync")).await?;
    Ok(Some(LockView::read(&leader, sync.as_ref())))
}

fn classify(kind: &str, namespace: &str, name: &str, error: &kube::Error) -> StoreError {
    let (system, address) = (System::Kubernetes, "the apiserver".to_owned());
    match error {
        kube::Error::Api(answer) => StoreError::Refused {
            system,
            address,
            doing: format!("read or change {kind} {namespace}/{name}"),
            detail: answer.message.clone(),
        },
        error => StoreError::Unreachable {
            system,
            address,
            detail: error.to_string(),
        },
    }
}
