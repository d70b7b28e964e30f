//! The end of a cell.

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::{Value, json};
use std::time::Duration;
use titan_crds::Cell;
use uuid::Uuid;

use crate::cluster::{Cluster, ensure, until};
use crate::orders::router;

/// Under Retain the data of a deleted cell stays, and a cell of the same name and range has it again; under Delete nothing
/// stays.
pub async fn delete_and_retain(cluster: &Cluster) -> Result<Value> {
    let name = "cell-ends";
    let cell: Cell = serde_json::from_value(json!({
        "apiVersion": "titan.dev/v1alpha1", "kind": "Cell",
        "metadata": {"name": name},
        "spec": {
            "fleet": "shop", "profile": "compact", "release": "dev", "reclaimPolicy": "Retain",
            "userRange": {"first": 600_001, "last": 610_000},
        },
    }))?;
    cluster.apply(&cell).await?;
    cluster.wait_ready(name).await?;
    let shop = router(cluster).await?;
    let order = shop
        .place(600_001, Uuid::now_v7())
        .await
        .context("place an order")?;

    let retained = cluster.delete(name).await?;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), name);
    let left = deployments.list(&ListParams::default()).await?.items.len();
    ensure(left == 0, || format!("{left} Deployments are left"))?;
    let sets: Api<StatefulSet> = Api::namespaced(cluster.client.clone(), name);
    let stores = sets.list(&ListParams::default()).await?.items.len();
    ensure(stores == 2, || {
        format!("PostgreSQL and Redis should be kept, {stores} are")
    })?;
    let table = cluster.table("shop").await?;
    ensure(
        table.spec.assignments.iter().all(|row| row.cell != name),
        || "the range is still routed".to_owned(),
    )?;

    cluster.apply(&cell).await?;
    cluster.wait_ready(name).await?;
    let again = until(Duration::from_secs(20), async || {
        Ok(Some(shop.get(600_001, &order.id).await?))
    })
    .await
    .context("the order should be there again")?;
    ensure(again.as_ref() == Some(&order), || {
        format!("another order: {again:?}")
    })?;

    cluster
        .patch(name, json!({"spec": {"reclaimPolicy": "Delete"}}))
        .await?;
    let deleted = cluster.delete(name).await?;
    ensure(!cluster.namespace_exists(name).await?, || {
        "the namespace is left".to_owned()
    })?;
    let topics = topics(cluster, &format!("titan.{name}.")).await?;
    ensure(topics.is_empty(), || format!("topics are left: {topics:?}"))?;

    for example in ["cell-002", "cell-003"] {
        cluster
            .cells()
            .delete(example, &DeleteParams::default())
            .await
            .map(|_| ())
            .or_else(|error| match error {
                kube::Error::Api(status) if status.code == 404 => Ok(()),
                error => Err(error),
            })?;
    }
    Ok(json!({
        "retainSeconds": retained.as_secs_f64(), "deleteSeconds": deleted.as_secs_f64(),
    }))
}

/// The topics whose names start with a prefix.
async fn topics(cluster: &Cluster, prefix: &str) -> Result<Vec<String>> {
    let (bootstrap, prefix) = (cluster.kafka.clone(), prefix.to_owned());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &bootstrap)
            .create()?;
        let metadata = consumer.fetch_metadata(None, Duration::from_secs(10))?;
        Ok(metadata
            .topics()
            .iter()
            .map(|topic| topic.name().to_owned())
            .filter(|name| name.starts_with(&prefix))
            .collect())
    })
    .await?
}
