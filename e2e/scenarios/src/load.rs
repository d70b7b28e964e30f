//! Customers who order one thing after another and count them in their carts, and remember what was confirmed to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;
use tonic::Status;
use uuid::Uuid;

use crate::cluster::{ensure, until};
use crate::shop::Shop;

/// A Redis that missed a change may show an old cart until its entry expires, after a minute; the change is in PostgreSQL.
const CACHED: Duration = Duration::from_secs(75);
/// The most of one thing that a cart takes.
const MOST_IN_CART: u32 = 999;

/// Load on one cell, until it is stopped.
pub struct Load {
    shop: Shop,
    stop: Arc<AtomicBool>,
    customers: JoinSet<Record>,
}

/// What one customer, or all of them, remember.
#[derive(Default)]
pub struct Record {
    /// Orders that were confirmed: the customer and the order.
    pub confirmed: Vec<(u64, String)>,
    /// What is in the carts.
    pub carts: Vec<CartRecord>,
    /// Attempts that failed. The customer repeats them with the same idempotency key.
    pub failed_attempts: usize,
    /// What was said of one of those.
    pub failure: Option<Status>,
    /// The longest time that a customer was without a confirmation.
    pub longest_gap: Duration,
}

impl Record {
    /// Fails if any attempt did; `because` of what, in words.
    pub fn none_failed(&self, because: &str) -> Result<()> {
        let said = |status: &Status| format!("{:?}: {}", status.code(), status.message());
        ensure(self.failed_attempts == 0, || {
            format!(
                "{} requests failed because {because}, one of them with {}",
                self.failed_attempts,
                self.failure.as_ref().map(said).unwrap_or_default()
            )
        })
    }
}

/// What a customer knows of the cart.
pub struct CartRecord {
    key: u64,
    sku: String,
    /// The quantity that was confirmed last.
    confirmed: u32,
    /// The quantity that was asked for last.
    attempted: u32,
}

impl Load {
    /// Lets the customers of these keys shop.
    pub fn start(shop: &Shop, keys: std::ops::Range<u64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut customers = JoinSet::new();
        for key in keys {
            let customer = Customer {
                shop: shop.clone(),
                key,
                stop: stop.clone(),
                last: Instant::now(),
                record: Record::default(),
            };
            customers.spawn(customer.shop());
        }
        Load {
            shop: shop.clone(),
            stop,
            customers,
        }
    }

    /// Stops, and reads everything confirmed back. What is missing, or older than it was, is an error.
    pub async fn verify(mut self) -> Result<Record> {
        self.stop.store(true, Ordering::Release);
        let mut all = Record::default();
        while let Some(record) = self.customers.join_next().await {
            let record = record?;
            all.confirmed.extend(record.confirmed);
            all.carts.extend(record.carts);
            all.failed_attempts += record.failed_attempts;
            all.failure = record.failure.or(all.failure);
            all.longest_gap = all.longest_gap.max(record.longest_gap);
        }
        if all.confirmed.is_empty() {
            bail!("not one order was confirmed, so nothing was shown");
        }
        for (key, order) in &all.confirmed {
            patiently(async || self.shop.get(*key, order).await)
                .await
                .with_context(|| format!("order {order} of key {key} was confirmed and is lost"))?;
        }
        for cart in &all.carts {
            let mut last = None;
            until(CACHED, async || {
                let found = self.shop.in_cart(cart.key, &cart.sku).await?;
                last = Some(found);
                Ok((found == cart.confirmed || found == cart.attempted).then_some(()))
            })
            .await?
            .with_context(|| {
                format!(
                    "the cart of key {} was confirmed to hold {} and holds {last:?}",
                    cart.key, cart.confirmed
                )
            })?;
        }
        Ok(all)
    }
}

/// Reads, again and again for a while: what was just killed may still be coming back.
async fn patiently<T>(mut read: impl AsyncFnMut() -> Result<T, Status>) -> Result<T> {
    until(Duration::from_secs(20), async || Ok(Some(read().await?)))
        .await?
        .context("no answer")
}

struct Customer {
    shop: Shop,
    key: u64,
    stop: Arc<AtomicBool>,
    /// When something was last confirmed.
    last: Instant,
    record: Record,
}

impl Customer {
    async fn shop(mut self) -> Record {
        let (shop, key) = (self.shop.clone(), self.key);
        let mut cart = CartRecord {
            key,
            sku: format!("teapot-{}", Uuid::now_v7().simple()),
            confirmed: 0,
            attempted: 0,
        };
        loop {
            let once = Uuid::now_v7();
            let at = shop.clone();
            let place = move || {
                let shop = at.clone();
                async move { shop.place(key, once).await }
            };
            let Some(order) = self.insist(place).await else {
                break;
            };
            self.record.confirmed.push((key, order.id));
            if cart.attempted < MOST_IN_CART {
                cart.attempted += 1;
                let once = Uuid::now_v7();
                let quantity = cart.attempted;
                let (at, sku) = (shop.clone(), cart.sku.clone());
                let put = move || {
                    let (shop, sku) = (at.clone(), sku.clone());
                    async move { shop.put_in_cart(key, once, &sku, quantity).await }
                };
                if self.insist(put).await.is_none() {
                    break;
                }
                cart.confirmed = quantity;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.record.carts.push(cart);
        self.record
    }

    /// Tries until it is confirmed, or until the shop closes.
    async fn insist<T>(
        &mut self,
        mut attempt: impl AsyncFnMut() -> Result<T, Status>,
    ) -> Option<T> {
        while !self.stop.load(Ordering::Acquire) {
            match attempt().await {
                Ok(confirmed) => {
                    self.record.longest_gap = self.record.longest_gap.max(self.last.elapsed());
                    self.last = Instant::now();
                    return Some(confirmed);
                }
                Err(status) => {
                    self.record.failed_attempts += 1;
                    self.record.failure = Some(status);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.record.longest_gap = self.record.longest_gap.max(self.last.elapsed());
        None
    }
}
