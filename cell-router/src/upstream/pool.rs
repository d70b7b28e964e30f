//! The pods of a service, and which of them gets the next request.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::conn::Conn;
use crate::config::{Config, Protocol};
use crate::dns::{Addresses, Resolver};
use crate::metrics::ThreadMetrics;
use crate::shared::Clock;

/// One pod, by its address.
pub struct Pod {
    address: SocketAddr,
    conns: RefCell<Vec<Rc<Conn>>>,
    pub(super) in_flight: Cell<usize>,
    /// Requests that wait for a connection to it.
    waiting: Cell<usize>,
    failures: Cell<u32>,
    ejected_until_ms: Cell<u64>,
    eject_after: u32,
    clock: Clock,
    dialing: tokio::sync::Mutex<()>,
    /// Connections that are being opened.
    dials: Cell<usize>,
}

/// How long a pod that failed gets no requests.
const EJECTED_MS: u64 = 1_000;
/// A lookup is given this time at least, however soon a connection is given up.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(1);

impl Pod {
    fn new(address: SocketAddr, eject_after: u32, clock: Clock) -> Rc<Self> {
        Rc::new(Pod {
            address,
            conns: RefCell::default(),
            in_flight: Cell::new(0),
            waiting: Cell::new(0),
            failures: Cell::new(0),
            ejected_until_ms: Cell::new(0),
            eject_after,
            clock,
            dialing: tokio::sync::Mutex::new(()),
            dials: Cell::new(0),
        })
    }

    pub(super) fn forget(&self, conn: &Conn) {
        self.conns
            .borrow_mut()
            .retain(|kept| !std::ptr::eq(&raw const **kept, conn));
    }

    /// A request to it ended well or badly.
    pub(super) fn verdict(&self, faulty: bool) {
        if !faulty {
            if self.failures.get() != 0 {
                self.failures.set(0);
            }
            return;
        }
        self.failures.set(self.failures.get() + 1);
        if self.failures.get() >= self.eject_after.max(1) {
            self.eject();
        }
    }

    fn eject(&self) {
        self.ejected_until_ms.set(self.clock.now_ms() + EJECTED_MS);
    }

    fn is_ejected(&self, now_ms: u64) -> bool {
        self.ejected_until_ms.get() > now_ms
    }

    /// How many requests it has, and will have when it has a connection for them.
    fn load(&self) -> usize {
        self.in_flight.get() + self.waiting.get()
    }

    /// How many connections it has, and will have. Those that take nothing any more are about to end.
    fn connections(&self) -> usize {
        let conns = self.conns.borrow();
        conns.iter().filter(|conn| conn.is_open()).count() + self.dials.get()
    }

    /// The least busy open connection.
    fn best(&self) -> Option<Rc<Conn>> {
        let conns = self.conns.borrow();
        // Almost always the first choice is open; asking takes a lock.
        least_busy(conns.iter())
            .filter(|conn| conn.is_open())
            .or_else(|| least_busy(conns.iter().filter(|conn| conn.is_open())))
    }
}

fn least_busy<'a>(conns: impl Iterator<Item = &'a Rc<Conn>>) -> Option<Rc<Conn>> {
    conns.min_by_key(|conn| conn.in_flight()).cloned()
}

/// Something that is counted for as long as this lives.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn among(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// The pods of one service of one cell, and the connections of one thread to them.
pub struct Pool {
    host: String,
    port: u16,
    protocol: Protocol,
    addresses: RefCell<watch::Receiver<Addresses>>,
    /// Whether `addresses` were not looked at yet. (A fixed address has no sender that could tell.)
    fresh: Cell<bool>,
    pods: RefCell<Vec<Rc<Pod>>>,
    turn: Cell<usize>,
    resolver: Arc<Resolver>,
    metrics: Arc<ThreadMetrics>,
    clock: Clock,
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PoolError {
    /// The name has no addresses.
    #[error("{0} has no address: {1}")]
    NoAddress(String, String),
    /// No pod takes a connection.
    #[error("{0}")]
    Dial(String),
    /// There are as many connections as there may be, and all are taken. That says nothing about the pods.
    #[error(
        "all {0} connections to {1} are busy (`upstream.connectionsPerPod`, `upstream.streamsPerConnection`)"
    )]
    Busy(usize, SocketAddr),
}

