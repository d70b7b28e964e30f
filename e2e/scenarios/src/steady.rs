//! Steady requests, each counted: what was answered, what failed, and for how long nothing was answered.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::cluster::{Cluster, until};
use crate::orders::router;
use crate::shop::Shop;

/// What the requests do.
#[derive(Clone)]
pub enum Ask {
    /// Read one order.
    Read(String),
    /// Place orders. A failed attempt is not repeated, but for one that was never sent.
    Place,
}

/// Clients that ask one after the other until they are stopped, each over a connection of its own.
pub struct Steady {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: JoinSet<Answers>,
}

/// What one client saw, or all of them.
#[derive(Default)]
pub struct Answers {
    pub served: usize,
    /// Failed requests by what was said.
    pub failed: BTreeMap<String, usize>,
    /// Requests that the client took back before it sent them, and sent over another connection.
    pub unsent: usize,
    /// The longest time between two answers of a client.
    pub longest_gap: Duration,
}

impl Steady {
    pub async fn start(cluster: &Cluster, clients: usize, key: u64, ask: &Ask) -> Result<Self> {
        let mut steady = Steady {
            stop: Arc::default(),
            served: Arc::default(),
            clients: JoinSet::new(),
        };
        for _ in 0..clients {
            let shop = router(cluster).await?;
            let (stop, served) = (Arc::clone(&steady.stop), Arc::clone(&steady.served));
            steady
                .clients
                .spawn(ask_until(stop, served, shop, key, ask.clone()));
        }
        steady.more(20 * clients).await?;
        Ok(steady)
    }

    /// Waits for so many more answers.
    pub async fn more(&self, answers: usize) -> Result<()> {
        let goal = self.served.load(Ordering::Acquire) + answers;
        until(Duration::from_secs(30), async || {
            Ok((self.served.load(Ordering::Acquire) >= goal).then_some(()))
        })
        .await?
        .with_context(|| format!("{answers} more answers took longer than 30 s"))
    }

    pub async fn stop(mut self) -> Result<Answers> {
        self.stop.store(true, Ordering::Release);
        let mut all = Answers::default();
        while let Some(answers) = self.clients.join_next().await {
            let answers = answers?;
            all.served += answers.served;
            all.unsent += answers.unsent;
            all.longest_gap = all.longest_gap.max(answers.longest_gap);
            for (what, count) in answers.failed {
                *all.failed.entry(what).or_default() += count;
            }
        }
        Ok(all)
    }
}

impl Answers {
    pub fn failures(&self) -> usize {
        self.failed.values().sum()
    }

    /// Fails when any request did.
    pub fn all_served(&self, when: &str) -> Result<()> {
        if self.failures() > 0 {
            bail!(
                "{} of {} requests failed {when}: {:?}",
                self.failures(),
                self.failures() + self.served,
                self.failed
            );
        }
        Ok(())
    }

    pub fn told(&self) -> Value {
        json!({
            "served": self.served,
            "failed": self.failures(),
            "failures": self.failed,
            "unsent": self.unsent,
            "longestGapSeconds": self.longest_gap.as_secs_f64(),
        })
    }
}

async fn ask_until(
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    shop: Shop,
    key: u64,
    ask: Ask,
) -> Answers {
    let mut answers = Answers::default();
    let mut last = Instant::now();
    while !stop.load(Ordering::Acquire) {
        let mut outcome = once(&shop, key, &ask).await;
        if outcome.as_ref().is_err_and(was_not_sent) {
            answers.unsent += 1;
            outcome = once(&shop, key, &ask).await;
        }
        match outcome {
            Ok(()) => {
                answers.longest_gap = answers.longest_gap.max(last.elapsed());
                last = Instant::now();
                answers.served += 1;
                served.fetch_add(1, Ordering::AcqRel);
            }
            Err(status) => {
                // Addresses and counters differ from failure to failure.
                let said = status.message().replace(|c: char| c.is_ascii_digit(), "#");
                let what = format!("{:?}: {said}", status.code());
                *answers.failed.entry(what).or_default() += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    answers.longest_gap = answers.longest_gap.max(last.elapsed());
    answers
}

/// Whether it is the client's own word for a request that it was about to send when the server said that it leaves: it was taken
/// back (`CANCELLED`) or met the GOAWAY (`INTERNAL`, by tonic's reckoning). tonic does not send it over the next connection by
/// itself, as other clients of gRPC do. What a server says has no source.
fn was_not_sent(status: &Status) -> bool {
    let told = matches!(status.code(), Code::Cancelled | Code::Internal);
    let mut causes = std::iter::successors(status.source(), |error| (*error).source());
    told && causes.any(|cause| {
        let cause = cause.to_string();
        cause == "operation was canceled"
            || cause.starts_with("connection error received: not a result of an error")
    })
}

async fn once(shop: &Shop, key: u64, ask: &Ask) -> Result<(), Status> {
    match ask {
        Ask::Read(order) => shop.get(key, order).await.map(drop),
        Ask::Place => shop.place(key, Uuid::now_v7()).await.map(drop),
    }
}
