//! One service: account, Service, Deployment, disruption budget, autoscaler.

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec,
    MetricTarget, ResourceMetricSource,
};
use k8s_openapi::api::core::v1::{Container, EnvVar, PodTemplateSpec, Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use titan_crds::Autoscaling;

use super::Objects;
use super::environment::{Environment, STATE_DIRECTORY};
use super::pod::{
    Patience, SCRATCH_USER, container_port, container_security, disruption_budget, empty_dir,
    http_probe, mount, pod_annotations, pod_spec, resources, service_account, service_port,
    variable,
};
use crate::cell::model::{Invalid, ValidatedCell, ValidatedService};
use crate::cell::names::{
    CONFIG_CHECKSUM, Component, METRICS_PORT, meta, part_labels, selector, selector_labels,
};
use crate::object::{Kind, Stage};

pub(super) fn build(
    cell: &ValidatedCell,
    service: &ValidatedService,
    environment: &Environment,
    objects: &mut Objects,
) -> Result<(), Invalid> {
    let name = &service.name;
    let stage = || Stage::Service(name.clone());
    objects.add(
        Kind::ServiceAccount,
        Stage::Foundation,
        &service_account(cell, name, Component::Service),
    )?;
    objects.add(
        Kind::Service,
        Stage::Foundation,
        &headless(cell, name, service.port),
    )?;
    objects.add(
        Kind::Deployment,
        stage(),
        &deployment(cell, service, environment),
    )?;
    objects.add(
        Kind::PodDisruptionBudget,
        stage(),
        // A pod that does not serve anyway must not hold up the drain of its node.
        &disruption_budget(cell, name, Component::Service, true),
    )?;
    if let Some(autoscaling) = &service.autoscaling {
        objects.add(
            Kind::HorizontalPodAutoscaler,
            stage(),
            &autoscaler(cell, name, autoscaling),
        )?;
    }
    Ok(())
}

/// Headless: gRPC clients balance over the pods themselves, and kube-proxy has no rules to keep for it.
fn headless(cell: &ValidatedCell, name: &str, port: i32) -> Service {
    Service {
        metadata: meta(cell, name, part_labels(cell, name, Component::Service)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            selector: Some(selector_labels(name, Component::Service)),
            ports: Some(vec![
                service_port("grpc", port, Some("kubernetes.io/h2c")),
                service_port("metrics", METRICS_PORT, None),
            ]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn deployment(
    cell: &ValidatedCell,
    service: &ValidatedService,
    environment: &Environment,
) -> Deployment {
    let ValidatedService {
        name,
        // Part of the image's name.
        release: _,
        image,
        port,
        replicas,
        resources: amounts,
        // The order of application and the NetworkPolicies follow from these two.
        depends_on: _,
        stores: _,
        // Has an object of its own.
        autoscaling: _,
        // Part of the variables.
        env: _,
        termination_grace_period_seconds,
    } = service;
    let container = Container {
        name: name.clone(),
        image: Some(image.clone()),
        image_pull_policy: Some(cell.image_pull_policy.clone()),
        env_from: Some(Environment::sources()),
        env: Some(variables(cell, service, environment)),
        ports: Some(vec![
            container_port("grpc", *port),
            container_port("metrics", METRICS_PORT),
        ]),
        startup_probe: Some(http_probe(
            "/healthz",
            "metrics",
            &Patience {
                period: 1,
                failures: 60,
                timeout: 2,
            },
        )),
        liveness_probe: Some(http_probe(
            "/healthz",
            "metrics",
            &Patience {
                period: 10,
                failures: 3,
                timeout: 2,
            },
        )),
        readiness_probe: Some(http_probe(
            "/readyz",
            "metrics",
            &Patience {
                period: 5,
                failures: 2,
                timeout: 2,
            },
        )),
        resources: Some(resources(amounts)),
        security_context: Some(container_security()),
        volume_mounts: Some(vec![mount("state", STATE_DIRECTORY, false)]),
        ..Container::default()
    };
    let mut pod = pod_spec(
        cell,
        name,
        Component::Service,
        (SCRATCH_USER, SCRATCH_USER),
        vec![container],
        vec![empty_dir("state", Some("64Mi"))],
    );
    pod.termination_grace_period_seconds = Some(*termination_grace_period_seconds);
    Deployment {
        metadata: meta(cell, name, part_labels(cell, name, Component::Service)),
        spec: Some(DeploymentSpec {
            replicas: *replicas,
            selector: selector(selector_labels(name, Component::Service)),
            // A new pod first, then an old one goes: a single replica is never without.
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            // Long enough to notice a pod that dies on its first requests.
            min_ready_seconds: Some(3),
            progress_deadline_seconds: Some(180),
            revision_history_limit: Some(2),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(part_labels(cell, name, Component::Service)),
                    annotations: pod_annotations(
                        cell,
                        [(CONFIG_CHECKSUM, &environment.checksum(service))],
                    ),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod),
            },
            paused: None,
        }),
        status: None,
    }
}

/// What a service reads, and how long it has to end: not among what its migrations read, which no other time makes other
/// ones.
fn variables(
    cell: &ValidatedCell,
    service: &ValidatedService,
    environment: &Environment,
) -> Vec<EnvVar> {
    let Drain { delay, timeout } = Drain::within(service.termination_grace_period_seconds);
    let mut variables = environment.variables(cell, service);
    variables.extend([
        variable("TITAN_DRAIN_DELAY_MS", delay.to_string()),
        variable("TITAN_DRAIN_TIMEOUT_MS", timeout.to_string()),
    ]);
    variables.sort_by(|a, b| a.name.cmp(&b.name));
    variables
}

/// How a service spends the time that it gets to end, in milliseconds.
struct Drain {
    /// It serves on while its clients learn that it goes.
    delay: i64,
    /// It finishes requests that are under way.
    timeout: i64,
}

impl Drain {
    /// Fits both into the grace period, and leaves some of it to close what is open before the node kills it.
    fn within(grace_period_seconds: i64) -> Self {
        const DELAY: i64 = 3_000;
        const REST: i64 = 2_000;
        let grace = grace_period_seconds.saturating_mul(1_000);
        let delay = DELAY.min(grace / 4);
        let rest = REST.min(grace / 4);
        Drain {
            delay,
            timeout: grace - delay - rest,
        }
    }
}

fn autoscaler(
    cell: &ValidatedCell,
    name: &str,
    autoscaling: &Autoscaling,
) -> HorizontalPodAutoscaler {
    let Autoscaling {
        min_replicas,
        max_replicas,
        target_cpu_percent,
    } = autoscaling;
    HorizontalPodAutoscaler {
        metadata: meta(cell, name, part_labels(cell, name, Component::Service)),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: "Deployment".to_owned(),
                name: name.to_owned(),
            },
            min_replicas: Some(*min_replicas),
            max_replicas: *max_replicas,
            metrics: Some(vec![MetricSpec {
                type_: "Resource".to_owned(),
                resource: Some(ResourceMetricSource {
                    name: "cpu".to_owned(),
                    target: MetricTarget {
                        type_: "Utilization".to_owned(),
                        average_utilization: Some(*target_cpu_percent),
                        ..MetricTarget::default()
                    },
                }),
                ..MetricSpec::default()
            }]),
            behavior: None,
        }),
        status: None,
    }
}
