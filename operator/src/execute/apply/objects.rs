//! Making what is there what was planned, with as few writes as it takes.

use std::collections::BTreeSet;

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use titan_crds::ReclaimPolicy;
use titan_planner::object::{CELL_LABEL, Kind, MANAGED_BY, MANAGER, Object, drift, kept_volumes};

use crate::execute::apply::client::{ClientError, on_what_is_there};
use crate::execute::apply::{Compared, LiveObject, LiveObjects, ObjectClient, is_conflict};

/// How many writes of one cell are under way at once.
const PARALLEL_WRITES: usize = 16;

/// What is being applied, and to what.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    /// The namespace's objects.
    pub client: &'a ObjectClient<'a>,
    /// The cell.
    pub cell: &'a str,
    /// What was there when the reconcile began.
    pub live: &'a LiveObjects,
    /// What need not be compared again.
    pub compared: &'a Compared,
}

/// What applying came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Objects created.
    pub created: usize,
    /// Objects written over.
    pub repaired: usize,
}

/// Why objects could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An object of this name exists and is not ours.
    #[error(
        "{kind} {name} exists in namespace {cell} without the marks of the operator, so it is not touched. If the operator made it, put its labels back: kubectl -n {cell} label {kind} {name} --overwrite {CELL_LABEL}={cell} {MANAGED_BY}={MANAGER}. If somebody else made it, delete or rename it"
    )]
    NotOurs {
        /// The cell, which has the name of the namespace.
        cell: String,
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The apiserver will never take this object as it is.
    #[error("the apiserver refuses {kind} {name}: {message}")]
    Refused {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the apiserver says.
        message: String,
    },
    /// A quota of the namespace has no room for this object.
    #[error(
        "a ResourceQuota has no room for {kind} {name}: {message}; raise that quota, or delete it if it is not meant for a cell"
    )]
    QuotaExceeded {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the apiserver says, which names the quota.
        message: String,
    },
    /// The apiserver could not be asked, or changed under us.
    #[error("{kind} {name}: {error}")]
    Kube {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The error.
        error: Box<kube::Error>,
    },
    /// The ledger ended the reconcile.
    #[error(transparent)]
    Interrupted(#[from] crate::ledger::Interrupted),
}

impl ApplyError {
    fn new(kind: Kind, name: &str, error: ClientError) -> Self {
        let (_, _, kind, _) = kind.names();
        let name = name.to_owned();
        match error {
            ClientError::Interrupted(interrupted) => ApplyError::Interrupted(interrupted),
            // 422: the object is invalid, or changes what cannot be changed.
            ClientError::Kube(kube::Error::Api(status)) if status.code == 422 => {
                ApplyError::Refused {
                    kind,
                    name,
                    message: status.message.clone(),
                }
            }
            // There is no other mark of it: the admission plugin answers as RBAC does.
            ClientError::Kube(kube::Error::Api(status))
                if status.code == 403 && status.message.contains("exceeded quota") =>
            {
                ApplyError::QuotaExceeded {
                    kind,
                    name,
                    message: status.message.clone(),
                }
            }
            ClientError::Kube(error) => ApplyError::Kube {
                kind,
                name,
                error: Box::new(error),
            },
        }
    }
}

/// Applies objects that do not depend on one another.
///
/// # Errors
/// The first object that could not be applied; others may have been by then.
pub async fn apply_stage<'a>(
    scope: Scope<'a>,
    objects: impl IntoIterator<Item = &'a Object>,
) -> Result<Applied, ApplyError> {
    let writes: Vec<_> = objects
        .into_iter()
        .map(|object| apply_one(scope, object).boxed())
        .collect();
    stream::iter(writes)
        .buffer_unordered(PARALLEL_WRITES)
        .try_fold(Applied::default(), |sum, one| async move {
            Ok(Applied {
                created: sum.created + one.created,
                repaired: sum.repaired + one.repaired,
            })
        })
        .await
}

async fn apply_one(scope: Scope<'_>, object: &Object) -> Result<Applied, ApplyError> {
    let fail = |error| ApplyError::new(object.kind, &object.name, error);
    let created = Applied {
        created: 1,
        repaired: 0,
    };
    let found;
    let live = match scope.live.get(object.kind, &object.name) {
        Some(live) => live,
        None => match scope.client.create(object).await {
            Ok(()) => return Ok(created),
            // It exists after all: our view was old, or it does not carry our label.
            Err(ClientError::Kube(error)) if is_conflict(&error) => {
                found = scope
                    .client
                    .get(object.kind, &object.name)
                    .await
                    .map_err(|error| fail(error.into()))?;
                match &found {
                    Some(live) => live,
                    None => return Err(fail(error.into())),
                }
            }
            Err(error) => return Err(fail(error)),
        },
    };
    if !live.is_ours(scope.cell) {
        let (_, _, kind, _) = object.kind.names();
        return Err(ApplyError::NotOurs {
            cell: scope.cell.to_owned(),
            kind,
            name: object.name.clone(),
        });
    }
    if scope.compared.is_as_planned(object, live, is_as_planned) {
        return Ok(Applied::default());
    }
    scope.client.apply(object, live).await.map_err(fail)?;
    Ok(Applied {
        created: 0,
        repaired: 1,
    })
}

