//! The cluster, as a user's tools see it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use titan_crds::{Cell, RoutingTable};

use crate::Arguments;

/// The namespace of the operator and the router.
pub const SYSTEM: &str = "titan-system";
/// Who we are among those who write to objects.
const MANAGER: &str = "scenarios";

/// How to reach everything.
pub struct Cluster {
    pub client: Client,
    pub kafka: String,
    pub audit_log: Option<PathBuf>,
    pub rest: Duration,
    repository: PathBuf,
}

impl Cluster {
    pub async fn connect(arguments: &Arguments) -> Result<Self> {
        let client = Client::try_default()
            .await
            .context("connect to the cluster; set KUBECONFIG to the path that `cargo titan kubeconfig` prints")?;
        Ok(Cluster {
            client,
            kafka: arguments.kafka.clone(),
            audit_log: arguments.audit_log.clone(),
            rest: Duration::from_secs(arguments.rest_seconds),
            repository: arguments.repository.clone(),
        })
    }

    /// Whether the nodes are this machine: it is so where the apiserver's log is.
    pub const fn is_here(&self) -> bool {
        self.audit_log.is_some()
    }

    pub fn cells(&self) -> Api<Cell> {
        Api::all(self.client.clone())
    }

    pub fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The cells of an example, from the very file that users are given.
    pub fn example_cells(&self, file: &str) -> Result<Vec<Cell>> {
        use serde::de::Deserialize as _;
        let path = self.repository.join("examples").join(file);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_yaml::Deserializer::from_str(&text)
            .map(|document| Ok(Cell::deserialize(document)?))
            .collect()
    }

    /// Makes a cell of its own for a scenario, of 10,000 users and with these databases, and waits until it is Ready.
    pub async fn bring_up(&self, name: &str, first: i64, databases: Value) -> Result<()> {
        let cell: Cell = serde_json::from_value(json!({
            "apiVersion": "titan.dev/v1alpha1", "kind": "Cell",
            "metadata": {"name": name},
            "spec": {
                "fleet": "shop", "profile": "compact", "release": "dev", "reclaimPolicy": "Delete",
                "userRange": {"first": first, "last": first + 9_999},
                "databases": databases,
            },
        }))?;
        self.apply(&cell).await?;
        self.wait_ready(name).await
    }

    /// Applies a cell as `kubectl apply --server-side` would.
    pub async fn apply(&self, cell: &Cell) -> Result<()> {
        let name = cell.name_any();
        let mut body = serde_json::to_value(cell)?;
        body["apiVersion"] = json!("titan.dev/v1alpha1");
        body["kind"] = json!("Cell");
        if let Some(fields) = body.as_object_mut() {
            fields.remove("status");
        }
        self.cells()
            .patch(
                &name,
                &PatchParams::apply(MANAGER).force(),
                &Patch::Apply(body),
            )
            .await
            .with_context(|| format!("apply cell {name}"))?;
        Ok(())
    }

    pub async fn patch(&self, cell: &str, patch: Value) -> Result<()> {
        self.cells()
            .patch(cell, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("patch cell {cell}"))?;
        Ok(())
    }

    /// Waits until a cell's condition has this status, and the reason if one is given, for the generation that is there now.
    pub async fn wait_condition(
        &self,
        cell: &str,
        name: &str,
        status: &str,
        reason: Option<&str>,
        limit: Duration,
    ) -> Result<String> {
        let mut last = "absent".to_owned();
        let found = until(limit, async || {
            let object = self.cells().get(cell).await?;
            let generation = object.metadata.generation;
            let condition = object.status.as_ref().and_then(|status| {
                status
                    .conditions
                    .iter()
                    .find(|condition| condition.type_ == name)
                    .cloned()
            });
            let Some(condition) = condition else {
                return Ok(None);
            };
            last = format!(
                "{} {}: {}",
                condition.status, condition.reason, condition.message
            );
            let fits = condition.status == status
                && reason.is_none_or(|reason| condition.reason == reason)
                && condition.observed_generation == generation;
            Ok(fits.then_some(condition.message))
        })
        .await?;
        found.ok_or_else(|| {
            anyhow!(
                "cell {cell} should have {name}={status} {} within {} s; it says: {last}",
                reason.unwrap_or_default(),
                limit.as_secs()
            )
        })
    }

    pub async fn wait_ready(&self, cell: &str) -> Result<()> {
        self.wait_condition(cell, "Ready", "True", None, Duration::from_mins(4))
            .await?;
        Ok(())
    }

    /// Deletes a cell and waits until it is gone.
    pub async fn delete(&self, cell: &str) -> Result<Duration> {
        let began = Instant::now();
        let deleted = self.cells().delete(cell, &DeleteParams::default()).await;
        if let Err(kube::Error::Api(status)) = &deleted
            && status.code == 404
        {
            return Ok(began.elapsed());
        }
        deleted.with_context(|| format!("delete cell {cell}"))?;
        until(Duration::from_mins(3), async || {
            Ok(self.cells().get_opt(cell).await?.is_none().then_some(()))
        })
        .await?
        .ok_or_else(|| anyhow!("cell {cell} is still there three minutes after its deletion"))?;
        Ok(began.elapsed())
    }

