//! What can go wrong while a server is being started.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a server could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A binary or folder that `cargo titan tools` provides is not there.
    #[error(
        "{what} is missing at {path}: run `cargo titan tools` (as root) once, it installs and builds what tests need"
    )]
    Missing {
        /// What is missing, in words.
        what: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The server ended before it was ready.
    #[error("{server} ended before it was ready ({status}); the end of its log, {log}:\n{tail}")]
    Ended {
        /// Which server.
        server: String,
        /// Its exit status.
        status: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The server did not become ready in time.
    #[error("{server} was not ready after {waited:?}; the end of its log, {log}:\n{tail}")]
    NotReady {
        /// Which server.
        server: String,
        /// How long it was waited for.
        waited: Duration,
        /// Its log file.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// A command ran and failed.
    #[error("`{command}` failed ({status}): {output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// What it wrote to both outputs.
        output: String,
    },
    /// A certificate could not be made.
    #[error("certificate for {subject}: {source}")]
    Certificate {
        /// Whose certificate.
        subject: String,
        /// What rcgen said.
        source: rcgen::Error,
    },
    /// The operating system refused something.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// Starting the shared server failed before, for this reason.
    #[error("{0}")]
    Shared(String),
}

impl Error {
    /// An operating system error with what was being done.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Io { doing, source }
    }
}
