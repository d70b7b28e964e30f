//! Reports of scenarios and benchmarks: JSON with the facts of the machine, under `target/reports/`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use titan_testbed::cache;

use crate::{paths, shell};

/// Writes `content` as the report `name`, next to what it was measured on.
pub fn write(name: &str, content: &Value) -> Result<PathBuf> {
    let path = paths::target().join("reports").join(format!("{name}.json"));
    let report =
        json!({ "name": name, "result": content, "machine": machine(), "versions": versions() });
    shell::write_if_changed(&path, &serde_json::to_string_pretty(&report)?)?;
    Ok(path)
}

/// What it was measured on.
pub fn machine() -> Value {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default()
            .to_owned();
        line.split_once(':')
            .map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    json!({
        "cpu": field("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
    })
}

fn versions() -> Value {
    let say = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).current_dir(paths::repository());
        shell::output(&mut command)
            .unwrap_or_default()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    json!({
        "commit": say("git", &["rev-parse", "HEAD"]),
        "rustc": say("rustc", &["--version"]),
        "go": say("go", &["version"]),
        "containerd": say("containerd", &["--version"]),
        "kubernetes": cache::KUBERNETES,
        "etcd": cache::ETCD,
        "kafka": cache::KAFKA,
        "postgres": cache::POSTGRES,
    })
}
