//! The kubelet and kube-proxy.

use anyhow::Result;
use serde_json::json;
use titan_testbed::cache;

use super::part::{Part, healthy};
use super::pki;
use super::{DNS_IP, DOMAIN, NODE, NODE_IP, POD_CIDR, containerd};
use crate::{paths, shell};

/// The kubelet.
pub fn kubelet() -> Result<Part> {
    let config = paths::state("config/kubelet.yaml");
    let file = |file: &str| paths::state("pki").join(file);
    let content = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_IP,
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": pki::authority() },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": file("kubelet-server.crt"),
        "tlsPrivateKeyFile": file("kubelet-server.key"),
        "containerRuntimeEndpoint": format!("unix://{}", containerd::socket().display()),
        "clusterDNS": [DNS_IP],
        "clusterDomain": DOMAIN,
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        // kube-proxy works with nftables, and nothing here reads the kubelet's hints in iptables.
        "makeIPTablesUtilChains": false,
        "volumePluginDir": paths::state("volume-plugins"),
        "podLogsDir": paths::state("logs/pods"),
        "maxPods": 400,
        "podPidsLimit": -1,
        "serializeImagePulls": false,
        "registryPullQPS": 0,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "nodeStatusUpdateFrequency": "5s",
        "shutdownGracePeriod": "0s",
        // The disk is shared with whatever else the machine does: images and pods are not thrown out for it.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
    });
    shell::write_if_changed(&config, &serde_json::to_string_pretty(&content)?)?;
    Ok(Part {
        name: "kubelet",
        program: cache::executable("kubelet"),
        args: vec![
            format!("--config={}", config.display()),
            format!("--kubeconfig={}", file("kubelet.kubeconfig").display()),
            format!("--root-dir={}", paths::state("kubelet").display()),
            format!("--cert-dir={}", paths::state("pki").display()),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={NODE_IP}"),
            format!(
                "--node-labels=topology.kubernetes.io/region=local,topology.kubernetes.io/zone=local-a"
            ),
        ],
        config: vec![config, file("kubelet.kubeconfig")],
        port: Some(10250),
        ready: Box::new(|| healthy("http://127.0.0.1:10248/healthz")),
    })
}

/// kube-proxy.
pub fn kube_proxy() -> Result<Part> {
    let config = paths::state("config/kube-proxy.yaml");
    let content = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": { "kubeconfig": paths::state("pki/kube-proxy.kubeconfig") },
        "hostnameOverride": NODE,
        "clusterCIDR": POD_CIDR,
        "bindAddress": NODE_IP,
        "healthzBindAddress": format!("{NODE_IP}:10256"),
        "metricsBindAddress": "127.0.0.1:10249",
        "nodePortAddresses": [format!("{NODE_IP}/32")],
        // The kernel's own limits are left as they are.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    });
    shell::write_if_changed(&config, &serde_json::to_string_pretty(&content)?)?;
    Ok(Part {
        name: "kube-proxy",
        program: cache::executable("kube-proxy"),
        args: vec![format!("--config={}", config.display())],
        config: vec![config, paths::state("pki/kube-proxy.kubeconfig")],
        port: Some(10256),
        ready: Box::new(|| healthy(&format!("http://{NODE_IP}:10256/healthz"))),
    })
}
