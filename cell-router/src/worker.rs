//! What one thread of the data plane keeps: its view of the table, its connections, its counters.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use titan_routing::{AssignmentState, CellEndpoint, RoutingTable};

use crate::config::{AccessLog, Config};
use crate::metrics::{Counter, PairMetrics, ThreadMetrics};
use crate::resilience::budget::RetryBudget;
use crate::services::Services;
use crate::shared::{CellShared, Shared};
use crate::upstream::{Pool, Target};

/// One thread of the data plane. Everything in it belongs to that thread; only `shared` is shared.
pub struct Worker {
    /// The state of the process.
    pub shared: Arc<Shared>,
    /// The counters of this thread.
    pub metrics: Arc<ThreadMetrics>,
    /// Its retry budget.
    pub budget: RetryBudget,
    /// Requests that wait for a range, by its first key.
    pub held: RefCell<HashMap<u64, usize>>,
    /// How many threads there are.
    pub threads: usize,
    /// Whether clients are to look for another router.
    pub leaving: Cell<bool>,
    view: RefCell<Rc<View>>,
    sampled: Cell<u32>,
    error_logs: Cell<(u64, u32)>,
}

/// The table and the configuration of one moment, with what this thread keeps beside them.
pub struct View {
    /// The version that it is of.
    pub version: u64,
    /// The table.
    pub table: Arc<RoutingTable>,
    /// The configuration.
    pub config: Arc<Config>,
    /// The services of the configuration.
    pub services: Rc<Services>,
    /// After which time answers are late, by the position of the service; empty when none ever is.
    slow_after: Vec<Option<Duration>>,
    cells: Vec<OnceCell<Rc<CellTargets>>>,
    /// Kept from view to view, by name.
    known: Rc<RefCell<HashMap<Arc<str>, Rc<CellTargets>>>>,
    /// Cells that serve something, for requests without a key.
    active: OnceCell<Vec<usize>>,
}

/// A cell and its services, as one thread sees them.
pub struct CellTargets {
    /// What all threads share.
    pub shared: Arc<CellShared>,
    in_flight: Arc<Counter>,
    endpoint: CellEndpoint,
    services: Rc<Services>,
    slots: Vec<Slot>,
}

/// A service of a cell: the way there, for as long as it is asked for, and its counters for good.
#[derive(Default)]
struct Slot {
    target: RefCell<Option<Rc<Target>>>,
    metrics: OnceCell<Arc<PairMetrics>>,
    /// How many requests there had been when it was last found to be asked for, and when that was, in milliseconds since
    /// start.
    used: Cell<(u64, u64)>,
}

impl Slot {
    /// Closes connections that were idle for so long, and gives the way up when nobody asked for it for `keep`: its name is
    /// then looked up no more.
    fn reap(&self, now_ms: u64, idle: Duration, keep: Duration) {
        let mut target = self.target.borrow_mut();
        let Some(there) = &*target else { return };
        there.pool.reap(now_ms, idle);
        let (before, since_ms) = self.used.get();
        let requests = there.metrics.requests();
        if Rc::strong_count(there) > 1 || requests != before {
            self.used.set((requests, now_ms));
        } else if Duration::from_millis(now_ms.saturating_sub(since_ms)) >= keep {
            *target = None;
        }
    }
}

