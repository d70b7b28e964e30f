//! Images of the workspace's own binaries. Which ones there are is the workspace's to say: every binary of a crate
//! below the folders of things that run in a cluster, unless its manifest says otherwise:
//! `[package.metadata.titan] image = false`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::Value;

use super::oci::{self, Config};
use super::{Image, TAGS, folder};
use crate::progress::Progress;
use crate::{paths, shell};

const FOLDERS: [&str; 3] = ["operator", "cell-router", "cell-services"];
/// What is compiled for, as `.cargo/config.toml` says.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A binary that gets an image of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// Its name.
    pub name: String,
}

/// The binaries of the workspace that run in a cluster.
pub fn list() -> Result<Vec<Binary>> {
    let mut metadata = shell::cargo(&["metadata", "--no-deps", "--format-version=1"]);
    let metadata: Value = serde_json::from_str(&shell::output(&mut metadata)?)?;
    Ok(select(&metadata))
}

fn select(metadata: &Value) -> Vec<Binary> {
    let root = metadata["workspace_root"].as_str().unwrap_or_default();
    let mut binaries = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let folder = Path::new(manifest)
            .strip_prefix(root)
            .ok()
            .and_then(|path| path.iter().next()?.to_str());
        let refused = package["metadata"]["titan"]["image"] == false;
        if refused || !folder.is_some_and(|folder| FOLDERS.contains(&folder)) {
            continue;
        }
        for target in package["targets"].as_array().into_iter().flatten() {
            if target["kind"] == serde_json::json!(["bin"])
                && let Some(name) = target["name"].as_str()
            {
                binaries.push(Binary {
                    name: name.to_owned(),
                });
            }
        }
    }
    binaries.sort_by(|a, b| a.name.cmp(&b.name));
    binaries
}

/// Compiles the binaries, and makes images of those that changed.
pub fn build(progress: &Progress, with_tests: bool) -> Result<Vec<Image>> {
    let binaries = compile(progress, with_tests)?;
    let built = built("debug");
    progress.step("images of our binaries", |step| {
        let mut changed = Vec::new();
        let mut images = Vec::new();
        for binary in &binaries {
            let (image, new) = image(binary, &built)?;
            images.push(image);
            if new {
                changed.push(binary.name.as_str());
            }
        }
        step.say(if changed.is_empty() {
            "nothing changed".to_owned()
        } else {
            changed.join(" ")
        });
        Ok(images)
    })
}

/// Compiles all of them. With the tests, the features of dependencies are those that the tests have, so that after a run of the
/// tests nothing is left to compile.
pub fn compile(progress: &Progress, with_tests: bool) -> Result<Vec<Binary>> {
    let binaries = list()?;
    progress.step("binaries for images", |step| {
        step.say(format!("{} binaries", binaries.len()));
        let mut cargo = shell::cargo(&["build", "--workspace", "--locked"]);
        if with_tests {
            cargo.arg("--tests");
        }
        for binary in &binaries {
            cargo.args(["--bin", &binary.name]);
        }
        shell::logged(cargo.stdin(Stdio::null()), &paths::build_log("images"))
    })?;
    Ok(binaries)
}

/// Where cargo puts what it has compiled with a profile; `debug` is the folder of profile `dev`.
pub fn built(folder: &str) -> PathBuf {
    paths::target().join(TARGET).join(folder)
}

/// The image of a binary, and whether it had to be written.
fn image(binary: &Binary, built: &Path) -> Result<(Image, bool)> {
    let program = built.join(&binary.name);
    let dir = folder()?;
    let archive = dir.join(format!("{}.tar", binary.name));
    let (program_digest, _) = oci::digest_of_file(&program)?;
    let recipe = format!("{program_digest} {}", TAGS.join(" "));
    if let Some(image) = oci::cached(&archive, &recipe) {
        return Ok((image, false));
    }
    let layer = dir.join(format!("{}.layer", binary.name));
    let mut tar = tar::Builder::new(File::create(&layer)?);
    for (path, mode) in [
        ("etc/", 0o755),
        ("etc/ssl/", 0o755),
        ("etc/ssl/certs/", 0o755),
        ("tmp/", 0o1777),
    ] {
        oci::add_folder(&mut tar, path, mode)?;
    }
    oci::add(
        &mut tar,
        "etc/passwd",
        b"nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n",
        0o644,
    )?;
    oci::add(&mut tar, "etc/group", b"nonroot:x:65532:\n", 0o644)?;
    if let Ok(authorities) = fs::read(AUTHORITIES) {
        oci::add(
            &mut tar,
            AUTHORITIES.trim_start_matches('/'),
            &authorities,
            0o644,
        )?;
    }
    let content = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    oci::add(&mut tar, "app", &content, 0o755)?;
    tar.into_inner()?;
    let names = TAGS
        .iter()
        .map(|tag| format!("docker.io/titan/{}:{tag}", binary.name))
        .collect();
    let config = Config {
        entrypoint: vec!["/app"],
        user: "65532:65532",
        env: Vec::new(),
    };
    let image = oci::write(&archive, names, &layer, &config, &recipe)?;
    fs::remove_file(&layer)?;
    Ok((image, true))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn binaries_that_run_in_a_cluster_are_found_by_their_folder() {
        let bin = |name: &str| json!({ "kind": ["bin"], "name": name });
        let package = |path: &str, targets: Value| json!({ "name": path, "manifest_path": format!("/r/{path}/Cargo.toml"), "targets": targets });
        let metadata = json!({
            "workspace_root": "/r",
            "packages": [
                package("cell-services/social", json!([bin("user"), { "kind": ["lib"], "name": "social" }])),
                package("operator", json!([bin("titan-operator"), { "kind": ["test"], "name": "api" }])),
                package("crds", json!([bin("crdgen")])),
                json!({
                    "name": "cell-router",
                    "manifest_path": "/r/cell-router/Cargo.toml",
                    "targets": [bin("cell-router")],
                }),
                json!({
                    "name": "bench",
                    "manifest_path": "/r/cell-router/bench/Cargo.toml",
                    "metadata": { "titan": { "image": false } },
                    "targets": [bin("bench")],
                }),
            ],
        });
        let found: Vec<_> = select(&metadata)
            .into_iter()
            .map(|binary| binary.name)
            .collect();
        assert_eq!(found, ["cell-router", "titan-operator", "user"]);
    }
}
