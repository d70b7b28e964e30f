//! Passive failure detection and the circuit breaker, of a cell or of one service in it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::config::Breaker;

/// What the requests of all threads say about a cell, or about a service in it. Written only when something fails or
/// works again, so that a healthy cell costs one read a request.
#[derive(Debug, Default)]
pub struct Health {
    consecutive_failures: AtomicU32,
    failures: AtomicU64,
    /// Until when the circuit is open, in milliseconds since start; 0 when it is closed.
    open_until_ms: AtomicU64,
    open_for_ms: AtomicU64,
    probing: AtomicBool,
    probe_started_ms: AtomicU64,
    detail: Mutex<Option<String>>,
}

/// A probe that never came back blocks the next one for so long.
const PROBE_PATIENCE_MS: u64 = 5_000;

impl Health {
    /// Whether a request may go there. When the circuit was open for long enough, one request may try.
    pub fn allows(&self, now_ms: u64) -> bool {
        let until = self.open_until_ms.load(Relaxed);
        if until == 0 {
            return true;
        }
        if now_ms < until {
            return false;
        }
        if self.probing.swap(true, Relaxed) {
            let started = self.probe_started_ms.load(Relaxed);
            if now_ms < started + PROBE_PATIENCE_MS {
                return false;
            }
        }
        self.probe_started_ms.store(now_ms, Relaxed);
        true
    }

    /// Whether the circuit is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open_until_ms.load(Relaxed) != 0
    }

    /// A request was answered as it should.
    pub fn succeeded(&self) {
        if self.consecutive_failures.load(Relaxed) != 0 {
            self.consecutive_failures.store(0, Relaxed);
        }
        if self.open_until_ms.load(Relaxed) != 0 {
            self.open_until_ms.store(0, Relaxed);
            self.open_for_ms.store(0, Relaxed);
            self.probing.store(false, Relaxed);
        }
    }

    /// A request failed by the fault of the cell. Returns whether that opened the circuit.
    pub fn failed(&self, config: &Breaker, now_ms: u64, detail: impl FnOnce() -> String) -> bool {
        let row = self.consecutive_failures.fetch_add(1, Relaxed) + 1;
        self.failures.fetch_add(1, Relaxed);
        if row == 1 || row.is_multiple_of(64) {
            *self.detail.lock().unwrap_or_else(PoisonError::into_inner) = Some(detail());
        }
        if config.consecutive_failures == 0 || row < config.consecutive_failures {
            return false;
        }
        let first = u64::try_from(config.open.0.as_millis()).unwrap_or(u64::MAX);
        let longest = u64::try_from(config.max_open.0.as_millis()).unwrap_or(u64::MAX);
        let until = self.open_until_ms.load(Relaxed);
        if until > now_ms {
            return false;
        }
        let length = match self.open_for_ms.load(Relaxed) {
            0 => first,
            before => before.saturating_mul(2).min(longest),
        };
        self.open_for_ms.store(length, Relaxed);
        self.open_until_ms.store((now_ms + length).max(1), Relaxed);
        self.probing.store(false, Relaxed);
        until == 0
    }

    /// Failures in a row until now.
    #[must_use]
    pub fn consecutive_failures(&self) -> u32 {
        self.consecutive_failures.load(Relaxed)
    }

    /// All failures so far.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// The last failure that was described.
    #[must_use]
    pub fn detail(&self) -> Option<String> {
        self.detail
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;
    use std::time::Duration;

    #[test]
    fn a_circuit_opens_probes_and_closes() {
        let config = Breaker {
            consecutive_failures: 3,
            open: Span(Duration::from_millis(100)),
            max_open: Span(Duration::from_millis(150)),
            ..Breaker::default()
        };
        let health = Health::default();
        let fail = |now| health.failed(&config, now, String::new);
        assert!(!fail(1) && !fail(1) && health.allows(1));
        health.succeeded();
        assert!(!fail(2) && !fail(2), "a success starts the row again");
        assert!(fail(2), "three in a row open it");
        assert!(!health.allows(50));
        assert!(health.allows(102), "one probe");
        assert!(!health.allows(103), "and no more");
        fail(110);
        assert!(!health.allows(250), "open for 150 ms now, not 200");
        assert!(health.allows(261));
        health.succeeded();
        assert!(health.allows(262) && health.allows(262) && !health.is_open());
    }
}
