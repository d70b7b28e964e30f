//! Rate limits by the generic cell rate algorithm: one atomic number a limit, memory that never grows.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A limit: the theoretical arrival time of the next request, in microseconds.
#[derive(Debug, Default)]
pub struct Rate(AtomicU64);

impl Rate {
    /// Whether a request at `now_us` is within `rate` a second with a burst; counts it if so.
    pub fn allow(&self, now_us: u64, rate: u32, burst: u32) -> bool {
        if rate == 0 {
            return true;
        }
        let interval = 1_000_000 / u64::from(rate).min(1_000_000);
        let tolerance = interval.saturating_mul(u64::from(burst.max(1) - 1));
        let mut arrival = self.0.load(Relaxed);
        loop {
            if arrival > now_us.saturating_add(tolerance) {
                return false;
            }
            let next = arrival.max(now_us) + interval;
            match self
                .0
                .compare_exchange_weak(arrival, next, Relaxed, Relaxed)
            {
                Ok(_) => return true,
                Err(other) => arrival = other,
            }
        }
    }
}

/// Limits of very many keys in a fixed table. Keys that fall into the same slot share a limit, so the table is
/// much larger than the number of keys that are busy at one time.
#[derive(Debug)]
pub struct KeyRates {
    slots: Box<[Rate]>,
}

impl KeyRates {
    /// A table of `1 << bits` slots.
    #[must_use]
    pub fn new(bits: u32) -> Self {
        KeyRates {
            slots: (0..1_usize << bits).map(|_| Rate::default()).collect(),
        }
    }

    /// The limit of a key.
    #[must_use]
    pub fn of(&self, key: u64) -> Option<&Rate> {
        let hash = xxhash_rust::xxh3::xxh3_64(&key.to_le_bytes());
        let index = usize::try_from(hash).unwrap_or(0) & (self.slots.len() - 1);
        self.slots.get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_counts() {
        let rate = Rate::default();
        let mut now = 1_000_000;
        assert_eq!((0..100).filter(|_| rate.allow(now, 10, 5)).count(), 5);
        now += 100_000;
        assert_eq!((0..100).filter(|_| rate.allow(now, 10, 5)).count(), 1);
        now += 10_000_000;
        assert_eq!((0..100).filter(|_| rate.allow(now, 10, 5)).count(), 5);
        assert!((0..100).all(|_| rate.allow(now, 0, 0)), "0 means no limit");
    }

    #[test]
    fn keys_do_not_share_a_limit_while_they_are_few() {
        let rates = KeyRates::new(16);
        let allowed = (0..1000)
            .filter(|key| rates.of(*key).unwrap().allow(1, 1, 1))
            .count();
        assert!(
            allowed > 980,
            "{allowed} of 1000 keys got their first request"
        );
    }
}
