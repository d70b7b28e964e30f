//! What several resources share.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity;

/// The condition types that the operator writes, and no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// The resource does what its spec says.
    Ready,
    /// The operator is working towards the spec.
    Reconciling,
    /// The operator cannot go on without a person.
    Stalled,
    /// `spec.paused` holds everything but status.
    Paused,
    /// The routing table holds the range of the cell.
    RangeAssigned,
    /// The databases of the cell answer, and every service has its schema and role.
    DatabasesReady,
    /// Every topic of the profile exists in Kafka.
    TopicsReady,
    /// The schema migrations of the release are done.
    Migrated,
    /// Every service has its pods.
    ServicesAvailable,
}

impl ConditionType {
    /// The name as it stands in `status.conditions[].type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::Paused => "Paused",
            Self::RangeAssigned => "RangeAssigned",
            Self::DatabasesReady => "DatabasesReady",
            Self::TopicsReady => "TopicsReady",
            Self::Migrated => "Migrated",
            Self::ServicesAvailable => "ServicesAvailable",
        }
    }
}

/// CPU and memory of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside for the container.
    #[serde(default, skip_serializing_if = "ResourceList::is_empty")]
    pub requests: ResourceList,
    /// What the container may use at most.
    #[serde(default, skip_serializing_if = "ResourceList::is_empty")]
    pub limits: ResourceList,
}

/// Amounts of CPU and memory, as Kubernetes quantities: what a Pod accepts, numbers included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceList {
    /// CPU, for example `250m` or `2`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "quantity::optional"
    )]
    #[schemars(schema_with = "quantity::schema")]
    pub cpu: Option<String>,
    /// Memory, for example `256Mi` or `2Gi`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "quantity::optional"
    )]
    #[schemars(schema_with = "quantity::schema")]
    pub memory: Option<String>,
}

impl ResourceList {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cpu.is_none() && self.memory.is_none()
    }
}

/// Gives a generated definition what the derive cannot express: `status.observedGeneration` defaults to -1, so that
/// a resource the operator has not looked at yet is never read as up to date (the kstatus convention), and
/// conditions merge by type.
pub(crate) fn finish(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let status = crd
        .spec
        .versions
        .iter_mut()
        .filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut())
        .filter_map(|schema| schema.properties.as_mut()?.get_mut("status"));
    for status in status {
        status.default = Some(JSON(serde_json::json!({ "observedGeneration": -1 })));
        if let Some(conditions) = status
            .properties
            .as_mut()
            .and_then(|properties| properties.get_mut("conditions"))
        {
            *conditions = JSONSchemaProps {
                x_kubernetes_list_type: Some("map".to_owned()),
                x_kubernetes_list_map_keys: Some(vec!["type".to_owned()]),
                ..conditions.clone()
            };
        }
    }
    crd
}
