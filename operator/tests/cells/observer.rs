//! What was created and deleted, as the apiserver's watches tell it: a write that was under way when the operator died, and
//! is in nobody's book, is among it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};
use titan_crds::RoutingTable;
use titan_planner::object::Kind;
use tokio::task::JoinSet;

use crate::essence::migration_name;
use crate::harness::World;

/// Kind, namespace (of a Namespace its own name, of a RoutingTable none) and name.
type Key = (String, String, String);

/// The uids that an object of one name had, in turn.
#[derive(Clone, Debug, Default)]
struct Lives {
    begun: BTreeSet<String>,
    ended: BTreeSet<String>,
}

/// How often an object was created, and how often deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub created: usize,
    pub deleted: usize,
}

/// Watches every kind that a cell is made of, from its start on.
pub struct Observer {
    lives: Arc<Mutex<BTreeMap<Key, Lives>>>,
    _watches: JoinSet<()>,
}

impl Observer {
    /// Starts to watch.
    pub fn start(client: &kube::Client) -> Self {
        let lives = Arc::new(Mutex::new(BTreeMap::new()));
        let mut watches = JoinSet::new();
        let kinds = Kind::ALL.into_iter().map(|kind| {
            let (group, version, name, plural) = kind.names();
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, name), plural)
        });
        for resource in kinds.chain([ApiResource::erase::<RoutingTable>(&())]) {
            watches.spawn(watch(client.clone(), resource, lives.clone()));
        }
        Observer {
            lives,
            _watches: watches,
        }
    }

    /// How often each object of the world's n-th cell was created and deleted, with the names of the world taken out. To
    /// be asked when nothing changes any more.
    pub async fn counts(&self, world: &World, number: i64) -> BTreeMap<String, Count> {
        let cell = world.cell_name(number);
        let live = live(world, &cell).await;
        let deadline = Instant::now() + Duration::from_mins(2);
        loop {
            let lives = self.of(&cell, &world.name);
            let seen: BTreeSet<String> = lives
                .values()
                .flat_map(|lives| lives.begun.difference(&lives.ended).cloned())
                .collect();
            if seen == live {
                return lives
                    .into_iter()
                    .map(|((kind, _, name), lives)| {
                        let name = migration_name(&name)
                            .replace(&cell, "CELL")
                            .replace(&world.name, "FLEET");
                        let count = Count {
                            created: lives.begun.len(),
                            deleted: lives.ended.len(),
                        };
                        (format!("{kind} {name}"), count)
                    })
                    .collect();
            }
            assert!(
                Instant::now() < deadline,
                "the watches do not get to see what there is: {seen:?}, {live:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn of(&self, cell: &str, fleet: &str) -> BTreeMap<Key, Lives> {
        let lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        lives
            .iter()
            .filter(|((kind, namespace, name), _)| {
                namespace == cell || kind == "RoutingTable" && name == fleet
            })
            .map(|(key, lives)| (key.clone(), lives.clone()))
            .collect()
    }
}

/// The uids of what there is of a cell, and of its fleet's table.
async fn live(world: &World, cell: &str) -> BTreeSet<String> {
    let mut uids = BTreeSet::new();
    for kind in Kind::ALL {
        if kind != Kind::Namespace {
            let objects = world.objects(cell, kind).await;
            uids.extend(objects.iter().filter_map(DynamicObject::uid));
        }
    }
    let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(world.client.clone());
    let namespace = namespaces.get_opt(cell).await.unwrap();
    uids.extend(namespace.and_then(|namespace| namespace.uid()));
    uids.extend(world.table().await.and_then(|table| table.uid()));
    uids
}

async fn watch(
    client: kube::Client,
    resource: ApiResource,
    lives: Arc<Mutex<BTreeMap<Key, Lives>>>,
) {
    let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(client, &resource);
    let mut events = watcher::watcher(api, watcher::Config::default()).boxed();
    while let Some(event) = events.next().await {
        // The watcher goes on where it was, or lists again.
        let Ok(event) = event else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // A relist would hide lives that were short; with it, what is counted could be too little, and the test fails.
        let (object, ended) = match event {
            Event::InitApply(object) | Event::Apply(object) => (object, false),
            Event::Delete(object) => (object, true),
            Event::Init | Event::InitDone => continue,
        };
        let name = object.name_any();
        let namespace = match resource.kind.as_str() {
            "Namespace" => name.clone(),
            _ => object.namespace().unwrap_or_default(),
        };
        let mut lives = lives.lock().unwrap_or_else(PoisonError::into_inner);
        let lives = lives
            .entry((resource.kind.clone(), namespace, name))
            .or_default();
        let uid = object.uid().unwrap();
        lives.begun.insert(uid.clone());
        if ended {
            lives.ended.insert(uid);
        }
    }
}
