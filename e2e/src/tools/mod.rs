//! The tools that the cluster and the tests run, built or fetched once and kept in the cache.

mod debian;
mod go;
mod kafka;

use anyhow::Result;

use crate::progress::{Progress, together};

pub use debian::{missing as missing_packages, problem as packages_problem};

/// Installs the Debian packages that are not there yet.
pub fn install_packages(progress: &Progress) -> Result<()> {
    debian::ensure(progress)
}

/// Installs, fetches and builds whatever is not there yet.
pub fn ensure(progress: &Progress) -> Result<()> {
    ensure_for_clusters(progress)?;
    go::ensure_for_tests(progress)
}

/// The same for a cluster alone, which needs fewer.
pub fn ensure_for_clusters(progress: &Progress) -> Result<()> {
    debian::ensure(progress)?;
    // Fetching waits for the network while building waits for the processor.
    together(vec![
        Box::new(|| kafka::ensure(progress)),
        Box::new(|| go::ensure_for_clusters(progress)),
    ])
}

/// Builds the clients of a cluster that are neither on the PATH nor in the cache.
pub fn ensure_clients(progress: &Progress) -> Result<()> {
    go::ensure_clients(progress)
}

/// The same for benchmarks, which need more.
pub fn ensure_for_benchmarks(progress: &Progress) -> Result<()> {
    ensure(progress)?;
    go::ensure_for_benchmarks(progress)
}
