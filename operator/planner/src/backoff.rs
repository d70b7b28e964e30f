//! How soon to try again what fails for the same reason again and again.

use std::time::Duration;

/// Failures of one thing, for as long as their reason is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    reason: String,
    times: u32,
}

impl Backoff {
    /// It failed for this reason: how long to wait. The pause begins with `first`, doubles up to `longest`, and begins anew with
    /// another reason, which is progress. `spread`, from 0 to 1, is its jitter of up to a quarter less.
    pub fn next(
        &mut self,
        reason: &str,
        first: Duration,
        longest: Duration,
        spread: f64,
    ) -> Duration {
        if self.reason != reason {
            *self = Backoff {
                reason: reason.to_owned(),
                times: 0,
            };
        }
        let pause = first.saturating_mul(1 << self.times.min(16)).min(longest);
        self.times = self.times.saturating_add(1);
        pause.mul_f64(0.75 + 0.25 * spread.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_grows_while_the_reason_is_the_same() {
        let mut backoff = Backoff::default();
        let mut next = |reason: &str, spread| {
            let pause = backoff.next(
                reason,
                Duration::from_secs(2),
                Duration::from_secs(60),
                spread,
            );
            pause.as_secs_f64()
        };
        let pauses: Vec<f64> = (0..7).map(|_| next("a", 1.0)).collect();
        assert_eq!(pauses, [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
        assert_eq!(next("b", 1.0), 2.0, "another reason is progress");
        assert_eq!(next("b", 0.0), 3.0, "jitter");
        (0..100).for_each(|_| assert!(next("b", 1.0) <= 60.0));
    }
}
