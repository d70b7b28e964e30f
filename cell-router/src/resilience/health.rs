//! Passive failure detection and the circuit breaker, of a cell or of one service in it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::lateness::Lateness;
use crate::config::Breaker;

/// What the requests of all threads say about a cell, or about a service in it. Written only when something fails or
/// works again, so that a healthy cell costs one read a request.
#[derive(Debug, Default)]
pub struct Health {
    consecutive_failures: AtomicU32,
    failures: AtomicU64,
    /// When the row of failures began, in milliseconds since start.
    row_since_ms: AtomicU64,
    /// Until when the circuit is open, in milliseconds since start; 0 when it is closed.
    open_until_ms: AtomicU64,
    open_for_ms: AtomicU64,
    /// When the probe under way began; 0 when there is none.
    probe_ms: AtomicU64,
    lateness: Lateness,
    /// Whether the circuit is open for late answers. What was asked before it opened can still be answered in time, and
    /// proves nothing then.
    opened_late: AtomicBool,
    detail: Mutex<Option<String>>,
}

/// How a request passes a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing is wrong.
    Open,
    /// It is the one request that may try, since this time.
    Probe(u64),
    /// Not now.
    Refused,
}

/// A probe that never came back blocks the next one for so long.
const PROBE_PATIENCE_MS: u64 = 5_000;

impl Health {
    /// Whether a request could go there now. Only looks.
    #[must_use]
    pub fn allows(&self, now_ms: u64) -> bool {
        let until = self.open_until_ms.load(Relaxed);
        until == 0 || (now_ms >= until && may_probe(self.probe_ms.load(Relaxed), now_ms))
    }

    /// Goes there. When the circuit was open for long enough, one request may try.
    #[must_use]
    pub fn enter(&self, now_ms: u64) -> Entry {
        let until = self.open_until_ms.load(Relaxed);
        if until == 0 {
            return Entry::Open;
        }
        if now_ms < until {
            return Entry::Refused;
        }
        let since = now_ms.max(1);
        let taken = self
            .probe_ms
            .fetch_update(Relaxed, Relaxed, |probe| {
                may_probe(probe, now_ms).then_some(since)
            })
            .is_ok();
        if taken {
            Entry::Probe(since)
        } else {
            Entry::Refused
        }
    }

    /// A probe ended without a verdict: the next request may try.
    pub fn leave(&self, entry: Entry) {
        if let Entry::Probe(since) = entry {
            // Not the probe of another, who took over because this one took too long.
            let _ = self.probe_ms.compare_exchange(since, 0, Relaxed, Relaxed);
        }
    }

