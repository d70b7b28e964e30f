//! What all pods of a cell share: hardening, placement, probes, resources.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource,
    EnvVar, EnvVarSource, HTTPGetAction, LocalObjectReference, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, ObjectFieldSelector, PodAffinityTerm,
    PodAntiAffinity, PodDNSConfig, PodDNSConfigOption, PodSecurityContext, PodSpec, Probe,
    ResourceRequirements, SeccompProfile, Secret, SecretKeySelector, SecurityContext,
    ServiceAccount, ServicePort, TopologySpreadConstraint, Volume, VolumeMount,
    WeightedPodAffinityTerm,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use titan_crds::{ResourceList, Resources, UserIds};
use xxhash_rust::xxh3::Xxh3;

use super::Objects;
use crate::cell::model::{Credentials, Invalid, StoreStorage, ValidatedCell};
use crate::cell::names::{
    Component, Labels, PULL_SECRET_KEY, PULL_SECRET_TYPE, cell_labels, meta, part_labels,
    pull_secret, selector, selector_labels, strings,
};
use crate::object::{Kind, Stage};

/// The user that images FROM scratch run as.
pub(super) const SCRATCH_USER: i64 = 65532;
/// The user and group `postgres` in the image of PostgreSQL and Redis.
pub(super) const STORE_USER: (i64, i64) = (100, 102);

pub(super) const ZONE: &str = "topology.kubernetes.io/zone";
pub(super) const HOSTNAME: &str = "kubernetes.io/hostname";

/// A pod spec that passes Pod Security `restricted` and spreads over zones and nodes.
pub(super) fn pod_spec(
    cell: &ValidatedCell,
    name: &str,
    component: Component,
    image_ids: (i64, i64),
    containers: Vec<Container>,
    volumes: Vec<Volume>,
) -> PodSpec {
    let ids = match cell.pods.user_ids {
        UserIds::Image => Some(image_ids),
        // An id outside of the namespace's range would be refused.
        UserIds::Platform => None,
    };
    PodSpec {
        affinity: Some(affinity(cell, name, component)),
        topology_spread_constraints: Some(spread(name, component)),
        automount_service_account_token: Some(false),
        service_account_name: Some(name.to_owned()),
        // A variable a Service in each pod would make a pod of 35 services unreadable, and its names are not ours.
        enable_service_links: Some(false),
        node_selector: (!cell.pods.node_selector.is_empty())
            .then(|| cell.pods.node_selector.clone()),
        tolerations: (!cell.pods.tolerations.is_empty()).then(|| cell.pods.tolerations.clone()),
        priority_class_name: cell.pods.priority_class_name.clone(),
        image_pull_secrets: (!cell.pull_secrets.is_empty()).then(|| {
            let secrets = cell.pull_secrets.iter();
            secrets
                .map(|name| LocalObjectReference {
                    name: pull_secret(name),
                })
                .collect()
        }),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: ids.map(|(user, _)| user),
            run_as_group: ids.map(|(_, group)| group),
            fs_group: ids.map(|(_, group)| group),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        // With the usual 5 dots every full name costs four useless queries first; short names work with any number.
        dns_config: Some(PodDNSConfig {
            options: Some(vec![PodDNSConfigOption {
                name: Some("ndots".to_owned()),
                value: Some("2".to_owned()),
            }]),
            ..PodDNSConfig::default()
        }),
        containers,
        volumes: (!volumes.is_empty()).then_some(volumes),
        ..PodSpec::default()
    }
}

/// Annotations of a pod: the fleet's, and over them the operator's own.
pub(super) fn pod_annotations<const N: usize>(
    cell: &ValidatedCell,
    own: [(&str, &str); N],
) -> Option<Labels> {
    let mut annotations = cell.pods.annotations.clone();
    annotations.extend(strings(own));
    (!annotations.is_empty()).then_some(annotations)
}

/// Copies of the Secrets with which nodes log in to the registry: a pod can only name Secrets of its own namespace. They stay under
/// Retain with the databases, which may have to pull their image again.
pub(super) fn pull_secrets(
    cell: &ValidatedCell,
    credentials: &Credentials,
    objects: &mut Objects,
) -> Result<(), Invalid> {
    for (name, content) in &credentials.pull_secrets {
        objects.add_data(
            Kind::Secret,
            Stage::Foundation,
            &Secret {
                metadata: meta(cell, pull_secret(name), cell_labels(cell)),
                type_: Some(PULL_SECRET_TYPE.to_owned()),
                data: Some(BTreeMap::from([(
                    PULL_SECRET_KEY.to_owned(),
                    ByteString(content.clone().into_bytes()),
                )])),
                ..Secret::default()
            },
        )?;
    }
    Ok(())
}

pub(super) fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities {
            add: None,
            drop: Some(vec!["ALL".to_owned()]),
        }),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            localhost_profile: None,
        }),
        ..SecurityContext::default()
    }
}

