//! The bridge, the kernel settings and the masquerading that pods need; each is undone by `down`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{BRIDGE, NODE_IP, POD_CIDR};
use crate::{paths, shell};

/// The table with our rules.
pub const TABLE: &str = "titan-cells";

/// Kernel settings: those we set, and those that the kubelet and kube-proxy set, whose old value is to be put back.
const SETTINGS: [(&str, Option<&str>); 8] = [
    ("net/ipv4/ip_forward", Some("1")),
    // Replies between pods on one bridge must pass connection tracking, or ClusterIPs do not work between them.
    ("net/bridge/bridge-nf-call-iptables", Some("1")),
    // A few hundred pods watch a few files each.
    ("fs/inotify/max_user_instances", Some("8192")),
    ("fs/inotify/max_user_watches", Some("524288")),
    ("vm/overcommit_memory", None),
    ("vm/panic_on_oom", None),
    ("kernel/panic", None),
    ("kernel/panic_on_oops", None),
];

fn setting(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

/// Folders outside of ours that the parts make, whatever they are told.
const FOLDERS: [&str; 6] = [
    "/opt/cni",
    "/run/containerd",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
];

/// What the machine was like before.
#[derive(Debug, Serialize, Deserialize)]
struct Before {
    settings: BTreeMap<String, String>,
    /// Which of the folders were not there.
    absent: Vec<PathBuf>,
}

fn before() -> PathBuf {
    paths::state("machine-before.json")
}

/// Makes the network of the node.
pub fn prepare() -> Result<()> {
    remember()?;
    for (name, value) in SETTINGS {
        if let Some(value) = value
            && setting(name).exists()
        {
            raise(name, value)?;
        }
    }
    if !exists(BRIDGE) {
        shell::output(&mut shell::command(&[
            "ip", "link", "add", BRIDGE, "type", "bridge",
        ]))?;
    }
    let prefix = POD_CIDR.rsplit_once('/').map_or("22", |(_, prefix)| prefix);
    shell::output(&mut shell::command(&[
        "ip",
        "addr",
        "replace",
        &format!("{NODE_IP}/{prefix}"),
        "dev",
        BRIDGE,
    ]))?;
    shell::output(&mut shell::command(&["ip", "link", "set", BRIDGE, "up"]))?;
    let rules = paths::state("config/titan.nft");
    shell::write_if_changed(
        &rules,
        &format!(
            "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n  chain postrouting {{\n    \
             type nat hook postrouting priority srcnat; policy accept;\n    \
             ip saddr {POD_CIDR} ip daddr != {POD_CIDR} masquerade\n  }}\n}}\n"
        ),
    )?;
    shell::output(&mut shell::command(&[
        "nft",
        "-f",
        &rules.display().to_string(),
    ]))?;
    Ok(())
}

/// Whether a network interface is there.
pub fn exists(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).exists()
}

/// The nft tables of the cluster that are there.
pub fn tables() -> Vec<String> {
    let list = shell::output(&mut shell::command(&["nft", "list", "tables"])).unwrap_or_default();
    let ours = |table: &&str| {
        let name = table.rsplit(' ').next().unwrap_or_default();
        name == TABLE || name == "kube-proxy"
    };
    list.lines()
        .filter_map(|line| line.strip_prefix("table "))
        .filter(ours)
        .map(str::to_owned)
        .collect()
}

/// Sets a value, unless it is a number that is high enough already.
fn raise(name: &str, value: &str) -> Result<()> {
    let path = setting(name);
    let present = fs::read_to_string(&path).unwrap_or_default();
    let enough = match (present.trim().parse::<u64>(), value.parse::<u64>()) {
        (Ok(present), Ok(wanted)) => present >= wanted,
        _ => present.trim() == value,
    };
    if enough {
        return Ok(());
    }
    fs::write(&path, value).with_context(|| format!("set {} to {value}", path.display()))
}

fn remember() -> Result<()> {
    let path = before();
    if path.exists() {
        return Ok(());
    }
    let settings = SETTINGS
        .iter()
        .filter_map(|(name, _)| {
            Some((
                (*name).to_owned(),
                fs::read_to_string(setting(name)).ok()?.trim().to_owned(),
            ))
        })
        .collect();
    let absent = FOLDERS
        .iter()
        .map(PathBuf::from)
        .filter(|folder| !folder.exists())
        .collect();
    shell::write_if_changed(
        &path,
        &serde_json::to_string_pretty(&Before { settings, absent })?,
    )?;
    Ok(())
}

/// Takes the network away, and puts the machine back to what it was.
pub fn remove() -> Result<()> {
    for table in tables() {
        let mut delete = shell::command(&["nft", "delete", "table"]);
        shell::output(delete.args(table.split(' ')))?;
    }
    if exists(BRIDGE) {
        shell::output(&mut shell::command(&["ip", "link", "delete", BRIDGE]))?;
    }
    let Ok(text) = fs::read_to_string(before()) else {
        return Ok(());
    };
    let before: Before = serde_json::from_str(&text)?;
    for (name, value) in before.settings {
        let path = setting(&name);
        if fs::read_to_string(&path).is_ok_and(|present| present.trim() != value) {
            fs::write(&path, &value)
                .with_context(|| format!("set {} back to {value}", path.display()))?;
        }
    }
    for folder in before.absent.iter().filter(|folder| folder.exists()) {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}
