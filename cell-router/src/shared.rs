//! What all threads share: the table, the configuration, and what is known of the cells.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use titan_routing::{KeyspaceMode, RoutingTable};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::config::{Config, ConfigError};
use crate::dns::Resolver;
use crate::identity::Identity;
use crate::metrics::{Counter, Metrics, Pair};
use crate::resilience::health::Health;
use crate::resilience::rate::{KeyRates, Rate};

/// Time since the process started, in units that fit an atomic.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now, at 1 s, so that 0 can mean "never".
    #[must_use]
    pub fn start() -> Self {
        Clock {
            start: Instant::now(),
        }
    }

    /// Milliseconds.
    #[must_use]
    pub fn now_ms(self) -> u64 {
        self.ms_at(Instant::now())
    }

    /// Milliseconds at an instant.
    #[must_use]
    pub fn ms_at(self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.start);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX) + 1_000
    }

    /// Microseconds at an instant.
    #[must_use]
    pub fn us_at(self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.start);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX) + 1_000_000
    }
}

/// A cell, as all threads see it.
#[derive(Debug)]
pub struct CellShared {
    /// Its name.
    pub name: Arc<str>,
    /// Its failures.
    pub health: Health,
    /// Its rate limit.
    pub rate: Rate,
    /// Requests under way to it, of each thread.
    in_flight: Mutex<Vec<Weak<Counter>>>,
}

impl CellShared {
    /// A counter of the requests under way to it, for one thread.
    #[must_use]
    pub fn counter(&self) -> Arc<Counter> {
        let counter = Arc::new(Counter::default());
        let mut all = self
            .in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&counter));
        counter
    }

    /// Requests under way to it, of all threads.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        let all = self
            .in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .filter_map(Weak::upgrade)
            .map(|counter| counter.get())
            .sum()
    }
}

/// How far the process is on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    #[default]
    Serving,
    /// It serves, but says that it is not ready, so that load balancers turn away.
    Leaving,
    /// It accepts nothing new and tells clients to go.
    Draining,
}

/// The state that all threads share.
pub struct Shared {
    /// The configuration in use.
    pub config: Arc<ArcSwap<Config>>,
    /// The table in use.
    pub table: ArcSwap<RoutingTable>,
    /// Grows with each new table or configuration.
    version: watch::Sender<u64>,
    version_now: AtomicU64,
    /// How far the process is on its way out.
    pub phase: watch::Sender<Phase>,
    /// Whether new requests are refused to save memory.
    pub overloaded: AtomicBool,
    /// Whether memory gets short: new connections are refused then, and those that do nothing closed.
    pub memory_short: AtomicBool,
    /// All counters.
    pub metrics: Arc<Metrics>,
    /// Names to addresses.
    pub resolver: Arc<Resolver>,
    /// Whose key a request carries.
    pub identity: Identity,
    /// TLS towards clients.
    pub tls: ArcSwapOption<rustls::ServerConfig>,
    /// Rate limits of keys.
    pub keys: KeyRates,
    /// Time.
    pub clock: Clock,
    cells: Mutex<HashMap<Arc<str>, Arc<CellShared>>>,
    pairs: Mutex<HashMap<Pair, Arc<Health>>>,
}

impl Shared {
    /// The state before any table is known. The handle is of the runtime that runs control tasks.
    ///
    /// # Errors
    /// When the secret of trusted peers or the files of TLS cannot be read.
    pub fn new(config: Config, handle: Handle) -> Result<Arc<Self>, ConfigError> {
        let identity = Identity::new();
        identity.configure(&config)?;
        let tls = config
            .tls
            .as_ref()
            .map(crate::tls::server_config)
            .transpose()?;
        let config = Arc::new(ArcSwap::from_pointee(config));
        Ok(Arc::new(Shared {
            resolver: Resolver::new(handle, Arc::clone(&config)),
            table: ArcSwap::from_pointee(RoutingTable::empty(KeyspaceMode::UserId)),
            version: watch::Sender::new(1),
            version_now: AtomicU64::new(1),
            phase: watch::Sender::new(Phase::Serving),
            overloaded: AtomicBool::new(false),
            memory_short: AtomicBool::new(false),
            metrics: Arc::default(),
            identity,
            tls: ArcSwapOption::new(tls),
            keys: KeyRates::new(16),
            clock: Clock::start(),
            cells: Mutex::default(),
            pairs: Mutex::default(),
            config,
        }))
    }

    /// Takes a table into use.
    pub fn use_table(&self, table: Arc<RoutingTable>) {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.retain(|name, _| table.cell(name).is_some());
        drop(cells);
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        pairs.retain(|(cell, _), _| table.cell(cell).is_some());
        drop(pairs);
        self.table.store(table);
        self.changed();
    }

    /// Takes a configuration into use.
    ///
    /// # Errors
    /// When the secret of trusted peers cannot be read; the old configuration then stays.
    pub fn use_config(&self, config: Config) -> Result<(), ConfigError> {
        self.identity.configure(&config)?;
        self.config.store(Arc::new(config));
        self.changed();
        // The keys may be elsewhere now.
        self.identity.look_again();
        Ok(())
    }

    /// Reads the files of TLS again.
    ///
    /// # Errors
    /// When one is wrong; the old ones then stay in use.
    pub fn reload_tls(&self) -> Result<(), ConfigError> {
        if let Some(tls) = &self.config.load().tls {
            self.tls.store(Some(crate::tls::server_config(tls)?));
        }
        Ok(())
    }

    /// Reads the configuration file again.
    ///
    /// # Errors
    /// When it is wrong; the old configuration then stays.
    pub fn reload(&self, path: &Path) -> Result<(), ConfigError> {
        self.use_config(Config::load(path)?)
    }

    fn changed(&self) {
        self.version.send_modify(|version| {
            *version += 1;
            self.version_now
                .store(*version, std::sync::atomic::Ordering::Release);
        });
    }

    /// A number that grows with each new table or configuration.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version_now.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Hears of new tables and configurations.
    #[must_use]
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Whether new requests are refused to save memory.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.overloaded.load(Relaxed)
    }

    /// The cell of a name.
    #[must_use]
    pub fn cell(&self, name: &str) -> Arc<CellShared> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = cells.get(name) {
            return Arc::clone(cell);
        }
        let name: Arc<str> = name.into();
        let cell = Arc::new(CellShared {
            name: Arc::clone(&name),
            health: Health::default(),
            rate: Rate::default(),
            in_flight: Mutex::default(),
        });
        cells.insert(name, Arc::clone(&cell));
        cell
    }

    /// The failures of a service in a cell.
    #[must_use]
    pub fn health(&self, cell: &Arc<str>, service: &Arc<str>) -> Arc<Health> {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(
            pairs
                .entry((Arc::clone(cell), Arc::clone(service)))
                .or_default(),
        )
    }

    /// Everything known of services in cells.
    #[must_use]
    pub fn healths(&self) -> Vec<(Pair, Arc<Health>)> {
        let pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        pairs
            .iter()
            .map(|(pair, health)| (pair.clone(), Arc::clone(health)))
            .collect()
    }
}
