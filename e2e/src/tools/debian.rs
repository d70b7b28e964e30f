//! Debian packages.

use std::path::Path;

use anyhow::Result;

use crate::progress::Progress;
use crate::{paths, shell};

/// Packages, each with a file that only it brings.
const PACKAGES: [(&str, &str); 12] = [
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("nftables", "/usr/sbin/nft"),
    ("iproute2", "/usr/sbin/ip"),
    ("conntrack", "/usr/sbin/conntrack"),
    ("curl", "/usr/bin/curl"),
    ("mmdebstrap", "/usr/bin/mmdebstrap"),
    ("gcc", "/usr/bin/gcc"),
    ("libc6-dev", "/usr/lib/x86_64-linux-gnu/libc.a"),
    ("postgresql-15", "/usr/lib/postgresql/15/bin/postgres"),
    ("redis-server", "/usr/bin/redis-server"),
];

/// Services that packages of ours start when they are installed.
const SERVICES: [(&str, &str); 3] = [
    ("containerd", "containerd"),
    ("postgresql-15", "postgresql"),
    ("redis-server", "redis-server"),
];

/// The packages that are not installed.
pub fn missing() -> Vec<&'static str> {
    PACKAGES
        .iter()
        .filter(|(_, file)| !Path::new(file).exists())
        .map(|(package, _)| *package)
        .collect()
}

/// Installs the missing packages, and stops what installing them started.
pub fn ensure(progress: &Progress) -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    progress.step("Debian packages", |step| {
        step.say(missing.join(" "));
        let log = paths::build_log("apt");
        let mut update = shell::command(&["apt-get", "update", "-q"]);
        shell::logged(&mut update, &log)?;
        let mut install =
            shell::command(&["apt-get", "install", "-q", "-y", "--no-install-recommends"]);
        install
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("RUNLEVEL", "1");
        shell::logged(&mut install, &log)?;
        for (package, service) in SERVICES {
            if missing.contains(&package) {
                let _ = shell::logged(&mut shell::command(&["service", service, "stop"]), &log);
                let _ = shell::logged(
                    &mut shell::command(&["systemctl", "disable", service]),
                    &log,
                );
            }
        }
        Ok(())
    })
}
