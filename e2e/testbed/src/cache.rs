//! Where built tools live, and which versions of them this repository uses.

use std::env;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Kubernetes: the control plane, the node agents and kubectl.
pub const KUBERNETES: &str = "1.35.4";
/// etcd.
pub const ETCD: &str = "3.6.5";
/// CoreDNS, the cluster's DNS.
pub const COREDNS: &str = "1.14.7";
/// The local-path provisioner behind the StorageClass `standard`.
pub const LOCAL_PATH: &str = "0.0.30";
/// Helm.
pub const HELM: &str = "3.19.0";
/// kwok, which pretends to run pods.
pub const KWOK: &str = "0.7.0";
/// grpcurl.
pub const GRPCURL: &str = "1.9.4";
/// ghz, a load generator for gRPC.
pub const GHZ: &str = "0.121.0";
/// Apache Kafka.
pub const KAFKA: &str = "4.1.0";
/// The PostgreSQL major version of cells and tests.
pub const POSTGRES: &str = "15";
/// Chromium without windows, as Debian has it.
pub const BROWSER: &str = "/usr/lib/chromium/chromium-headless-shell";

/// The cache folder: `$XDG_CACHE_HOME/titan-cells`, or `~/.cache/titan-cells`.
#[must_use]
pub fn root() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let base = base.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    base.unwrap_or_else(|| env::temp_dir().join("cache"))
        .join("titan-cells")
}

/// The folder of one tool in one version.
#[must_use]
pub fn tool_dir(tool: &str, version: &str) -> PathBuf {
    root().join("tools").join(format!("{tool}-{version}"))
}

/// Where the executable `name` of the cached tools is, whether or not it has been built yet.
#[must_use]
pub fn executable(name: &str) -> PathBuf {
    let (tool, version) = match name {
        "etcd" => ("etcd", ETCD),
        "coredns" => ("coredns", COREDNS),
        "local-path-provisioner" => ("local-path-provisioner", LOCAL_PATH),
        "helm" => ("helm", HELM),
        "kwok" => ("kwok", KWOK),
        "grpcurl" => ("grpcurl", GRPCURL),
        "ghz" => ("ghz", GHZ),
        _ => ("kubernetes", KUBERNETES),
    };
    tool_dir(tool, version).join(name)
}

/// The executable `name` of the cached tools, or an error that says how to get it.
pub fn find(name: &str) -> Result<PathBuf> {
    require(name, executable(name))
}

/// The folder with Kafka's jars, or an error that says how to get it.
pub fn kafka_libs() -> Result<PathBuf> {
    require("Kafka", tool_dir("kafka", KAFKA).join("libs"))
}

/// The executable `name` of the PostgreSQL server package.
pub fn postgres_executable(name: &str) -> Result<PathBuf> {
    require(
        &format!("PostgreSQL's {name}"),
        Path::new("/usr/lib/postgresql")
            .join(POSTGRES)
            .join("bin")
            .join(name),
    )
}

/// Chromium, or an error that says how to get it. Not the script in `/usr/bin`, which would outlive its own end.
pub fn browser() -> Result<PathBuf> {
    require("Chromium", PathBuf::from(BROWSER))
}

/// `path` when it is there, otherwise an error that names `what`.
pub fn require(what: &str, path: PathBuf) -> Result<PathBuf> {
    if path.exists() {
        Ok(path)
    } else {
        Err(Error::Missing {
            what: what.to_owned(),
            path,
        })
    }
}
