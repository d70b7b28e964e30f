//! The rights of the operator, evaluated from the rendered roles: the least that works.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod common;

use std::collections::BTreeSet;

use common::{EVERYTHING, NAMESPACE, object, of_kind, render, strings};
use serde_json::Value;
use titan_planner::object::Kind;

/// Whether a role allows a verb on a resource, of any name.
fn allows(role: &Value, verb: &str, group: &str, resource: &str) -> bool {
    role["rules"].as_array().unwrap().iter().any(|rule| {
        strings(&rule["verbs"]).contains(&verb)
            && strings(&rule["apiGroups"]).contains(&group)
            && strings(&rule["resources"]).contains(&resource)
            && rule["resourceNames"].is_null()
    })
}

/// Every right of a role, as `verb group/resource[/name]`.
fn rights(role: &Value) -> BTreeSet<String> {
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        let names = match strings(&rule["resourceNames"]) {
            names if names.is_empty() => vec!["*any*"],
            names => names,
        };
        for verb in strings(&rule["verbs"]) {
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    for name in &names {
                        rights.insert(format!("{verb} {group}/{resource} {name}"));
                    }
                }
            }
        }
    }
    rights
}

#[test]
fn no_rule_holds_a_wildcard() {
    let objects = render(&EVERYTHING);
    let roles: Vec<&Value> = of_kind(&objects, "ClusterRole")
        .chain(of_kind(&objects, "Role"))
        .collect();
    assert_eq!(roles.len(), 4);
    for role in roles {
        for rule in role["rules"].as_array().unwrap() {
            for part in ["apiGroups", "resources", "verbs"] {
                let values = strings(&rule[part]);
                assert!(
                    !values.is_empty(),
                    "{}: no {part}",
                    role["metadata"]["name"]
                );
                assert!(
                    values.iter().all(|value| !value.contains('*')),
                    "{}: {rule}",
                    role["metadata"]["name"]
                );
            }
            assert!(rule["nonResourceURLs"].is_null());
        }
    }
}

#[test]
fn secrets_are_out_of_reach_outside_cells() {
    let objects = render(&[]);
    let everywhere = rights(object(&objects, "ClusterRole", "titan-operator"));
    assert!(
        !everywhere.iter().any(|right| right.contains("/secrets")),
        "{everywhere:?}"
    );
    // In its own namespace it reads what is named, and lists nothing.
    let own = rights(object(&objects, "Role", "titan-operator"));
    let secrets: Vec<&String> = own
        .iter()
        .filter(|right| right.contains("/secrets"))
        .collect();
    assert_eq!(secrets, ["get /secrets *any*"]);
    // PostgreSQL's pods read no Secret over the API.
    let postgres = rights(object(&objects, "ClusterRole", "titan-cell-postgres"));
    assert!(
        !postgres.iter().any(|right| right.contains("secrets")),
        "{postgres:?}"
    );
}

#[test]
fn a_superuser_of_postgresql_changes_nothing_but_patronis_own_objects() {
    let objects = render(&[]);
    let rights = rights(object(&objects, "ClusterRole", "titan-cell-postgres"));
    let unnamed: Vec<&str> = rights
        .iter()
        .map(String::as_str)
        .filter(|right| right.ends_with(" *any*"))
        .collect();
    assert_eq!(
        unnamed,
        [
            "create /configmaps *any*",
            "list /configmaps *any*",
            "list /pods *any*",
            "watch /configmaps *any*",
            "watch /pods *any*",
        ]
    );
}

#[test]
fn nothing_lets_the_operator_raise_its_own_rights() {
    let objects = render(&[]);
    let everywhere = rights(object(&objects, "ClusterRole", "titan-operator"));
    let beyond: Vec<&str> = everywhere
        .iter()
        .map(String::as_str)
        .filter(|right| {
            let verb = right.split(' ').next().unwrap();
            let writes = !["get", "list", "watch"].contains(&verb);
            ["escalate", "impersonate"].contains(&verb)
                || (writes
                    && ["/roles ", "/clusterroles ", "/clusterrolebindings "]
                        .iter()
                        .any(|kind| right.contains(kind)))
        })
        .collect();
    let group = "rbac.authorization.k8s.io/clusterroles";
    assert_eq!(
        beyond,
        [
            format!("bind {group} titan-cell-postgres"),
            format!("bind {group} titan-operator-cell")
        ]
    );
    for role in [
        "titan-operator",
        "titan-operator-cell",
        "titan-cell-postgres",
    ] {
        let rights = rights(object(&objects, "ClusterRole", role));
        for resource in [
            "pods/exec",
            "pods/attach",
            "pods/portforward",
            "serviceaccounts/token",
            "nodes",
        ] {
            assert!(
                !rights
                    .iter()
                    .any(|right| right.contains(&format!("/{resource} "))),
                "{role}: {resource}"
            );
        }
    }
}

#[test]
fn what_is_bound_is_what_is_meant() {
    let objects = render(&[]);
    let bindings: Vec<&Value> = of_kind(&objects, "ClusterRoleBinding").collect();
    assert_eq!(
        bindings.len(),
        1,
        "only the operator's own role holds everywhere"
    );
    let binding = bindings[0];
    assert_eq!(binding["roleRef"]["name"], "titan-operator");
    assert_eq!(
        binding["subjects"],
        serde_json::json!([{"kind": "ServiceAccount", "name": "titan-operator", "namespace": NAMESPACE}])
    );
}

/// The kinds that a cell is made of can be kept as they should be in the cell's namespace, and drift of them noticed
/// from outside, but for Secrets.
#[test]
fn every_kind_of_a_cell_is_covered() {
    let objects = render(&[]);
    let everywhere = object(&objects, "ClusterRole", "titan-operator");
    let in_cell = object(&objects, "ClusterRole", "titan-operator-cell");
    for kind in Kind::ALL {
        let (group, _, _, plural) = kind.names();
        let writer = match kind {
            Kind::Namespace | Kind::RoleBinding => everywhere,
            _ => in_cell,
        };
        for verb in ["get", "list", "create", "patch", "delete"] {
            assert!(allows(writer, verb, group, plural), "{verb} {plural}");
        }
        if kind == Kind::Secret {
            // Watching them would take the right to read all of them.
            continue;
        }
        for verb in ["list", "watch"] {
            assert!(
                allows(everywhere, verb, group, plural),
                "{verb} {plural} everywhere"
            );
        }
        if !matches!(kind, Kind::Namespace | Kind::RoleBinding) {
            for verb in ["create", "update", "patch", "delete", "deletecollection"] {
                assert!(
                    !allows(everywhere, verb, group, plural),
                    "{verb} {plural} everywhere"
                );
            }
        }
    }
}
