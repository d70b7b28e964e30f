//! Who runs where: the proxy under test on cores of its own, as far as there are any.

use std::future::Future;

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
