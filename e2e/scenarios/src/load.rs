//! Customers who order one thing after another, and remember what was confirmed to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::cluster::until;
use crate::shop::Shop;

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
    /// Attempts that failed. The customer repeats them with the same idempotency key.
    pub failed_attempts: usize,
    /// The longest time without any confirmation.
    pub longest_gap: Duration,
}

impl Load {
    /// Lets the customers of these keys order.
    pub fn start(shop: &Shop, keys: std::ops::Range<u64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut customers = JoinSet::new();
        for key in keys {
            customers.spawn(order_until(shop.clone(), key, stop.clone()));
        }
        Load {
            shop: shop.clone(),
            stop,
            customers,
        }
    }

    /// Stops, and reads every confirmed order back. One that is missing is an error.
    pub async fn verify(mut self) -> Result<Record> {
        self.stop.store(true, Ordering::Release);
        let mut all = Record::default();
        while let Some(record) = self.customers.join_next().await {
            let record = record?;
            all.confirmed.extend(record.confirmed);
            all.failed_attempts += record.failed_attempts;
            all.longest_gap = all.longest_gap.max(record.longest_gap);
        }
        if all.confirmed.is_empty() {
            bail!("not one order was confirmed, so nothing was shown");
        }
        for (key, order) in &all.confirmed {
            let found = until(Duration::from_secs(20), async || {
                Ok(Some(self.shop.get(*key, order).await?))
            })
            .await
            .with_context(|| format!("order {order} of key {key} was confirmed and is lost"))?;
            if found.is_none() {
                bail!("order {order} of key {key} was confirmed and is lost");
            }
        }
        Ok(all)
    }
}

async fn order_until(shop: Shop, key: u64, stop: Arc<AtomicBool>) -> Record {
    let mut record = Record::default();
    let mut last = Instant::now();
    while !stop.load(Ordering::Acquire) {
        let once = Uuid::now_v7();
        loop {
            match shop.place(key, once).await {
                Ok(order) => {
                    record.longest_gap = record.longest_gap.max(last.elapsed());
                    last = Instant::now();
                    record.confirmed.push((key, order.id));
                    break;
                }
                Err(_) => record.failed_attempts += 1,
            }
            if stop.load(Ordering::Acquire) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    record
}
