//! Who runs where: the proxy under test on cores of its own, as far as there are any. And what keeps the machine from getting
//! in between: cores that do not sleep, and the right to go before others.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::task::LocalSet;

/// Cores that a thread or a process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The first core: the proxy, when it has one thread.
    Proxy,
    /// The second core: pod and load, when the proxy has one thread.
    Load,
    /// All cores, shared by everybody.
    All,
}

impl Place {
    /// As `taskset` takes it.
    pub fn list(self) -> String {
        match self {
            Place::Proxy => "0".into(),
            Place::Load => "1".into(),
            Place::All => format!("0-{}", count() - 1),
        }
    }

    /// Where pod and load are, when the proxy is here.
    pub fn of_load(self) -> Self {
        match self {
            Place::Proxy => Place::Load,
            other => other,
        }
    }

    fn cores(self) -> std::ops::Range<usize> {
        match self {
            Place::Proxy => 0..1,
            Place::Load => 1..2,
            Place::All => 0..count(),
        }
    }
}

/// Cores of the machine.
pub fn count() -> usize {
    // Of the machine, not of this thread, which may be held to one of them.
    let Ok(entries) = std::fs::read_dir("/sys/devices/system/cpu") else {
        return 1;
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| name.strip_prefix("cpu")?.parse::<u32>().ok())
        .count()
        .max(1)
}

/// Cores do not sleep while this lives. To wake one takes a virtual machine longer than a proxy needs for a request. The kernel
/// forgets the wish with the file: <https://docs.kernel.org/power/pm_qos_interface.html>.
pub fn awake() -> Option<File> {
    let mut wish = OpenOptions::new()
        .write(true)
        .open("/dev/cpu_dma_latency")
        .ok()?;
    // The longest time to wake up, in microseconds.
    wish.write_all(&0_i32.to_ne_bytes()).ok()?;
    Some(wish)
}

/// What is put before a program that goes before everything else on its core (`SCHED_FIFO`).
pub const FIRST: [&str; 3] = ["chrt", "-f", "1"];

/// Whether a proxy may do that.
pub fn may_go_first() -> bool {
    let [chrt, how @ ..] = FIRST;
    let tried = Command::new(chrt)
        .args(how)
        .arg("true")
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

/// Runs a future on this thread, held to a place, with a runtime of its own.
pub fn run_on<T>(place: Place, future: impl Future<Output = Result<T>>) -> Result<T> {
    let mut cores = CpuSet::new();
    for core in place.cores() {
        cores.set(core)?;
    }
    sched_setaffinity(Pid::from_raw(0), &cores)
        .with_context(|| format!("cores {} are not to be had", place.list()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, future)
}
