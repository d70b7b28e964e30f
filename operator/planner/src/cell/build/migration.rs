//! The schema migration of one service, as a Job that runs before the Deployment of a new release.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Objects;
use super::environment::{Environment, STATE_DIRECTORY};
use super::pod::{
    Checksum, SCRATCH_USER, container_security, empty_dir, mount, pod_annotations, pod_spec,
    resources,
};
use crate::cell::model::{Invalid, ValidatedCell, ValidatedService};
use crate::cell::names::{Component, MIGRATE, meta, part_labels};
use crate::object::{Kind, Stage};

/// How long a migration may take, its retries included, in seconds. A pod in which another container never ends, or that a quota
/// does not let in, would otherwise be waited for without end. Migrations only expand a schema of some ten thousand users.
pub const MIGRATION_SECONDS: i64 = 3600;

pub(super) fn build(
    cell: &ValidatedCell,
    service: &ValidatedService,
    environment: &Environment,
    objects: &mut Objects,
) -> Result<(), Invalid> {
    if !service.stores.postgres {
        return Ok(());
    }
    let labels = part_labels(cell, &service.name, Component::Migration);
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels.clone()),
            annotations: pod_annotations(cell, []),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(cell, service, environment)),
    };
    // A Job's template cannot be changed: another image, template or database is another Job, and the name says so.
    // Passwords and the rest of the environment are left out: a change of those needs no new migration.
    let mut identity = Checksum::new(&service.image);
    identity.add(&serde_json::to_string(&template).map_err(|error| Invalid {
        reason: "BuildFailed",
        message: format!(
            "the migration of {} cannot be written as JSON: {error}; this is a defect of the operator",
            service.name
        ),
    })?);
    for part in environment.database() {
        identity.add(part);
    }
    let hash: String = identity.finish().chars().take(8).collect();
    objects.add(
        Kind::Job,
        Stage::Migration(service.name.clone()),
        &Job {
            metadata: meta(cell, format!("{}-migrate-{hash}", service.name), labels),
            spec: Some(JobSpec {
                // Never retried for ever: a migration that fails three times wants a person. Its pods stay for the logs.
                backoff_limit: Some(2),
                active_deadline_seconds: Some(MIGRATION_SECONDS),
                // No ttlSecondsAfterFinished: the finished Job is the memory that this migration was done.
                template,
                ..JobSpec::default()
            }),
            status: None,
        },
    )
}

fn pod(
    cell: &ValidatedCell,
    service: &ValidatedService,
    environment: &Environment,
) -> k8s_openapi::api::core::v1::PodSpec {
    let container = Container {
        name: MIGRATE.to_owned(),
        image: Some(service.image.clone()),
        image_pull_policy: Some(cell.image_pull_policy.clone()),
        args: Some(vec!["migrate".to_owned()]),
        env_from: Some(Environment::sources()),
        env: Some(environment.variables(cell, service)),
        resources: Some(resources(&service.resources)),
        security_context: Some(container_security()),
        volume_mounts: Some(vec![mount("state", STATE_DIRECTORY, false)]),
        ..Container::default()
    };
    let mut pod = pod_spec(
        cell,
        &service.name,
        Component::Migration,
        (SCRATCH_USER, SCRATCH_USER),
        vec![container],
        vec![empty_dir("state", Some("64Mi"))],
    );
    // One pod has nothing to spread from.
    pod.topology_spread_constraints = None;
    if let Some(affinity) = &mut pod.affinity {
        affinity.pod_anti_affinity = None;
    }
    if pod
        .affinity
        .as_ref()
        .is_some_and(|a| a.node_affinity.is_none())
    {
        pod.affinity = None;
    }
    pod.restart_policy = Some("Never".to_owned());
    pod
}
