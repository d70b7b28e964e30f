//! What only the leader does: the controllers, and the watches that feed them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use futures::stream;
use futures::{Stream, StreamExt, TryStreamExt};
use kube::runtime::events::{EventType, Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use titan_crds::{Cell, CellFleet, ServiceProfile};
use titan_planner::assignment::{claim, rows_of};
use titan_planner::object::MANAGER;
use titan_routing::RoutingTable;
use titan_routing::proto::FailureReport;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::{OnceCell, SetOnce};
use tokio_util::sync::CancellationToken;

use crate::execute::{cell, fleet};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::observe::own_writes::OwnWrites;
use crate::observe::tables::{TableEvent, Tables};
use crate::observe::unseen::Unseen;
use crate::observe::{
    Debounce, Reader, Unreadable, announce, debounce, note, open_claim, readable,
};
use crate::run::attempt::Failures;
use crate::run::context::{Context, KafkaAdmins};
use crate::run::dependencies::Dependencies;
use crate::run::replica::Settings;
use crate::stores::postgres::Commit;

/// How long to gather the changes of cells into one table and one status of their fleet.
const FLEET_DEBOUNCE: Debounce = Debounce {
    quiet: Duration::from_millis(200),
    max_wait: Duration::from_secs(1),
};

/// Where it is sent which objects are to be looked at.
#[derive(Clone)]
struct Look {
    cells: UnboundedSender<ObjectRef<Cell>>,
    fleets: UnboundedSender<ObjectRef<CellFleet>>,
}

impl Look {
    // A receiver is gone only when the term is over; then nobody needs to look.
    fn at_cell(&self, cell: &Cell) {
        let _ = self.cells.send(ObjectRef::from_obj(cell));
    }

    fn at_fleet(&self, name: &str) {
        let _ = self.fleets.send(ObjectRef::new(name));
    }
}

/// Runs the controllers until the term ends, and returns when the last reconcile has ended.
pub(crate) async fn lead(
    client: Client,
    settings: Settings,
    metrics: Metrics,
    ledger: Arc<dyn Ledger>,
    tables: Arc<Tables>,
    reports: broadcast::Receiver<FailureReport>,
    term: CancellationToken,
) {
    let (cells, cells_writer) = reflector::store::<Cell>();
    let (profiles, profiles_writer) = reflector::store::<ServiceProfile>();
    let (fleets, fleets_writer) = reflector::store::<CellFleet>();
    let cells_known = Arc::new(SetOnce::new());
    let table_events = tables.events();
    let own_writes = Arc::new(OwnWrites::default());
    let context = Arc::new(Context {
        recorder: Recorder::new(
            client.clone(),
            Reporter {
                controller: MANAGER.to_owned(),
                instance: Some(settings.identity),
            },
        ),
        client,
        ledger,
        tables,
        dependencies: Dependencies::new(metrics.clone()),
        metrics,
        system_namespace: settings.namespace,
        cluster: OnceCell::new(),
        cells: cells.clone(),
        cells_known: cells_known.clone(),
        profiles,
        fleets,
        kafka: KafkaAdmins::default(),
        own_writes: own_writes.clone(),
        proof: Arc::new(Commit),
        compared: Arc::default(),
        pass_cache: cell::PassCache::default(),
        unseen: Unseen::default(),
        failures: Failures::default(),
    });
    let (cell_sender, cell_refs) = mpsc::unbounded_channel();
    let (fleet_sender, fleet_refs) = mpsc::unbounded_channel();
    let look = Look {
        cells: cell_sender,
        fleets: fleet_sender,
    };

    let cell_events = watch(&context, cells.clone())
        .reflect(cells_writer)
        .inspect_ok({
            let look = look.clone();
            move |event| {
                match event {
                    Event::Apply(cell) | Event::InitApply(cell) | Event::Delete(cell) => {
                        look.at_fleet(&cell.spec.fleet);
                    }
                    Event::InitDone => {
                        // It is set already when the watch begins again.
                        let _ = cells_known.set(());
                    }
                    Event::Init => {}
                }
            }
        });
    // What the operator wrote into a Cell matters to its fleet, not to the cell.
    let cell_stream = own_writes.without(cell_events).touched_objects().boxed();
    let fleet_stream = watch(&context, context.fleets.clone())
        .reflect(fleets_writer)
        .touched_objects()
        .inspect_ok({
            let (look, cells) = (look.clone(), cells.clone());
            let mut generations = BTreeMap::new();
            move |fleet| {
                // A fleet's status changes with every cell; its cells only care for its spec.
                let (name, generation) = (fleet.name_any(), fleet.metadata.generation);
                if generations.insert(name.clone(), generation) != Some(generation) {
                    of(
                        &cells,
                        |cell| cell.spec.fleet == name,
                        |cell| look.at_cell(cell),
                    );
                }
            }
        })
        .boxed();
    let follow_profiles = watch(&context, context.profiles.clone())
        .reflect(profiles_writer)
        .touched_objects()
        .for_each({
            let (look, cells) = (look.clone(), cells.clone());
            let metrics = context.metrics.clone();
            move |profile| {
                match profile {
                    Ok(profile) => {
                        let name = profile.name_any();
                        of(
                            &cells,
                            |cell| cell.spec.profile == name,
                            |cell| look.at_cell(cell),
                        );
                    }
                    Err(error) => metrics.watch_interrupted("ServiceProfile", &error),
                }
                std::future::ready(())
            }
        });

    let over: Shared<BoxFuture<'static, ()>> = term.cancelled_owned().boxed().shared();
    let (tables, recorder) = (context.tables.clone(), context.recorder.clone());
    // What routers said while another replica led was its to tell.
    let announcing = announce(reports.resubscribe(), tables, cells.clone(), recorder);
    let watches = async {
        tokio::select! {
            () = follow_profiles => {}
            () = follow_tables(table_events, cells, look) => {}
            () = announcing => {}
            () = over.clone() => {}
        }
    };
    tokio::join!(
        watches,
        cell::run(
            context.clone(),
            cell::Triggers {
                cells: cell_stream,
                references: received(cell_refs).boxed(),
            },
            over.clone(),
        ),
        fleet::run(
            context,
            fleet::Triggers {
                fleets: fleet_stream,
                members: debounce(received(fleet_refs), FLEET_DEBOUNCE).boxed(),
            },
            over.clone(),
        ),
    );
}

/// A watch whose objects are kept without their managed fields, which nothing here reads.
fn watch<K>(
    context: &Context,
    store: Store<K>,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + use<K>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let config = watcher::Config::default().page_size(200);
    let reader = Forget {
        store,
        recorder: context.recorder.clone(),
    };
    readable(
        context.client.clone(),
        config,
        context.metrics.clone(),
        reader,
    )
    .modify(|object| object.managed_fields_mut().clear())
}

/// Takes what cannot be read out of a store, and tells people by an Event.
struct Forget<K: kube::Resource<DynamicType = ()> + 'static> {
    store: Store<K>,
    recorder: Recorder,
}