fn affinity(cell: &ValidatedCell, name: &str, component: Component) -> Affinity {
    let node_affinity = (!cell.zones.is_empty()).then(|| NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(NodeSelector {
            node_selector_terms: vec![NodeSelectorTerm {
                match_expressions: Some(vec![NodeSelectorRequirement {
                    key: ZONE.to_owned(),
                    operator: "In".to_owned(),
                    values: Some(cell.zones.clone()),
                }]),
                match_fields: None,
            }],
        }),
        preferred_during_scheduling_ignored_during_execution: None,
    });
    Affinity {
        node_affinity,
        pod_affinity: None,
        // Preferred, so that a cell also fits on fewer nodes than it has pods.
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![
                WeightedPodAffinityTerm {
                    weight: 100,
                    pod_affinity_term: PodAffinityTerm {
                        label_selector: Some(selector(selector_labels(name, component))),
                        topology_key: HOSTNAME.to_owned(),
                        ..PodAffinityTerm::default()
                    },
                },
            ]),
            required_during_scheduling_ignored_during_execution: None,
        }),
    }
}

fn spread(name: &str, component: Component) -> Vec<TopologySpreadConstraint> {
    [ZONE, HOSTNAME]
        .into_iter()
        .map(|topology_key| TopologySpreadConstraint {
            max_skew: 1,
            topology_key: topology_key.to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(selector(selector_labels(name, component))),
            ..TopologySpreadConstraint::default()
        })
        .collect()
}

pub(super) fn resources(resources: &Resources) -> ResourceRequirements {
    let Resources { requests, limits } = resources;
    ResourceRequirements {
        claims: None,
        requests: amounts(requests),
        limits: amounts(limits),
    }
}

fn amounts(list: &ResourceList) -> Option<BTreeMap<String, Quantity>> {
    let ResourceList { cpu, memory } = list;
    let amounts: BTreeMap<String, Quantity> = [("cpu", cpu), ("memory", memory)]
        .into_iter()
        .filter_map(|(name, amount)| Some((name.to_owned(), Quantity(amount.clone()?))))
        .collect();
    (!amounts.is_empty()).then_some(amounts)
}

/// A ServiceAccount whose token is not mounted: it is there to have a name of one's own, and no rights.
pub(super) fn service_account(
    cell: &ValidatedCell,
    name: &str,
    component: Component,
) -> ServiceAccount {
    ServiceAccount {
        metadata: meta(cell, name, part_labels(cell, name, component)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// At most one pod at a time may be taken away on purpose.
///
/// For a single replica, too: `maxUnavailable: 1` then lets the pod go, which is what a node drain has to do, while
/// `minAvailable: 1` would block the drain for ever.
pub(super) fn disruption_budget(
    cell: &ValidatedCell,
    name: &str,
    component: Component,
    unhealthy_pods_may_go: bool,
) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: meta(cell, name, part_labels(cell, name, component)),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            min_available: None,
            selector: Some(selector(selector_labels(name, component))),
            unhealthy_pod_eviction_policy: unhealthy_pods_may_go.then(|| "AlwaysAllow".to_owned()),
        }),
        status: None,
    }
}

/// When a probe gives up.
pub(super) struct Patience {
    pub(super) period: i32,
    pub(super) failures: i32,
    pub(super) timeout: i32,
}

pub(super) fn http_probe(path: &str, port: &str, patience: &Patience) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(port.to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        ..probe(patience)
    }
}

pub(super) fn probe(patience: &Patience) -> Probe {
    let Patience {
        period,
        failures,
        timeout,
    } = patience;
    Probe {
        period_seconds: Some(*period),
        failure_threshold: Some(*failures),
        timeout_seconds: Some(*timeout),
        ..Probe::default()
    }
}

pub(super) fn container_port(name: &str, port: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: port,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

pub(super) fn service_port(name: &str, port: i32, app_protocol: Option<&str>) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port,
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        app_protocol: app_protocol.map(str::to_owned),
        node_port: None,
    }
}

/// A variable. The apiserver leaves an empty value out, and so does this.
pub(super) fn variable(name: &str, value: impl Into<String>) -> EnvVar {
    let value = value.into();
    EnvVar {
        name: name.to_owned(),
        value: (!value.is_empty()).then_some(value),
        value_from: None,
    }
}

pub(super) fn secret_variable(name: &str, secret: &str, key: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.to_owned(),
                key: key.to_owned(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
    }
}

pub(super) fn field_variable(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    }
}

pub(super) fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

pub(super) fn empty_dir(name: &str, size_limit: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: None,
            size_limit: size_limit.map(|size| Quantity(size.to_owned())),
        }),
        ..Volume::default()
    }
}

pub(super) fn config_map_volume(name: &str, config_map: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map.to_owned(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The volume of a store that keeps its data in the pod.
pub(super) fn ephemeral_volume(name: &str, storage: &StoreStorage) -> Option<Volume> {
    match storage {
        StoreStorage::Ephemeral { size_limit } => Some(empty_dir(name, size_limit.as_deref())),
        StoreStorage::Persistent { .. } => None,
    }
}

/// A checksum over what a pod reads at its start, so that a change of it replaces the pod.
///
/// It stands where people without rights on Secrets can read it, so it is salted with one that is random.
pub(super) struct Checksum(Xxh3);

impl Checksum {
    pub(super) fn new(salt: &str) -> Self {
        let mut checksum = Checksum(Xxh3::new());
        checksum.add(salt);
        checksum
    }

    pub(super) fn add(&mut self, text: &str) {
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    pub(super) fn finish(&self) -> String {
        format!("{:016x}", self.0.digest())
    }
}
