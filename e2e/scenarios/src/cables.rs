//! Members of a PostgreSQL of which nobody hears any more, under writes: their nodes lost power, or a cable.
//!
//! That is not what happens when a pod is killed. Its kernel says goodbye to nobody, so that connections to it stay open,
//! and the apiserver has it as ready for a while.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::{Cluster, ensure, until};
use crate::load::Load;
use crate::orders::router;

const CELL: &str = "cell-cables";
/// The platform's promise for the failure of a database.
const PROMISED: Duration = Duration::from_secs(30);

/// The leader is cut off, and later the standby that a leader waits for: orders are taken again within 30 s, and what was
/// confirmed is there, also when the cable is back.
pub async fn members_cut_off(cluster: &Cluster) -> Result<Value> {
    if cluster.audit_log.is_none() {
        return Ok(json!({"skipped": "the nodes of this cluster are not on this machine"}));
    }
    let databases = json!({"postgres": {"members": 3, "storage": {"ephemeral": {}}}});
    cluster.bring_up(CELL, 740_001, databases).await?;
    let mut measured = serde_json::Map::new();
    for (what, whose, keys) in [
        ("leader", ("postgres-leader", "leader"), 740_001..740_005),
        (
            "standby",
            ("postgres-sync", "sync_standby"),
            740_005..740_009,
        ),
    ] {
        let member = until(Duration::from_mins(1), async || said(cluster, whose).await)
            .await?
            .with_context(|| format!("Patroni names no {what}"))?;
        measured.insert(what.to_owned(), cut_off(cluster, &member, keys).await?);
    }
    cluster.delete(CELL).await?;
    Ok(Value::Object(measured))
}

async fn cut_off(cluster: &Cluster, member: &str, keys: std::ops::Range<u64>) -> Result<Value> {
    let shop = router(cluster).await?;
    let key = keys.start;
    let pod = cluster.pods(CELL).get(member).await?;
    let address = pod.status.and_then(|status| status.pod_ip);
    let address = address.with_context(|| format!("{member} has no address"))?;
    let load = Load::start(&shop, keys);
    let first = Duration::from_secs(10);
    until(first, async || {
        Ok(Some(shop.place(key, Uuid::now_v7()).await?))
    })
    .await?
    .context("no order was taken")?;

    let cable = Cable::of(&address)?;
    let began = Instant::now();
    cable.pull()?;
    // What was on its way may still be confirmed.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let again = until(PROMISED * 2, async || {
        Ok(Some(shop.place(key, Uuid::now_v7()).await?))
    });
    let again = again.await?.map(|_| began.elapsed());
    cable.put_back()?;
    again.with_context(|| format!("no order was taken for a minute after {member} was cut off"))?;
    cluster.wait_ready(CELL).await?;
    let ready = began.elapsed();
    let record = load.verify().await?;
    ensure(record.longest_gap < PROMISED, || {
        format!("{} s without an order", record.longest_gap.as_secs_f64())
    })?;
    Ok(json!({
        "member": member,
        "longestWriteGapSeconds": record.longest_gap.as_secs_f64(),
        "readyAgainSeconds": ready.as_secs_f64(),
        "confirmedOrders": record.confirmed.len(),
        "failedAttempts": record.failed_attempts,
    }))
}

/// What Patroni says in an annotation of one of its ConfigMaps.
async fn said(cluster: &Cluster, (map, annotation): (&str, &str)) -> Result<Option<String>> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), CELL);
    let map = maps.get(map).await?;
    let said = map.metadata.annotations.unwrap_or_default();
    Ok(said
        .get(annotation)
        .filter(|name| !name.is_empty())
        .cloned())
}

/// The end of a pod's network that is on its node. It is put back when this is dropped.
struct Cable {
    device: String,
}

impl Cable {
    /// That of the pod with this address, by what the node's bridge has learned.
    fn of(address: &str) -> Result<Self> {
        let neighbours = ip("ip", &["-j", "neigh", "show", address])?;
        let hardware = neighbours[0]["lladdr"]
            .as_str()
            .with_context(|| format!("this node has not heard of {address}"))?;
        let learned = ip("bridge", &["-j", "fdb", "show"])?;
        let ports = learned.as_array().into_iter().flatten();
        let device = ports
            .filter(|port| port["mac"] == hardware)
            .find_map(|port| port["ifname"].as_str())
            .with_context(|| format!("no bridge of this node knows {hardware} of {address}"))?;
        Ok(Cable {
            device: device.to_owned(),
        })
    }

    fn pull(&self) -> Result<()> {
        ip("ip", &["link", "set", &self.device, "down"]).map(drop)
    }

    fn put_back(&self) -> Result<()> {
        ip("ip", &["link", "set", &self.device, "up"]).map(drop)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            eprintln!("{error:#}");
        }
    }
}

/// Runs one of the commands of iproute2; what it says, if that is JSON.
fn ip(program: &str, arguments: &[&str]) -> Result<Value> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), said.trim());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
}
