//! The namespace of a cell, and the operator's own rights in it.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Objects;
use crate::cell::model::{Invalid, ValidatedCell};
use crate::cell::names::{Labels, OPERATOR_ROLE, SYSTEM_NAMESPACE, cell_labels, meta, strings};
use crate::object::{Kind, MANAGER, Stage};

pub(super) fn build(cell: &ValidatedCell, objects: &mut Objects) -> Result<(), Invalid> {
    let mut labels = cell_labels(cell);
    labels.extend(strings([
        ("titan.dev/region", cell.region.as_str()),
        ("pod-security.kubernetes.io/enforce", "restricted"),
        ("pod-security.kubernetes.io/enforce-version", "latest"),
        ("pod-security.kubernetes.io/warn", "restricted"),
        ("pod-security.kubernetes.io/warn-version", "latest"),
        ("pod-security.kubernetes.io/audit", "restricted"),
        ("pod-security.kubernetes.io/audit-version", "latest"),
    ]));
    // The claim, which never changes: the namespace of a cell that was retained is not for other users.
    if let Some(claim) = cell.claim {
        labels.extend(strings([
            ("titan.dev/range-first", &claim.first().to_string()),
            ("titan.dev/range-last", &claim.last().to_string()),
        ]));
    }
    // Not owned by the Cell: under Retain the databases outlive it, and a namespace takes everything along.
    objects.add_data(
        Kind::Namespace,
        Stage::Namespace,
        &Namespace {
            metadata: ObjectMeta {
                name: Some(cell.name.clone()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        },
    )?;
    // The operator's rights over Secrets and workloads end at the namespaces of its cells. They outlive a retained cell: who
    // takes it up again needs them.
    objects.add_data(
        Kind::RoleBinding,
        Stage::Namespace,
        &role_binding(
            cell,
            MANAGER,
            cell_labels(cell),
            OPERATOR_ROLE,
            (SYSTEM_NAMESPACE, MANAGER),
        ),
    )
}

pub(super) fn role_binding(
    cell: &ValidatedCell,
    name: &str,
    labels: Labels,
    cluster_role: &str,
    (namespace, account): (&str, &str),
) -> RoleBinding {
    RoleBinding {
        metadata: meta(cell, name, labels),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "ClusterRole".to_owned(),
            name: cluster_role.to_owned(),
        },
        subjects: Some(vec![Subject {
            api_group: None,
            kind: "ServiceAccount".to_owned(),
            name: account.to_owned(),
            namespace: Some(namespace.to_owned()),
        }]),
    }
}
