//! Parts that die under writes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::{Cluster, SYSTEM, ensure, until};
use crate::load::{Load, Record};
use crate::orders::router;

fn told(record: &Record) -> Value {
    json!({
        "confirmedOrders": record.confirmed.len(),
        "carts": record.carts.len(),
        "failedAttempts": record.failed_attempts,
        "longestGapSeconds": record.longest_gap.as_secs_f64(),
    })
}

/// The leader of the operator dies: the standby takes over, and traffic does not notice.
pub async fn operator_leader_dies(cluster: &Cluster) -> Result<Value> {
    cluster.wait_ready("cell-001").await?;
    let shop = router(cluster).await?;
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let holder = async || -> Result<Option<String>> {
        let lease = leases.get("titan-operator").await?;
        Ok(lease.spec.and_then(|spec| spec.holder_identity))
    };
    let leader = until(Duration::from_secs(30), &holder)
        .await?
        .context("nobody holds the Lease of the operator")?;

    let load = Load::start(&shop, 200..204);
    let began = Instant::now();
    cluster.kill(SYSTEM, &leader).await?;
    let next = until(Duration::from_secs(30), async || {
        Ok(holder().await?.filter(|next| *next != leader))
    })
    .await?
    .context("no other replica took the Lease within 30 s")?;
    let takeover = began.elapsed();

    // The new leader works: a change is carried out.
    cluster
        .patch(
            "cell-001",
            json!({"spec": {"overrides": {"user": {"replicas": 2}}}}),
        )
        .await?;
    cluster.wait_ready("cell-001").await?;
    cluster
        .patch("cell-001", json!({"spec": {"overrides": {"user": null}}}))
        .await?;
    cluster.wait_ready("cell-001").await?;
    let record = load.verify().await?;
    record.none_failed("the operator's leader died")?;
    Ok(json!({
        "takeoverSeconds": takeover.as_secs_f64(), "from": leader, "to": next, "traffic": told(&record),
    }))
}

/// The leader of a three-member PostgreSQL dies, then a Redis node, both under writes and without volumes: what was confirmed
/// is there.
pub async fn stores_die(cluster: &Cluster) -> Result<Value> {
    let databases = json!({
        "postgres": {"members": 3, "storage": {"ephemeral": {}}},
        "redis": {"topology": "Cluster"},
    });
    cluster.bring_up("cell-faults", 700_001, databases).await?;
    let shop = router(cluster).await?;

    let mut measured = serde_json::Map::new();
    let leader = postgres_leader(cluster).await?;
    let load = Load::start(&shop, 700_001..700_005);
    let (recovered, record) = kill_under(cluster, load, &leader).await?;
    measured.insert("postgresLeader".to_owned(), recovered);
    measured.insert("postgresTraffic".to_owned(), told(&record));

    let load = Load::start(&shop, 700_005..700_009);
    let (recovered, record) = kill_under(cluster, load, "redis-0").await?;
    measured.insert("redisNode".to_owned(), recovered);
    measured.insert("redisTraffic".to_owned(), told(&record));

    cluster.delete("cell-faults").await?;
    Ok(Value::Object(measured))
}

/// The only member of a PostgreSQL without a volume dies: the cell says what was lost, and comes back empty by itself.
pub async fn database_without_volume_dies(cluster: &Cluster) -> Result<Value> {
    let databases = json!({"postgres": {"members": 1, "storage": {"ephemeral": {}}}});
    cluster.bring_up("cell-lost", 710_001, databases).await?;
    let shop = router(cluster).await?;
    let key = 710_001;
    let before = shop.place(key, Uuid::now_v7()).await?;

    let began = Instant::now();
    cluster.kill("cell-lost", "postgres-0").await?;
    let events: Api<Event> = Api::default_namespaced(cluster.client.clone());
    let told = until(Duration::from_mins(2), async || {
        let selector = "involvedObject.name=cell-lost,reason=DataLost";
        let found = events.list(&ListParams::default().fields(selector)).await?;
        Ok(found.items.into_iter().next())
    });
    let told = told.await?.context("no Event told of the loss")?;
    cluster.wait_ready("cell-lost").await?;
    let ready = began.elapsed();
    let again = until(Duration::from_secs(30), async || {
        Ok(Some(shop.place(key, Uuid::now_v7()).await?))
    });
    again.await?.context("no order was taken after the loss")?;
    ensure(shop.get(key, &before.id).await.is_err(), || {
        "an order from before is there: then nothing was lost, and nothing shown".to_owned()
    })?;
    cluster.delete("cell-lost").await?;
    Ok(json!({
        "readyAgainSeconds": ready.as_secs_f64(), "said": told.message,
    }))
}

/// Kills a pod of the cell under load; returns the times, and what the customers remember.
async fn kill_under(cluster: &Cluster, load: Load, pod: &str) -> Result<(Value, Record)> {
    let uid = cluster.pods("cell-faults").get(pod).await?.uid();
    let began = Instant::now();
    cluster.kill("cell-faults", pod).await?;
    cluster.replaced("cell-faults", pod, uid).await?;
    let back = began.elapsed();
    cluster.wait_ready("cell-faults").await?;
    let ready = began.elapsed();
    let record = load.verify().await?;
    let times = json!({
        "pod": pod,
        "podBackSeconds": back.as_secs_f64(),
        "cellReadySeconds": ready.as_secs_f64(),
        "longestWriteGapSeconds": record.longest_gap.as_secs_f64(),
    });
    Ok((times, record))
}

async fn postgres_leader(cluster: &Cluster) -> Result<String> {
    let pods = cluster
        .pods("cell-faults")
        .list(&ListParams::default().labels("app.kubernetes.io/name=postgres,role=master"))
        .await?;
    pods.items
        .first()
        .map(ResourceExt::name_any)
        .context("no pod of PostgreSQL has the label role=master")
}
