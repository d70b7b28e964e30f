//! What a machine must have, said all at once and before anything is changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;
use titan_testbed::cache;

use crate::cluster::part::Record;
use crate::cluster::{BRIDGE, NODE_IP, PARTS, PORTS, network};
use crate::{paths, shell, tools};

/// Free space that a machine with an empty cache needs.
const DISK_GIB: u64 = 15;

/// Checks for what installing and building tools needs.
pub fn for_tools() -> Result<()> {
    report(&tools_problems())
}

/// Checks for what running a cluster needs.
pub fn for_cluster() -> Result<()> {
    let mut problems = tools_problems();
    if Uid::effective().is_root() {
        // Only root sees who holds a port.
        problems.extend(taken_ports());
    } else {
        problems.push(
            "not root: a kubelet and containerd need it; run this with sudo or as root".to_owned(),
        );
    }
    for (file, means) in [
        ("/proc/sys/net/ipv4/ip_forward", "IP forwarding"),
        ("/proc/self/ns/net", "network namespaces"),
        ("/sys/fs/cgroup", "control groups"),
    ] {
        if !Path::new(file).exists() {
            problems.push(format!(
                "the kernel has no {means} ({file}): use a kernel or a virtual machine that has"
            ));
        }
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.contains("overlay") {
        problems.push(
            "the kernel has no overlay file system: load it with `modprobe overlay`".to_owned(),
        );
    }
    report(&problems)
}

fn report(problems: &[String]) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    bail!(
        "nothing was changed; first, please:\n  - {}",
        problems.join("\n  - ")
    );
}

fn tools_problems() -> Vec<String> {
    let mut problems = Vec::new();
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        problems.push(
            "this is not Linux on x86_64: use such a machine or a virtual machine".to_owned(),
        );
    }
    for (program, how) in [
        ("cargo", "install Rust from https://rustup.rs"),
        (
            "go",
            "install Go 1.24 or later from https://go.dev/dl, and have its bin folder in PATH",
        ),
        ("setpriv", "apt-get install util-linux"),
    ] {
        if shell::on_path(program).is_none() {
            problems.push(format!("no {program}: {how}"));
        }
    }
    problems.extend(old_go());
    problems.extend(tools::packages_problem(&tools::missing_packages()));
    let cache = existing(&cache::root());
    if let Ok(space) = statvfs(&cache) {
        let free = (space.blocks_available() * space.fragment_size()) >> 30;
        let empty = !cache::executable("kube-apiserver").exists();
        let needed = if empty { DISK_GIB } else { 3 };
        if free < needed {
            problems.push(format!(
                "{free} GiB free at {}, {needed} needed: make room, or set XDG_CACHE_HOME to another disk",
                cache.display()
            ));
        }
    }
    problems
}

