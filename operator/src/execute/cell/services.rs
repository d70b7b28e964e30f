//! How far the services of a cell are, read from what is in its namespace.

use std::collections::BTreeMap;

use kube::api::ListParams;
use kube::core::Request;
use serde::Deserialize;
use serde_json::Value;
use titan_crds::ServiceStatus;
use titan_planner::availability::{Availability, Pods as PodCount, availability};
use titan_planner::cell::{Desired, ValidatedCell};
use titan_planner::diagnosis::{Diagnosis, diagnose, diagnose_deployment};
use titan_planner::object::{CELL_LABEL, Kind, Object};
use titan_planner::status::Step;

use crate::execute::apply::{Lean, LiveObject, LiveObjects, number};
use crate::execute::cell::migration::{Migration, Migrations, migrations_step};
use crate::execute::cell::reconcile::{Progress, SERVICES};
use crate::observe::unseen::Unseen;
use crate::run::context::Context;

/// How the services of a cell and their migrations are, but for what their pods say.
#[derive(Default)]
pub(super) struct Services {
    jobs: Migrations,
    services: Vec<Service>,
    /// What the Deployments say is wrong.
    deployments: Diagnoses,
    /// See [`rollout_step`].
    rolling: Option<Step>,
}

/// A service, and whether it has the pods that it needs.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) status: ServiceStatus,
    pub(super) availability: Availability,
}

impl Services {
    /// As they are in the namespace. What is known of them is what the cell's status said last.
    pub(super) fn read(
        cell: &ValidatedCell,
        desired: &Desired,
        live: &LiveObjects,
        jobs: Migrations,
        known: &[ServiceStatus],
    ) -> Self {
        let deployments = Deployments::read(live);
        Services {
            jobs,
            services: rollup(cell, &deployments, known),
            rolling: rollout_step(cell, desired, live, &deployments),
            deployments: deployments.diagnoses(),
        }
    }

    /// Whether none of their pods is waited for.
    fn are_calm(&self) -> bool {
        let migrated = |(_, state): &(_, _)| *state == Migration::Done;
        self.jobs.values().all(migrated) && !self.services.iter().any(lacks_pods)
    }

    /// Writes down how far they are, and looks at their pods where those are waited for.
    pub(super) async fn tell(
        &self,
        context: &Context,
        cell: &str,
        progress: &mut Progress,
    ) -> Result<(), kube::Error> {
        let calm = self.are_calm();
        let mut pods = if calm {
            Diagnoses::new()
        } else {
            diagnose_pods(context, cell).await?
        };
        progress.steps.migrations = migrations_step(cell, &self.jobs, &pods);
        let mut services = self.services.clone();
        if !calm {
            fill_in(&mut pods, &self.deployments);
            explain(&mut services, &pods);
        }
        let step = services_step(cell, &services, &pods, &context.unseen);
        progress.steps.services = if step.is_done() {
            self.rolling.clone().unwrap_or(step)
        } else {
            step
        };
        progress.services = Some(services.into_iter().map(|it| it.status).collect());
        Ok(())
    }
}

/// Whether a service has fewer pods than it needs.
pub(super) fn lacks_pods(service: &Service) -> bool {
    service.availability == Availability::Lacking
}

/// What is wrong with the pods of a cell, by the name in their `app.kubernetes.io/name` label.
pub(super) type Diagnoses = BTreeMap<String, Diagnosis>;

/// Looks at the pods of a cell. Only called when something is not ready.
pub(super) async fn diagnose_pods(context: &Context, cell: &str) -> Result<Diagnoses, kube::Error> {
    let request = Request::new(format!("/api/v1/namespaces/{cell}/pods"))
        .list(&ListParams::default().labels(&format!("{CELL_LABEL}={cell}")))
        .map_err(kube::Error::BuildRequest)?;
    let pods: Pods = context.client.request(request).await?;
    Ok(pods
        .items
        .into_iter()
        .filter_map(|Lean(pod)| {
            let pod = pod.value();
            let labels = pod.pointer("/metadata/labels")?;
            let name = labels.get("app.kubernetes.io/name")?.as_str()?;
            Some((name.to_owned(), diagnose(&pod)?))
        })
        .collect())
}

#[derive(Deserialize)]
struct Pods {
    items: Vec<Lean>,
}

/// Adds what Deployments say of services of which no pod says what is wrong.
pub(super) fn fill_in(pods: &mut Diagnoses, deployments: &Diagnoses) {
    for (service, diagnosis) in deployments {
        pods.entry(service.clone())
            .or_insert_with(|| diagnosis.clone());
    }
}

/// What the Deployments of a cell say, by name.
pub(super) struct Deployments(BTreeMap<String, Deployed>);

