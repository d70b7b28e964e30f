//! Programs built from Go modules: no registry or download page is needed, and each version is pinned.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use titan_testbed::cache;

use crate::progress::Progress;
use crate::{paths, shell};

/// A module that `go install` refuses: built from a go.mod of ours.
struct Workspace {
    tool: &'static str,
    version: &'static str,
    files: &'static [(&'static str, &'static str)],
    /// Executables and their packages.
    programs: &'static [(&'static str, &'static str)],
}

/// `go install <package>@v<version>`.
struct Installed {
    tool: &'static str,
    version: &'static str,
    package: &'static str,
}

/// kubectl and its package, which a cluster of the user's needs alone.
const KUBECTL: (&str, &str) = ("kubectl", "k8s.io/kubernetes/cmd/kubectl");

const KUBERNETES: Workspace = Workspace {
    tool: "kubernetes",
    version: cache::KUBERNETES,
    files: &[
        ("go.mod", include_str!("go/kubernetes/go.mod")),
        ("go.sum", include_str!("go/kubernetes/go.sum")),
        ("tools.go", include_str!("go/kubernetes/tools.go")),
    ],
    programs: &[
        KUBECTL,
        ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
        (
            "kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
        ),
        ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
        ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
        ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    ],
};

const ETCD: Workspace = Workspace {
    tool: "etcd",
    version: cache::ETCD,
    files: &[
        ("go.mod", include_str!("go/etcd/go.mod")),
        ("go.sum", include_str!("go/etcd/go.sum")),
        ("main.go", include_str!("go/etcd/main.go")),
    ],
    programs: &[("etcd", ".")],
};

const HELM: Installed = Installed {
    tool: "helm",
    version: cache::HELM,
    package: "helm.sh/helm/v3/cmd/helm",
};

/// What a cluster and a first tour of it need besides Kubernetes.
const FOR_CLUSTERS: [Installed; 4] = [
    Installed {
        tool: "grpcurl",
        version: cache::GRPCURL,
        package: "github.com/fullstorydev/grpcurl/cmd/grpcurl",
    },
    Installed {
        tool: "coredns",
        version: cache::COREDNS,
        package: "github.com/coredns/coredns",
    },
    HELM,
    Installed {
        tool: "local-path-provisioner",
        version: cache::LOCAL_PATH,
        package: "github.com/rancher/local-path-provisioner",
    },
];

/// What only tests need.
const FOR_TESTS: [Installed; 1] = [Installed {
    tool: "ghz",
    version: cache::GHZ,
    package: "github.com/bojand/ghz/cmd/ghz",
}];

/// Only the benchmark of the operator wants it, and it takes minutes to build.
const KWOK: Installed = Installed {
    tool: "kwok",
    version: cache::KWOK,
    package: "sigs.k8s.io/kwok/cmd/kwok",
};

/// Builds what only benchmarks need and is not in the cache.
pub fn ensure_for_benchmarks(progress: &Progress) -> Result<()> {
    install(progress, &KWOK)
}

/// Builds the clients that are neither on the PATH nor in the cache.
pub fn ensure_clients(progress: &Progress) -> Result<()> {
    if shell::client("kubectl").is_none() {
        let (name, package) = KUBECTL;
        build(progress, &KUBERNETES, name, package)?;
    }
    if shell::client("helm").is_none() {
        install(progress, &HELM)?;
    }
    Ok(())
}

/// Builds what tests need and is not in the cache.
pub fn ensure_for_tests(progress: &Progress) -> Result<()> {
    FOR_TESTS
        .iter()
        .try_for_each(|tool| install(progress, tool))
}

/// Builds what a cluster needs and is not in the cache. One after the other: each build uses all cores by itself.
pub fn ensure_for_clusters(progress: &Progress) -> Result<()> {
    for workspace in [&ETCD, &KUBERNETES] {
        for (name, package) in workspace.programs {
            build(progress, workspace, name, package)?;
        }
    }
    FOR_CLUSTERS
        .iter()
        .try_for_each(|tool| install(progress, tool))
}

fn go(dir: &Path) -> Command {
    let mut command = Command::new("go");
    command.current_dir(dir).env("CGO_ENABLED", "0");
    command
}

fn linker_flags(tool: &str, version: &str) -> String {
    let mut flags = "-s -w".to_owned();
    if tool == "kubernetes" {
        let mut parts = version.split('.');
        let (major, minor) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        for module in ["component-base/version", "client-go/pkg/version"] {
            flags += &format!(" -X k8s.io/{module}.gitVersion=v{version}");
            flags += &format!(
                " -X k8s.io/{module}.gitMajor={major} -X k8s.io/{module}.gitMinor={minor}"
            );
        }
    }
    flags
}

fn build(progress: &Progress, workspace: &Workspace, name: &str, package: &str) -> Result<()> {
    let target = cache::executable(name);
    if target.exists() {
        return Ok(());
    }
    let dir = cache::root()
        .join("build")
        .join(format!("{}-{}", workspace.tool, workspace.version));
    for (file, content) in workspace.files {
        shell::write_if_changed(&dir.join(file), content)?;
    }
    progress.step(&format!("build {name} {}", workspace.version), |_| {
        // Built beside its place and moved there when it is whole, so that an interrupted build leaves nothing.
        let partial = dir.join(name);
        let mut command = go(&dir);
        command.args([
            "build",
            "-trimpath",
            "-mod=readonly",
            "-ldflags",
            &linker_flags(workspace.tool, workspace.version),
        ]);
        command.arg("-o").arg(&partial).arg(package);
        shell::logged(&mut command, &paths::build_log(name))?;
        put(&partial, &target)
    })
}

fn install(progress: &Progress, tool: &Installed) -> Result<()> {
    let target = cache::executable(tool.tool);
    if target.exists() {
        return Ok(());
    }
    progress.step(&format!("build {} {}", tool.tool, tool.version), |_| {
        let dir = cache::root()
            .join("build")
            .join(format!("{}-{}", tool.tool, tool.version));
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let mut command = go(&dir);
        command.env("GOBIN", &dir).env(
            "GOTOOLCHAIN",
            env::var_os("GOTOOLCHAIN").unwrap_or_else(|| "auto".into()),
        );
        command.args(["install", "-trimpath", "-ldflags", "-s -w"]);
        command.arg(format!("{}@v{}", tool.package, tool.version));
        shell::logged(&mut command, &paths::build_log(tool.tool))?;
        put(&dir.join(tool.tool), &target)
    })
}

fn put(partial: &Path, target: &Path) -> Result<()> {
    if let Some(dir) = target.parent() {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    fs::rename(partial, target)
        .with_context(|| format!("move {} to {}", partial.display(), target.display()))
}
