//! The image of both stores: PostgreSQL 15 with Patroni, and Redis 7, from Debian bookworm.

use std::fs;

use anyhow::Result;

use super::oci::{self, Config};
use super::{Image, POSTGRES, folder};
use crate::progress::Progress;
use crate::{paths, shell};

const PACKAGES: &str = "postgresql-15,patroni,python3-psycopg2,redis-server,ca-certificates";

/// Written before any package of ours is unpacked: the ids that pods run as, and no cluster made by the package.
const PREPARE: &str = r#"
echo 'postgres:x:102:' >> "$1/etc/group"
echo 'postgres:x:100:102:PostgreSQL:/var/lib/postgresql:/bin/bash' >> "$1/etc/passwd"
mkdir -p "$1/etc/postgresql-common"
echo 'create_main_cluster = false' > "$1/etc/postgresql-common/createcluster.conf"
"#;

/// Run when all packages are in: pods run with ids of their own, and mount their configuration below `/etc/redis`.
const FINISH: &str = r#"
chmod 755 "$1/etc/redis"
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/log/*
"#;

/// What no pod reads.
const UNUSED: [&str; 5] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/var/cache/apt/*",
];

/// Builds it, unless one of this recipe is in the cache.
pub fn build(progress: &Progress) -> Result<Image> {
    let dir = folder()?;
    let archive = dir.join("postgres.tar");
    let recipe = oci::digest(&format!("{PACKAGES}{PREPARE}{FINISH}{UNUSED:?}"));
    if let Some(image) = oci::cached(&archive, &recipe) {
        return Ok(image);
    }
    progress.step("image postgres", |step| {
        let layer = dir.join("postgres.layer");
        let mut bootstrap = shell::command(&["mmdebstrap", "--variant=minbase", "--format=tar"]);
        bootstrap.arg(format!("--include={PACKAGES}")).arg(format!("--essential-hook={PREPARE}"));
        bootstrap.args(UNUSED.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
        bootstrap.arg(format!("--customize-hook={FINISH}"));
        bootstrap.arg("bookworm").arg(&layer);
        step.say("installing PostgreSQL, Patroni and Redis into a folder");
        shell::logged(&mut bootstrap, &paths::build_log("mmdebstrap"))?;
        step.say("");
        let config = Config {
            entrypoint: Vec::new(),
            user: "100:102",
            env: vec![
                "PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG=C.UTF-8",
            ],
        };
        let image = oci::write(&archive, vec![POSTGRES.to_owned()], &layer, &config, &recipe)?;
        fs::remove_file(&layer)?;
        Ok(image)
    })
}
