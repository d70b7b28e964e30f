//! Pods that die, one of them and all of a cell.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::{Cluster, is_ready, until};
use crate::load::Load;
use crate::orders::router;
use crate::routers::an_order;
use crate::steady::{Ask, Steady};

/// One of two pods of a service dies: what carries an idempotency key is sent to the other, and nothing fails.
pub async fn pod_dies(cluster: &Cluster) -> Result<Value> {
    let cell = "cell-001";
    override_orders(cluster, json!({"replicas": 2})).await?;
    let outcome = kill_one(cluster, cell).await;
    override_orders(cluster, Value::Null).await?;
    outcome
}

async fn override_orders(cluster: &Cluster, how: Value) -> Result<()> {
    let patch = json!({"spec": {"overrides": {"order": how}}});
    cluster.patch("cell-001", patch).await?;
    cluster.wait_ready("cell-001").await
}

async fn kill_one(cluster: &Cluster, cell: &str) -> Result<Value> {
    let ready = async || -> Result<Vec<String>> {
        let label = "app.kubernetes.io/name=order,app.kubernetes.io/component=service";
        let pods = cluster.pods(cell);
        let pods = pods.list(&ListParams::default().labels(label)).await?;
        let pods = pods.items.iter().filter(|pod| is_ready(pod));
        Ok(pods.map(ResourceExt::name_any).collect())
    };
    let limit = Duration::from_mins(1);
    let two = until(limit, async || {
        Ok(Some(ready().await?).filter(|pods| pods.len() == 2))
    })
    .await?
    .context("there are no two pods of the order service after a minute")?;
    let load = Load::start(&router(cluster).await?, 300..304);
    let killed = &two[0];
    let began = Instant::now();
    cluster.kill(cell, killed).await?;
    until(limit, async || {
        let now = ready().await?;
        Ok((now.len() == 2 && !now.contains(killed)).then_some(()))
    })
    .await?
    .context("the killed pod was not replaced within a minute")?;
    let replaced = began.elapsed();
    let record = load.verify().await?;
    record.none_failed("one of two pods died")?;
    Ok(json!({
        "replacedSeconds": replaced.as_secs_f64(),
        "confirmedOrders": record.confirmed.len(),
        "failedAttempts": record.failed_attempts,
        "longestGapSeconds": record.longest_gap.as_secs_f64(),
    }))
}

/// Every pod of a cell dies at once: the users of the other cell do not notice, and the cell comes back by itself.
pub async fn cell_dies(cluster: &Cluster) -> Result<Value> {
    let (cell, key) = ("cell-002", 15_000);
    cluster.wait_ready("cell-001").await?;
    let was_there = cluster.cells().get_opt(cell).await?.is_some();
    for example in cluster.example_cells("two-cells/cells.yaml")? {
        if example.name_any() == cell {
            cluster.apply(&example).await?;
        }
    }
    cluster.wait_ready(cell).await?;
    let order = an_order(cluster, 77).await?;
    let others = Steady::start(cluster, 4, 77, &order).await?;
    let own = Steady::start(cluster, 4, key, &Ask::Place).await?;

    let shop = router(cluster).await?;
    let began = Instant::now();
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    let pods = cluster.pods(cell);
    let killed = pods.list(&ListParams::default()).await?.items.len();
    pods.delete_collection(&parameters, &ListParams::default())
        .await
        .with_context(|| format!("delete the pods of {cell}"))?;
    // It has to fail before it can be back.
    until(Duration::from_secs(30), async || {
        Ok(shop.place(key, Uuid::now_v7()).await.is_err().then_some(()))
    })
    .await?
    .with_context(|| format!("{cell} serves on without a pod"))?;
    until(Duration::from_mins(3), async || {
        Ok(shop.place(key, Uuid::now_v7()).await.ok())
    })
    .await?
    .with_context(|| format!("{cell} does not serve three minutes after its pods died"))?;
    let served_again = began.elapsed();
    cluster.wait_ready(cell).await?;
    let ready_again = began.elapsed();
    own.more(20).await?;
    let (own, others) = (own.stop().await?, others.stop().await?);
    if !was_there {
        cluster.delete(cell).await?;
    }
    others.all_served("in the other cell")?;
    Ok(json!({
        "killedPods": killed,
        "servedAgainSeconds": served_again.as_secs_f64(),
        "readyAgainSeconds": ready_again.as_secs_f64(),
        "ownTraffic": own.told(),
        "otherCell": others.told(),
    }))
}
