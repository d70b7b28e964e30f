//! Bad input, and what a user is told.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use titan_crds::Cell;

use crate::cluster::{Cluster, ensure};

const SOON: Duration = Duration::from_mins(2);
const PODS: Duration = Duration::from_mins(3);

/// Each mistake is named where the user looks, and mending it mends the cell.
pub async fn bad_input(cluster: &Cluster) -> Result<Value> {
    let mut named = Vec::new();
    named.push(reversed_range(cluster).await?);
    named.push(overlap(cluster).await?);
    named.push(unknown_profile(cluster).await?);
    named.push(no_storage(cluster).await?);
    named.extend(what_pods_find_out(cluster).await?);
    Ok(json!({ "named": named }))
}

fn cell(name: &str, first: i64, last: i64) -> Result<Cell> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "titan.dev/v1alpha1", "kind": "Cell",
        "metadata": {"name": name},
        "spec": {
            "fleet": "shop", "profile": "compact", "release": "dev", "reclaimPolicy": "Delete",
            "userRange": {"first": first, "last": last},
        },
    }))?)
}

async fn reversed_range(cluster: &Cluster) -> Result<String> {
    let refused = cluster.apply(&cell("cell-reversed", 900, 100)?).await;
    let Err(error) = refused else {
        bail!("a reversed range was accepted");
    };
    let text = format!("{error:#}");
    ensure(
        text.contains("userRange") && text.contains("first must not be larger than last"),
        || format!("the apiserver's answer should say what is wrong: {text}"),
    )?;
    Ok("reversed range".to_owned())
}

async fn overlap(cluster: &Cluster) -> Result<String> {
    cluster.apply(&cell("cell-overlaps", 9_000, 9_999)?).await?;
    let message = cluster
        .wait_condition(
            "cell-overlaps",
            "Stalled",
            "True",
            Some("RangeOverlaps"),
            SOON,
        )
        .await?;
    ensure(message.contains("cell-001"), || {
        format!("who holds the range? {message}")
    })?;
    ensure(!cluster.namespace_exists("cell-overlaps").await?, || {
        "a refused cell should have no namespace".to_owned()
    })?;
    cluster.wait_ready("cell-001").await?;
    cluster.delete("cell-overlaps").await?;
    Ok("overlap".to_owned())
}

async fn unknown_profile(cluster: &Cluster) -> Result<String> {
    let mut unknown = cell("cell-profile", 800_000, 800_999)?;
    unknown.spec.profile = "nowhere".to_owned();
    cluster.apply(&unknown).await?;
    let message = cluster
        .wait_condition(
            "cell-profile",
            "Stalled",
            "True",
            Some("ProfileNotFound"),
            SOON,
        )
        .await?;
    ensure(message.contains("nowhere"), || {
        format!("which profile? {message}")
    })?;
    cluster.delete("cell-profile").await?;
    Ok("unknown profile".to_owned())
}

/// PostgreSQL that does not come up, for its volume is of a class that the cluster does not have.
async fn no_storage(cluster: &Cluster) -> Result<String> {
    let mut homeless = cell("cell-homeless", 810_000, 810_999)?;
    let persistent = json!({"size": "1Gi", "storageClassName": "no-such-class"});
    homeless.spec.databases =
        serde_json::from_value(json!({"postgres": {"storage": {"persistent": persistent}}}))?;
    cluster.apply(&homeless).await?;
    let message = cluster
        .wait_condition(
            "cell-homeless",
            "Stalled",
            "True",
            Some("Unschedulable"),
            SOON,
        )
        .await?;
    ensure(
        message.contains("postgres-0") && message.contains("StorageClass"),
        || format!("which pod lacks what? {message}"),
    )?;
    cluster.delete("cell-homeless").await?;
    Ok("PostgreSQL that does not come up".to_owned())
}

/// Mistakes that show only when pods are made: a tag that does not exist, a release that crashes, more memory than any node
/// has. The old release serves on meanwhile.
async fn what_pods_find_out(cluster: &Cluster) -> Result<Vec<String>> {
    let shop = crate::orders::router(cluster).await?;
    cluster
        .patch("cell-001", json!({"spec": {"release": "no-such-release"}}))
        .await?;
    let message = cluster
        .wait_condition("cell-001", "Stalled", "True", Some("ImagePullFailed"), PODS)
        .await?;
    ensure(message.contains("no-such-release"), || {
        format!("which image? {message}")
    })?;
    shop.place(77, uuid::Uuid::now_v7())
        .await
        .context("the old release should serve while the new one cannot start")?;
    cluster
        .patch("cell-001", json!({"spec": {"release": "dev"}}))
        .await?;
    cluster.wait_ready("cell-001").await?;

    let crashing = json!({"spec": {"overrides": {"cart": {"release": "crashing"}}}});
    cluster.patch("cell-001", crashing).await?;
    let message = cluster
        .wait_condition("cell-001", "Stalled", "True", Some("ServiceCrashing"), PODS)
        .await?;
    ensure(
        message.contains("cart") && message.contains("exit code 3"),
        || format!("what crashes, and how? {message}"),
    )?;
    shop.put_in_cart(78, uuid::Uuid::now_v7(), "teapot-blue", 1)
        .await
        .context("the old release should serve while the new one crashes")?;
    cluster
        .patch("cell-001", json!({"spec": {"overrides": {"cart": null}}}))
        .await?;
    cluster.wait_ready("cell-001").await?;

    let huge = json!({"spec": {"overrides": {"cart": {"resources": {
        "requests": {"memory": "4Ti"}, "limits": {"memory": "4Ti"},
    }}}}});
    cluster.patch("cell-001", huge).await?;
    let message = cluster
        .wait_condition("cell-001", "Stalled", "True", None, PODS)
        .await?;
    ensure(message.contains("cart"), || {
        format!("which service? {message}")
    })?;
    cluster
        .patch("cell-001", json!({"spec": {"overrides": {"cart": null}}}))
        .await?;
    cluster.wait_ready("cell-001").await?;
    Ok(vec![
        "unknown image tag".to_owned(),
        "a release that crashes".to_owned(),
        "impossible resources".to_owned(),
    ])
}
