//! The router as a process of its own: its log, its metrics, its memory.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A running `cell-router`.
pub struct Process {
    pub child: Child,
    pub listen: SocketAddr,
    pub metrics: SocketAddr,
    pub log: Arc<Mutex<Vec<Value>>>,
}

impl Process {
    /// With the service `order`, a registry (or none: an empty text), and a folder for its table.
    pub async fn start(registry: &str, state: &Path, limits: &str) -> Self {
        let rest = format!("threads: 2\ndrain: {{ delay: 0s }}\nlimits: {limits}\n");
        Self::start_with(registry, state, &rest).await
    }

    /// The same with more of a configuration.
    pub async fn start_with(registry: &str, state: &Path, rest: &str) -> Self {
        let config = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "listen: 127.0.0.1:0\nmetrics: 127.0.0.1:0\nadmin: 127.0.0.1:0\ntrustedPeers: any\n\
             services: {{ order: 1 }}\n{rest}"
        );
        std::fs::write(config.path(), text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_cell-router"))
            .arg("--config")
            .arg(config.path())
            .env("TITAN_REGISTRY", registry)
            .env("TITAN_STATE_DIR", state)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = Arc::<Mutex<Vec<Value>>>::default();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let into = log.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                into.lock()
                    .unwrap()
                    .push(serde_json::from_str(&line).unwrap());
            }
        });
        let mut process = Process {
            child,
            listen: SocketAddr::from(([0, 0, 0, 0], 0)),
            metrics: SocketAddr::from(([0, 0, 0, 0], 0)),
            log,
        };
        let line = process
            .logged("routing", |line| line["message"] == "routing")
            .await;
        let address = |name: &str| line[name].as_str().unwrap().parse().unwrap();
        (process.listen, process.metrics) = (address("listen"), address("metrics"));
        process
    }

    /// Waits for a line of the log.
    pub async fn logged(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let find = || {
            self.log
                .lock()
                .unwrap()
                .iter()
                .find(|line| fits(line))
                .cloned()
        };
        super::until(what, || find().is_some()).await;
        find().unwrap()
    }

    /// A value of the metrics page.
    pub async fn metric(&self, name: &str) -> f64 {
        let page = super::page(self.metrics, "/metrics").await;
        let value = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        assert!(value.is_some(), "no {name} in {page}");
        value.unwrap().parse().unwrap()
    }

    /// Waits until a value of the metrics page is what it should be.
    pub async fn reaches(&self, name: &str, fits: impl Fn(f64) -> bool) {
        let mut last = self.metric(name).await;
        let wait = async {
            while !fits(last) {
                tokio::time::sleep(Duration::from_millis(20)).await;
                last = self.metric(name).await;
            }
        };
        // Silence of the registry is believed after 15 s.
        let waited = tokio::time::timeout(3 * super::PATIENCE, wait).await;
        assert!(waited.is_ok(), "{name} stays at {last}");
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/statm", self.child.id().unwrap());
        let text = std::fs::read_to_string(path).unwrap();
        let pages: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    /// SIGTERM; true when it ended well.
    pub async fn stop(mut self) -> bool {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        let ended = tokio::time::timeout(super::PATIENCE, self.child.wait()).await;
        ended.unwrap().unwrap().success()
    }
}
