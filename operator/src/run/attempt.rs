//! One attempt at a reconcile: bounded, measured, and made again later when it failed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::runtime::controller::Action;
use titan_planner::backoff::Backoff;

use crate::error::ReconcileError;
use crate::run::context::Context;

/// No pass takes longer: one request that is never answered must not keep a cell or a fleet from ever being looked at again.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// How long an attempt may take in all, with the status that says that its pass took too long.
const WITH_STATUS: Duration = Duration::from_secs(75);

impl Context {
    /// Makes an attempt at an object of a controller, and gives it up when it takes too long.
    ///
    /// # Errors
    /// Those of the reconcile, and [`ReconcileError::TimedOut`].
    pub(crate) async fn attempt(
        &self,
        controller: &str,
        name: &str,
        reconcile: impl Future<Output = Result<Action, ReconcileError>>,
    ) -> Result<Action, ReconcileError> {
        let began = Instant::now();
        let result = tokio::time::timeout(WITH_STATUS, reconcile)
            .await
            .unwrap_or(Err(ReconcileError::TimedOut));
        let outcome = if result.is_ok() { "ok" } else { "error" };
        self.metrics
            .reconcile_seconds
            .with_label_values(&[controller, outcome])
            .observe(began.elapsed().as_secs_f64());
        if result.is_ok() {
            self.failures.clear(&format!("{controller}/{name}"));
        }
        result
    }

    /// When to make the next attempt after one that failed.
    pub(crate) fn retry(&self, controller: &str, name: &str, error: &ReconcileError) -> Action {
        let object = format!("{controller}/{name}");
        let (first, longest) = RETRY;
        let delay = self
            .failures
            .pause(&object, error.category(), first, longest);
        self.metrics
            .failures
            .with_label_values(&[controller, error.category()])
            .inc();
        tracing::warn!(controller, name, %error, retry_in = ?delay, "reconcile failed");
        Action::requeue(delay)
    }
}

/// How soon to try again after an error: first, and at the latest.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_mins(1));

/// Failures in a row, by object, for the time until the next try.
#[derive(Default)]
pub struct Failures {
    by_object: Mutex<HashMap<String, Backoff>>,
}

impl Failures {
    /// Notes a failure and returns how long to wait: longer each time while the reason is the same. A hundred cells that failed
    /// together do not come back together.
    pub fn pause(
        &self,
        object: &str,
        reason: &str,
        first: Duration,
        longest: Duration,
    ) -> Duration {
        let mut failures = self
            .by_object
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let backoff = failures.entry(object.to_owned()).or_default();
        backoff.next(reason, first, longest, rand::random())
    }

    /// Forgets an object's failures.
    pub fn clear(&self, object: &str) {
        self.by_object
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(object);
    }
}

/// A duration give or take a quarter.
#[must_use]
pub fn jitter(base: Duration) -> Duration {
    base.mul_f64(0.75 + 0.5 * rand::random::<f64>())
}
