//! A part of the cluster: a process that is started once, found again by its record, and stopped by its record.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use titan_testbed::process;

use crate::{paths, shell};

/// What runs, and how to know that it is ready.
pub struct Part {
    /// Its name, also that of its log.
    pub name: &'static str,
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// The configuration files it reads at its start: a change restarts it.
    pub config: Vec<PathBuf>,
    /// The port of `status`.
    pub port: Option<u16>,
    /// Whether it is ready to serve.
    pub ready: Box<dyn Fn() -> bool + Send>,
}

/// What is remembered of a started part.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Its process id.
    pub pid: i32,
    /// When the kernel says the process started: another process with this id has another time.
    pub start_ticks: u64,
    /// Seconds since 1970 at which it was started.
    pub started: u64,
    /// A digest of its command line and configuration.
    pub digest: String,
    /// The port of `status`.
    pub port: Option<u16>,
}

/// What `ensure` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It ran already.
    Ran,
    /// It was started.
    Started,
    /// It ran with another configuration and was replaced.
    Replaced,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Ran => "ran already",
            Outcome::Started => "started",
            Outcome::Replaced => "restarted: its configuration changed",
        })
    }
}

/// How long a part may take until it is ready.
const LIMIT: Duration = Duration::from_secs(90);

impl Part {
    /// Makes sure that it runs as described, and is ready.
    pub fn ensure(&self) -> Result<Outcome> {
        let digest = self.digest();
        let outcome = match Record::load(self.name).filter(Record::alive) {
            Some(record) if record.digest == digest => {
                shell::wait_for(&format!("{} answers", self.name), LIMIT, || (self.ready)())?;
                return Ok(Outcome::Ran);
            }
            Some(record) => {
                record.stop()?;
                Outcome::Replaced
            }
            None => Outcome::Started,
        };
        let mut child = self.spawn(digest)?;
        self.wait_ready(&mut child)?;
        Ok(outcome)
    }

    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.program.as_os_str().as_encoded_bytes());
        for arg in &self.args {
            hash.update(arg.as_bytes());
            hash.update([0]);
        }
        for file in &self.config {
            hash.update(fs::read(file).unwrap_or_default());
        }
        hex(&hash.finalize()[..8])
    }

    fn spawn(&self, digest: String) -> Result<Child> {
        let log = paths::log(self.name);
        if let Some(dir) = log.parent() {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let _ = fs::rename(&log, log.with_extension("previous.log"));
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let errors = output.try_clone()?;
        let mut command = Command::new(&self.program);
        // A group of its own: what stops this command from the keyboard leaves the cluster alone.
        command.args(&self.args).current_dir("/").process_group(0);
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let pid = child.id().cast_signed();
        let started = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let start_ticks =
            start_ticks(pid).with_context(|| format!("{} ended at once", self.name))?;
        Record {
            name: self.name.to_owned(),
            pid,
            start_ticks,
            started,
            digest,
            port: self.port,
        }
        .save()?;
        Ok(child)
    }

    fn wait_ready(&self, child: &mut Child) -> Result<()> {
        let since = Instant::now();
        let log = paths::log(self.name);
        loop {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "it ended ({status}); the end of its log, {}:\n{}",
                    log.display(),
                    process::tail(&log)
                );
            }
            if (self.ready)() {
                return Ok(());
            }
            if since.elapsed() > LIMIT {
                let seconds = LIMIT.as_secs();
                bail!(
                    "not ready after {seconds} s; the end of its log, {}:\n{}",
                    log.display(),
                    process::tail(&log)
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Record {
    fn path(name: &str) -> PathBuf {
        paths::state("processes").join(format!("{name}.json"))
    }

    /// The record of a part, when there is one.
    pub fn load(name: &str) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(Self::path(name)).ok()?).ok()
    }

    fn save(&self) -> Result<()> {
        shell::write_if_changed(
            &Self::path(&self.name),
            &serde_json::to_string_pretty(self)?,
        )?;
        Ok(())
    }

    /// Whether this very process still runs.
    pub fn alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Stops the process, kindly first, and forgets it.
    pub fn stop(&self) -> Result<()> {
        self.end(&[(Signal::SIGTERM, 8), (Signal::SIGKILL, 5)])
    }

    /// Kills the process, whose state nobody will need, and forgets it.
    pub fn kill(&self) -> Result<()> {
        self.end(&[(Signal::SIGKILL, 5)])
    }

    fn end(&self, signals: &[(Signal, u64)]) -> Result<()> {
        for &(signal, patience) in signals {
            if !self.alive() {
                break;
            }
            let _ = kill(Pid::from_raw(self.pid), signal);
            let _ = shell::wait_for(&self.name, Duration::from_secs(patience), || !self.alive());
        }
        if self.alive() {
            bail!("{} (pid {}) does not end", self.name, self.pid);
        }
        let path = Self::path(&self.name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }
}

/// When a process started, in clock ticks since boot; nothing for one that is gone, or only waits to be reaped.
pub fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, spaces and parentheses too.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&("Z" | "X"))) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a plain HTTP or HTTPS endpoint of the control plane says ok, asked with kubectl's certificate.
pub fn healthy(url: &str) -> bool {
    let mut curl = Command::new("curl");
    curl.args(["-skf", "--max-time", "2", "-o", "/dev/null", url]);
    shell::succeeds(&mut curl)
}

/// Whether something listens.
pub fn listens(address: &str, port: u16) -> bool {
    let Ok(ip) = address.parse::<std::net::IpAddr>() else {
        return false;
    };
    std::net::TcpStream::connect_timeout(&(ip, port).into(), Duration::from_millis(500)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_means_one_process_and_no_later_one_with_its_id() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        let record = Record {
            name: "sleep".to_owned(),
            pid,
            start_ticks: start_ticks(pid).unwrap(),
            started: 0,
            digest: String::new(),
            port: None,
        };
        let recycled = Record {
            start_ticks: record.start_ticks + 1,
            ..record.clone()
        };
        assert!(record.alive());
        assert!(!recycled.alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!record.alive());
    }
}
