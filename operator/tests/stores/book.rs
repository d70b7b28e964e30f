//! A ledger that remembers, and that can end a reconcile after its k-th write as a crash would.

use std::sync::{Mutex, PoisonError};

use titan_operator::ledger::{Interrupted, Ledger, Write};

/// Remembers every write, and refuses to go on after the `limit`-th.
#[derive(Default)]
pub struct Book {
    writes: Mutex<Vec<Write>>,
    limit: Option<usize>,
}

impl Book {
    /// A book that never interrupts.
    pub fn new() -> Self {
        Self::default()
    }

    /// A book that interrupts right after the `limit`-th write.
    pub fn crashing_after(limit: usize) -> Self {
        Self {
            writes: Mutex::default(),
            limit: Some(limit),
        }
    }

    /// What was written, in order.
    pub fn writes(&self) -> Vec<String> {
        self.writes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// How often.
    pub fn len(&self) -> usize {
        self.writes().len()
    }
}

impl Ledger for Book {
    fn may_write(&self) -> Result<(), Interrupted> {
        Ok(())
    }

    fn record(&self, write: Write) -> Result<(), Interrupted> {
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        writes.push(write);
        if self.limit.is_some_and(|limit| writes.len() >= limit) {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }
}
