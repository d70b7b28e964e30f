//! How many of the last answers were late.
//!
//! The share of late answers is an exponentially weighted mean over answers, not over time, so that it means the same for
//! a busy service and for a quiet one, and needs neither a clock nor a window of samples. It is what Finagle's
//! `FailureAccrualPolicy.successRate` does with failures, with an answer that takes longer than a threshold for one, as in
//! Resilience4j's `slowCallDurationThreshold`. A mean of latencies would not do: one answer of a minute weighs as much as
//! thousands of a millisecond.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// All answers are late.
const ALL: u32 = 1 << 20;
/// How many answers the mean is over, so to say: the weight of each new one is one in so many.
const ANSWERS: u32 = 64;

/// The share of late answers. Written only while some are late, so that a healthy service costs one read an answer.
#[derive(Debug, Default)]
pub struct Lateness {
    share: AtomicU32,
    /// Since when the share is too high, in milliseconds since start; 0 when it is not.
    since_ms: AtomicU64,
}

impl Lateness {
    /// Counts an answer. True when it is late, and so are more than `percent` of the last ones, for `min_span` already: what
    /// waits for one short stall is late all at once, and that is no state of a service.
    pub fn answered(&self, late: bool, percent: u32, min_span: Duration, now_ms: u64) -> bool {
        if !late && self.share.load(Relaxed) == 0 {
            return false;
        }
        let before = self
            .share
            .fetch_update(Relaxed, Relaxed, |share| Some(next(share, late)))
            .unwrap_or_default();
        if u64::from(next(before, late)) * 100 < u64::from(ALL) * u64::from(percent) {
            self.since_ms.store(0, Relaxed);
            return false;
        }
        let since = match self
            .since_ms
            .compare_exchange(0, now_ms.max(1), Relaxed, Relaxed)
        {
            Ok(_) => now_ms,
            Err(since) => since,
        };
        late && Duration::from_millis(now_ms.saturating_sub(since)) >= min_span
    }

    /// Forgets everything.
    pub fn reset(&self) {
        self.share.store(0, Relaxed);
        self.since_ms.store(0, Relaxed);
    }

    /// Late answers in a hundred.
    #[must_use]
    pub fn percent(&self) -> u32 {
        self.share.load(Relaxed) / (ALL / 100)
    }
}

/// The share after one more answer. Rounded so that it gets to none and to all.
fn next(share: u32, late: bool) -> u32 {
    if late {
        share + (ALL - share).div_ceil(ANSWERS)
    } else {
        share - share.div_ceil(ANSWERS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: Duration = Duration::ZERO;

    /// How many answers, late each time that `late` says so, it takes.
    fn takes(percent: u32, late: impl Fn(u32) -> bool) -> Option<u32> {
        let lateness = Lateness::default();
        (1..100_000).find(|answer| lateness.answered(late(*answer), percent, NONE, 1))
    }

    #[test]
    fn a_share_of_late_answers_counts_and_few_do_not() {
        assert_eq!(takes(50, |_| true), Some(45));
        assert_eq!(takes(50, |answer| answer % 10 == 0), None, "a tenth");
        assert_eq!(takes(50, |answer| answer % 5 < 2), None, "two fifths");
        assert!(takes(50, |answer| answer % 5 < 3).is_some(), "three fifths");
        assert!(takes(20, |answer| answer % 3 == 0).is_some());
        assert!(takes(100, |_| true).is_some());
    }

    #[test]
    fn it_has_to_last_and_answers_in_time_mend_it() {
        let lateness = Lateness::default();
        let span = Duration::from_millis(200);
        let answered = |late, now_ms| lateness.answered(late, 50, span, now_ms);
        assert!(
            (0..1000).all(|_| !answered(true, 1_000)),
            "one stall, however many wait for it"
        );
        assert!(!answered(true, 1_199));
        assert!(
            !answered(false, 1_300),
            "an answer in time is no reason to open"
        );
        assert!(answered(true, 1_300));
        for _ in 0..45 {
            answered(false, 1_300);
        }
        assert!(!answered(true, 2_000), "it began anew");
        assert!(
            (0..1000).any(|_| !answered(false, 2_000) && lateness.percent() == 0),
            "all is forgotten in the end"
        );
    }

    proptest! {
        #[test]
        fn the_share_stays_a_share(answers in prop::collection::vec(any::<bool>(), 0..2000)) {
            let mut share = 0;
            for late in answers {
                let before = share;
                share = next(share, late);
                prop_assert!(share <= ALL);
                let moved = if late {
                    share > before || before == ALL
                } else {
                    share < before || before == 0
                };
                prop_assert!(moved);
            }
        }
    }
}