impl Worker {
    /// A thread's state. Must be made on the thread that uses it.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Rc<Self> {
        let config = shared.config.load_full();
        let view = View {
            version: 0,
            table: shared.table.load_full(),
            services: Rc::new(Services::new(&config.services)),
            slow_after: Vec::new(),
            cells: Vec::new(),
            known: Rc::default(),
            active: OnceCell::new(),
            config: Arc::clone(&config),
        };
        Rc::new(Worker {
            metrics: shared.metrics.thread(),
            budget: RetryBudget::new(&config.retry, Instant::now()),
            held: RefCell::default(),
            threads: config.thread_count(),
            leaving: Cell::new(false),
            view: RefCell::new(Rc::new(view)),
            sampled: Cell::new(0),
            error_logs: Cell::new((0, 0)),
            shared,
        })
    }

    /// The view of this moment.
    #[must_use]
    pub fn view(&self) -> Rc<View> {
        let version = self.shared.version();
        let view = self.view.borrow();
        if view.version == version {
            return Rc::clone(&view);
        }
        let next = Rc::new(view.next(&self.shared, version));
        drop(view);
        *self.view.borrow_mut() = Rc::clone(&next);
        next
    }

    /// The service of a cell.
    #[must_use]
    pub fn target(&self, view: &View, cell: usize, service: usize) -> Option<Rc<Target>> {
        let slot = view.cells.get(cell)?;
        let cell = match slot.get() {
            Some(cell) => cell,
            None => {
                let made = view.cell_targets(&self.shared, view.table.cells().get(cell)?);
                slot.get_or_init(|| made)
            }
        };
        let slot = cell.slots.get(service)?;
        if let Some(target) = &*slot.target.borrow() {
            return Some(Rc::clone(target));
        }
        let entry = cell.services.get(service)?;
        let name: Arc<str> = Arc::from(&*entry.name);
        let made = Rc::new(Target {
            health: self.shared.health(&cell.shared.name, &name),
            metrics: Arc::clone(
                slot.metrics
                    .get_or_init(|| self.shared.metrics.pair(&cell.shared.name, &name)),
            ),
            cell_in_flight: Arc::clone(&cell.in_flight),
            pool: Pool::new(
                &entry.name,
                &cell.endpoint.endpoint,
                entry.port,
                entry.protocol,
                &self.shared.resolver,
                &self.metrics,
                self.shared.clock,
            ),
            cell: Arc::clone(&cell.shared),
            service: name,
        });
        slot.used
            .set((made.metrics.requests(), self.shared.clock.now_ms()));
        *slot.target.borrow_mut() = Some(Rc::clone(&made));
        Some(made)
    }

    /// A request failed by the fault of the target.
    pub fn failed(&self, target: &Target, detail: impl Fn() -> String) {
        let config = self.shared.config.load();
        let now_ms = self.shared.clock.now_ms();
        let breaker = &config.breaker;
        if target.health.failed(breaker, now_ms, &detail) {
            tracing::warn!(
                cell = &*target.cell.name,
                service = &*target.service,
                detail = detail(),
                "circuit of the service opened"
            );
        }
        if target.cell.health.failed(breaker, now_ms, &detail) {
            tracing::warn!(
                cell = &*target.cell.name,
                detail = detail(),
                "circuit of the cell opened"
            );
        }
    }

    /// A request was answered as it should, by a service whose answers can be late.
    pub fn answered(&self, target: &Target, late: bool, probe: bool) {
        target.cell.health.succeeded(probe);
        if late {
            return self.late(target, true, probe);
        }
        let config = self.shared.config.load();
        let now_ms = self.shared.clock.now_ms();
        target.health.in_time(probe, &config.breaker, now_ms);
    }

    /// A request was answered late or not at all, by a service whose answers can be late.
    pub fn late(&self, target: &Target, answered: bool, probe: bool) {
        let config = self.shared.config.load();
        let now_ms = self.shared.clock.now_ms();
        let detail = |percent| format!("{percent}% of the answers are late");
        if target
            .health
            .late(answered, probe, &config.breaker, now_ms, detail)
        {
            tracing::warn!(
                cell = &*target.cell.name,
                service = &*target.service,
                detail = target.health.detail(),
                "circuit of the service opened"
            );
        }
    }

    /// Whether the access log takes this request, however it ends. Asked once, when it starts.
    #[must_use]
    pub fn samples(&self, log: &AccessLog) -> bool {
        if log.sample == 0 {
            return false;
        }
        let next = self.sampled.get() + 1;
        self.sampled.set(if next >= log.sample { 0 } else { next });
        next >= log.sample
    }

    /// Whether the access log takes a request that failed.
    #[must_use]
    pub fn logs_failure(&self) -> bool {
        let most = self.view.borrow().config.access_log.errors_per_second;
        let second = self.shared.clock.now_ms() / 1000;
        let (of, count) = self.error_logs.get();
        let count = if of == second { count + 1 } else { 1 };
        self.error_logs.set((second, count));
        count <= most
    }

    /// Closes connections to pods that were idle for so long, and gives up the ways to services that nobody asks for.
    pub fn reap(&self, idle: Duration) {
        let view = self.view();
        // Not sooner when memory is short: to look a name up again takes time that a connection does not.
        let keep = view.config.upstream.idle.0;
        let now_ms = self.shared.clock.now_ms();
        let known = view.known.borrow();
        for cell in known.values() {
            for slot in &cell.slots {
                slot.reap(now_ms, idle, keep);
            }
        }
    }

    /// Waits until the table or the configuration is another one than that of the view. False when `patience` ends first.
    pub async fn next_version(&self, view: &View, patience: Duration) -> bool {
        let mut versions = self.shared.versions();
        tokio::time::timeout(
            patience,
            versions.wait_for(|version| *version != view.version),
        )
        .await
        .is_ok_and(|version| version.is_ok())
    }
}

