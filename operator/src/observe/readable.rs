//! Watches in which an object that this version cannot read hides none of the others.
//!
//! After a rollback of the operator an object may have a field or a value that this version does not know. Without the guard a
//! single one makes the whole LIST unreadable, and no object of the kind is reconciled any more.

use std::collections::BTreeSet;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::metrics::Metrics;

/// An object that cannot be read.
#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    /// Which one.
    pub(crate) object: ObjectReference,
    /// What is wrong with it, and what to do.
    pub(crate) message: String,
}

/// What to do about objects that cannot be read.
pub(crate) trait Reader<K>: Send {
    /// The object as it was read last, which is as good as gone while it cannot be read: to go on with an old spec could undo
    /// what a newer one asks for. `None` where the last one stays in use.
    fn last(&self, name: &str) -> Option<K>;
    /// Says so.
    fn tell(&self, unreadable: Unreadable);
}

/// A reader that goes on with what was read last, and tells the log and the metrics alone.
pub(crate) struct KeepLast;

impl<K> Reader<K> for KeepLast {
    fn last(&self, _: &str) -> Option<K> {
        None
    }

    fn tell(&self, _: Unreadable) {}
}

/// Watches all objects of a kind, and begins again after an error. Objects that cannot be read are counted, logged and told to
/// the reader.
pub(crate) fn readable<K>(
    client: Client,
    config: watcher::Config,
    metrics: Metrics,
    reader: impl Reader<K>,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut unreadable = BTreeSet::new();
    watcher(Api::<DeserializeGuard<K>>::all(client), config)
        .default_backoff()
        .filter_map(move |event| {
            let event = event
                .map(|event| read(event, &mut unreadable, &reader))
                .transpose();
            metrics.count_unreadable(&K::kind(&()), unreadable.len());
            std::future::ready(event)
        })
}

fn read<K>(
    event: Event<DeserializeGuard<K>>,
    unreadable: &mut BTreeSet<String>,
    reader: &impl Reader<K>,
) -> Option<Event<K>>
where
    K: Resource<DynamicType = ()> + Clone,
{
    let mut take = |object: DeserializeGuard<K>| {
        let (name, reference) = (object.name_any(), object.object_ref(&()));
        match object.0 {
            Ok(object) => {
                unreadable.remove(&name);
                Ok(object)
            }
            Err(invalid) => {
                if unreadable.insert(name.clone()) {
                    tell(reader, reference, &invalid);
                }
                Err(name)
            }
        }
    };
    match event {
        Event::Init => {
            unreadable.clear();
            Some(Event::Init)
        }
        Event::InitApply(object) => take(object).ok().map(Event::InitApply),
        Event::InitDone => Some(Event::InitDone),
        Event::Apply(object) => match take(object) {
            Ok(object) => Some(Event::Apply(object)),
            Err(name) => reader.last(&name).map(Event::Delete),
        },
        Event::Delete(object) => {
            unreadable.remove(&object.name_any());
            object.0.ok().map(Event::Delete)
        }
    }
}

fn tell<K>(reader: &impl Reader<K>, object: ObjectReference, invalid: &InvalidObject) {
    let message = format!(
        "this version of the operator cannot read the object and leaves it alone, and all others are reconciled as always: {}. It was written for another version: upgrade the operator, or take out what it does not know",
        invalid.error
    );
    tracing::error!(kind = object.kind, name = object.name, "{message}");
    reader.tell(Unreadable { object, message });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::{Value, json};
    use titan_crds::Cell;

    use super::*;

    #[derive(Default)]
    struct Cells(Mutex<Vec<String>>);

    impl Reader<Cell> for &Cells {
        fn last(&self, name: &str) -> Option<Cell> {
            let cell = object(name, "Delete").0.ok()?;
            Some(cell)
        }

        fn tell(&self, unreadable: Unreadable) {
            let name = unreadable.object.name.unwrap_or_default();
            self.0.lock().unwrap().push(name);
        }
    }

    fn object(name: &str, policy: &str) -> DeserializeGuard<Cell> {
        let object: Value = json!({
            "apiVersion": "titan.dev/v1alpha1", "kind": "Cell", "metadata": {"name": name},
            "spec": {
                "fleet": "f", "profile": "p", "release": "1",
                "userRange": {"first": 1, "last": 2}, "reclaimPolicy": policy,
            },
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn an_object_that_cannot_be_read_hides_no_other() {
        let (mut unreadable, cells) = (BTreeSet::new(), Cells::default());
        let events = [
            Event::Init,
            Event::InitApply(object("a", "Shred")),
            Event::InitApply(object("b", "Retain")),
            Event::InitDone,
            // Readable and unreadable in turn.
            Event::Apply(object("a", "Retain")),
            Event::Apply(object("b", "Shred")),
            Event::Apply(object("b", "Shred")),
            Event::Delete(object("b", "Shred")),
        ];
        let seen: Vec<String> = events
            .into_iter()
            .filter_map(|event| read(event, &mut unreadable, &&cells))
            .map(|event| match event {
                Event::Init => "init".to_owned(),
                Event::InitDone => "done".to_owned(),
                Event::InitApply(cell) => format!("init {}", cell.name_any()),
                Event::Apply(cell) => format!("apply {}", cell.name_any()),
                Event::Delete(cell) => format!("delete {}", cell.name_any()),
            })
            .collect();
        let expected = ["init", "init b", "done", "apply a", "delete b", "delete b"];
        assert_eq!(seen, expected);
        assert_eq!(*cells.0.lock().unwrap(), ["a", "b"], "each is told once");
        assert!(unreadable.is_empty());
    }
}
