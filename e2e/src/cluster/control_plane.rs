//! etcd, the apiserver, the controllers and the scheduler.

use anyhow::Result;
use titan_testbed::apiserver::AUDIT_POLICY;
use titan_testbed::cache;

use super::part::{Part, healthy};
use super::pki;
use super::{NODE_IP, POD_CIDR, SERVICE_CIDR};
use crate::{paths, shell};

/// etcd, for this cluster alone.
pub fn etcd() -> Part {
    let data = paths::state("etcd").display().to_string();
    let client = "http://127.0.0.1:2379";
    let peer = "http://127.0.0.1:2380";
    Part {
        name: "etcd",
        program: cache::executable("etcd"),
        args: vec![
            format!("--data-dir={data}"),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            // The cluster is made anew after a power cut, so nothing is lost by not waiting for the disk.
            "--unsafe-no-fsync".to_owned(),
            "--quota-backend-bytes=8589934592".to_owned(),
            "--auto-compaction-retention=5m".to_owned(),
            "--log-level=warn".to_owned(),
        ],
        config: Vec::new(),
        port: Some(2379),
        ready: Box::new(|| healthy("http://127.0.0.1:2379/health")),
    }
}

/// kube-apiserver, with a log of who wrote what.
pub fn apiserver() -> Result<Part> {
    let policy = paths::state("config/audit-policy.yaml");
    shell::write_if_changed(&policy, AUDIT_POLICY)?;
    let file = |file: &str| paths::state("pki").join(file).display().to_string();
    Ok(Part {
        name: "kube-apiserver",
        program: cache::executable("kube-apiserver"),
        args: vec![
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--bind-address={NODE_IP}"),
            format!("--advertise-address={NODE_IP}"),
            "--secure-port=6443".to_owned(),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", pki::authority().display()),
            format!(
                "--kubelet-certificate-authority={}",
                pki::authority().display()
            ),
            format!(
                "--kubelet-client-certificate={}",
                file("apiserver-kubelet-client.crt")
            ),
            format!(
                "--kubelet-client-key={}",
                file("apiserver-kubelet-client.key")
            ),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!(
                "--service-account-key-file={}",
                file("service-accounts.pub")
            ),
            format!(
                "--service-account-signing-key-file={}",
                file("service-accounts.key")
            ),
            format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--audit-policy-file={}", policy.display()),
            format!(
                "--audit-log-path={}",
                paths::state("logs/audit.log").display()
            ),
            "--audit-log-maxsize=200".to_owned(),
            "--audit-log-maxbackup=2".to_owned(),
        ],
        config: vec![policy, paths::state("pki/apiserver.crt")],
        port: Some(6443),
        ready: Box::new(|| healthy(&format!("https://{NODE_IP}:6443/readyz"))),
    })
}

/// kube-controller-manager.
pub fn controller_manager() -> Result<Part> {
    let config = paths::state("pki/controller-manager.kubeconfig");
    let file = |file: &str| paths::state("pki").join(file).display().to_string();
    let mut args = with_kubeconfig(&config.display().to_string());
    args.extend([
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
        "--use-service-account-credentials=true".to_owned(),
        format!(
            "--service-account-private-key-file={}",
            file("service-accounts.key")
        ),
        format!("--root-ca-file={}", pki::authority().display()),
        format!("--cluster-cidr={POD_CIDR}"),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        "--kube-api-qps=200".to_owned(),
        "--kube-api-burst=400".to_owned(),
    ]);
    Ok(Part {
        name: "kube-controller-manager",
        program: cache::executable("kube-controller-manager"),
        args,
        config: vec![config],
        port: Some(10257),
        ready: Box::new(|| healthy("https://127.0.0.1:10257/healthz")),
    })
}

/// kube-scheduler.
pub fn scheduler() -> Result<Part> {
    let config = paths::state("pki/scheduler.kubeconfig");
    let mut args = with_kubeconfig(&config.display().to_string());
    args.extend(
        [
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--kube-api-qps=200",
        ]
        .map(str::to_owned),
    );
    args.push("--kube-api-burst=400".to_owned());
    Ok(Part {
        name: "kube-scheduler",
        program: cache::executable("kube-scheduler"),
        args,
        config: vec![config],
        port: Some(10259),
        ready: Box::new(|| healthy("https://127.0.0.1:10259/healthz")),
    })
}

fn with_kubeconfig(config: &str) -> Vec<String> {
    ["", "authentication-", "authorization-"]
        .iter()
        .map(|kind| format!("--{kind}kubeconfig={config}"))
        .collect()
}