impl View {
    fn next(&self, shared: &Shared, version: u64) -> View {
        let config = shared.config.load_full();
        let table = shared.table.load_full();
        let services = if config.services == self.config.services {
            Rc::clone(&self.services)
        } else {
            self.known.borrow_mut().clear();
            Rc::new(Services::new(&config.services))
        };
        if config.hosts != self.config.hosts {
            self.known.borrow_mut().clear();
        }
        // Cells that went close their connections; those that moved get new ones when they are used.
        self.known.borrow_mut().retain(|name, cell| {
            table
                .cell(name)
                .is_some_and(|endpoint| *endpoint == cell.endpoint)
        });
        View {
            version,
            slow_after: slow_after(&config, &services),
            cells: vec![OnceCell::new(); table.cells().len()],
            table,
            config,
            services,
            known: Rc::clone(&self.known),
            active: OnceCell::new(),
        }
    }

    /// After which time answers of a service are late, if they ever are.
    #[must_use]
    pub fn slow_after(&self, service: usize) -> Option<Duration> {
        self.slow_after.get(service).copied().flatten()
    }

    fn cell_targets(&self, shared: &Shared, endpoint: &CellEndpoint) -> Rc<CellTargets> {
        let mut known = self.known.borrow_mut();
        if let Some(cell) = known
            .get(endpoint.cell.as_str())
            .filter(|cell| cell.endpoint == *endpoint)
        {
            return Rc::clone(cell);
        }
        let of_all = shared.cell(&endpoint.cell);
        let cell = Rc::new(CellTargets {
            in_flight: of_all.counter(),
            shared: of_all,
            endpoint: endpoint.clone(),
            slots: self.services.iter().map(|_| Slot::default()).collect(),
            services: Rc::clone(&self.services),
        });
        known.insert(Arc::clone(&cell.shared.name), Rc::clone(&cell));
        cell
    }

    /// Cells that serve something, by their position in the table.
    #[must_use]
    pub fn active_cells(&self) -> &[usize] {
        self.active.get_or_init(|| {
            let mut cells: Vec<usize> = self
                .table
                .assignments()
                .iter()
                .filter(|row| row.state == AssignmentState::Active)
                .filter_map(|row| self.table.locate(row.range.first()))
                .filter(|found| !found.pinned)
                .map(|found| found.cell)
                .collect();
            cells.sort_unstable();
            cells.dedup();
            cells
        })
    }
}

fn slow_after(config: &Config, services: &Services) -> Vec<Option<Duration>> {
    let slow_after = &config.breaker.slow_after;
    if slow_after.is_empty() {
        return Vec::new();
    }
    let of = |name: &str| slow_after.get(name).map(|after| after.0);
    services.iter().map(|entry| of(&entry.name)).collect()
}