/// Whether there is nothing to be written.
pub(crate) fn is_as_planned(object: &Object, live: &LiveObject) -> bool {
    if live.desired_hash() != Some(object.hash.as_str()) {
        return false;
    }
    let body = live.body();
    match drift(&body, &on_what_is_there(&body, object.body())) {
        None => true,
        Some(path) => {
            tracing::info!(kind = ?object.kind, name = object.name, path, "repairing drift");
            false
        }
    }
}

/// In what StatefulSets keep other volumes than are planned, in phrases for people: see [`on_live_volumes`].
///
/// [`on_live_volumes`]: titan_planner::object::on_live_volumes
#[must_use]
pub fn volumes_kept(desired: &[Object], live: &LiveObjects) -> Vec<String> {
    desired
        .iter()
        .filter(|object| object.kind == Kind::StatefulSet)
        .filter_map(|object| {
            let live = live.get(object.kind, &object.name)?;
            kept_volumes(&live.body(), &object.body())
        })
        .collect()
}

/// Deletes what the operator made and the plan no longer names. Data stays under [`ReclaimPolicy::Retain`].
///
/// # Errors
/// The first object that could not be deleted.
pub async fn prune(
    scope: Scope<'_>,
    desired: &[Object],
    policy: ReclaimPolicy,
) -> Result<usize, ApplyError> {
    let named: BTreeSet<(Kind, &str)> = desired
        .iter()
        .map(|object| (object.kind, object.name.as_str()))
        .collect();
    let superfluous = scope.live.iter().filter(|live| {
        live.is_ours(scope.cell)
            && !live.is_deleting()
            && !named.contains(&(live.kind, live.name.as_str()))
            && (policy == ReclaimPolicy::Delete || !holds_data(live))
    });
    let mut deleted = 0;
    for live in superfluous {
        remove(scope, live).await?;
        deleted += 1;
    }
    Ok(deleted)
}

/// Deletes one object, unless it changed since it was read.
///
/// # Errors
/// When it could not be deleted.
pub async fn remove(scope: Scope<'_>, live: &LiveObject) -> Result<(), ApplyError> {
    let deleted = scope.client.delete(live).await;
    deleted.map_err(|error| ApplyError::new(live.kind, &live.name, error))
}

/// Whether data, or the only way to it, would go with the object. A service's own credentials are not that: they are
/// made anew at any time.
fn holds_data(live: &LiveObject) -> bool {
    live.annotation(titan_planner::object::HOLDS_DATA).is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use titan_planner::object::{Json, Stage};

    use super::*;

    fn planned(size: &str, replicas: u32) -> Object {
        let claim = json!({
            "metadata": {"name": "data"},
            "spec": {"resources": {"requests": {"storage": size}}},
        });
        let set = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "postgres"},
            "spec": {"replicas": replicas, "volumeClaimTemplates": [claim]},
        });
        Object::new(Kind::StatefulSet, Stage::Stores, true, &set).unwrap()
    }

    /// What the apiserver has once `planned` was applied to a StatefulSet with claims of another size.
    fn applied(planned: &Object, size: &str) -> LiveObject {
        let mut body = planned.body();
        body["metadata"]["uid"] = "u".into();
        body["metadata"]["resourceVersion"] = "1".into();
        let storage = "/spec/volumeClaimTemplates/0/spec/resources/requests/storage";
        *body.pointer_mut(storage).unwrap() = Value::from(size);
        LiveObject::new(Kind::StatefulSet, Json::from(&body)).unwrap()
    }

    #[test]
    fn volumes_that_cannot_be_changed_are_told_and_are_no_drift() {
        let grown = planned("20Gi", 3);
        let live = applied(&grown, "10Gi");
        assert!(is_as_planned(&grown, &live), "it is written once");
        assert!(!is_as_planned(&planned("20Gi", 1), &live));
        let mut all = LiveObjects::default();
        let desired = [grown];
        assert_eq!(volumes_kept(&desired, &all), Vec::<String>::new(), "new");
        all.insert(live);
        let told = volumes_kept(&desired, &all);
        assert!(told[0].contains("claims of 10Gi"), "{told:?}");
        all.insert(applied(&desired[0], "20Gi"));
        assert_eq!(volumes_kept(&desired, &all), Vec::<String>::new());
    }
}
