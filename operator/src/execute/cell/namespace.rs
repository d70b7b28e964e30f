//! The namespace of a cell, and the operator's rights in it.

use std::time::Duration;

use titan_crds::CellStatus;
use titan_planner::cell::ValidatedCell;
use titan_planner::object::{CELL_LABEL, Kind, MANAGED_BY, MANAGER, Object, Stage};
use titan_planner::status::Step;

use crate::error::ReconcileError;
use crate::execute::apply::{
    ApplyError, Compared, LiveObject, LiveObjects, ObjectClient, Scope, apply_stage, is_forbidden,
};

/// How often and how long to wait for the apiserver's authorizer to see the operator's RoleBinding.
const RIGHTS_TRIES: u32 = 20;
const RIGHTS_PAUSE: Duration = Duration::from_millis(25);

/// Makes the namespace and reads what is in it. The inner step says why the namespace cannot be used.
pub(super) async fn enter(
    client: &ObjectClient<'_>,
    cell: &ValidatedCell,
    status: Option<&CellStatus>,
    objects: &[Object],
    compared: &Compared,
) -> Result<Result<LiveObjects, Step>, ReconcileError> {
    let namespace = client.get(Kind::Namespace, &cell.name).await?;
    if let Some(step) = namespace
        .as_ref()
        .and_then(|live| unusable(cell, status, live))
    {
        return Ok(Err(step));
    }
    let fresh = namespace.is_none();
    let mut live = LiveObjects::default();
    if let Some(namespace) = namespace {
        live.insert(namespace);
        for binding in client.list(Kind::RoleBinding).await? {
            live.insert(binding);
        }
    }
    let of_kind = |kind: Kind| {
        objects
            .iter()
            .filter(move |object| object.stage == Stage::Namespace && object.kind == kind)
    };
    let scope = Scope {
        client,
        cell: &cell.name,
        live: &live,
        compared,
    };
    // Somebody may have created it since we looked; that comes back as `NotOurs`.
    apply_stage(scope, of_kind(Kind::Namespace)).await?;
    let rights = apply_stage(scope, of_kind(Kind::RoleBinding)).await?;
    if rights.created + rights.repaired > 0 {
        await_rights(client).await?;
    }
    // What was created a moment ago holds nothing that would have to be read.
    if !fresh {
        live.extend(LiveObjects::read(client).await?);
    }
    Ok(Ok(live))
}

/// Why a namespace that exists is not one to put this cell into.
fn unusable(cell: &ValidatedCell, status: Option<&CellStatus>, live: &LiveObject) -> Option<Step> {
    let name = &cell.name;
    // Its own database was made in a pass over this very Cell, which found the namespace to be the cell's.
    let lives = status.is_some_and(|status| status.database_id.is_some());
    if !live.is_ours(name) {
        let label = format!(
            "kubectl label namespace {name} --overwrite {CELL_LABEL}={name} {MANAGED_BY}={MANAGER}"
        );
        let message = if lives {
            format!(
                "namespace {name} has lost the marks by which the operator knows it, so nothing in it is changed. It is this cell's, and holds its data: put its labels back with {label}"
            )
        } else {
            format!(
                "namespace {name} exists and was not made for this cell; give the Cell another name. If it was made for an earlier cell of this name, put its labels back with {label}"
            )
        };
        return Some(Step::failed("NamespaceNotOurs", message));
    }
    if live.is_deleting() {
        return Some(Step::waiting(
            "NamespaceTerminating",
            format!("namespace {name} of an earlier cell is still being deleted"),
        ));
    }
    let claim = cell
        .claim
        .map(|it| (it.first().to_string(), it.last().to_string()));
    // Labels that somebody took away are put back, and so are those of a living cell that somebody changed.
    let held = [
        live.label("titan.dev/range-first"),
        live.label("titan.dev/range-last"),
    ];
    let wanted = claim
        .as_ref()
        .map(|(first, last)| [first.as_str(), last.as_str()]);
    let is_other = |(held, wanted): (Option<&str>, Option<&str>)| held.is_some() && held != wanted;
    if !lives && (0..2).any(|end| is_other((held[end], wanted.map(|it| it[end])))) {
        return Some(Step::failed(
            "NamespaceHoldsOtherRange",
            format!(
                "namespace {name} was retained from a cell of the users {}..={} and this cell {}; its data belongs to other users. Use another name, or delete the namespace if its data is not needed",
                held[0].unwrap_or("?"),
                held[1].unwrap_or("?"),
                cell.claim
                    .map_or_else(|| "claims none".to_owned(), |it| format!("is for {it}")),
            ),
        ));
    }
    None
}

/// Waits until the rights that a RoleBinding gives are in force: the authorizer learns of it by a watch, some
/// milliseconds after it was written.
async fn await_rights(client: &ObjectClient<'_>) -> Result<(), ReconcileError> {
    for _ in 0..RIGHTS_TRIES {
        match client.list(Kind::Secret).await {
            Err(error) if is_forbidden(&error) => tokio::time::sleep(RIGHTS_PAUSE).await,
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(()),
        }
    }
    match client.list(Kind::Secret).await {
        Ok(_) => Ok(()),
        Err(error) => Err(ReconcileError::Apply(ApplyError::Kube {
            kind: "RoleBinding",
            name: "titan-operator".to_owned(),
            error: Box::new(error),
        })),
    }
}
