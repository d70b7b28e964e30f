//! What the operator may do, and what pods may.

use anyhow::{Context, Result};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, SYSTEM, ensure};

const ACCOUNT: &str = "system:serviceaccount:titan-system:titan-operator";

/// The operator holds no wildcard and no cluster-wide Secrets; every pod of ours passes Pod Security `restricted`.
pub async fn least_rights(cluster: &Cluster) -> Result<Value> {
    let rules = cluster_wide_rules(cluster).await?;
    for rule in &rules {
        let text = rule.to_string();
        ensure(!text.contains("\"*\""), || format!("a wildcard: {text}"))?;
        ensure(!text.contains("\"secrets\""), || {
            format!("cluster-wide Secrets: {text}")
        })?;
    }
    // The apiserver is asked as well, about what matters most.
    for (namespace, verb, resource, expected) in [
        (None, "list", "secrets", false),
        (Some("kube-system"), "get", "secrets", false),
        (Some("default"), "create", "pods", false),
        (Some("cell-001"), "list", "secrets", true),
        (None, "list", "configmaps", true),
    ] {
        let allowed = may(cluster, namespace, verb, resource).await?;
        ensure(allowed == expected, || {
            format!(
                "may the operator {verb} {resource} in {namespace:?}? {allowed}, and it should be {expected}"
            )
        })?;
    }

    let namespaces = Api::<Namespace>::all(cluster.client.clone())
        .list(&ListParams::default().labels("app.kubernetes.io/managed-by=titan-operator"))
        .await?;
    for namespace in &namespaces.items {
        let enforced = namespace.labels().get("pod-security.kubernetes.io/enforce");
        ensure(enforced.is_some_and(|level| level == "restricted"), || {
            format!(
                "namespace {} does not enforce Pod Security",
                namespace.name_any()
            )
        })?;
    }
    let mut pods = 0;
    for namespace in namespaces
        .items
        .iter()
        .map(ResourceExt::name_any)
        .chain([SYSTEM.to_owned()])
    {
        for pod in cluster
            .pods(&namespace)
            .list(&ListParams::default())
            .await?
            .items
        {
            ensure(is_restricted(&pod), || {
                format!("pod {namespace}/{} is not restricted", pod.name_any())
            })?;
            pods += 1;
        }
    }
    ensure(pods > 5, || format!("only {pods} pods were looked at"))?;
    Ok(json!({ "clusterWideRules": rules.len(), "podsChecked": pods }))
}

/// The rules of all ClusterRoles that are bound to the operator for the whole cluster.
async fn cluster_wide_rules(cluster: &Cluster) -> Result<Vec<Value>> {
    let bindings = Api::<ClusterRoleBinding>::all(cluster.client.clone())
        .list(&ListParams::default())
        .await?;
    let roles: Api<ClusterRole> = Api::all(cluster.client.clone());
    let mut rules = Vec::new();
    for binding in bindings.items {
        let bound = binding.subjects.iter().flatten().any(|subject| {
            subject.name == "titan-operator" && subject.namespace.as_deref() == Some(SYSTEM)
        });
        if bound {
            let role = roles.get(&binding.role_ref.name).await?;
            for rule in role.rules.unwrap_or_default() {
                rules.push(serde_json::to_value(rule)?);
            }
        }
    }
    ensure(!rules.is_empty(), || {
        "no ClusterRoleBinding of the operator was found".to_owned()
    })?;
    Ok(rules)
}

async fn may(
    cluster: &Cluster,
    namespace: Option<&str>,
    verb: &str,
    resource: &str,
) -> Result<bool> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(ACCOUNT.to_owned()),
            groups: Some(vec![
                "system:serviceaccounts".to_owned(),
                "system:serviceaccounts:titan-system".to_owned(),
                "system:authenticated".to_owned(),
            ]),
            resource_attributes: Some(ResourceAttributes {
                namespace: namespace.map(str::to_owned),
                verb: Some(verb.to_owned()),
                resource: Some(resource.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = Api::<SubjectAccessReview>::all(cluster.client.clone())
        .create(&PostParams::default(), &review)
        .await
        .context("ask for the operator's rights")?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// The parts of Pod Security `restricted` that a pod has to ask for itself.
fn is_restricted(pod: &Pod) -> bool {
    let Ok(spec) = serde_json::to_value(&pod.spec) else {
        return false;
    };
    let pod_context = &spec["securityContext"];
    let containers = ["initContainers", "containers"]
        .iter()
        .filter_map(|list| spec[*list].as_array())
        .flatten();
    let mut sound = spec["hostNetwork"].as_bool() != Some(true)
        && pod_context["seccompProfile"]["type"] == "RuntimeDefault";
    for container in containers {
        let context = &container["securityContext"];
        sound &= context["allowPrivilegeEscalation"] == false
            && context["capabilities"]["drop"] == json!(["ALL"])
            && (context["runAsNonRoot"] == true || pod_context["runAsNonRoot"] == true);
    }
    sound
}