struct Deployed {
    /// The tag of the first container's image.
    release: Option<String>,
    desired: i64,
    ready: i64,
    /// Whether its status speaks of its spec.
    observed: bool,
    older: i64,
    /// What is wrong.
    diagnosis: Option<Diagnosis>,
}

impl Deployments {
    pub(super) fn read(live: &LiveObjects) -> Self {
        let deployments = live.iter().filter(|it| it.kind == Kind::Deployment);
        let said = |it: &LiveObject| (it.name.clone(), Deployed::read(&it.body()));
        Deployments(deployments.map(said).collect())
    }

    /// What they say is wrong.
    pub(super) fn diagnoses(self) -> Diagnoses {
        let wrong = |(name, deployed): (_, Deployed)| Some((name, deployed.diagnosis?));
        self.0.into_iter().filter_map(wrong).collect()
    }

    /// A service; what is passed counts where there is no Deployment that says so. While the Deployment's status speaks of an
    /// older spec, the service is said to be what it was known to be.
    fn service(
        &self,
        name: &str,
        release: &str,
        desired: i64,
        planned: Option<i64>,
        known: &[ServiceStatus],
    ) -> Service {
        let deployed = self.0.get(name);
        let pods = PodCount {
            desired: deployed.map_or(desired, |it| it.desired),
            ready: deployed.map_or(0, |it| it.ready),
            observed: deployed.is_none_or(|it| it.observed),
        };
        let availability = availability(pods, planned);
        let last = known.iter().find(|service| service.name == name);
        let status = match last.filter(|_| availability == Availability::Unobserved) {
            Some(last) => last.clone(),
            None => ServiceStatus {
                name: name.to_owned(),
                release: deployed
                    .and_then(|it| it.release.clone())
                    .unwrap_or_else(|| release.to_owned()),
                desired: clamp(pods.desired),
                ready: clamp(pods.ready),
                message: None,
            },
        };
        Service {
            status,
            availability,
        }
    }
}

impl Deployed {
    fn read(body: &Value) -> Self {
        Deployed {
            release: image_tag(body),
            desired: number(body, "/spec/replicas"),
            ready: ready_pods(body),
            observed: number(body, "/status/observedGeneration")
                >= number(body, "/metadata/generation"),
            older: older_pods(body),
            diagnosis: diagnose_deployment(body),
        }
    }
}

/// Each service, in the plan's order.
pub(super) fn rollup(
    cell: &ValidatedCell,
    deployments: &Deployments,
    known: &[ServiceStatus],
) -> Vec<Service> {
    cell.services
        .iter()
        .map(|service| {
            let fewest = service.autoscaling.as_ref().map(|it| it.min_replicas);
            let planned = service.replicas.or(fewest).map_or(1, i64::from);
            let (name, release) = (&service.name, &service.release);
            deployments.service(name, release, planned, Some(planned), known)
        })
        .collect()
}

/// Each service that there is, whatever is planned: those that the cell's status knows, in its order, and those
/// that have a Deployment.
pub(super) fn rollup_unplanned(known: &[ServiceStatus], deployments: &Deployments) -> Vec<Service> {
    let is_known = |name: &str| known.iter().any(|service| service.name == name);
    let others = deployments.0.keys().filter(|name| !is_known(name));
    known
        .iter()
        .map(|service| {
            let desired = i64::from(service.desired);
            deployments.service(&service.name, &service.release, desired, None, known)
        })
        .chain(others.map(|name| deployments.service(name, "", 1, None, known)))
        .collect()
}

/// Says of each service what is wrong with it.
pub(super) fn explain(services: &mut [Service], diagnoses: &Diagnoses) {
    for Service { status, .. } in services {
        status.message = diagnoses
            .get(&status.name)
            .map(|diagnosis| diagnosis.message.clone());
    }
}

