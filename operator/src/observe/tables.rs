//! The committed routing tables, as every replica of the operator sees them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use titan_crds::{Cell, RoutingTable as TableResource};
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
pub struct Tables {
    by_fleet: Mutex<BTreeMap<String, watch::Sender<Arc<RoutingTable>>>>,
    registry: RegistryService,
    events: broadcast::Sender<TableEvent>,
}

impl Tables {
    /// No tables yet.
    #[must_use]
    pub fn new(registry: RegistryService) -> Self {
        Tables {
            by_fleet: Mutex::default(),
            registry,
            events: broadcast::Sender::new(EVENTS),
        }
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<TableEvent> {
        self.events.subscribe()
    }

    /// Says that a table's resource was deleted. The last good table is served on.
    pub fn lost(&self, resource: &TableResource) {
        let fleet = resource.spec.fleet.clone();
        tracing::error!(
            fleet,
            "the RoutingTable was deleted; the last good one is served on"
        );
        self.tell(TableEvent::Damaged { fleet });
    }

    /// The last good table of a fleet.
    pub fn latest(&self, fleet: &str) -> Option<Arc<RoutingTable>> {
        self.lock().get(fleet).map(|table| table.borrow().clone())
    }

    /// The row by which a cell serves, if its fleet's last good table has one.
    pub fn row_of(&self, cell: &Cell) -> Option<Assignment> {
        let table = self.latest(&cell.spec.fleet)?;
        table.served_by(&cell.name_any()).next().cloned()
    }

    /// Takes in what was read from the apiserver.
    pub fn take_in(&self, resource: &TableResource) {
        let fleet = &resource.spec.fleet;
        let after = match from_resource(&resource.spec) {
            Ok(table) => Arc::new(table),
            Err(error) => {
                tracing::error!(fleet, %error, "the RoutingTable cannot be used; the last good one stays");
                self.tell(TableEvent::Damaged {
                    fleet: fleet.clone(),
                });
                return;
            }
        };
        let mut tables = self.lock();
        let sender = tables.entry(fleet.clone()).or_insert_with(|| {
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, watch::Sender<Arc<RoutingTable>>>> {
        // A panic while the lock was held cannot leave the map half-changed.
        self.by_fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
