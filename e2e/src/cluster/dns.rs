//! The cluster's DNS: CoreDNS on the node's address behind the Service `kube-dns`.

use anyhow::Result;
use titan_testbed::cache;

use super::part::{Part, healthy};
use super::{DNS_IP, DOMAIN, NODE_IP, apply as apply_manifest};
use crate::{paths, shell};

/// CoreDNS.
pub fn part() -> Result<Part> {
    let config = paths::state("config/Corefile");
    let kubeconfig = paths::state("pki/coredns.kubeconfig");
    shell::write_if_changed(
        &config,
        &format!(
            ".:53 {{\n  bind {NODE_IP}\n  errors\n  health {NODE_IP}:8053\n  \
             kubernetes {DOMAIN} in-addr.arpa {{\n    kubeconfig {} titan\n    pods insecure\n    ttl 5\n  }}\n  \
             forward . /etc/resolv.conf\n  cache 5\n  loop\n}}\n",
            kubeconfig.display()
        ),
    )?;
    Ok(Part {
        name: "coredns",
        program: cache::executable("coredns"),
        args: vec!["-conf".to_owned(), config.display().to_string()],
        config: vec![config, kubeconfig],
        port: Some(53),
        ready: Box::new(|| healthy(&format!("http://{NODE_IP}:8053/health"))),
    })
}

/// The Service in front of it.
pub fn apply() -> Result<()> {
    apply_manifest(
        "dns",
        &format!(
            "apiVersion: v1
kind: Service
metadata:
  name: kube-dns
  namespace: kube-system
  labels: {{ k8s-app: kube-dns }}
spec:
  clusterIP: {DNS_IP}
  ports:
  - {{ name: dns, port: 53, protocol: UDP }}
  - {{ name: dns-tcp, port: 53, protocol: TCP }}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns-host
  namespace: kube-system
  labels: {{ kubernetes.io/service-name: kube-dns }}
addressType: IPv4
ports:
- {{ name: dns, port: 53, protocol: UDP }}
- {{ name: dns-tcp, port: 53, protocol: TCP }}
endpoints:
- addresses: [{NODE_IP}]
  conditions: {{ ready: true }}
"
        ),
    )
}
