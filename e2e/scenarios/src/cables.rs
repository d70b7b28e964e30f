//! Members of a PostgreSQL of which nobody hears any more, under writes: their nodes lost power, or a cable.
//!
//! That is not what happens when a pod is killed: connections to it stay open, and nobody says that they ended. (In one thing it
//! is less than the loss of a node: the kubelet lives, and says after nine seconds that the pod is not ready.)

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::{Cluster, ensure, until};
use crate::load::Load;
use crate::members::Members;
use crate::orders::router;

const CELL: &str = "cell-cables";
/// The platform's promise for the failure of a database.
const PROMISED: Duration = Duration::from_secs(30);

/// The leader is cut off, and later the standby that a leader waits for: orders are taken again within 30 s, and what was
/// confirmed is there, also when the cable is back.
pub async fn members_cut_off(cluster: &Cluster) -> Result<Value> {
    if !cluster.is_here() {
        return Ok(json!({"skipped": "the nodes of this cluster are not on this machine"}));
    }
    let databases = json!({"postgres": {"members": 3, "storage": {"ephemeral": {}}}});
    cluster.bring_up(CELL, 740_001, databases).await?;
    let leader = all_well(cluster).await?.0;
    let leader = cut_off(cluster, &leader, 740_001..740_005).await?;
    let standby = all_well(cluster).await?.1;
    let standby = cut_off(cluster, &standby, 740_005..740_009).await?;
    cluster.delete(CELL).await?;
    Ok(json!({"leader": leader, "standby": standby}))
}

/// Waits until all three members are ready; the leader, and the standby that it waits for.
async fn all_well(cluster: &Cluster) -> Result<(String, String)> {
    until(Duration::from_mins(3), async || {
        let now = Members::read(cluster, CELL).await?;
        Ok(now.leader.zip(now.standby).filter(|_| now.ready == 3))
    })
    .await?
    .context(
        "there are no three members after three minutes of which one leads and one is waited for",
    )
}

async fn cut_off(cluster: &Cluster, member: &str, keys: std::ops::Range<u64>) -> Result<Value> {
    let shop = router(cluster).await?;
    let key = keys.start;
    let pod = cluster.pods(CELL).get(member).await?;
    let address = pod.status.and_then(|status| status.pod_ip);
    let address = address.with_context(|| format!("{member} has no address"))?;
    let load = Load::start(&shop, keys);
    let order = async || Ok(Some(shop.place(key, Uuid::now_v7()).await?));
    let placed = until(Duration::from_secs(30), order).await?;
    placed.context("no order was taken")?;

    let cable = Cable::of(&address)?;
    let began = Instant::now();
    cable.pull()?;
    // What was on its way may still be confirmed.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let lost = || format!("no order was taken for a minute after {member} was cut off");
    let again = until(PROMISED * 2, order).await;
    again.with_context(lost)?.with_context(lost)?;
    let again = began.elapsed();
    cable.put_back()?;
    for _ in 0..20 {
        order()
            .await
            .context("an order was refused once others had been taken again")?;
    }
    all_well(cluster).await?;
    let whole = began.elapsed();
    cluster.wait_ready(CELL).await?;
    let record = load.verify().await?;
    let gap = record.longest_gap.max(again);
    ensure(gap < PROMISED, || {
        format!("{} s without an order", gap.as_secs_f64())
    })?;
    Ok(json!({
        "member": member,
        "longestWriteGapSeconds": gap.as_secs_f64(),
        "threeMembersAgainSeconds": whole.as_secs_f64(),
        "confirmedOrders": record.confirmed.len(),
        "failedAttempts": record.failed_attempts,
    }))
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