fn clamp(count: i64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The tag of the first container's image.
fn image_tag(deployment: &Value) -> Option<String> {
    let image = deployment
        .pointer("/spec/template/spec/containers/0/image")?
        .as_str()?;
    Some(image.rsplit_once(':')?.1.to_owned())
}

/// Pods of the current template that are ready; 0 while the Deployment's status speaks of an older one. A pod of an older
/// template that is still there is taken to be one of the ready ones: it goes when the new ones are.
fn ready_pods(deployment: &Value) -> i64 {
    let generation = number(deployment, "/metadata/generation");
    if number(deployment, "/status/observedGeneration") < generation {
        return 0;
    }
    let updated = number(deployment, "/status/updatedReplicas");
    let ready = number(deployment, "/status/readyReplicas") - older_pods(deployment);
    ready.clamp(0, updated.max(0))
}

/// Pods of older templates that have not been told to go.
fn older_pods(deployment: &Value) -> i64 {
    number(deployment, "/status/replicas") - number(deployment, "/status/updatedReplicas")
}

/// The services that have all their pods while their rollout is not complete: the Deployment is of another release than the spec,
/// or pods of an older template still serve. And the workloads that were made from another plan when this pass began: the pass
/// applies the plan to them, and what their status says of pods is older than that. `None` when there are none.
fn rollout_step(
    cell: &ValidatedCell,
    desired: &Desired,
    live: &LiveObjects,
    deployments: &Deployments,
) -> Option<Step> {
    let is_rolling = |name: &str| {
        let release = cell
            .services
            .iter()
            .find(|service| service.name == name)
            .map(|service| &service.release);
        deployments
            .0
            .get(name)
            .is_some_and(|deployed| deployed.release.as_ref() != release || deployed.older > 0)
    };
    let rolling: Vec<&str> = desired
        .objects
        .iter()
        .filter(|object| match object.kind {
            Kind::Deployment => is_rolling(&object.name) || is_outdated(object, live),
            Kind::StatefulSet => is_outdated(object, live) || is_replacing_pods(object, live),
            _ => false,
        })
        .map(|object| object.name.as_str())
        .collect();
    (!rolling.is_empty()).then(|| {
        Step::waiting(
            "ReleaseRolling",
            format!("waiting for the new pods of {}", rolling.join(", ")),
        )
    })
}

/// Whether an object was written from another plan when the pass began.
fn is_outdated(planned: &Object, live: &LiveObjects) -> bool {
    live.get(planned.kind, &planned.name)
        .is_some_and(|live| live.desired_hash() != Some(&planned.hash))
}

/// Whether a StatefulSet is replacing pods by ones of another template. With `OnDelete` it is the operator that replaces them, and
/// that reports them as members.
fn is_replacing_pods(planned: &Object, live: &LiveObjects) -> bool {
    let Some(live) = live.get(planned.kind, &planned.name) else {
        return false;
    };
    let body = live.body();
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);
    text("/spec/updateStrategy/type") != Some("OnDelete")
        && (number(&body, "/status/observedGeneration") < number(&body, "/metadata/generation")
            || text("/status/updateRevision") != text("/status/currentRevision"))
}

/// What the services come to.
pub(super) fn services_step(
    cell: &str,
    services: &[Service],
    diagnoses: &Diagnoses,
    unseen: &Unseen,
) -> Step {
    let of = |which: Availability| -> Vec<&ServiceStatus> {
        let all = services.iter().filter(|it| it.availability == which);
        all.map(|it| &it.status).collect()
    };
    let lacking = of(Availability::Lacking);
    let unobserved = of(Availability::Unobserved);
    if unobserved.is_empty() {
        unseen.seen(cell, SERVICES);
    }
    if lacking.is_empty() && unobserved.is_empty() {
        return Step::Done(format!("{} services have their pods", services.len()));
    }
    if lacking.is_empty() {
        let names: Vec<&str> = unobserved.iter().map(|it| &*it.name).collect();
        return Step::unknown(
            "DeploymentsNotObserved",
            format!(
                "the Deployment controller has not looked at the last change of {} yet",
                names.join(", ")
            ),
            unseen.lasted(cell, SERVICES),
        );
    }
    if let Some(diagnosis) = lacking
        .iter()
        .find_map(|service| diagnoses.get(&service.name))
    {
        return step_of(diagnosis);
    }
    let list: Vec<String> = lacking
        .iter()
        .map(|service| format!("{} {}/{}", service.name, service.ready, service.desired))
        .collect();
    Step::waiting(
        "ServicesStarting",
        format!("waiting for {}", list.join(", ")),
    )
}

pub(super) fn step_of(diagnosis: &Diagnosis) -> Step {
    if diagnosis.needs_person {
        Step::failed(diagnosis.reason, &diagnosis.message)
    } else {
        Step::waiting(diagnosis.reason, &diagnosis.message)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_of_the_old_release_is_no_ready_pod_of_the_new_one() {
        let ready = |replicas: i64, updated: i64, ready: i64| {
            ready_pods(&json!({
                "metadata": {"generation": 3},
                "status": {
                    "observedGeneration": 3, "replicas": replicas,
                    "updatedReplicas": updated, "readyReplicas": ready,
                },
            }))
        };
        assert_eq!(ready(1, 1, 1), 1);
        assert_eq!(ready(2, 1, 1), 0, "the new pod crashes, the old one serves");
        assert_eq!(ready(4, 2, 3), 1);
        assert_eq!(ready(1, 0, 1), 0);
        assert_eq!(ready(2, 2, 0), 0);
    }
}
