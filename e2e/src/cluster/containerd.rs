//! containerd, apart from any other on the machine: own folders, own socket. Its images stay in the cache.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use titan_testbed::cache;

use super::part::Part;
use super::{BRIDGE, POD_CIDR};
use crate::{images, paths, shell};

/// Where clients find it.
pub fn socket() -> PathBuf {
    paths::run("containerd.sock")
}

/// `ctr` in the namespace of the kubelet.
pub fn ctr(args: &[&str]) -> Command {
    let mut command = Command::new("ctr");
    command
        .arg("--address")
        .arg(socket())
        .args(["--namespace", "k8s.io"])
        .args(args);
    command
}

/// The part, configured.
pub fn part() -> Result<Part> {
    shell::write_if_changed(&paths::state("cni/10-titan.conflist"), &network())?;
    let config = paths::state("config/containerd.toml");
    shell::write_if_changed(&config, &configuration())?;
    Ok(Part {
        name: "containerd",
        program: PathBuf::from("/usr/bin/containerd"),
        args: vec!["--config".to_owned(), config.display().to_string()],
        config: vec![config],
        port: None,
        ready: Box::new(|| shell::succeeds(&mut ctr(&["version"]))),
    })
}

fn configuration() -> String {
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Where CAP_SYS_RESOURCE is missing, runc cannot lower a score and fails without saying why.
  restrict_oom_score_adj = true
  # Below our own state, so that `down` finds them.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
"#,
        root = cache::root().join("containerd").display(),
        state = paths::run("containerd").display(),
        socket = socket().display(),
        pause = images::PAUSE,
        cni = paths::state("cni").display(),
    )
}

/// Pods hang on one bridge; addresses are remembered below our state, and masquerading is done by our own nft table.
fn network() -> String {
    let leases = paths::run("cni");
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "titan",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "ipMasq": false,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": POD_CIDR }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
                "dataDir": leases,
            },
        }],
    })
    .to_string()
}