impl Pool {
    /// The pool of a service: `<service>.<endpoint>:<port>`, or the address itself when the endpoint is one.
    #[must_use]
    pub fn new(
        service: &str,
        endpoint: &str,
        port: u16,
        protocol: Protocol,
        resolver: &Arc<Resolver>,
        metrics: &Arc<ThreadMetrics>,
        clock: Clock,
    ) -> Self {
        let (host, port, addresses) = if let Ok(address) = endpoint.parse::<SocketAddr>() {
            let known = Addresses::Known(vec![address]);
            (endpoint.to_owned(), address.port(), watch::channel(known).1)
        } else if let Ok(ip) = endpoint.parse::<IpAddr>() {
            let known = Addresses::Known(vec![SocketAddr::new(ip, port)]);
            (endpoint.to_owned(), port, watch::channel(known).1)
        } else {
            let host = format!("{service}.{endpoint}");
            let addresses = resolver.follow(&host, port);
            (host, port, addresses)
        };
        Pool {
            host,
            port,
            protocol,
            addresses: RefCell::new(addresses),
            fresh: Cell::new(true),
            pods: RefCell::default(),
            turn: Cell::new(0),
            resolver: Arc::clone(resolver),
            metrics: Arc::clone(metrics),
            clock,
        }
    }

    /// What the pods of the service speak.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// A connection with room for a request, to the least busy pod, when one is open. The room is reserved.
    #[must_use]
    pub fn ready(&self, config: &Config) -> Option<Rc<Conn>> {
        self.take_addresses(config);
        self.turn.set(self.turn.get().wrapping_add(1));
        let pod = self.choose(&[]).ok()?;
        let streams = config.upstream.streams_per_connection;
        let conn = pod.best().filter(|conn| conn.has_room(streams))?;
        conn.reserve();
        Some(conn)
    }

    /// The same when [`Self::ready`] had none: opens a connection.
    ///
    /// # Errors
    /// When the name has no addresses, no pod takes a connection, or all that there may be are taken.
    pub async fn connect(&self, config: &Config) -> Result<Rc<Conn>, PoolError> {
        self.take_addresses(config);
        if self.pods.borrow().is_empty() {
            self.wait_for_addresses(config).await?;
        }
        let (asked, mut tried) = (Instant::now(), Vec::new());
        let connected = self.connect_to_any(config, &mut tried).await;
        if !matches!(connected, Err(PoolError::Dial(_))) {
            return connected;
        }
        // Since the last lookup pods may have come, as those went that are known here.
        let patience = config.upstream.connect_timeout.0.max(LOOKUP_PATIENCE);
        self.resolver
            .look_again(&self.host, self.port, asked, patience)
            .await;
        self.take_addresses(config);
        if self.untried(&tried) == 0 {
            return connected;
        }
        self.connect_to_any(config, &mut tried).await
    }

    async fn connect_to_any(
        &self,
        config: &Config,
        tried: &mut Vec<SocketAddr>,
    ) -> Result<Rc<Conn>, PoolError> {
        let attempts = self.untried(tried).clamp(1, 3);
        let mut last = None;
        for _ in 0..attempts {
            let pod = self.choose(tried)?;
            // Without it a burst would all wait for the same pod.
            let waiting = Counted::among(&pod.waiting);
            let conn = self.conn_of(&pod, config).await;
            drop(waiting);
            match conn {
                Ok(conn) => {
                    conn.reserve();
                    return Ok(conn);
                }
                Err(PoolError::Dial(error)) => {
                    self.metrics.dial_failures.add(1);
                    pod.eject();
                    tried.push(pod.address);
                    self.resolver.again(&self.host, self.port);
                    last = Some(error);
                }
                // It was the least busy of the pods.
                Err(busy) => return Err(busy),
            }
        }
        Err(PoolError::Dial(
            last.unwrap_or_else(|| format!("{} has no pods", self.host)),
        ))
    }

    fn untried(&self, tried: &[SocketAddr]) -> usize {
        let pods = self.pods.borrow();
        let untried = pods.iter().filter(|pod| !tried.contains(&pod.address));
        untried.count()
    }

