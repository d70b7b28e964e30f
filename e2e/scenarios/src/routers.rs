//! The router, restarted, and left alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::{Cluster, SYSTEM, ensure, is_ready, until};
use crate::orders::router;
use crate::steady::{Ask, Steady};

const ROUTER: &str = "cell-router";
const OPERATOR: &str = "titan-operator";
/// Where a router keeps its table.
const STATE: &str = "/var/lib/titan";
/// The customer who reads.
const KEY: u64 = 77;

/// An order of the customer, to be read again and again.
pub async fn an_order(cluster: &Cluster, key: u64) -> Result<Ask> {
    let order = router(cluster).await?.place(key, Uuid::now_v7()).await;
    Ok(Ask::Read(order.context("place an order")?.id))
}

fn deployments(cluster: &Cluster) -> Api<Deployment> {
    Api::namespaced(cluster.client.clone(), SYSTEM)
}

/// The pods of a Deployment, those on their way out included.
async fn pods(cluster: &Cluster, deployment: &str) -> Result<Vec<Pod>> {
    let label = format!("app.kubernetes.io/name={deployment}");
    let pods = cluster.pods(SYSTEM);
    Ok(pods
        .list(&ListParams::default().labels(&label))
        .await?
        .items)
}

/// Waits until there are exactly so many pods, all ready, and none of those before.
async fn rolled_out(
    cluster: &Cluster,
    deployment: &str,
    count: usize,
    before: &[String],
) -> Result<()> {
    until(Duration::from_secs(90), async || {
        let pods = pods(cluster, deployment).await?;
        let done = pods.len() == count
            && pods
                .iter()
                .all(|pod| is_ready(pod) && !before.contains(&pod.name_any()));
        Ok(done.then_some(()))
    })
    .await?
    .with_context(|| format!("{deployment} has not {count} ready pods after 90 s"))
}

async fn replicas(cluster: &Cluster, deployment: &str) -> Result<usize> {
    let found = deployments(cluster).get(deployment).await?;
    let replicas = found.spec.and_then(|spec| spec.replicas).unwrap_or(1);
    Ok(usize::try_from(replicas)?)
}

async fn scale(cluster: &Cluster, deployment: &str, count: usize) -> Result<()> {
    let scale = json!({"spec": {"replicas": count}});
    deployments(cluster)
        .patch_scale(deployment, &PatchParams::default(), &Patch::Merge(scale))
        .await
        .with_context(|| format!("scale {deployment} to {count}"))?;
    Ok(())
}

/// A rolling restart of the router under load: no request fails.
pub async fn router_rolls(cluster: &Cluster) -> Result<Value> {
    cluster.wait_ready("cell-001").await?;
    let order = an_order(cluster, KEY).await?;
    let count = replicas(cluster, ROUTER).await?;
    let before = pods(cluster, ROUTER).await?;
    let before: Vec<String> = before.iter().map(ResourceExt::name_any).collect();
    let steady = Steady::start(cluster, 6, KEY, &order).await?;
    let began = Instant::now();
    deployments(cluster).restart(ROUTER).await?;
    rolled_out(cluster, ROUTER, count, &before).await?;
    let seconds = began.elapsed().as_secs_f64();
    steady.more(100).await?;
    let answers = steady.stop().await?;
    answers.all_served("while the router restarted")?;
    Ok(json!({ "pods": count, "restartSeconds": seconds, "traffic": answers.told() }))
}

/// The whole control plane is gone, and a router's table file with it: traffic goes on.
pub async fn router_alone(cluster: &Cluster) -> Result<Value> {
    cluster.wait_ready("cell-001").await?;
    let order = an_order(cluster, KEY).await?;
    let operators = replicas(cluster, OPERATOR).await?;
    let routers = replicas(cluster, ROUTER).await?;
    let steady = Steady::start(cluster, 6, KEY, &order).await?;
    scale(cluster, OPERATOR, 0).await?;
    // Whatever happens, the operator comes back.
    let (alone, victim) = match leave_alone(cluster, &steady).await {
        Ok(found) => found,
        Err(error) => {
            scale(cluster, OPERATOR, operators).await?;
            return Err(error);
        }
    };
    scale(cluster, OPERATOR, operators).await?;
    rolled_out(cluster, OPERATOR, operators, &[]).await?;
    steady.more(100).await?;
    let answers = steady.stop().await?;
    // The pod with the helper in it is replaced, so that nothing is left.
    cluster.kill(SYSTEM, &victim).await?;
    rolled_out(cluster, ROUTER, routers, &[victim]).await?;
    answers.all_served("while the control plane was gone")?;
    Ok(json!({ "secondsAlone": alone.as_secs_f64(), "traffic": answers.told() }))
}

/// Waits until no operator is there, deletes the table file of one router, and lets traffic go on for a while.
async fn leave_alone(cluster: &Cluster, steady: &Steady) -> Result<(Duration, String)> {
    let began = Instant::now();
    until(Duration::from_mins(1), async || {
        Ok(pods(cluster, OPERATOR).await?.is_empty().then_some(()))
    })
    .await?
    .context("the operator's pods are still there after a minute")?;
    let routers = pods(cluster, ROUTER).await?;
    let victim = routers.first().context("there is no router")?.name_any();
    delete_table_file(cluster, &victim).await?;
    steady.more(1000).await?;
    let routers = pods(cluster, ROUTER).await?;
    ensure(routers.iter().all(is_ready), || {
        "a router is not ready any more without the control plane".to_owned()
    })?;
    Ok((began.elapsed(), victim))
}

/// Deletes the table file in a router's pod. The router's image has no shell, so another container does it.
async fn delete_table_file(cluster: &Cluster, pod: &str) -> Result<()> {
    let postgres = cluster.pods("cell-001").get("postgres-0").await?;
    let image = postgres
        .spec
        .and_then(|spec| spec.containers.into_iter().next()?.image)
        .context("PostgreSQL's pod has no image")?;
    let helper = json!({"spec": {"ephemeralContainers": [{
        "name": "deletes-the-table",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", format!("ls {STATE}/*.json && rm {STATE}/*.json")],
        "volumeMounts": [{"name": "state", "mountPath": STATE}],
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
    }]}});
    let pods = cluster.pods(SYSTEM);
    pods.patch_ephemeral_containers(pod, &PatchParams::default(), &Patch::Strategic(helper))
        .await
        .with_context(|| format!("add a container to {pod}"))?;
    let code = until(Duration::from_mins(1), async || {
        let found = pods.get(pod).await?;
        let states = found
            .status
            .and_then(|status| status.ephemeral_container_statuses)
            .unwrap_or_default();
        Ok(states
            .into_iter()
            .find_map(|status| status.state?.terminated)
            .map(|ended| ended.exit_code))
    })
    .await?
    .context("the container that deletes the table did not end within a minute")?;
    if code != 0 {
        bail!("the table file in {pod} was not deleted: exit code {code}");
    }
    Ok(())
}
