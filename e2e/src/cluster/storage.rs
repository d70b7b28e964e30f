//! The StorageClass `standard`: folders of this machine, made and removed by the local-path provisioner.

use anyhow::Result;
use serde_json::json;
use titan_testbed::cache;

use super::apply as apply_manifest;
use super::part::{Part, listens};
use crate::{images, paths, shell};

const NAMESPACE: &str = "local-path-storage";

/// The provisioner.
pub fn part() -> Result<Part> {
    let config = paths::state("config/local-path.json");
    let volumes = json!({
        "nodePathMap": [{
            "node": "DEFAULT_PATH_FOR_NON_LISTED_NODES",
            "paths": [paths::state("volumes")],
        }],
    });
    shell::write_if_changed(&config, &serde_json::to_string_pretty(&volumes)?)?;
    let kubeconfig = paths::state("pki/storage.kubeconfig");
    let helper = paths::state("config/local-path-helper.yaml");
    shell::write_if_changed(&helper, &helper_pod())?;
    let args = [
        "start",
        "--config",
        &config.display().to_string(),
        "--kubeconfig",
        &kubeconfig.display().to_string(),
    ]
    .into_iter()
    .chain(["--namespace", NAMESPACE, "--helper-image", images::POSTGRES])
    .chain(["--helper-pod-file", &helper.display().to_string()])
    .map(str::to_owned)
    .collect();
    Ok(Part {
        name: "local-path-provisioner",
        program: cache::executable("local-path-provisioner"),
        args,
        config: vec![config, helper, kubeconfig],
        port: None,
        ready: Box::new(|| listens(super::NODE_IP, 6443)),
    })
}

fn helper_pod() -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: helper-pod
spec:
  containers:
  - name: helper-pod
    image: {}
    imagePullPolicy: IfNotPresent
    securityContext: {{ runAsUser: 0 }}
",
        images::POSTGRES
    )
}

/// The namespace of its helper pods, their scripts and the StorageClass.
pub fn apply() -> Result<()> {
    apply_manifest(
        "storage",
        &format!(
            "apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: local-path-provisioner-service-account
  namespace: {NAMESPACE}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: local-path-config
  namespace: {NAMESPACE}
data:
  setup: |
    #!/bin/sh
    set -eu
    mkdir -m 0777 -p \"$VOL_DIR\"
  teardown: |
    #!/bin/sh
    set -eu
    rm -rf \"$VOL_DIR\"
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
  annotations: {{ storageclass.kubernetes.io/is-default-class: \"true\" }}
provisioner: rancher.io/local-path
volumeBindingMode: WaitForFirstConsumer
reclaimPolicy: Delete
"
        ),
    )
}
