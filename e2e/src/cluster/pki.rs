//! Certificates and kubeconfigs. Made once for a cluster: a second `up` finds them.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use titan_testbed::pki::{Authority, Subject};

use super::{API_SERVICE_IP, DOMAIN, NODE, NODE_IP};
use crate::paths;

/// The authority's certificate.
pub fn authority() -> PathBuf {
    paths::state("pki/ca.crt")
}

/// Signs everything, unless that is done.
pub fn prepare() -> Result<()> {
    let dir = paths::state("pki");
    let done = dir.join("complete");
    if done.exists() {
        return Ok(());
    }
    let authority = Authority::create(&dir)?;
    let server = format!("https://{NODE_IP}:6443");
    let addresses = [NODE_IP, API_SERVICE_IP, "127.0.0.1"];
    let addresses: Vec<IpAddr> = addresses
        .iter()
        .filter_map(|address| address.parse().ok())
        .collect();
    let service = "kubernetes.default.svc";
    authority.sign(
        "apiserver",
        &Subject {
            name: "kube-apiserver",
            dns: [
                "localhost",
                "kubernetes",
                "kubernetes.default",
                service,
                &format!("{service}.{DOMAIN}"),
            ]
            .map(str::to_owned)
            .to_vec(),
            addresses: addresses.clone(),
            ..Subject::default()
        },
    )?;
    let kubelet_client = Subject {
        name: "kube-apiserver",
        group: Some("system:masters"),
        ..Subject::default()
    };
    authority.sign("apiserver-kubelet-client", &kubelet_client)?;
    authority.sign(
        "kubelet-server",
        &Subject {
            name: NODE,
            dns: vec![NODE.to_owned()],
            addresses,
            ..Subject::default()
        },
    )?;
    authority.keys("service-accounts")?;
    let masters = Some("system:masters");
    let node = format!("system:node:{NODE}");
    for (file, user, group) in [
        ("admin", "admin", masters),
        ("controller-manager", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("kubelet", node.as_str(), Some("system:nodes")),
        ("kube-proxy", "system:kube-proxy", None),
        ("coredns", "titan:coredns", masters),
        ("storage", "titan:local-path-provisioner", masters),
        ("kwok", "titan:kwok", masters),
    ] {
        authority.kubeconfig(file, user, group, &server)?;
    }
    fs::write(&done, "").with_context(|| format!("write {}", done.display()))
}
