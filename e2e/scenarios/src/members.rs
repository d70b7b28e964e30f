//! Members of a PostgreSQL that come, are replaced one after another, and go, under writes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, ensure, is_ready, until};
use crate::load::Load;
use crate::orders::router;

const CELL: &str = "cell-members";
/// The most that a change of members may take.
const LIMIT: Duration = Duration::from_mins(5);

/// One member without a volume becomes three, all three are replaced, and one is left of them, each under writes.
pub async fn come_and_go(cluster: &Cluster) -> Result<Value> {
    let databases = json!({"postgres": {"members": 1, "storage": {"ephemeral": {}}}});
    cluster.bring_up(CELL, 730_001, databases).await?;
    let mut measured = serde_json::Map::new();
    for (name, postgres, keys) in [
        ("oneBecomesThree", json!({"members": 3}), 730_001..730_005),
        // As an upgrade of the operator, or of PostgreSQL, would.
        (
            "threeAreReplaced",
            json!({"resources": {"requests": {"memory": "200Mi"}}}),
            730_005..730_009,
        ),
        ("threeBecomeOne", json!({"members": 1}), 730_009..730_013),
    ] {
        let change = Change { postgres, keys };
        if change.replaces() {
            // Of postgres-0, which led until now, the lead passes to one that a StatefulSet would replace before others.
            pass_on_the_lead(cluster).await?;
        }
        measured.insert(name.to_owned(), change.carry_out(cluster).await?);
    }
    cluster.delete(CELL).await?;
    Ok(Value::Object(measured))
}

/// A change of the cell's PostgreSQL, and who shops meanwhile.
struct Change {
    postgres: Value,
    keys: std::ops::Range<u64>,
}

impl Change {
    fn replaces(&self) -> bool {
        self.postgres.get("resources").is_some()
    }

    async fn carry_out(self, cluster: &Cluster) -> Result<Value> {
        let before = Members::read(cluster, CELL).await?;
        let replaces = self.replaces();
        let wanted = self.postgres.get("members").and_then(Value::as_u64);
        let wanted = wanted.map_or(before.uids.len(), |wanted| wanted as usize);
        let load = Load::start(&router(cluster).await?, self.keys);
        let began = Instant::now();
        let patch = json!({"spec": {"databases": {"postgres": self.postgres}}});
        cluster.patch(CELL, patch).await?;
        let after = until(LIMIT, async || {
            let now = Members::read(cluster, CELL).await?;
            let stays = |(name, uid)| before.uids.get(name) == Some(uid);
            let done = now.uids.len() == wanted
                && now.ready == wanted
                && !(replaces && now.uids.iter().any(stays));
            Ok(done.then_some(now))
        })
        .await?
        .with_context(|| format!("no {wanted} members as asked for after 5 minutes"))?;
        let done = began.elapsed();
        cluster.wait_ready(CELL).await?;
        let ready = began.elapsed();
        let record = load.verify().await?;
        ensure(!replaces || after.newest == before.leader, || {
            format!(
                "{:?} was replaced last, and {:?} led",
                after.newest, before.leader
            )
        })?;
        Ok(json!({
            "ledBefore": before.leader,
            "leaderChanges": after.transitions - before.transitions,
            "membersReadySeconds": done.as_secs_f64(),
            "cellReadySeconds": ready.as_secs_f64(),
            "confirmedOrders": record.confirmed.len(),
            "failedAttempts": record.failed_attempts,
            "longestWriteGapSeconds": record.longest_gap.as_secs_f64(),
        }))
    }
}

/// Kills the leader, and waits until another one leads and all are ready again.
async fn pass_on_the_lead(cluster: &Cluster) -> Result<()> {
    let before = Members::read(cluster, CELL).await?;
    let leader = before.leader.context("nobody leads")?;
    cluster.kill(CELL, &leader).await?;
    until(LIMIT, async || {
        let now = Members::read(cluster, CELL).await?;
        let passed = now.leader.is_some_and(|now| now != leader);
        Ok((passed && now.ready == before.ready && now.uids != before.uids).then_some(()))
    })
    .await?
    .with_context(|| format!("nobody took over from {leader} for 5 minutes"))?;
    cluster.wait_ready(CELL).await
}

/// The members of a cell's PostgreSQL.
pub struct Members {
    uids: HashMap<String, String>,
    /// How many are ready.
    pub ready: usize,
    /// Who leads.
    pub leader: Option<String>,
    /// For whom the leader waits.
    pub standby: Option<String>,
    /// The one whose pod was made last.
    newest: Option<String>,
    /// How often another one began to lead, as Patroni counts it.
    transitions: i64,
}

impl Members {
    /// As they are.
    pub async fn read(cluster: &Cluster, cell: &str) -> Result<Self> {
        let members = ListParams::default().labels("app.kubernetes.io/name=postgres");
        let pods = cluster.pods(cell).list(&members).await?.items;
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), cell);
        let lock = maps.get("postgres-leader").await?;
        let said = lock.annotations();
        let sync = maps.get_opt("postgres-sync").await?;
        let waited_for = |sync: ConfigMap| sync.annotations().get("sync_standby").cloned();
        Ok(Members {
            ready: pods.iter().filter(|pod| is_ready(pod)).count(),
            uids: pods
                .iter()
                .filter_map(|pod| Some((pod.name_any(), pod.uid()?)))
                .collect(),
            leader: said.get("leader").cloned(),
            standby: sync.and_then(waited_for).filter(|name| !name.is_empty()),
            newest: pods
                .iter()
                .max_by_key(|pod| pod.creation_timestamp())
                .map(ResourceExt::name_any),
            transitions: said
                .get("transitions")
                .context("Patroni's lock does not count its leaders")?
                .parse()?,
        })
    }
}
