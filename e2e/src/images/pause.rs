//! The pause image.

use std::fs::File;

use anyhow::Result;

use super::oci::{self, Config};
use super::{Image, PAUSE, folder};
use crate::progress::Progress;
use crate::{paths, shell};

const SOURCE: &str = include_str!("pause.c");

/// Builds it, unless it is in the cache.
pub fn build(progress: &Progress) -> Result<Image> {
    let dir = folder()?;
    let archive = dir.join("pause.tar");
    let recipe = oci::digest(SOURCE);
    if let Some(image) = oci::cached(&archive, &recipe) {
        return Ok(image);
    }
    progress.step("image pause", |_| {
        let (source, program, layer) = (
            dir.join("pause.c"),
            dir.join("pause"),
            dir.join("pause.layer"),
        );
        shell::write_if_changed(&source, SOURCE)?;
        let mut compile = shell::command(&["gcc", "-Os", "-s", "-static", "-o"]);
        shell::logged(
            compile.arg(&program).arg(&source),
            &paths::build_log("pause"),
        )?;
        let mut tar = tar::Builder::new(File::create(&layer)?);
        oci::add(&mut tar, "pause", &std::fs::read(&program)?, 0o755)?;
        tar.into_inner()?;
        let config = Config {
            entrypoint: vec!["/pause"],
            user: "65535:65535",
            env: Vec::new(),
        };
        oci::write(&archive, vec![PAUSE.to_owned()], &layer, &config, &recipe)
    })
}
