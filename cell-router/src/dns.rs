//! Names to addresses. Each name that is in use is looked up again when its TTL ends, or when a connection fails.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_resolver::TokioResolver;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use crate::config::Config;

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// The first lookup is still under way.
    Pending,
    /// The addresses. When a later lookup fails, they stay.
    Known(Vec<SocketAddr>),
    /// No lookup ever succeeded.
    Failed(String),
}

struct Name {
    addresses: watch::Sender<Addresses>,
    /// When the last lookup that ended began.
    looked_up: watch::Sender<Option<Instant>>,
    again: Notify,
}

/// Looks names up, for all threads, on the runtime of the control tasks.
pub struct Resolver {
    dns: Option<TokioResolver>,
    handle: Handle,
    config: Arc<ArcSwap<Config>>,
    names: Mutex<HashMap<(String, u16), Arc<Name>>>,
}

impl Resolver {
    /// A resolver with the system's name servers.
    #[must_use]
    pub fn new(handle: Handle, config: Arc<ArcSwap<Config>>) -> Arc<Self> {
        let dns = TokioResolver::builder_tokio().and_then(|mut builder| {
            let options = builder.options_mut();
            // Every lookup here is meant: the last answer is kept beside the name.
            options.cache_size = 0;
            options.timeout = Duration::from_secs(2);
            options.attempts = 2;
            builder.build()
        });
        let dns = match dns {
            Ok(dns) => Some(dns),
            Err(error) => {
                tracing::error!(%error, "no DNS: only addresses and `hosts` of the configuration will work");
                None
            }
        };
        Arc::new(Resolver {
            dns,
            handle,
            config,
            names: Mutex::default(),
        })
    }

    /// Follows the addresses of a name.
    pub fn follow(self: &Arc<Self>, host: &str, port: u16) -> watch::Receiver<Addresses> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = names.get(&(host.to_owned(), port)) {
            return name.addresses.subscribe();
        }
        let (addresses, receiver) = watch::channel(Addresses::Pending);
        let name = Arc::new(Name {
            addresses,
            looked_up: watch::Sender::new(None),
            again: Notify::new(),
        });
        names.insert((host.to_owned(), port), Arc::clone(&name));
        drop(names);
        let resolver = Arc::clone(self);
        let host = host.to_owned();
        self.handle
            .spawn(async move { resolver.refresh(host, port, name).await });
        receiver
    }

    /// Looks a name up again soon: a connection to one of its addresses failed.
    pub fn again(&self, host: &str, port: u16) {
        if let Some(name) = self.name(host, port) {
            name.again.notify_one();
        }
    }

    /// Looks a name up again, unless that was done since `asked`, and waits for what is found, but no longer than this.
    pub async fn look_again(&self, host: &str, port: u16, asked: Instant, patience: Duration) {
        let Some(name) = self.name(host, port) else {
            return;
        };
        // One that began before may have been answered before, too.
        let is_new = |began: &Option<Instant>| began.is_some_and(|began| began >= asked);
        let mut looked_up = name.looked_up.subscribe();
        if !is_new(&looked_up.borrow()) {
            name.again.notify_one();
        }
        let _ = tokio::time::timeout(patience, looked_up.wait_for(is_new)).await;
    }

    fn name(&self, host: &str, port: u16) -> Option<Arc<Name>> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(&(host.to_owned(), port)).cloned()
    }

    /// Every name that is followed and what is known of it.
    #[must_use]
    pub fn known(&self) -> BTreeMap<String, Addresses> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names
            .iter()
            .map(|((host, port), name)| (format!("{host}:{port}"), name.addresses.borrow().clone()))
            .collect()
    }

    async fn refresh(&self, host: String, port: u16, name: Arc<Name>) {
        loop {
            let config = self.config.load_full();
            let began = Instant::now();
            let pause = match self.look_up(&host, port, &config).await {
                Ok((found, ttl)) => {
                    name.addresses.send_if_modified(|known| {
                        let changed = *known != Addresses::Known(found.clone());
                        if changed {
                            tracing::debug!(host, port, ?found, "addresses");
                            *known = Addresses::Known(found);
                        }
                        changed
                    });
                    ttl.min(config.upstream.max_ttl.0)
                        .max(config.upstream.min_ttl.0)
                }
                Err(error) => {
                    name.addresses.send_if_modified(|known| match known {
                        // The last good addresses are better than none.
                        Addresses::Known(_) => false,
                        _ => {
                            *known = Addresses::Failed(error.clone());
                            true
                        }
                    });
                    tracing::debug!(host, port, error, "lookup failed");
                    config.upstream.min_ttl.0.min(Duration::from_secs(1))
                }
            };
            name.looked_up.send_replace(Some(began));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = name.again.notified() => {
                    // Not more often than this, however many connections fail.
                    let at_least = Duration::from_millis(250);
                    tokio::time::sleep(at_least.saturating_sub(began.elapsed())).await;
                }
            }
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            if name.addresses.receiver_count() == 0 {
                names.remove(&(host, port));
                return;
            }
        }
    }

    async fn look_up(
        &self,
        host: &str,
        port: u16,
        config: &Config,
    ) -> Result<(Vec<SocketAddr>, Duration), String> {
        if let Some(addresses) = config.hosts.get(host) {
            return Ok((addresses.clone(), Duration::MAX));
        }
        let Some(dns) = &self.dns else {
            return Err("there is no DNS here".to_owned());
        };
        // With a dot at the end, search domains are left out.
        let answer = dns
            .lookup_ip(format!("{}.", host.trim_end_matches('.')))
            .await
            .map_err(|error| error.to_string())?;
        let mut addresses: Vec<SocketAddr> =
            answer.iter().map(|ip| SocketAddr::new(ip, port)).collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Err("the name has no address".to_owned());
        }
        let ttl = answer
            .valid_until()
            .saturating_duration_since(Instant::now());
        Ok((addresses, ttl))
    }
}
