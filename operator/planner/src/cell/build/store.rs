//! What the databases of a cell have in common: pods with an identity, and volumes that outlive them.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PodSpec, PodTemplateSpec,
    VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::pod::{ephemeral_volume, pod_annotations};
use crate::cell::model::{StoreStorage, ValidatedCell};
use crate::cell::names::{
    CONFIG_CHECKSUM, Component, Labels, part_labels, selector, selector_labels,
};

/// The volume that the members keep their data in.
const DATA: &str = "data";

/// A database of a cell.
pub(super) struct Store<'a> {
    pub(super) name: &'static str,
    pub(super) component: Component,
    pub(super) members: i32,
    /// The headless Service that gives each member a name.
    pub(super) members_service: &'static str,
    pub(super) storage: &'a StoreStorage,
    pub(super) pod_labels: Labels,
    pub(super) replacement: Replacement,
    /// Of the configuration: another one rolls the members.
    pub(super) checksum: &'a str,
    /// The pod, but for the volume of its data.
    pub(super) pod: PodSpec,
}

/// Who replaces members that were made from an older template.
pub(super) enum Replacement {
    /// The controller of StatefulSets: from the last to the first.
    InOrder,
    /// The operator, which knows who leads.
    ByTheOperator,
}

impl Replacement {
    const fn strategy(&self) -> &'static str {
        match self {
            Replacement::InOrder => "RollingUpdate",
            Replacement::ByTheOperator => "OnDelete",
        }
    }
}

impl Store<'_> {
    pub(super) fn stateful_set(self, cell: &ValidatedCell) -> StatefulSetSpec {
        let Store {
            name,
            component,
            members,
            members_service,
            storage,
            pod_labels,
            replacement,
            checksum,
            mut pod,
        } = self;
        pod.volumes
            .get_or_insert_default()
            .extend(ephemeral_volume(DATA, storage));
        StatefulSetSpec {
            replicas: Some(members),
            service_name: Some(members_service.to_owned()),
            selector: selector(selector_labels(name, component)),
            // Whichever member is there first leads; after a power cut the leader may be any of them.
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some(replacement.strategy().to_owned()),
                rolling_update: None,
            }),
            persistent_volume_claim_retention_policy: Some(retain()),
            volume_claim_templates: claims(DATA, storage, &part_labels(cell, name, component)),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(pod_labels),
                    annotations: pod_annotations(cell, [(CONFIG_CHECKSUM, checksum)]),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod),
            },
            ..StatefulSetSpec::default()
        }
    }
}

/// Claims outlive their pods and their StatefulSet: only deleting the namespace, or a person, deletes data.
fn retain() -> StatefulSetPersistentVolumeClaimRetentionPolicy {
    StatefulSetPersistentVolumeClaimRetentionPolicy {
        when_deleted: Some("Retain".to_owned()),
        when_scaled: Some("Retain".to_owned()),
    }
}

/// The claim of each member, where the storage is persistent.
fn claims(
    name: &str,
    storage: &StoreStorage,
    labels: &Labels,
) -> Option<Vec<PersistentVolumeClaim>> {
    let StoreStorage::Persistent {
        size,
        storage_class_name,
    } = storage
    else {
        return None;
    };
    Some(vec![PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([(
                    "storage".to_owned(),
                    Quantity(size.clone()),
                )])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }])
}
