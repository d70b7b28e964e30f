//! The last good table on disk.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::RoutingTable;

/// A file larger than this is not read: 100,000 rows take about 20 MiB.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Where the table of a fleet is kept. The file is replaced in one step and carries the checksum of the table.
#[derive(Clone, Debug)]
pub struct TableFile {
    fleet: String,
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Content<T> {
    fleet: String,
    checksum: String,
    table: T,
}

/// Why the table on disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file does not hold a table.
    #[error("{path} does not hold a routing table: {source}; it is ignored until the registry sends one", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The table is not the one that was written.
    #[error("{path} is corrupted: it says checksum {announced}, its content has {computed}; it is ignored until the registry sends a table", path = path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The checksum in the file.
        announced: String,
        /// The checksum of the content.
        computed: String,
    },
    /// It is the table of somebody else.
    #[error("{path} holds the table of fleet `{found}`, not of `{wanted}`; it is ignored", path = path.display())]
    OtherFleet {
        /// The file.
        path: PathBuf,
        /// The fleet in the file.
        found: String,
        /// The fleet of this client.
        wanted: String,
    },
    /// The file is too large to be a table.
    #[error("{path} has {bytes} bytes, too many for a routing table; it is ignored", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

impl TableFile {
    /// The file of a fleet in a directory, which is made when it is not there.
    #[must_use]
    pub fn new(directory: &Path, fleet: &str) -> Self {
        TableFile {
            fleet: fleet.to_owned(),
            path: directory.join(format!("routing-table-{fleet}.json")),
        }
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The table and how long ago it was written; None when there is no file.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn load(&self) -> Result<Option<(RoutingTable, Duration)>, DiskError> {
        let metadata = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io(error)),
        };
        if metadata.len() > MAX_BYTES {
            return Err(DiskError::TooLarge {
                path: self.path.clone(),
                bytes: metadata.len(),
            });
        }
        let bytes = fs::read(&self.path).map_err(|error| self.io(error))?;
        let table = self.decode(&bytes)?;
        let age = metadata
            .modified()
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok())
            .unwrap_or_default();
        Ok(Some((table, age)))
    }

    /// The table in the bytes of a file.
    ///
    /// # Errors
    /// When they are not what [`TableFile::save`] writes for this fleet.
    pub fn decode(&self, bytes: &[u8]) -> Result<RoutingTable, DiskError> {
        let content: Content<RoutingTable> =
            serde_json::from_slice(bytes).map_err(|source| DiskError::Content {
                path: self.path.clone(),
                source,
            })?;
        if content.fleet != self.fleet {
            return Err(DiskError::OtherFleet {
                path: self.path.clone(),
                found: content.fleet,
                wanted: self.fleet.clone(),
            });
        }
        let computed = content.table.checksum_hex();
        if computed != content.checksum {
            return Err(DiskError::Checksum {
                path: self.path.clone(),
                announced: content.checksum,
                computed,
            });
        }
        Ok(content.table)
    }

    /// Replaces the file: written beside it, flushed to the disk, renamed over it.
    ///
    /// # Errors
    /// When the system refuses; the old file is then still there.
    pub fn save(&self, table: &RoutingTable) -> Result<(), DiskError> {
        let fail = |error| self.io(error);
        let directory = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(fail)?;
        let bytes = serde_json::to_vec(&Content {
            fleet: self.fleet.clone(),
            checksum: table.checksum_hex(),
            table,
        })
        .map_err(|error| fail(error.into()))?;
        let beside = self.path.with_extension("json.new");
        let mut file = File::create(&beside).map_err(fail)?;
        file.write_all(&bytes).map_err(fail)?;
        file.sync_all().map_err(fail)?;
        fs::rename(&beside, &self.path).map_err(fail)?;
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(fail)
    }

    fn io(&self, source: io::Error) -> DiskError {
        DiskError::Io {
            path: self.path.clone(),
            source,
        }
    }
}
