//! The retry budget: retries may be a share of the requests, so that they cannot multiply an outage.

use std::cell::Cell;
use std::time::Instant;

use crate::config::Retry;

/// Credit for retries, of one thread. Each request earns a share of a retry, and each second a few more.
#[derive(Debug)]
pub struct RetryBudget {
    /// In hundredths of a retry.
    credit: Cell<u64>,
    refilled: Cell<Instant>,
}

/// Credit that can be saved up, in seconds of the minimum rate and in requests.
const SAVED_SECONDS: u64 = 10;
const SAVED_RETRIES: u64 = 100;

impl RetryBudget {
    /// A budget with the minimum of one second.
    #[must_use]
    pub fn new(config: &Retry, now: Instant) -> Self {
        RetryBudget {
            credit: Cell::new(u64::from(config.min_per_second) * 100),
            refilled: Cell::new(now),
        }
    }

    /// A request came in.
    pub fn request(&self, config: &Retry) {
        let limit = (u64::from(config.min_per_second) * SAVED_SECONDS + SAVED_RETRIES) * 100;
        let credit = self.credit.get() + u64::from(config.budget_percent);
        self.credit.set(credit.min(limit));
    }

    /// Whether a retry may be made; takes it from the budget.
    pub fn take(&self, config: &Retry, now: Instant) -> bool {
        let elapsed = now.duration_since(self.refilled.get());
        let earned = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
            * u64::from(config.min_per_second)
            / 10;
        if earned > 0 {
            self.refilled.set(now);
            let limit = (u64::from(config.min_per_second) * SAVED_SECONDS + SAVED_RETRIES) * 100;
            self.credit
                .set(self.credit.get().saturating_add(earned).min(limit));
        }
        match self.credit.get().checked_sub(100) {
            Some(rest) => {
                self.credit.set(rest);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn retries_are_a_share_of_requests() {
        let config = Retry {
            budget_percent: 10,
            min_per_second: 1,
            ..Retry::default()
        };
        let now = Instant::now();
        let budget = RetryBudget::new(&config, now);
        assert!(budget.take(&config, now), "the minimum");
        assert!(!budget.take(&config, now), "nothing is left");
        for _ in 0..50 {
            budget.request(&config);
        }
        let granted = (0..50).filter(|_| budget.take(&config, now)).count();
        assert_eq!(granted, 5, "10% of 50 requests");
        assert!(budget.take(&config, now + Duration::from_secs(1)));
        assert!(!budget.take(&config, now + Duration::from_secs(1)));
    }
}
