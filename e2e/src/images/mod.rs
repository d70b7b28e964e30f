//! Images without a registry: each is one layer in an OCI layout, imported into containerd when its content is new.

pub mod binaries;
mod oci;
mod postgres;
mod tiny;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use titan_testbed::cache;

use crate::cluster::containerd::ctr;
use crate::progress::Progress;
use crate::shell;

/// The container that holds a pod's namespaces.
pub const PAUSE: &str = "docker.io/titan/pause:1";
/// A release of `cart` that crashes, for tests.
pub const CRASHING: &str = "docker.io/titan/cart:crashing";
/// PostgreSQL, Patroni and Redis.
pub const POSTGRES: &str = "docker.io/titan/postgres:15";
/// The tags of our own binaries: `dev`, and the same content once more, for tests that upgrade.
pub const TAGS: [&str; 2] = ["dev", "dev-next"];

/// An image in the cache.
pub struct Image {
    /// Its full names.
    pub names: Vec<String>,
    /// The digest of its manifest.
    pub digest: String,
    /// The OCI layout, as a tar.
    pub archive: PathBuf,
}

/// The images that a cluster needs.
pub struct Built(Vec<Image>);

/// Builds the images of what is not ours, those that are not in the cache.
pub fn build_foreign(progress: &Progress) -> Result<Built> {
    let mut images = tiny::build(progress)?;
    images.push(postgres::build(progress)?);
    Ok(Built(images))
}

/// Compiles our own binaries.
pub fn compile(progress: &Progress, with_tests: bool) -> Result<()> {
    binaries::compile(progress, with_tests).map(|_| ())
}

/// Builds all images that are not in the cache; `with_tests` says how our own binaries are compiled.
pub fn build(progress: &Progress, with_tests: bool) -> Result<Built> {
    let Built(mut images) = build_foreign(progress)?;
    images.extend(binaries::build(progress, with_tests)?);
    Ok(Built(images))
}

/// Imports the images whose content containerd does not have under their names.
pub fn import(progress: &Progress, images: &Built) -> Result<()> {
    progress.step("images", |step| {
        let present = present()?;
        let mut imported = 0;
        for image in &images.0 {
            if image
                .names
                .iter()
                .all(|name| present.get(name) == Some(&image.digest))
            {
                continue;
            }
            step.say(format!(
                "importing {}",
                image.names.first().map_or("", String::as_str)
            ));
            let archive = image.archive.display().to_string();
            shell::output(&mut ctr(&["images", "import", &archive]))?;
            imported += 1;
        }
        step.say(format!("{} images, {imported} of them new", images.0.len()));
        Ok(())
    })
}

/// Names and digests in containerd.
fn present() -> Result<BTreeMap<String, String>> {
    let list = shell::output(&mut ctr(&["images", "list"]))?;
    let pair = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.nth(1)?.to_owned()))
    };
    Ok(list.lines().skip(1).filter_map(pair).collect())
}

/// The folder of images in the cache.
fn folder() -> Result<PathBuf> {
    let dir = cache::root().join("images");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// A name for the content of the images in the cache that run as our control plane.
pub fn fingerprint() -> Option<String> {
    let dir = cache::root().join("images");
    let digests: Option<String> = ["titan-operator", "cell-router"]
        .iter()
        .map(|name| oci::cached_digest(&dir.join(format!("{name}.tar"))))
        .collect();
    Some(oci::digest(&digests?).chars().take(16).collect())
}
