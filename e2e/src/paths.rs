//! Where things are: everything that outlives `down` is in the cache folder, everything of the running cluster is
//! under two folders of its own.

use std::env;
use std::path::{Path, PathBuf};

use titan_testbed::cache;

/// The state of the cluster: configuration, certificates, data, logs, process records.
pub const STATE: &str = "/var/lib/titan-cells";
/// Sockets, network namespaces and mounts of the cluster.
pub const RUN: &str = "/run/titan-cells";

/// A path in the cluster's state.
pub fn state(path: &str) -> PathBuf {
    Path::new(STATE).join(path)
}

/// A path among the cluster's sockets and mounts.
pub fn run(path: &str) -> PathBuf {
    Path::new(RUN).join(path)
}

/// The log of one part.
pub fn log(name: &str) -> PathBuf {
    state("logs").join(format!("{name}.log"))
}

/// The log of something that only touches the cache.
pub fn build_log(name: &str) -> PathBuf {
    cache::root().join("logs").join(format!("{name}.log"))
}

/// The administrator's kubeconfig.
pub fn kubeconfig() -> PathBuf {
    state("pki/admin.kubeconfig")
}

/// The repository.
pub fn repository() -> PathBuf {
    let crate_dir = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    crate_dir
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}