/// The nearest folder above a path that is there.
fn existing(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

/// Go fetches the version that a module asks for by itself, but only from a certain version of its own on.
const OLDEST_GO: (u32, u32) = (1, 24);

fn old_go() -> Option<String> {
    let said = shell::output(&mut shell::command(&["go", "version"])).ok()?;
    (go_version(&said)? < OLDEST_GO).then(|| {
        let (major, minor) = OLDEST_GO;
        format!(
            "{} is too old: install Go {major}.{minor} or later from https://go.dev/dl",
            said.trim()
        )
    })
}

/// Major and minor version in `go version go1.26.8 linux/amd64`.
fn go_version(said: &str) -> Option<(u32, u32)> {
    let version = said.split_whitespace().nth(2)?.strip_prefix("go")?;
    let mut parts = version.split('.').map_while(|part| part.parse().ok());
    Some((parts.next()?, parts.next()?))
}

/// Checks for what installing into a cluster of the user's needs, which must answer.
pub fn for_context(context: &str) -> Result<()> {
    let mut problems = Vec::new();
    for program in ["kubectl", "helm"] {
        if shell::client(program).is_none() && shell::on_path("go").is_none() {
            problems.push(format!(
                "no {program}, and no Go to build it with: install one of them"
            ));
        }
    }
    if let Some(kubectl) = shell::client("kubectl") {
        let mut version = Command::new(kubectl);
        version.args(["--context", context, "version", "--request-timeout=10s"]);
        if let Err(error) = shell::output(&mut version) {
            problems.push(format!(
                "context {context} does not answer: {error:#}; `kubectl config get-contexts` lists what there is"
            ));
        }
    }
    report(&problems)
}

/// Ports of ours that somebody else holds.
fn taken_ports() -> Vec<String> {
    let ours: Vec<i32> = PARTS
        .iter()
        .filter_map(|name| Record::load(name))
        .map(|record| record.pid)
        .collect();
    let mut problems = Vec::new();
    for (what, address, port) in PORTS {
        for socket in listening(port) {
            let clashes = socket.address == "0.0.0.0" || socket.address == address;
            let holder = holder(socket.inode);
            if clashes && !holder.as_ref().is_some_and(|(pid, _)| ours.contains(pid)) {
                let who = holder.map_or("another process".to_owned(), |(pid, name)| {
                    format!("{name} (pid {pid})")
                });
                problems.push(format!(
                    "port {port} on {address}, for {what}, is taken by {who}: stop it"
                ));
            }
        }
    }
    if !network::exists(BRIDGE) && address_in_use() {
        problems.push(format!(
            "the address {NODE_IP} is in use on this machine: remove that interface"
        ));
    }
    problems
}

fn address_in_use() -> bool {
    let local = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    local.contains(&format!("|-- {NODE_IP}\n"))
}

struct Listener {
    address: String,
    inode: u64,
}

/// TCP sockets that listen on a port.
fn listening(port: u16) -> Vec<Listener> {
    let mut found = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table)
            .unwrap_or_default()
            .lines()
            .skip(1)
        {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(&"0A"), Some(inode)) =
                (fields.get(1), fields.get(3), fields.get(9))
            else {
                continue;
            };
            if let Some(address) = parse_listener(local, port)
                && let Ok(inode) = inode.parse()
            {
                found.push(Listener { address, inode });
            }
        }
    }
    found
}

/// The address of `0100007F:1F90`, when it is at that port; an IPv6 listener counts as one on every address.
fn parse_listener(local: &str, port: u16) -> Option<String> {
    let (address, at) = local.split_once(':')?;
    if u16::from_str_radix(at, 16) != Ok(port) {
        return None;
    }
    if address.len() != 8 {
        let any = address.chars().all(|digit| digit == '0');
        return any.then(|| "0.0.0.0".to_owned());
    }
    let [a, b, c, d] = u32::from_str_radix(address, 16).ok()?.to_le_bytes();
    Some(format!("{a}.{b}.{c}.{d}"))
}

/// The process that holds a socket.
fn holder(inode: u64) -> Option<(i32, String)> {
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let files = fs::read_dir(entry.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let holds = |file: fs::DirEntry| {
            fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        };
        if files.into_iter().any(holds) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_owned()));
        }
    }
    None
}

/// The log folder, for the last line of every error.
pub fn logs_hint() -> String {
    format!(
        "logs: {} and {}",
        paths::state("logs").display(),
        cache::root().join("logs").display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_from_the_kernels_table() {
        assert_eq!(
            parse_listener("0100007F:192B", 6443).as_deref(),
            Some("127.0.0.1")
        );
        assert_eq!(
            parse_listener("00000000:192B", 6443).as_deref(),
            Some("0.0.0.0")
        );
        assert_eq!(parse_listener("0100007F:192C", 6443), None);
        assert_eq!(
            parse_listener(&format!("{}:192B", "0".repeat(32)), 6443).as_deref(),
            Some("0.0.0.0")
        );
    }

    #[test]
    fn gos_version_is_read() {
        assert_eq!(go_version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(go_version("go version go1.9 linux/amd64"), Some((1, 9)));
        assert!(go_version("go version go1.9 linux/amd64") < Some(OLDEST_GO));
        assert_eq!(go_version("go version devel +abc"), None);
    }

    #[test]
    fn a_listener_of_ours_is_found_with_its_holder() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let sockets = listening(port);
        assert_eq!(sockets.len(), 1);
        assert_eq!(
            holder(sockets[0].inode).map(|(pid, _)| pid),
            i32::try_from(std::process::id()).ok()
        );
    }
}
