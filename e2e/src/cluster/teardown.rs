//! Taking a cluster down, and looking for what is left of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use titan_testbed::cache;

use super::containerd::{ctr, socket};
use super::part::{Record, start_ticks};
use super::{BRIDGE, PARTS, network};
use crate::progress::Progress;
use crate::{paths, shell};

/// Stops and removes everything but the cache; returns what could not be removed.
pub fn down(progress: &Progress) -> Result<Vec<String>> {
    if !Uid::effective().is_root() {
        bail!("not root: only root can stop the cluster; run this with sudo or as root");
    }
    progress.step("node agents", |_| {
        stop(&["kubelet", "kube-proxy", "local-path-provisioner", "kwok"])
    })?;
    progress.step("pods", |step| {
        let pids = pod_processes();
        step.say(format!("{} processes", pids.len()));
        end(&pids);
        forget_containers();
        Ok(())
    })?;
    progress.step("control plane, DNS and Kafka", |_| {
        let rest: Vec<&str> = PARTS.iter().rev().copied().collect();
        stop(&rest)
    })?;
    progress.step("mounts, network and state", |_| {
        unmount();
        remove_pod_links();
        network::remove()?;
        remove_cgroups();
        for dir in [paths::RUN, paths::STATE] {
            if mounts().is_empty() && Path::new(dir).exists() {
                fs::remove_dir_all(dir).with_context(|| format!("remove {dir}"))?;
            }
        }
        Ok(())
    })?;
    Ok(leftovers())
}

fn stop(names: &[&str]) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = names
            .iter()
            .filter_map(|name| Record::load(name))
            .map(|record| {
                // containerd keeps images for the next cluster; whatever the others keep goes away with this one.
                let keeps = record.name == "containerd";
                scope.spawn(move || if keeps { record.stop() } else { record.kill() })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })
}

/// What is left of a cluster on this machine.
pub fn leftovers() -> Vec<String> {
    let mut left = Vec::new();
    left.extend(
        PARTS
            .iter()
            .filter_map(|name| Record::load(name))
            .filter(Record::alive)
            .map(|record| format!("process {} (pid {})", record.name, record.pid)),
    );
    left.extend(
        pod_processes()
            .into_iter()
            .map(|pid| format!("process of a pod, pid {pid}")),
    );
    left.extend(
        mounts()
            .into_iter()
            .map(|mount| format!("mount {}", mount.display())),
    );
    left.extend(
        network::tables()
            .into_iter()
            .map(|table| format!("nft table {table}")),
    );
    if network::exists(BRIDGE) {
        left.push(format!("network interface {BRIDGE}"));
    }
    left.extend(
        [paths::RUN, paths::STATE]
            .iter()
            .filter(|dir| Path::new(dir).exists())
            .map(|dir| format!("folder {dir}")),
    );
    left
}

/// The shims of our containerd, and every process below them, the deepest first.
fn pod_processes() -> Vec<i32> {
    let socket = socket().display().to_string();
    let mut parents: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let mut shims = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Some(parent) = parent(pid) else { continue };
        parents.entry(parent).or_default().push(pid);
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> = command
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        if words
            .first()
            .is_some_and(|program| program.contains("containerd-shim"))
            && words.contains(&socket)
        {
            shims.push(pid);
        }
    }
    let mut found = shims;
    let mut at = 0;
    while let Some(pid) = found.get(at) {
        found.extend(parents.get(pid).into_iter().flatten());
        at += 1;
    }
    found.reverse();
    found
}

fn parent(pid: i32) -> Option<i32> {
    start_ticks(pid)?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Ends processes, and waits until they are gone.
fn end(pids: &[i32]) {
    let born: Vec<_> = pids
        .iter()
        .filter_map(|pid| Some((*pid, start_ticks(*pid)?)))
        .collect();
    for (pid, _) in &born {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    let _ = shell::wait_for("processes end", Duration::from_secs(10), || {
        born.iter()
            .all(|(pid, ticks)| start_ticks(*pid) != Some(*ticks))
    });
}

/// Has containerd forget its containers, so that the next cluster starts with images alone.
fn forget_containers() {
    for kind in ["tasks", "containers"] {
        let Ok(list) = shell::output(&mut ctr(&[kind, "list", "--quiet"])) else {
            return;
        };
        let ids: Vec<&str> = list.lines().collect();
        if !ids.is_empty() {
            let force: &[&str] = if kind == "tasks" { &["--force"] } else { &[] };
            let _ = shell::output(ctr(&[kind, "delete"]).args(force).args(ids));
        }
    }
}

/// Mounts below the cluster's folders, the deepest first.
fn mounts() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let roots = [
        PathBuf::from(paths::STATE),
        PathBuf::from(paths::RUN),
        cache::root().join("containerd"),
    ];
    let mut mounts: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| roots.iter().any(|root| path.starts_with(root)))
        .collect();
    mounts.reverse();
    mounts
}

fn unmount() {
    for mount in mounts() {
        if umount2(&mount, MntFlags::empty()).is_err() {
            let _ = umount2(&mount, MntFlags::MNT_DETACH);
        }
    }
}

/// Ends of pods' links that outlived their namespaces.
fn remove_pod_links() {
    let Ok(links) = fs::read_dir(format!("/sys/class/net/{BRIDGE}/brif")) else {
        return;
    };
    for link in links.flatten() {
        let name = link.file_name().to_string_lossy().into_owned();
        let _ = shell::output(&mut shell::command(&["ip", "link", "delete", &name]));
    }
}

/// The kubelet's control groups, which are empty by now.
fn remove_cgroups() {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup/kubepods")];
    roots.extend(
        fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("kubepods")),
    );
    roots
        .iter()
        .filter(|root| root.exists())
        .for_each(|root| remove_cgroup(root));
}

fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}
