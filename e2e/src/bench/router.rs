//! `cargo titan bench router`: cell-router next to HAProxy, nginx and Envoy.
//!
//! The measuring itself is a program of its own, `router-bench`, because it has to be built for speed.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::paths;

/// Builds the router and its benchmark for speed, runs it, and returns what it measured. The arguments are those of
/// `router-bench`.
pub fn run(arguments: &[String]) -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(&cargo)
        .args([
            "build",
            "--release",
            "-p",
            "cell-router",
            "-p",
            "router-bench",
        ])
        .current_dir(paths::repository())
        .status()
        .context("cannot start cargo")?;
    if !built.success() {
        bail!("the router or its benchmark does not build");
    }
    let output = Command::new(paths::target().join("release/router-bench"))
        .arg("--markdown")
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start router-bench")?;
    if !output.status.success() {
        bail!("router-bench ended with {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("router-bench did not print its report")
}
