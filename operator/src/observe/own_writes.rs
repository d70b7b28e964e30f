//! Drops watch events that only report the operator's own writes: their resourceVersion is the one that the write returned.
//!
//! A pass that creates 280 objects would otherwise be followed by passes that look at 280 new objects, and a status that was
//! written by a pass that finds it as it should be. What anybody else writes has another resourceVersion and is looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// How many writes are remembered. An event that comes after so many later writes causes a pass that finds nothing to do.
const REMEMBERED: usize = 1 << 13;

/// How long after its event the answer to a write may come.
const LAG: Duration = Duration::from_millis(200);

/// The resourceVersions of the operator's last writes. They are revisions of etcd, which no two writes share, and they
/// grow, so that each place holds the last of those that fall on it.
pub struct OwnWrites {
    versions: Box<[AtomicU64]>,
}

impl Default for OwnWrites {
    fn default() -> Self {
        OwnWrites {
            versions: (0..REMEMBERED).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl OwnWrites {
    /// Takes note of the resourceVersion that a write came to. One that is no number is let pass: then its event causes a
    /// pass, too.
    pub fn note(&self, version: Option<&str>) {
        if let Some(version) = version.and_then(|version| version.parse().ok()) {
            self.place(version).store(version, Ordering::Relaxed);
        }
    }

    /// A watch without the events that tell of noted writes. It lags a little: an event often comes before the answer to
    /// the write that it tells of.
    pub fn without<K, E>(
        self: Arc<Self>,
        events: impl Stream<Item = Result<Event<K>, E>> + Send,
    ) -> impl Stream<Item = Result<Event<K>, E>> + Send
    where
        K: ResourceExt + Send,
        E: Send,
    {
        events
            .map(|event| async {
                if matches!(event, Ok(Event::Apply(_))) {
                    tokio::time::sleep(LAG).await;
                }
                event
            })
            .buffered(REMEMBERED)
            .try_filter(move |event| std::future::ready(!self.is_own_write(event)))
    }

    /// Whether the event tells of a write that was noted. What a watch begins with is never an echo: something may have
    /// been deleted before it began, and no event tells of that.
    fn is_own_write<K: ResourceExt>(&self, event: &Event<K>) -> bool {
        let Event::Apply(object) = event else {
            return false;
        };
        let version = object
            .resource_version()
            .and_then(|version| version.parse().ok());
        version.is_some_and(|version| self.place(version).load(Ordering::Relaxed) == version)
    }

    fn place(&self, version: u64) -> &AtomicU64 {
        let place = usize::try_from(version).unwrap_or_default() % self.versions.len();
        &self.versions[place]
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;

    use super::*;

    fn at(version: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    #[test]
    fn only_a_change_that_was_ours_is_an_echo() {
        let own_writes = OwnWrites::default();
        own_writes.note(Some("7"));
        own_writes.note(Some("not a number"));
        own_writes.note(None);
        assert!(own_writes.is_own_write(&Event::Apply(at("7"))));
        assert!(
            !own_writes.is_own_write(&Event::Apply(at("8"))),
            "of somebody else, after ours"
        );
        assert!(!own_writes.is_own_write(&Event::Delete(at("7"))));
        assert!(!own_writes.is_own_write(&Event::InitApply(at("7"))));
        assert!(!own_writes.is_own_write(&Event::Apply(at("not a number"))));
    }

    #[tokio::test]
    async fn an_answer_may_come_after_its_event() {
        let own_writes = Arc::new(OwnWrites::default());
        let events = [Event::Apply(at("7")), Event::Apply(at("8"))];
        let events = futures::stream::iter(events.map(Ok::<_, ()>));
        let others = tokio::spawn(own_writes.clone().without(events).collect::<Vec<_>>());
        tokio::task::yield_now().await;
        own_writes.note(Some("7"));
        let others = others.await.unwrap();
        assert_eq!(others.len(), 1);
        assert!(matches!(&others[0], Ok(Event::Apply(other)) if *other == at("8")));
    }

    #[test]
    fn a_write_is_forgotten_only_for_a_later_one() {
        let own_writes = OwnWrites::default();
        own_writes.note(Some("7"));
        let later = 7 + REMEMBERED;
        own_writes.note(Some(&later.to_string()));
        assert!(!own_writes.is_own_write(&Event::Apply(at("7"))));
        assert!(own_writes.is_own_write(&Event::Apply(at(&later.to_string()))));
    }
}
