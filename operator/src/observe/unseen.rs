//! Since when something could not be looked at.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// By cell and what of it was looked at in vain, since the first time in a row.
#[derive(Default)]
pub struct Unseen {
    since: Mutex<HashMap<(String, &'static str), Instant>>,
}

impl Unseen {
    /// It could not be looked at: for how long by now.
    pub fn lasted(&self, cell: &str, what: &'static str) -> Duration {
        let mut since = self.lock();
        since
            .entry((cell.to_owned(), what))
            .or_insert_with(Instant::now)
            .elapsed()
    }

    /// It was looked at.
    pub fn seen(&self, cell: &str, what: &'static str) {
        self.lock().remove(&(cell.to_owned(), what));
    }

    /// The cell is gone.
    pub fn forget(&self, cell: &str) {
        self.lock().retain(|(other, _), _| other != cell);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, &'static str), Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_until_it_is_seen() {
        let unseen = Unseen::default();
        assert!(unseen.lasted("a", "databases") < Duration::from_secs(1));
        std::thread::sleep(Duration::from_millis(5));
        let lasted = unseen.lasted("a", "databases");
        assert!(lasted >= Duration::from_millis(5));
        assert!(unseen.lasted("a", "topics") < lasted, "each by itself");
        unseen.seen("a", "databases");
        assert!(unseen.lasted("a", "databases") < lasted);
        unseen.forget("a");
        assert!(unseen.lock().is_empty());
    }
}
