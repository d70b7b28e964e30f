//! Images of one small C program each.

use std::fs::File;

use anyhow::Result;

use super::oci::{self, Config};
use super::{CRASHING, Image, PAUSE, folder};
use crate::progress::Progress;
use crate::{paths, shell};

struct Tiny {
    name: &'static str,
    /// The name of the image.
    image: &'static str,
    source: &'static str,
}

const ALL: [Tiny; 2] = [
    Tiny {
        name: "pause",
        image: PAUSE,
        source: include_str!("pause.c"),
    },
    Tiny {
        name: "crashing",
        image: CRASHING,
        source: include_str!("crashing.c"),
    },
];

/// Builds those that are not in the cache.
pub fn build(progress: &Progress) -> Result<Vec<Image>> {
    ALL.iter().map(|tiny| build_one(progress, tiny)).collect()
}

fn build_one(progress: &Progress, tiny: &Tiny) -> Result<Image> {
    let Tiny {
        name,
        image,
        source,
    } = tiny;
    let dir = folder()?;
    let archive = dir.join(format!("{name}.tar"));
    let recipe = oci::digest(source);
    if let Some(image) = oci::cached(&archive, &recipe) {
        return Ok(image);
    }
    progress.step(&format!("image {name}"), |_| {
        let (code, program, layer) = (
            dir.join(format!("{name}.c")),
            dir.join(name),
            dir.join(format!("{name}.layer")),
        );
        shell::write_if_changed(&code, source)?;
        let mut compile = shell::command(&["gcc", "-Os", "-s", "-static", "-o"]);
        shell::logged(compile.arg(&program).arg(&code), &paths::build_log(name))?;
        let mut tar = tar::Builder::new(File::create(&layer)?);
        oci::add(&mut tar, "app", &std::fs::read(&program)?, 0o755)?;
        tar.into_inner()?;
        let config = Config {
            entrypoint: vec!["/app"],
            user: "65532:65532",
            env: Vec::new(),
        };
        oci::write(
            &archive,
            vec![(*image).to_owned()],
            &layer,
            &config,
            &recipe,
        )
    })
}
