//! Coalesces events of one object. The object is passed on after `quiet` without events, at the latest after `max_wait`.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tokio::time::Instant;
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue::Key;

/// For how long events about one thing are gathered.
#[derive(Clone, Copy, Debug)]
pub struct Debounce {
    /// So long without another one is the end of it.
    pub quiet: Duration,
    /// So long after the first one it ends in any case: what changes all the time has to be looked at as well. (The
    /// debounce of kube-runtime's controllers knows no such end.)
    pub max_wait: Duration,
}

/// Every item once for all of those that came within a limits.
pub fn debounce<T>(
    items: impl Stream<Item = T> + Send + 'static,
    limits: Debounce,
) -> impl Stream<Item = T> + Send
where
    T: Clone + Eq + Hash + Send + 'static,
{
    let state = Gathering {
        items: Box::pin(items.fuse()),
        due: DelayQueue::new(),
        waiting: HashMap::new(),
    };
    stream::unfold(state, move |mut state| async move {
        let item = state.next(limits).await?;
        Some((item, state))
    })
}

struct Gathering<S, T> {
    items: S,
    due: DelayQueue<T>,
    /// When each item has to be passed on at the latest.
    waiting: HashMap<T, (Key, Instant)>,
}

impl<S, T> Gathering<S, T>
where
    S: Stream<Item = T> + stream::FusedStream + Unpin,
    T: Clone + Eq + Hash,
{
    async fn next(&mut self, limits: Debounce) -> Option<T> {
        loop {
            if self.items.is_terminated() && self.waiting.is_empty() {
                return None;
            }
            tokio::select! {
                // First, or a stream that never ends would keep them for ever.
                biased;
                Some(due) = self.due.next(), if !self.waiting.is_empty() => {
                    let item = due.into_inner();
                    self.waiting.remove(&item);
                    return Some(item);
                }
                item = self.items.next(), if !self.items.is_terminated() => {
                    if let Some(item) = item {
                        self.take_in(item, limits);
                    }
                }
            }
        }
    }

    fn take_in(&mut self, item: T, limits: Debounce) {
        let now = Instant::now();
        if let Some((key, latest)) = self.waiting.get(&item) {
            self.due.reset_at(key, (now + limits.quiet).min(*latest));
        } else {
            let key = self.due.insert_at(item.clone(), now + limits.quiet);
            self.waiting.insert(item, (key, now + limits.max_wait));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tokio::time::sleep;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;

    const DEBOUNCE: Debounce = Debounce {
        quiet: Duration::from_millis(200),
        max_wait: Duration::from_millis(500),
    };

    #[tokio::test]
    async fn a_burst_is_one() {
        let items = stream::iter(["a", "b", "a", "a"]);
        let mut gathered: Vec<_> = debounce(items, DEBOUNCE).collect().await;
        gathered.sort_unstable();
        assert_eq!(gathered, ["a", "b"]);
    }

    #[tokio::test]
    async fn what_never_rests_is_passed_on() {
        let (sender, items) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while sender.send("a").is_ok() {
                sleep(DEBOUNCE.quiet / 20).await;
            }
        });
        let gathered = debounce(UnboundedReceiverStream::new(items), DEBOUNCE);
        let some = gathered.take(2).collect::<Vec<_>>();
        let some = tokio::time::timeout(Duration::from_secs(30), some).await;
        assert_eq!(some.unwrap_or_default(), ["a", "a"]);
    }
}
