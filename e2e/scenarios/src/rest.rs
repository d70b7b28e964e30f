//! Cells at rest.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cluster::{Cluster, ensure, length};

/// Three cells at rest cost no API write, counted by the apiserver.
pub async fn cells_at_rest(cluster: &Cluster) -> Result<Value> {
    let Some(log) = &cluster.audit_log else {
        bail!("the apiserver's audit log is needed to count its writes (--audit-log)");
    };
    for cell in cluster.example_cells("two-cells/cells.yaml")? {
        cluster.apply(&cell).await?;
    }
    for cell in ["cell-001", "cell-002", "cell-003"] {
        cluster.wait_ready(cell).await?;
    }
    // A reconcile that was under way when the last cell became ready is over long before this.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let start = length(log)?;
    tokio::time::sleep(cluster.rest).await;

    let mut file = std::fs::File::open(log).with_context(|| format!("open {}", log.display()))?;
    ensure(length(log)? >= start, || {
        "the audit log was rotated meanwhile; run it again".to_owned()
    })?;
    file.seek(SeekFrom::Start(start))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let mut writes: BTreeMap<String, usize> = BTreeMap::new();
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
    // The Lease is renewed every second or so: that is how a standby knows that the leader lives.
    let leases = writes.remove("update leases").unwrap_or(0);
    ensure(leases > 0, || {
        "the log shows no renewal of the operator's Lease, so it is not the right log".to_owned()
    })?;
    ensure(writes.is_empty(), || format!("writes at rest: {writes:?}"))?;
    Ok(json!({
        "seconds": cluster.rest.as_secs(), "operatorWrites": 0, "leaseRenewals": leases, "writesOfOthers": others,
    }))
}
