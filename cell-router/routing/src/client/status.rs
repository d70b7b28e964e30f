//! What the client knows about itself, and who wants to hear of it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Epoch, RoutingTable};

/// Where the table in use came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// There is none yet.
    Nowhere,
    /// The file of an earlier run.
    Disk,
    /// The registry.
    Registry,
}

impl Source {
    /// The name, for metrics and pages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Nowhere => "none",
            Source::Disk => "disk",
            Source::Registry => "registry",
        }
    }
}

/// Why something was refused or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// A table older than the one in use.
    OlderEpoch,
    /// The epoch in use with other content.
    SameEpochOtherContent,
    /// A table without a row, while one with rows is in use.
    Emptied,
    /// A message that is no valid table: bad keys, an overlap, an unknown cell, a wrong checksum.
    Invalid,
    /// A delta for another table than the one in use.
    OtherBase,
    /// The registry was silent for too long.
    Stalled,
    /// The registry could not be reached, or ended the stream with an error.
    Unreachable,
    /// The file on disk could not be used.
    DiskUnusable,
    /// The file on disk could not be written.
    DiskNotWritten,
}

impl Refusal {
    /// Every reason, for metrics that start at zero.
    pub const ALL: [Refusal; 9] = [
        Refusal::OlderEpoch,
        Refusal::SameEpochOtherContent,
        Refusal::Emptied,
        Refusal::Invalid,
        Refusal::OtherBase,
        Refusal::Stalled,
        Refusal::Unreachable,
        Refusal::DiskUnusable,
        Refusal::DiskNotWritten,
    ];

    /// The name, for a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::OlderEpoch => "older_epoch",
            Refusal::SameEpochOtherContent => "same_epoch_other_content",
            Refusal::Emptied => "emptied",
            Refusal::Invalid => "invalid",
            Refusal::OtherBase => "other_base",
            Refusal::Stalled => "stalled",
            Refusal::Unreachable => "unreachable",
            Refusal::DiskUnusable => "disk_unusable",
            Refusal::DiskNotWritten => "disk_not_written",
        }
    }
}

/// Hears what happens to the table, to count it. Every method has an empty default.
pub trait RegistryObserver: Send + Sync + 'static {
    /// A table is in use from now on.
    fn accepted(&self, table: &RoutingTable, source: Source) {
        let _ = (table, source);
    }

    /// Something was refused; traffic goes on with the table in use.
    fn refused(&self, reason: Refusal) {
        let _ = reason;
    }

    /// The stream to the registry opened or ended.
    fn connected(&self, connected: bool) {
        let _ = connected;
    }
}

/// An observer that does nothing.
impl RegistryObserver for () {}

/// The state of a client at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryStatus {
    /// The epoch of the table in use.
    pub epoch: Epoch,
    /// Where it came from.
    pub source: Source,
    /// Whether the stream to the registry is open.
    pub connected: bool,
    /// How long ago the registry last confirmed that the table is the newest one. None when there is no table.
    pub age: Option<Duration>,
    /// The last thing that was refused, for people.
    pub last_refusal: Option<String>,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    epoch: Epoch,
    source: Source,
    connected: bool,
    /// When the table was last known to be the newest one, and how old it was then.
    confirmed: Option<(Instant, Duration)>,
    last_refusal: Option<String>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Shared {
            state: Mutex::new(State {
                epoch: Epoch(0),
                source: Source::Nowhere,
                connected: false,
                confirmed: None,
                last_refusal: None,
            }),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn accepted(&self, epoch: Epoch, source: Source, age: Duration) {
        let mut state = self.state();
        state.epoch = epoch;
        state.source = source;
        state.confirmed = Some((Instant::now(), age));
    }

    pub(super) fn confirmed(&self) {
        let mut state = self.state();
        if state.source != Source::Nowhere {
            state.source = Source::Registry;
            state.confirmed = Some((Instant::now(), Duration::ZERO));
        }
    }

    pub(super) fn connected(&self, connected: bool) {
        self.state().connected = connected;
    }

    pub(super) fn refused(&self, what: String) {
        self.state().last_refusal = Some(what);
    }

    pub(super) fn read(&self) -> RegistryStatus {
        let state = self.state();
        RegistryStatus {
            epoch: state.epoch,
            source: state.source,
            connected: state.connected,
            age: state
                .confirmed
                .map(|(when, age)| when.elapsed().saturating_add(age)),
            last_refusal: state.last_refusal.clone(),
        }
    }
}
