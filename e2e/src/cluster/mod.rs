//! A one-node cluster from real parts, each a process of this machine.

pub mod containerd;
mod control_plane;
mod dns;
mod kafka;
pub mod network;
mod node;
pub mod part;
mod pki;
mod storage;
pub mod teardown;

use std::time::Duration;

use anyhow::Result;

use crate::progress::{Progress, together};
use crate::{images, shell};

use part::Part;

/// The node's name.
pub const NODE: &str = "titan";
/// The bridge that pods hang on.
pub const BRIDGE: &str = "titan0";
/// The node's address: the bridge's.
pub const NODE_IP: &str = "10.86.0.1";
/// Addresses of pods.
pub const POD_CIDR: &str = "10.86.0.0/22";
/// Addresses of Services.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The address of the Service `kubernetes`.
pub const API_SERVICE_IP: &str = "10.96.0.1";
/// The address of the cluster's DNS.
pub const DNS_IP: &str = "10.96.0.10";
/// The cluster's DNS domain.
pub const DOMAIN: &str = "cluster.local";
/// Where clients inside and outside of the cluster find Kafka.
pub const KAFKA_PORT: u16 = 9092;

/// The ports the parts listen on, and on which address.
pub const PORTS: [(&str, &str, u16); 12] = [
    ("etcd", "127.0.0.1", 2379),
    ("etcd (peers)", "127.0.0.1", 2380),
    ("kube-apiserver", NODE_IP, 6443),
    ("kube-controller-manager", "127.0.0.1", 10257),
    ("kube-scheduler", "127.0.0.1", 10259),
    ("kubelet", NODE_IP, 10250),
    ("kubelet (health)", "127.0.0.1", 10248),
    ("kube-proxy (health)", NODE_IP, 10256),
    ("kube-proxy (metrics)", "127.0.0.1", 10249),
    ("CoreDNS", NODE_IP, 53),
    ("Kafka", NODE_IP, KAFKA_PORT),
    ("Kafka (controller)", "127.0.0.1", 9093),
];

/// Every part, in the order in which they are listed; `down` stops them in the opposite order.
pub const PARTS: [&str; 11] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
    "coredns",
    "local-path-provisioner",
    "kafka",
    "kwok",
];

/// Brings up whatever does not run; changes nothing else.
pub fn up(progress: &Progress, images: &images::Built) -> Result<()> {
    network::prepare()?;
    pki::prepare()?;
    together(vec![
        Box::new(|| control_plane(progress)),
        Box::new(|| {
            start(progress, &containerd::part()?)?;
            images::import(progress, images)
        }),
        Box::new(|| start(progress, &kafka::part()?)),
    ])?;
    together(vec![
        Box::new(|| {
            start(progress, &node::kubelet()?)?;
            progress.step("node Ready", |_| node_ready())
        }),
        Box::new(|| start(progress, &node::kube_proxy()?)),
        Box::new(|| {
            start(progress, &dns::part()?)?;
            start(progress, &storage::part()?)
        }),
    ])
}

fn control_plane(progress: &Progress) -> Result<()> {
    start(progress, &control_plane::etcd())?;
    start(progress, &control_plane::apiserver()?)?;
    together(vec![
        Box::new(|| start(progress, &control_plane::controller_manager()?)),
        Box::new(|| start(progress, &control_plane::scheduler()?)),
        Box::new(|| {
            progress.step("objects of the cluster", |_| {
                dns::apply()?;
                kafka::apply()?;
                storage::apply()
            })
        }),
    ])
}

fn start(progress: &Progress, part: &Part) -> Result<()> {
    let name = part.name;
    progress.step(name, |step| {
        step.say(part.ensure()?.to_string());
        Ok(())
    })
}

fn node_ready() -> Result<()> {
    let arg = format!("node/{NODE}");
    shell::wait_for("the node registers", Duration::from_secs(60), || {
        shell::succeeds(&mut shell::kubectl(&["get", &arg]))
    })?;
    shell::output(&mut shell::kubectl(&[
        "wait",
        "--for=condition=Ready",
        &arg,
        "--timeout=60s",
    ]))?;
    Ok(())
}

/// Applies a manifest from memory.
fn apply(name: &str, manifest: &str) -> Result<()> {
    let path = crate::paths::state("manifests").join(format!("{name}.yaml"));
    shell::write_if_changed(&path, manifest)?;
    let path = path.display().to_string();
    shell::output(&mut shell::kubectl(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        &path,
    ]))?;
    Ok(())
}
