//! Databases on volumes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::{Cluster, ensure, until};
use crate::orders::router;

const CELL: &str = "cell-volumes";

/// The only PostgreSQL and the only Redis of a cell die, and find on their volumes what they had; with the cell, the
/// volumes go.
pub async fn volumes_outlive_pods(cluster: &Cluster) -> Result<Value> {
    let storage = json!({"persistent": {"size": "256Mi"}});
    let databases = json!({
        "postgres": {"members": 1, "storage": storage},
        "redis": {"storage": storage},
    });
    cluster.bring_up(CELL, 720_001, databases).await?;
    let shop = router(cluster).await?;
    let key = 720_001;
    let order = until(Duration::from_secs(30), async || {
        Ok(Some(shop.place(key, Uuid::now_v7()).await?))
    })
    .await?
    .context("no order was taken")?;
    shop.put_in_cart(key, Uuid::now_v7(), "teapot-blue", 1)
        .await?;
    let bound = volumes(cluster).await?;
    ensure(bound == 2, || {
        format!("{CELL} has {bound} volumes instead of 2")
    })?;

    let began = Instant::now();
    let mut killed = Vec::new();
    for pod in ["postgres-0", "redis-0"] {
        killed.push((pod, cluster.pods(CELL).get(pod).await?.uid()));
        cluster.kill(CELL, pod).await?;
    }
    for (pod, uid) in killed {
        cluster.replaced(CELL, pod, uid).await?;
    }
    let again = until(Duration::from_mins(2), async || {
        Ok(Some(shop.get(key, &order.id).await?))
    })
    .await?
    .context("the order cannot be read two minutes after the databases died")?;
    let seconds = began.elapsed().as_secs_f64();
    ensure(again == order, || {
        format!("the order was {order:?} and is {again:?}")
    })?;
    let in_cart = until(Duration::from_mins(1), async || {
        Ok(Some(shop.in_cart(key, "teapot-blue").await?))
    })
    .await?;
    ensure(in_cart == Some(1), || {
        format!("the cart holds {in_cart:?} instead of 1")
    })?;
    cluster.wait_ready(CELL).await?;

    cluster.delete(CELL).await?;
    until(Duration::from_mins(1), async || {
        Ok((volumes(cluster).await? == 0).then_some(()))
    })
    .await?
    .context("a volume is left a minute after its cell was deleted")?;
    Ok(json!({ "readAgainSeconds": seconds }))
}

/// How many volumes are bound to claims of the cell.
async fn volumes(cluster: &Cluster) -> Result<usize> {
    let all = Api::<PersistentVolume>::all(cluster.client.clone())
        .list(&ListParams::default())
        .await?;
    let ours = all.items.iter().filter(|volume| {
        volume
            .spec
            .as_ref()
            .and_then(|spec| spec.claim_ref.as_ref()?.namespace.as_deref())
            == Some(CELL)
    });
    Ok(ours.count())
}
