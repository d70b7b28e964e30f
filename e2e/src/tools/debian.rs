//! Debian packages.

use std::fs;
use std::path::Path;

use anyhow::Result;
use nix::unistd::Uid;
use titan_testbed::cache;

use crate::progress::Progress;
use crate::{paths, shell};

const POSTGRES: &str = "postgresql-15";

/// Packages, each with a file that only it brings, or the program on the PATH that it is for.
const PACKAGES: [(&str, &str); 15] = [
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
    (POSTGRES, "/usr/lib/postgresql/15/bin/postgres"),
    ("redis-server", "/usr/bin/redis-server"),
    ("default-jre-headless", "java"),
    ("maven", "mvn"),
    ("chromium-headless-shell", cache::BROWSER),
];

/// Services that packages of ours start when they are installed.
const SERVICES: [(&str, &str); 3] = [
    ("containerd", "containerd"),
    (POSTGRES, "postgresql"),
    ("redis-server", "redis-server"),
];

/// The packages that are not installed.
pub fn missing() -> Vec<&'static str> {
    PACKAGES
        .iter()
        .filter(|(_, brings)| !is_there(brings))
        .map(|(package, _)| *package)
        .collect()
}

fn is_there(file_or_program: &str) -> bool {
    if file_or_program.starts_with('/') {
        Path::new(file_or_program).exists()
    } else {
        shell::on_path(file_or_program).is_some()
    }
}

/// What stands against installing these packages, if anything does.
pub fn problem(missing: &[&str]) -> Option<String> {
    let list = missing.join(" ");
    if missing.is_empty() {
        None
    } else if shell::on_path("apt-get").is_none() {
        Some(format!(
            "no apt-get: use a Debian-like system, or install by hand what these bring: {list}"
        ))
    } else if !Uid::effective().is_root() {
        Some(format!(
            "not root, so packages cannot be installed: apt-get install {list}"
        ))
    } else if missing.contains(&POSTGRES) && !has_postgres(&os_release()) {
        Some(format!(
            "the archive of this system has no {POSTGRES}: add the one of https://wiki.postgresql.org/wiki/Apt, and run apt-get install {POSTGRES}"
        ))
    } else {
        None
    }
}

fn os_release() -> String {
    fs::read_to_string("/etc/os-release").unwrap_or_default()
}

/// Whether the system's own archive may have PostgreSQL in the version of the cells: those of some systems are known to
/// have another one.
fn has_postgres(os_release: &str) -> bool {
    const WITHOUT: [&str; 4] = ["bullseye", "trixie", "jammy", "noble"];
    !os_release
        .lines()
        .filter_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .any(|name| WITHOUT.contains(&name.trim_matches('"')))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_whose_archive_has_another_postgresql_are_known() {
        assert!(has_postgres("ID=debian\nVERSION_CODENAME=bookworm\n"));
        assert!(!has_postgres("ID=debian\nVERSION_CODENAME=trixie\n"));
        assert!(!has_postgres("VERSION_CODENAME=\"noble\"\n"));
        assert!(has_postgres(""), "an unknown system is tried");
    }

    #[test]
    fn a_program_is_looked_for_on_the_path_and_a_file_where_it_is() {
        assert!(is_there("sh"));
        assert!(!is_there("no-such-program"));
        assert!(is_there("/etc/passwd"));
        assert!(!is_there("/etc/no-such-file"));
    }
}