    /// The least busy pod that did not just fail; when all did, the least busy one. Ties take turns. Those that were tried
    /// come last.
    fn choose(&self, tried: &[SocketAddr]) -> Result<Rc<Pod>, PoolError> {
        let pods = self.pods.borrow();
        if let [only] = pods.as_slice() {
            return Ok(Rc::clone(only));
        }
        let now_ms = self.clock.now_ms();
        let start = self.turn.get() % pods.len().max(1);
        let (front, back) = pods.split_at(start);
        back.iter()
            .chain(front)
            .min_by_key(|pod| {
                let was_tried = tried.contains(&pod.address);
                (was_tried, pod.is_ejected(now_ms), pod.load())
            })
            .cloned()
            .ok_or_else(|| PoolError::NoAddress(self.host.clone(), "no pods".to_owned()))
    }

    async fn conn_of(&self, pod: &Rc<Pod>, config: &Config) -> Result<Rc<Conn>, PoolError> {
        let streams = config.upstream.streams_per_connection;
        let best = pod.best();
        if let Some(conn) = best.as_ref().filter(|conn| conn.has_room(streams)) {
            return Ok(Rc::clone(conn));
        }
        if self.protocol == Protocol::H1 {
            // It carries one request a connection, so that it may need many.
            let most = config.upstream.connections_per_pod * streams;
            if pod.connections() >= most {
                return Err(PoolError::Busy(most, pod.address));
            }
            return self.dial(pod, config).await;
        }
        let most = config.upstream.connections_per_pod;
        if let Some(conn) = best.filter(|_| pod.connections() >= most) {
            return Ok(conn);
        }
        // One dials, the others wait and share what it opened.
        let _dialing = pod.dialing.lock().await;
        let full = pod.connections() >= most;
        if let Some(conn) = pod.best().filter(|conn| full || conn.has_room(streams)) {
            return Ok(conn);
        }
        self.dial(pod, config).await
    }

    async fn dial(&self, pod: &Rc<Pod>, config: &Config) -> Result<Rc<Conn>, PoolError> {
        self.metrics.dials.add(1);
        let _counted = Counted::among(&pod.dials);
        let conn = Conn::dial(pod, pod.address, self.protocol, config)
            .await
            .map_err(PoolError::Dial)?;
        pod.conns.borrow_mut().push(Rc::clone(&conn));
        Ok(conn)
    }

    /// Takes new addresses over: pods that stay keep their connections.
    fn take_addresses(&self, config: &Config) {
        let mut receiver = self.addresses.borrow_mut();
        if !self.fresh.replace(false) && !receiver.has_changed().unwrap_or(false) {
            return;
        }
        let Addresses::Known(addresses) = receiver.borrow_and_update().clone() else {
            return;
        };
        let mut pods = self.pods.borrow_mut();
        let old = std::mem::take(&mut *pods);
        *pods = addresses
            .iter()
            .map(|address| {
                old.iter()
                    .find(|pod| pod.address == *address)
                    .cloned()
                    .unwrap_or_else(|| Pod::new(*address, config.upstream.eject_after, self.clock))
            })
            .collect();
    }

    async fn wait_for_addresses(&self, config: &Config) -> Result<(), PoolError> {
        let mut receiver = self.addresses.borrow().clone();
        let patience = config.upstream.connect_timeout.0 * 2;
        let known = tokio::time::timeout(
            patience.max(LOOKUP_PATIENCE),
            receiver.wait_for(|addresses| *addresses != Addresses::Pending),
        )
        .await;
        let no_address = |why: String| PoolError::NoAddress(self.host.clone(), why);
        match known {
            Ok(Ok(addresses)) => {
                if let Addresses::Failed(why) = &*addresses {
                    self.resolver.again(&self.host, self.port);
                    return Err(no_address(why.clone()));
                }
            }
            _ => {
                return Err(no_address(format!(
                    "DNS did not answer within {patience:?}"
                )));
            }
        }
        self.fresh.set(true);
        self.take_addresses(config);
        Ok(())
    }

    /// Closes connections that were idle for too long.
    pub fn reap(&self, now_ms: u64, idle: Duration) {
        let idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        for pod in &*self.pods.borrow() {
            pod.conns.borrow_mut().retain(|conn| {
                let since = conn.idle_since(now_ms);
                conn.is_open() && (since == 0 || now_ms.saturating_sub(since) < idle_ms)
            });
        }
    }

    /// The pods and how busy they are, for people.
    #[must_use]
    pub fn describe(&self) -> Vec<(SocketAddr, usize, usize)> {
        self.pods
            .borrow()
            .iter()
            .map(|pod| (pod.address, pod.conns.borrow().len(), pod.in_flight.get()))
            .collect()
    }
}