impl<K> Reader<K> for Forget<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    fn last(&self, name: &str) -> Option<K> {
        let last = self.store.get(&ObjectRef::new(name))?;
        Some(last.as_ref().clone())
    }

    fn tell(&self, unreadable: Unreadable) {
        let recorder = self.recorder.clone();
        // The watch goes on meanwhile.
        tokio::spawn(async move {
            let event = kube::runtime::events::Event {
                type_: EventType::Warning,
                reason: "Unreadable".to_owned(),
                note: Some(note(&unreadable.message)),
                action: "Read".to_owned(),
                secondary: None,
            };
            if let Err(error) = recorder.publish(&event, &unreadable.object).await {
                tracing::warn!(%error, "cannot write an Event");
            }
        });
    }
}

fn received<T: Send + 'static>(
    receiver: mpsc::UnboundedReceiver<T>,
) -> impl Stream<Item = T> + Send {
    stream::unfold(receiver, |mut receiver| async {
        let item = receiver.recv().await?;
        Some((item, receiver))
    })
}

fn of(cells: &Store<Cell>, which: impl Fn(&Cell) -> bool, look: impl Fn(&Cell)) {
    for cell in cells.state() {
        if which(&cell) {
            look(&cell);
        }
    }
}

/// Has those Cells looked at for which a new table changes anything, and those fleets whose table is damaged.
async fn follow_tables(
    mut events: broadcast::Receiver<TableEvent>,
    cells: Store<Cell>,
    look: Look,
) {
    loop {
        match events.recv().await {
            Ok(TableEvent::Replaced { before, after }) => {
                of(
                    &cells,
                    |cell| concerns(cell, &before, &after),
                    |cell| look.at_cell(cell),
                );
            }
            Ok(TableEvent::Damaged { fleet }) => look.at_fleet(&fleet),
            Ok(TableEvent::Listed) | Err(RecvError::Lagged(_)) => {
                of(
                    &cells,
                    |_| true,
                    |cell| {
                        look.at_cell(cell);
                        look.at_fleet(&cell.spec.fleet);
                    },
                );
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Whether a change of the table changes anything for a Cell: a row of it came, went or changed, or a range that it was
/// refused has become free.
fn concerns(cell: &Cell, before: &RoutingTable, after: &RoutingTable) -> bool {
    let name = cell.name_any();
    let range = open_claim(cell);
    rows_of(before, &name) != rows_of(after, &name)
        || claim(before, &name, range) != claim(after, &name, range)
}
