//! Carts in Redis: what is fast. Never more than PostgreSQL says, and nothing is lost with it.
//!
//! A cart is put with its version, and never over a later one. Entries expire, so that a Redis that missed a
//! change, because it could not be reached when it happened, is right again soon. Changes are made on PostgreSQL's
//! cart alone: an old entry may be read, it is never built upon.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cell_kit::Key;
use cell_kit::metrics::Metrics;
use cell_kit::redis::{Redis, owner_key};
use prometheus::{IntCounterVec, Opts};
use redis::{AsyncCommands, RedisError, Script};
use tokio::sync::watch;

use super::store::Stored;

/// How long an entry lives.
const LIVES: Duration = Duration::from_secs(60);
/// How long Redis may take before PostgreSQL is asked.
const PATIENCE: Duration = Duration::from_millis(250);

/// One hash: the version to compare, the cart to read.
const PUT: &str = r"
    local there = tonumber(redis.call('HGET', KEYS[1], 'version') or '-1')
    if there > tonumber(ARGV[1]) then return 0 end
    redis.call('HSET', KEYS[1], 'version', ARGV[1], 'cart', ARGV[2])
    redis.call('EXPIRE', KEYS[1], ARGV[3])
    return 1
";

#[derive(Clone)]
pub(super) struct Cache {
    redis: Redis,
    put: Arc<Script>,
    lookups: IntCounterVec,
    /// The carts whose last change Redis did not take, until its entry of them has expired: PostgreSQL is asked.
    missed: Arc<Mutex<HashMap<Key, Instant>>>,
    watched: Arc<Mutex<HashMap<Key, watch::Sender<()>>>>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("redis", &self.redis)
            .finish_non_exhaustive()
    }
}

impl Cache {
    pub(super) fn new(redis: Redis, metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let lookups = IntCounterVec::new(
            Opts::new("cart_cache_total", "Carts looked up in Redis"),
            &["outcome"],
        )?;
        metrics.registry().register(Box::new(lookups.clone()))?;
        Ok(Cache {
            redis,
            put: Arc::new(Script::new(PUT)),
            lookups,
            missed: Arc::default(),
            watched: Arc::default(),
        })
    }

    /// The cart, if Redis has it.
    pub(super) async fn get(&self, owner: Key) -> Option<Stored> {
        if self.has_missed(owner) {
            self.lookups.with_label_values(&["missed"]).inc();
            return None;
        }
        let found = self
            .patiently("read", async {
                let text: Option<String> = self
                    .redis
                    .connection()
                    .await?
                    .hget(entry(owner), "cart")
                    .await?;
                Ok(text)
            })
            .await;
        let stored = found
            .as_ref()
            .and_then(|text| serde_json::from_str(text.as_deref()?).ok());
        let outcome = match (&found, &stored) {
            (None, _) => "error",
            (Some(_), None) => "miss",
            (Some(_), Some(_)) => "hit",
        };
        self.lookups.with_label_values(&[outcome]).inc();
        stored
    }

    /// Puts a cart, unless there is a later one.
    pub(super) async fn put(&self, owner: Key, stored: &Stored) {
        let Ok(text) = serde_json::to_string(stored) else {
            return;
        };
        let put = self
            .patiently("write", async {
                let mut connection = self.redis.connection().await?;
                let mut call = self.put.key(entry(owner));
                call.arg(stored.version).arg(text).arg(LIVES.as_secs());
                call.invoke_async::<i64>(&mut connection).await
            })
            .await;
        self.note(owner, put.is_some());
    }

    /// Takes a cart out, before it changes.
    pub(super) async fn forget(&self, owner: Key) {
        let forgotten = self
            .patiently("forget", async {
                let removed: i64 = self.redis.connection().await?.del(entry(owner)).await?;
                Ok(removed)
            })
            .await;
        self.note(owner, forgotten.is_some());
    }

    /// Notes whether Redis has taken what it was told of a cart.
    fn note(&self, owner: Key, taken: bool) {
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        if taken {
            missed.remove(&owner);
        } else {
            let now = Instant::now();
            missed.retain(|_, until| *until > now);
            missed.insert(owner, now + LIVES);
        }
    }

    fn has_missed(&self, owner: Key) -> bool {
        let missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        missed
            .get(&owner)
            .is_some_and(|until| *until > Instant::now())
    }

    /// Tells those who watch a cart in this process.
    pub(super) fn changed(&self, owner: Key) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = watched.get(&owner) {
            sender.send_replace(());
        }
    }

    /// Learns of changes to a cart that are made in this process.
    pub(super) fn watch(&self, owner: Key) -> watch::Receiver<()> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, sender| sender.receiver_count() > 0);
        watched.entry(owner).or_default().subscribe()
    }

    async fn patiently<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, RedisError>>,
    ) -> Option<T> {
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(Ok(value)) => Some(value),
            Ok(Err(error)) => {
                tracing::debug!(%error, what, "Redis failed; PostgreSQL has the cart");
                None
            }
            Err(_) => {
                tracing::debug!(what, "Redis is slow; PostgreSQL has the cart");
                None
            }
        }
    }
}

fn entry(owner: Key) -> String {
    owner_key(owner, "cart")
}