    pub async fn table(&self, fleet: &str) -> Result<RoutingTable> {
        Ok(Api::<RoutingTable>::all(self.client.clone())
            .get(fleet)
            .await?)
    }

    pub async fn namespace_exists(&self, name: &str) -> Result<bool> {
        Ok(Api::<Namespace>::all(self.client.clone())
            .get_opt(name)
            .await?
            .is_some())
    }

    /// The address of a Service's cluster IP.
    pub async fn service_address(&self, namespace: &str, name: &str, port: u16) -> Result<String> {
        let service = Api::<Service>::namespaced(self.client.clone(), namespace)
            .get(name)
            .await?;
        let address = service
            .spec
            .and_then(|spec| spec.cluster_ip)
            .filter(|address| address != "None")
            .with_context(|| format!("Service {namespace}/{name} has no cluster IP"))?;
        Ok(format!("http://{address}:{port}"))
    }

    /// The address of a ready pod of a service.
    pub async fn pod_address(&self, cell: &str, service: &str, port: u16) -> Result<String> {
        let selector =
            format!("app.kubernetes.io/name={service},app.kubernetes.io/component=service");
        let pods = self
            .pods(cell)
            .list(&ListParams::default().labels(&selector))
            .await?;
        let address = pods
            .items
            .iter()
            .filter(|pod| is_ready(pod))
            .find_map(|pod| pod.status.as_ref()?.pod_ip.clone())
            .with_context(|| format!("cell {cell} has no ready pod of {service}"))?;
        Ok(format!("http://{address}:{port}"))
    }

    /// Deletes a pod at once, as a node that dies would.
    pub async fn kill(&self, namespace: &str, pod: &str) -> Result<()> {
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        self.pods(namespace)
            .delete(pod, &parameters)
            .await
            .with_context(|| format!("delete pod {namespace}/{pod}"))?;
        Ok(())
    }

    /// Waits until a pod that was killed is there again, ready, as another one than that of this uid: what is killed may
    /// answer for a moment more.
    pub async fn replaced(&self, namespace: &str, pod: &str, uid: Option<String>) -> Result<()> {
        until(Duration::from_mins(2), async || {
            let again = self.pods(namespace).get(pod).await?;
            Ok((again.uid() != uid && is_ready(&again)).then_some(()))
        })
        .await?
        .with_context(|| format!("pod {pod} did not come back within two minutes"))
    }

    /// What a person would look at first.
    pub async fn explain(&self) -> String {
        let mut text = String::new();
        if let Ok(cells) = self.cells().list(&ListParams::default()).await {
            for cell in cells.items {
                let conditions = cell
                    .status
                    .map(|status| status.conditions)
                    .unwrap_or_default();
                let conditions: Vec<String> = conditions
                    .iter()
                    .map(|one| {
                        format!(
                            "{}={} {}: {}",
                            one.type_, one.status, one.reason, one.message
                        )
                    })
                    .collect();
                text += &format!(
                    "cell {}\n  {}\n",
                    cell.metadata.name.unwrap_or_default(),
                    conditions.join("\n  ")
                );
            }
        }
        let pods = Api::<Pod>::all(self.client.clone());
        if let Ok(pods) = pods.list(&ListParams::default()).await {
            for pod in pods.items.iter().filter(|pod| !is_ready(pod)) {
                let phase = pod
                    .status
                    .as_ref()
                    .and_then(|status| status.phase.clone())
                    .unwrap_or_default();
                if phase != "Succeeded" {
                    text += &format!(
                        "pod {}/{}: {phase}, not ready\n",
                        pod.namespace().unwrap_or_default(),
                        pod.name_any()
                    );
                }
            }
        }
        let events = Api::<Event>::all(self.client.clone());
        if let Ok(events) = events
            .list(&ListParams::default().fields("type=Warning"))
            .await
        {
            for event in events.items.iter().rev().take(15) {
                text += &format!(
                    "event {} {}: {}\n",
                    event.involved_object.name.as_deref().unwrap_or_default(),
                    event.reason.as_deref().unwrap_or_default(),
                    event.message.as_deref().unwrap_or_default()
                );
            }
        }
        text
    }
}

/// Whether a pod answers its readiness probe.
pub fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref())
            .is_some_and(|conditions| {
                conditions
                    .iter()
                    .any(|condition| condition.type_ == "Ready" && condition.status == "True")
            })
}

/// Asks again and again until there is an answer or the time is over.
pub async fn until<T>(
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + limit;
    loop {
        let answer = ask().await;
        if let Ok(Some(answer)) = answer {
            return Ok(Some(answer));
        }
        if Instant::now() >= deadline {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Fails with a sentence unless `condition` holds.
pub fn ensure(condition: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if condition {
        return Ok(());
    }
    bail!(otherwise());
}

/// The path of a file for reading, with its length now: what comes after is new.
pub fn length(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path)
        .with_context(|| format!("look at {}", path.display()))?
        .len())
}
