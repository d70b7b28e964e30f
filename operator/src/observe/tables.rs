//! The committed routing tables, as every replica of the operator sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use kube::runtime::watcher::Event;
use titan_crds::{Cell, RoutingTable as TableResource};
use titan_planner::Observed;
use titan_planner::assignment::rows_of;
use titan_planner::fleet::from_resource;
use titan_routing::server::RegistryService;
use titan_routing::{Assignment, KeyspaceMode, RoutingTable};
use tokio::sync::{broadcast, watch};

/// What happened to the table of a fleet.
#[derive(Clone, Debug)]
pub enum TableEvent {
    /// A newer table took its place.
    Replaced {
        /// The table before; an empty one at epoch 0 if there was none.
        before: Arc<RoutingTable>,
        /// The table now.
        after: Arc<RoutingTable>,
    },
    /// The tables were listed for the first time: what was unknown is known.
    Listed,
    /// The resource is gone, or is not what the operator wrote: the fleet has to write it again.
    Damaged {
        /// The fleet.
        fleet: String,
    },
}

/// How many events wait for a controller that is busy. One that falls behind by more looks at everything.
const EVENTS: usize = 256;

/// The last good table of each fleet. A table is taken in only when it is what the operator wrote and newer than the one
/// before. Each is served by the registry from the moment that it is known.
///
/// A fleet's table is [`Observed::Unknown`] until the watch has listed all tables once, and while there is one that cannot be
/// read and no good one was known before. It is [`Observed::Absent`] only when the list came to its end without it.
pub struct Tables {
    state: Mutex<State>,
    registry: RegistryService,
    events: broadcast::Sender<TableEvent>,
}

#[derive(Default)]
struct State {
    /// The last good table of each fleet.
    good: BTreeMap<String, watch::Sender<Arc<RoutingTable>>>,
    /// Fleets that have a RoutingTable which is not what the operator wrote.
    unreadable: BTreeSet<String>,
    /// Fleets in the list that is being read, while one is.
    listing: Option<BTreeSet<String>>,
    /// Whether a list has come to its end.
    listed: bool,
}

impl Tables {
    /// No tables yet.
    #[must_use]
    pub fn new(registry: RegistryService) -> Self {
        Tables {
            state: Mutex::default(),
            registry,
            events: broadcast::Sender::new(EVENTS),
        }
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<TableEvent> {
        self.events.subscribe()
    }

    /// Takes in what the watch of RoutingTables says.
    pub fn observe(&self, event: Event<TableResource>) {
        match event {
            Event::Init => self.lock().listing = Some(BTreeSet::new()),
            Event::InitApply(table) => {
                if let Some(listing) = &mut self.lock().listing {
                    listing.insert(table.spec.fleet.clone());
                }
                self.take_in(&table);
            }
            Event::InitDone => self.listed(),
            Event::Apply(table) => self.take_in(&table),
            Event::Delete(table) => self.lost(&table.spec.fleet),
        }
    }

    /// A list has come to its end: a table that was known and is not in it was deleted while nobody watched.
    fn listed(&self) {
        let mut state = self.lock();
        let listed = state.listing.take().unwrap_or_default();
        let known = state.good.keys().chain(&state.unreadable);
        let missing: BTreeSet<String> = known.filter(|it| !listed.contains(*it)).cloned().collect();
        let first = !std::mem::replace(&mut state.listed, true);
        drop(state);
        for fleet in missing {
            self.lost(&fleet);
        }
        if first {
            self.tell(TableEvent::Listed);
        }
    }

    /// A table's resource was deleted. The last good table is served on.
    fn lost(&self, fleet: &str) {
        tracing::error!(
            fleet,
            "the RoutingTable was deleted; the last good one is served on"
        );
        self.lock().unreadable.remove(fleet);
        self.tell(TableEvent::Damaged {
            fleet: fleet.to_owned(),
        });
    }

    /// The last good table of a fleet.
    pub fn get(&self, fleet: &str) -> Observed<Arc<RoutingTable>> {
        let state = self.lock();
        match state.good.get(fleet) {
            Some(table) => Observed::Known(table.borrow().clone()),
            None if state.listed && !state.unreadable.contains(fleet) => Observed::Absent,
            None => Observed::Unknown,
        }
    }

    /// The rows that a cell serves or holds, by its fleet's last good table.
    pub fn rows_of(&self, cell: &Cell) -> Observed<Vec<Assignment>> {
        match self.get(&cell.spec.fleet) {
            Observed::Known(table) => Observed::Known(rows_of(&table, &cell.name_any())),
            Observed::Unknown => Observed::Unknown,
            Observed::Absent => Observed::Absent,
        }
    }

    /// Takes in a table that was read from the apiserver.
    pub fn take_in(&self, resource: &TableResource) {
        let fleet = &resource.spec.fleet;
        let after = match from_resource(&resource.spec) {
            Ok(table) => Arc::new(table),
            Err(error) => {
                tracing::error!(fleet, %error, "the RoutingTable cannot be used; the last good one stays");
                self.lock().unreadable.insert(fleet.clone());
                self.tell(TableEvent::Damaged {
                    fleet: fleet.clone(),
                });
                return;
            }
        };
        let mut state = self.lock();
        state.unreadable.remove(fleet);
        let sender = state.good.entry(fleet.clone()).or_insert_with(|| {
            let empty = RoutingTable::empty(KeyspaceMode::default());
            let (sender, receiver) = watch::channel(Arc::new(empty));
            self.registry.serve_fleet(fleet.clone(), receiver);
            sender
        });
        let before = sender.borrow().clone();
        if after.epoch() <= before.epoch() {
            return;
        }
        sender.send_replace(after.clone());
        self.tell(TableEvent::Replaced { before, after });
    }

    fn tell(&self, event: TableEvent) {
        // Nobody listens on a replica that does not lead, which is no error.
        let _ = self.events.send(event);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held cannot leave the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
