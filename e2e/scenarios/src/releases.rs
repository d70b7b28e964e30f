//! A cell that goes to another release, and back.

use std::time::Instant;

use anyhow::{Context, Result};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::cluster::{Cluster, ensure, is_ready};
use crate::routers::an_order;
use crate::steady::{Ask, Steady};

const CELL: &str = "cell-001";

/// A cell is upgraded and rolled back under reads and writes: no request fails, and what runs is what the Cell names.
pub async fn release_and_back(cluster: &Cluster) -> Result<Value> {
    cluster.wait_ready(CELL).await?;
    let order = an_order(cluster, 77).await?;
    let reads = Steady::start(cluster, 2, 77, &order).await?;
    let writes = Steady::start(cluster, 2, 78, &Ask::Place).await?;
    let moved = there_and_back(cluster).await;
    reads.more(20).await?;
    writes.more(20).await?;
    let (reads, writes) = (reads.stop().await?, writes.stop().await?);
    let (up, back) = moved?;
    reads.all_served("while the release changed")?;
    writes.all_served("while the release changed")?;
    Ok(json!({
        "upgradeSeconds": up, "rollbackSeconds": back,
        "reads": reads.told(), "writes": writes.told(),
    }))
}

async fn there_and_back(cluster: &Cluster) -> Result<(f64, f64)> {
    Ok((
        release(cluster, "dev-next").await?,
        release(cluster, "dev").await?,
    ))
}

/// Names the release, waits until the cell is Ready with it, and returns the seconds that took.
async fn release(cluster: &Cluster, release: &str) -> Result<f64> {
    let began = Instant::now();
    cluster
        .patch(CELL, json!({"spec": {"release": release}}))
        .await?;
    cluster.wait_ready(CELL).await?;
    let seconds = began.elapsed().as_secs_f64();
    let label = ListParams::default().labels("app.kubernetes.io/component=service");
    let pods = cluster.pods(CELL).list(&label).await?;
    let ready: Vec<_> = pods.items.iter().filter(|pod| is_ready(pod)).collect();
    ensure(!ready.is_empty(), || {
        format!("{CELL} is Ready and no pod of a service is")
    })?;
    for pod in ready {
        let image = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.containers.first()?.image.clone())
            .with_context(|| format!("pod {} has no image", pod.name_any()))?;
        ensure(image.ends_with(&format!(":{release}")), || {
            format!(
                "{CELL} is Ready at {release} and pod {} runs {image}",
                pod.name_any()
            )
        })?;
    }
    Ok(seconds)
}