    /// Whether the circuit is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open_until_ms.load(Relaxed) != 0
    }

    /// Whether the circuit is open because answers were late.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.is_open() && self.opened_late.load(Relaxed)
    }

    /// A request was answered as it should, whether or not it was the one that tried a circuit that is open.
    pub fn succeeded(&self, probe: bool) {
        if self.consecutive_failures.load(Relaxed) != 0 {
            self.consecutive_failures.store(0, Relaxed);
        }
        if self.open_until_ms.load(Relaxed) != 0 && (probe || !self.opened_late.load(Relaxed)) {
            self.opened_late.store(false, Relaxed);
            self.lateness.reset();
            self.open_until_ms.store(0, Relaxed);
            self.open_for_ms.store(0, Relaxed);
            self.probe_ms.store(0, Relaxed);
        }
    }

    /// A request was answered in time.
    pub fn in_time(&self, probe: bool, config: &Breaker, now_ms: u64) {
        self.lateness
            .answered(false, config.slow_percent, config.min_span.0, now_ms);
        self.succeeded(probe);
    }

    /// A request was answered as it should but late, or not at all within that time. Returns whether that opened the
    /// circuit.
    pub fn late(
        &self,
        answered: bool,
        probe: bool,
        config: &Breaker,
        now_ms: u64,
        detail: impl FnOnce(u32) -> String,
    ) -> bool {
        let too_many = self
            .lateness
            .answered(true, config.slow_percent, config.min_span.0, now_ms);
        if self.opened_late.load(Relaxed) {
            if answered && probe {
                self.open(config, now_ms);
            }
            return false;
        }
        if answered {
            self.succeeded(probe);
        }
        if !too_many || self.is_open() {
            return false;
        }
        self.opened_late.store(true, Relaxed);
        *self.detail.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(detail(self.lateness.percent()));
        self.open(config, now_ms)
    }

    /// A request failed by the fault of the cell. Returns whether that opened the circuit.
    pub fn failed(&self, config: &Breaker, now_ms: u64, detail: impl FnOnce() -> String) -> bool {
        let row = self.consecutive_failures.fetch_add(1, Relaxed) + 1;
        self.failures.fetch_add(1, Relaxed);
        if row == 1 {
            self.row_since_ms.store(now_ms, Relaxed);
        }
        if row == 1 || row.is_multiple_of(64) {
            *self.detail.lock().unwrap_or_else(PoisonError::into_inner) = Some(detail());
        }
        if self.is_open() {
            return self.open(config, now_ms);
        }
        if config.consecutive_failures == 0 || row < config.consecutive_failures {
            return false;
        }
        // One moment, in which a pod dies with all that it had, is no state of a cell.
        let lasts = Duration::from_millis(now_ms.saturating_sub(self.row_since_ms.load(Relaxed)));
        if lasts < config.min_span.0 {
            return false;
        }
        self.open(config, now_ms)
    }

    /// Gives it a rest, each time in a row a longer one. Returns whether the circuit was closed.
    fn open(&self, config: &Breaker, now_ms: u64) -> bool {
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
        self.probe_ms.store(0, Relaxed);
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

fn may_probe(probe: u64, now_ms: u64) -> bool {
    probe == 0 || now_ms >= probe + PROBE_PATIENCE_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;

    /// Opens after three failures, for 100 ms.
    fn breaker() -> Breaker {
        Breaker {
            consecutive_failures: 3,
            min_span: Span(Duration::ZERO),
            open: Span(Duration::from_millis(100)),
            max_open: Span(Duration::from_millis(150)),
            ..Breaker::default()
        }
    }

    #[test]
    fn a_circuit_opens_probes_and_closes() {
        let config = breaker();
        let health = Health::default();
        let fail = |now| health.failed(&config, now, String::new);
        assert!(!fail(1) && !fail(1) && health.allows(1));
        health.succeeded(false);
        assert!(!fail(2) && !fail(2), "a success starts the row again");
        assert!(fail(2), "three in a row open it");
        assert!(!health.allows(50));
        assert_eq!(health.enter(102), Entry::Probe(102), "one probe");
        assert_eq!(health.enter(103), Entry::Refused, "and no more");
        fail(110);
        assert!(!health.allows(250), "open for 150 ms now, not 200");
        assert!(health.allows(261));
        health.succeeded(false);
        assert!(!health.is_open());
        assert_eq!(
            (health.enter(262), health.enter(262)),
            (Entry::Open, Entry::Open)
        );
    }

    #[test]
    fn a_look_takes_no_probe_and_a_probe_without_a_verdict_is_given_back() {
        let health = Health::default();
        for _ in 0..3 {
            health.failed(&breaker(), 1, String::new);
        }
        assert!(health.allows(102) && health.allows(102), "only a look");
        let probe = health.enter(102);
        assert!(!health.allows(103));
        health.leave(probe);
        assert!(health.allows(103));
        let lost = health.enter(103);
        let next = health.enter(103 + PROBE_PATIENCE_MS);
        assert!(matches!(next, Entry::Probe(_)), "the first never came back");
        health.leave(lost);
        assert_eq!(health.enter(104 + PROBE_PATIENCE_MS), Entry::Refused);
        health.leave(next);
        assert!(health.allows(104 + PROBE_PATIENCE_MS));
    }

    #[test]
    fn a_moment_of_failures_opens_nothing() {
        let config = Breaker {
            min_span: Span(Duration::from_millis(200)),
            ..breaker()
        };
        let health = Health::default();
        let fail = |now| health.failed(&config, now, String::new);
        assert!((0..100).all(|_| !fail(1_000)) && !fail(1_199) && health.allows(1_199));
        assert!(fail(1_200), "it lasts");
        health.succeeded(false);
        assert!((0..100).all(|_| !fail(9_000)), "the next row begins anew");
    }

    #[test]
    fn late_answers_open_it_and_only_a_probe_in_time_closes_it() {
        let config = breaker();
        let health = Health::default();
        let late =
            |probe, now| health.late(true, probe, &config, now, |percent| percent.to_string());
        let opened = (0..100).find(|_| late(false, 1)).unwrap();
        assert!((40..50).contains(&opened) && !health.allows(50));
        assert_eq!(health.detail().as_deref(), Some("50"));
        health.in_time(false, &config, 50);
        late(false, 50);
        assert!(!health.allows(50), "they were asked before it opened");
        assert_eq!(health.enter(102), Entry::Probe(102));
        assert!(
            !late(true, 102) && !health.allows(250),
            "still late: 150 ms"
        );
        assert_eq!(health.enter(253), Entry::Probe(253));
        health.in_time(true, &config, 253);
        assert!(!health.is_open() && !late(false, 254), "it begins anew");
        assert_eq!(health.consecutive_failures(), 0);
    }

    #[test]
    fn a_late_answer_is_an_answer() {
        let config = breaker();
        let health = Health::default();
        for _ in 0..3 {
            health.failed(&config, 1, String::new);
        }
        assert!(matches!(health.enter(102), Entry::Probe(_)));
        health.late(true, true, &config, 102, |_| String::new());
        assert!(!health.is_open(), "it failed before and works now");
        for _ in 0..2 {
            health.failed(&config, 103, String::new);
            health.late(false, false, &config, 103, |_| String::new());
        }
        assert_eq!(health.consecutive_failures(), 2, "none that never came");
    }

    #[test]
    fn a_probe_that_fails_opens_a_late_circuit_again() {
        let config = breaker();
        let health = Health::default();
        for _ in 0..100 {
            health.late(true, false, &config, 1, |_| String::new());
        }
        assert!(matches!(health.enter(102), Entry::Probe(_)));
        health.failed(&config, 103, String::new);
        assert_eq!(health.enter(104), Entry::Refused);
    }
}
