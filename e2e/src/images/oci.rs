//! Writing an OCI image layout with one layer.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Image;
use crate::cluster::part::hex;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// How the image runs.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// The program and its first arguments.
    pub entrypoint: Vec<&'static str>,
    /// `uid:gid`.
    pub user: &'static str,
    /// The environment, `NAME=value`.
    pub env: Vec<&'static str>,
}

/// What is remembered beside an archive: enough to use it without reading it.
#[derive(Serialize, Deserialize)]
struct Summary {
    names: Vec<String>,
    digest: String,
    /// Of what the image was made.
    recipe: String,
}

fn summary_path(archive: &Path) -> PathBuf {
    archive.with_extension("json")
}

/// The image at `archive`, when it was made of this recipe.
pub fn cached(archive: &Path, recipe: &str) -> Option<Image> {
    let text = fs::read_to_string(summary_path(archive)).ok()?;
    let summary: Summary = serde_json::from_str(&text).ok()?;
    (summary.recipe == recipe && archive.exists()).then(|| Image {
        names: summary.names,
        digest: summary.digest,
        archive: archive.to_owned(),
    })
}

/// The digest of the image at `archive`, when there is one.
pub fn cached_digest(archive: &Path) -> Option<String> {
    let summary: Summary =
        serde_json::from_str(&fs::read_to_string(summary_path(archive)).ok()?).ok()?;
    Some(summary.digest)
}

/// Writes an image of one layer, a tar that is already written.
pub fn write(
    archive: &Path,
    names: Vec<String>,
    layer: &Path,
    config: &Config,
    recipe: &str,
) -> Result<Image> {
    let (layer_digest, layer_size) = digest_of_file(layer)?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": config.entrypoint, "User": config.user, "Env": config.env, "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &digest(&config), config.len() as u64),
        "layers": [descriptor(LAYER, &layer_digest, layer_size)],
    })
    .to_string();
    let manifest_digest = digest(&manifest);
    let named = |name: &String| {
        let mut entry = descriptor(MANIFEST, &manifest_digest, manifest.len() as u64);
        entry["annotations"] = json!({ "io.containerd.image.name": name });
        entry
    };
    let index =
        json!({ "schemaVersion": 2, "manifests": names.iter().map(named).collect::<Vec<_>>() })
            .to_string();

    let partial = archive.with_extension("partial");
    let file = File::create(&partial).with_context(|| format!("create {}", partial.display()))?;
    let mut tar = tar::Builder::new(io::BufWriter::new(file));
    add(
        &mut tar,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        0o644,
    )?;
    add(&mut tar, "index.json", index.as_bytes(), 0o644)?;
    add(
        &mut tar,
        &blob(&manifest_digest),
        manifest.as_bytes(),
        0o644,
    )?;
    add(&mut tar, &blob(&digest(&config)), config.as_bytes(), 0o644)?;
    let mut header = header(layer_size, 0o644);
    tar.append_data(&mut header, blob(&layer_digest), File::open(layer)?)?;
    tar.into_inner()?.flush()?;
    fs::rename(&partial, archive).with_context(|| format!("write {}", archive.display()))?;

    let digest = format!("sha256:{manifest_digest}");
    let summary = Summary {
        names: names.clone(),
        digest: digest.clone(),
        recipe: recipe.to_owned(),
    };
    fs::write(
        summary_path(archive),
        serde_json::to_string_pretty(&summary)?,
    )?;
    Ok(Image {
        names,
        digest,
        archive: archive.to_owned(),
    })
}

/// Adds a file that differs in nothing but its content from one run to the next.
pub fn add<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &str,
    content: &[u8],
    mode: u32,
) -> Result<()> {
    tar.append_data(&mut header(content.len() as u64, mode), path, content)
        .with_context(|| format!("add {path} to an archive"))
}

/// Adds an empty folder.
pub fn add_folder<W: Write>(tar: &mut tar::Builder<W>, path: &str, mode: u32) -> Result<()> {
    let mut header = header(0, mode);
    header.set_entry_type(tar::EntryType::Directory);
    tar.append_data(&mut header, path, io::empty())
        .with_context(|| format!("add {path} to an archive"))
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
}

/// The SHA-256 of a text.
pub fn digest(content: &str) -> String {
    hex(&Sha256::digest(content.as_bytes()))
}

/// The SHA-256 of a file, and its size.
pub fn digest_of_file(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((hex(&hash.finalize()), size));
        }
        hash.update(&buffer[..read]);
        size += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path, content: &[u8]) -> Image {
        let layer = dir.join("layer");
        let mut tar = tar::Builder::new(File::create(&layer).unwrap());
        add(&mut tar, "app", content, 0o755).unwrap();
        tar.into_inner().unwrap();
        let config = Config {
            entrypoint: vec!["/app"],
            user: "65532:65532",
            env: Vec::new(),
        };
        let names = ["dev", "dev-next"].map(|tag| format!("docker.io/titan/order:{tag}"));
        write(
            &dir.join("order.tar"),
            names.to_vec(),
            &layer,
            &config,
            "one",
        )
        .unwrap()
    }

    #[test]
    fn the_same_content_has_the_same_digest_and_is_found_again_by_its_recipe() {
        let dir = std::env::temp_dir().join(format!("titan-oci-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (first, second) = (image(&dir, b"a"), image(&dir, b"a"));
        assert_eq!(first.digest, second.digest);
        assert_ne!(first.digest, image(&dir, b"b").digest);

        let archive = dir.join("order.tar");
        assert!(cached(&archive, "two").is_none());
        assert_eq!(cached(&archive, "one").unwrap().names, first.names);
        let mut tar = tar::Archive::new(File::open(&archive).unwrap());
        let mut index = tar
            .entries()
            .unwrap()
            .map(Result::unwrap)
            .find(|entry| entry.path().unwrap().ends_with("index.json"))
            .unwrap();
        let mut text = String::new();
        index.read_to_string(&mut text).unwrap();
        assert!(first.names.iter().all(|name| text.contains(name)));
        fs::remove_dir_all(&dir).unwrap();
    }
}
