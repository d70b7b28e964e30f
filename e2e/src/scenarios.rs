//! Runs the scenarios of `e2e/scenarios` on the local cluster, and writes a report of each.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::{KAFKA_PORT, NODE_IP};
use crate::{paths, report, shell};

/// How the scenarios went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How long each took.
    pub seconds: BTreeMap<String, f64>,
}

/// Runs the scenarios whose name contains `filter`, with these variables set where they are not set already.
pub fn run(filter: &str, variables: &[(&str, &str)]) -> Result<Outcome> {
    let results = paths::target().join("scenarios.json");
    // Results of an earlier run must not be taken for those of this one.
    if results.exists() {
        std::fs::remove_file(&results).context("remove old results")?;
    }
    let mut command = shell::cargo(&["run", "--quiet", "--locked"]);
    command
        .env("KUBECONFIG", paths::kubeconfig())
        .args(["--package", "titan-scenarios", "--"])
        .args(["--filter", filter])
        .arg("--repository")
        .arg(paths::repository())
        .args(["--kafka", &format!("{NODE_IP}:{KAFKA_PORT}")])
        .arg("--audit-log")
        .arg(paths::log("audit"))
        .arg("--results")
        .arg(&results);
    for (name, value) in variables {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    let ran = shell::shown(&mut command);
    // Failed scenarios are in the results; without results it was something else that failed.
    let Ok(text) = std::fs::read(&results) else {
        ran?;
        anyhow::bail!("the scenarios left no results at {}", results.display());
    };
    let results: Vec<Value> = serde_json::from_slice(&text)?;
    let mut outcome = Outcome::default();
    for result in &results {
        let name = result["name"].as_str().unwrap_or("unnamed");
        report::write(&format!("scenario-{name}"), result)?;
        if result["passed"] == true {
            outcome.passed += 1;
        } else {
            outcome.failed += 1;
        }
        let seconds = result["seconds"].as_f64().unwrap_or_default();
        outcome.seconds.insert(format!("scenario {name}"), seconds);
    }
    Ok(outcome)
}
