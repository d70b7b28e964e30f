//! The tools that the cluster and the tests run, built or fetched once and kept in the cache.

mod debian;
mod go;
mod kafka;

use anyhow::Result;

use crate::progress::Progress;

pub use debian::missing as missing_packages;

/// Installs and builds whatever is not there yet.
pub fn ensure(progress: &Progress) -> Result<()> {
    debian::ensure(progress)?;
    kafka::ensure(progress)?;
    go::ensure(progress)
}
