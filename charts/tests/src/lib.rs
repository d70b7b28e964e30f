//! What is generated from the CRDs for the chart and the documentation.
//!
//! Helm never upgrades what lies in a chart's `crds` folder, so the chart carries the definitions as ordinary files
//! that a template includes. They are the manifests of the `crds` crate with one annotation more: helm leaves them
//! in the cluster when the release is uninstalled, because with a definition go all its resources.

mod reference;

use std::path::{Path, PathBuf};

/// What the chart adds to a manifest.
const KEEP: &str = "metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n";

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder of the chart.
#[must_use]
pub fn chart() -> PathBuf {
    repository().join("charts/titan")
}

/// The chart's copy of a manifest of the `crds` crate, or what is wrong with the manifest.
///
/// # Errors
/// When the manifest is not of the form that crdgen writes, or holds what a template would interpret.
pub fn chart_copy(manifest: &str) -> Result<String, String> {
    let Some((head, tail)) = manifest.split_once("\nmetadata:\n") else {
        return Err("has no metadata of its own line".to_owned());
    };
    if tail.starts_with("  annotations:") {
        return Err("has annotations already: teach chart_copy to merge them".to_owned());
    }
    Ok(format!("{head}\n{KEEP}{tail}"))
}

/// Writes the chart's copies and the reference of the resources, or with `check` only says which are out of date.
///
/// # Errors
/// When a file cannot be read or written, or a manifest has another form than expected.
pub fn generate(check: bool) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let (from, to) = (
        repository().join("crds/manifests"),
        chart().join("files/crds"),
    );
    std::fs::create_dir_all(&to)?;
    let mut stale = Vec::new();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&from)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let fresh = chart_copy(&std::fs::read_to_string(&path)?)
            .map_err(|wrong| format!("{name} {wrong}"))?;
        let target = to.join(&name);
        if std::fs::read_to_string(&target).ok().as_deref() != Some(&fresh) {
            stale.push(name.clone());
            if !check {
                std::fs::write(&target, fresh)?;
            }
        }
        names.push(name);
    }
    let (page, fresh) = (
        repository().join("docs/resources.md"),
        reference::page(&from)?,
    );
    if std::fs::read_to_string(&page).ok().as_deref() != Some(&fresh) {
        stale.push("docs/resources.md".to_owned());
        if !check {
            std::fs::write(&page, fresh)?;
        }
    }
    for entry in std::fs::read_dir(&to)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !names.contains(&name) {
            stale.push(name);
            if !check {
                std::fs::remove_file(path)?;
            }
        }
    }
    stale.sort();
    Ok(stale)
}
