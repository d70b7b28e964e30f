//! Cells at rest.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::{Cluster, SYSTEM, ensure, length, until};

const METRICS_PORT: u16 = 9090;
const CELLS: [&str; 3] = ["cell-001", "cell-002", "cell-003"];

/// Three cells at rest cost no API write, counted by the apiserver.
pub async fn cells_at_rest(cluster: &Cluster) -> Result<Value> {
    let Some(log) = &cluster.audit_log else {
        bail!("the apiserver's audit log is needed to count its writes (--audit-log)");
    };
    for cell in cluster.example_cells("two-cells/cells.yaml")? {
        cluster.apply(&cell).await?;
    }
    for cell in CELLS {
        cluster.wait_ready(cell).await?;
    }
    quiet(log).await?;
    let start = length(log)?;
    let before = usage(cluster).await?;
    // Without a reason to look at its cells the operator would not in this time, and would have nothing to write anyway.
    let passes_before = passes(cluster).await?;
    for cell in CELLS {
        let now = Uuid::now_v7().to_string();
        let patch = json!({"metadata": {"annotations": {"scenarios/look-at-it": now}}});
        cluster.patch(cell, patch).await?;
    }
    let looked = until(Duration::from_mins(2), async || {
        let passes = passes(cluster).await?.checked_sub(passes_before).context(
            "a pod of the operator was replaced meanwhile, and its count went with it; run it again",
        )?;
        Ok((passes >= CELLS.len()).then_some(passes))
    });
    let passes = looked
        .await?
        .context("the operator did not look once at each cell within two minutes")?;
    // What a pass writes too much, it writes at its end or in the passes that its own writes cause.
    tokio::time::sleep(cluster.rest).await;
    let after = usage(cluster).await?;

    let Writes {
        leases,
        writes,
        others,
    } = Writes::since(log, start)?;
    ensure(leases > 0, || {
        "the log shows no renewal of the operator's Lease, so it is not the right log".to_owned()
    })?;
    ensure(writes.is_empty(), || format!("writes at rest: {writes:?}"))?;
    Ok(json!({
        "seconds": cluster.rest.as_secs(), "operatorWrites": 0, "leaseRenewals": leases, "writesOfOthers": others,
        "cells": CELLS.len(), "passes": passes,
        "operators": operators(&before, &after),
    }))
}

/// Waits until the operator has written nothing for a while: what was under way when the last cell became ready is over.
async fn quiet(log: &Path) -> Result<()> {
    const SILENCE: Duration = Duration::from_secs(10);
    let deadline = Instant::now() + Duration::from_mins(2);
    loop {
        let start = length(log)?;
        tokio::time::sleep(SILENCE).await;
        let Writes { writes, .. } = Writes::since(log, start)?;
        if writes.is_empty() {
            return Ok(());
        }
        ensure(Instant::now() < deadline, || {
            format!("the operator does not come to rest: {writes:?}")
        })?;
    }
}

/// The writes that an audit log tells of.
struct Writes {
    /// Renewals of the operator's Lease, every second or so: that is how a standby knows that the leader lives.
    leases: usize,
    /// What else the operator wrote, and how often.
    writes: BTreeMap<String, usize>,
    /// How often others wrote.
    others: usize,
}

impl Writes {
    fn since(log: &Path, start: u64) -> Result<Self> {
        let mut file =
            std::fs::File::open(log).with_context(|| format!("open {}", log.display()))?;
        ensure(length(log)? >= start, || {
            "the audit log was rotated meanwhile; run it again".to_owned()
        })?;
        file.seek(SeekFrom::Start(start))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let mut writes = BTreeMap::new();
        let mut others = 0;
        for line in text.lines() {
            let Ok(event) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let verb = event["verb"].as_str().unwrap_or_default();
            if event["stage"] != "ResponseComplete"
                || !["create", "update", "patch", "delete"].contains(&verb)
            {
                continue;
            }
            if event["user"]["username"] != "system:serviceaccount:titan-system:titan-operator" {
                others += 1;
                continue;
            }
            let resource = event["objectRef"]["resource"].as_str().unwrap_or_default();
            *writes.entry(format!("{verb} {resource}")).or_insert(0) += 1;
        }
        let leases = writes.remove("update leases").unwrap_or(0);
        Ok(Writes {
            leases,
            writes,
            others,
        })
    }
}

/// How many passes over cells the replicas of the operator have made.
async fn passes(cluster: &Cluster) -> Result<usize> {
    const SERIES: &str = "titan_reconcile_seconds_count{controller=\"cell\"";
    let label = ListParams::default().labels("app.kubernetes.io/name=titan-operator");
    let mut passes = 0;
    for pod in cluster.pods(SYSTEM).list(&label).await? {
        let path = format!(
            "/api/v1/namespaces/{SYSTEM}/pods/{}:{METRICS_PORT}/proxy/metrics",
            pod.name_any()
        );
        let request = http::Request::get(path).body(Vec::new())?;
        let metrics = cluster.client.request_text(request).await?;
        passes += metrics
            .lines()
            .filter(|line| line.starts_with(SERIES))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok())
            .sum::<usize>();
    }
    Ok(passes)
}

/// What a pod of the operator uses, by the kubelet's account.
struct Usage {
    resident_bytes: u64,
    cpu_seconds: f64,
}

async fn usage(cluster: &Cluster) -> Result<BTreeMap<String, Usage>> {
    let nodes = Api::<Node>::all(cluster.client.clone())
        .list(&ListParams::default())
        .await?;
    let mut found = BTreeMap::new();
    for node in nodes {
        let path = format!("/api/v1/nodes/{}/proxy/stats/summary", node.name_any());
        let request = http::Request::get(path).body(Vec::new())?;
        let summary: Value = cluster.client.request(request).await?;
        for pod in summary["pods"].as_array().into_iter().flatten() {
            let name = pod["podRef"]["name"].as_str().unwrap_or_default();
            if pod["podRef"]["namespace"] != SYSTEM || !name.starts_with("titan-operator-") {
                continue;
            }
            let container = &pod["containers"][0];
            let nanoseconds = container["cpu"]["usageCoreNanoSeconds"].as_u64();
            let usage = Usage {
                resident_bytes: container["memory"]["rssBytes"].as_u64().unwrap_or(0),
                cpu_seconds: nanoseconds.unwrap_or(0) as f64 / 1e9,
            };
            found.insert(name.to_owned(), usage);
        }
    }
    Ok(found)
}

fn operators(before: &BTreeMap<String, Usage>, after: &BTreeMap<String, Usage>) -> Value {
    let pods = after.iter().map(|(name, after)| {
        let at_rest = before
            .get(name)
            .map(|before| after.cpu_seconds - before.cpu_seconds);
        json!({
            "pod": name,
            "residentMiB": after.resident_bytes as f64 / f64::from(1 << 20),
            "cpuSecondsSinceStart": after.cpu_seconds,
            "cpuSecondsAtRest": at_rest,
        })
    });
    pods.collect()
}
