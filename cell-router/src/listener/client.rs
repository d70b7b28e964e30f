//! One connection of a client, and whether it is idle or stalled.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Notify;

use crate::body::answer::ResponseBody;
use crate::body::{Body, BoxError, Part};
use crate::shared::Clock;

/// One connection, as the thread that carries it sees it.
pub(super) struct Client {
    clock: Clock,
    /// Tells it to finish what it has and leave.
    leave: Notify,
    reaped: Cell<bool>,
    /// Requests whose answers did not end yet.
    in_flight: Cell<usize>,
    /// When its last answer ended, in milliseconds since start.
    quiet_since_ms: Cell<u64>,
    /// When the head began that is not here whole yet, in milliseconds since start; 0 when there is none.
    head_since_ms: Arc<AtomicU64>,
    /// Answers of which a part waits until the client takes it.
    waiting: Cell<usize>,
    /// Grows whenever the client took something.
    taken: Cell<u64>,
    /// How far `taken` was when it was last looked at, and since when it has not grown.
    taken_seen: Cell<u64>,
    stalled_since_ms: Cell<u64>,
}

impl Client {
    pub(super) fn new(clock: Clock) -> Self {
        Client {
            leave: Notify::new(),
            reaped: Cell::new(false),
            in_flight: Cell::new(0),
            quiet_since_ms: Cell::new(clock.now_ms()),
            head_since_ms: Arc::default(),
            waiting: Cell::new(0),
            taken: Cell::new(0),
            taken_seen: Cell::new(0),
            stalled_since_ms: Cell::new(clock.now_ms()),
            clock,
        }
    }

    /// Tells it to finish what it has and leave.
    pub(super) fn leave(&self) {
        self.leave.notify_one();
    }

    /// Ends when it is told to leave.
    pub(super) async fn left(&self) {
        self.leave.notified().await;
    }

    /// Whether it is told to leave because it did nothing.
    pub(super) fn was_reaped(&self) -> bool {
        self.reaped.get()
    }

    /// Where it is noted when the head of a request begins.
    pub(super) fn heads(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.head_since_ms)
    }

    /// Notes whether a head came in part only.
    pub(super) fn amid_head(&self, amid: bool) {
        let since_ms = match (amid, self.head_since_ms.load(Relaxed)) {
            (true, 0) => self.clock.now_ms(),
            (true, since_ms) => since_ms,
            (false, _) => 0,
        };
        self.head_since_ms.store(since_ms, Relaxed);
    }

    /// A request came: keeps the connection from being idle.
    pub(super) fn busy(client: &Rc<Client>) -> Busy {
        client.head_since_ms.store(0, Relaxed);
        client.in_flight.set(client.in_flight.get() + 1);
        Busy(Rc::clone(client))
    }

    /// Tells it to leave when it was idle, sent a head too slowly or took nothing for too long. True the first time.
    pub(super) fn reap(&self, idle: Duration, head: Duration, stalled: Duration) -> bool {
        let now_ms = self.clock.now_ms();
        let longer = |since_ms: u64, limit: Duration| {
            Duration::from_millis(now_ms.saturating_sub(since_ms)) > limit
        };
        let taken = self.taken.get();
        if self.waiting.get() == 0 || taken != self.taken_seen.get() {
            self.taken_seen.set(taken);
            self.stalled_since_ms.set(now_ms);
        }
        let quiet = self.in_flight.get() == 0;
        let idle = quiet && longer(self.quiet_since_ms.get(), idle);
        let head_since_ms = self.head_since_ms.load(Relaxed);
        let slow = quiet && head_since_ms != 0 && longer(head_since_ms, head);
        let stalled = longer(self.stalled_since_ms.get(), stalled);
        if !(idle || slow || stalled) || self.reaped.replace(true) {
            return false;
        }
        self.leave();
        true
    }
}

/// A request whose answer did not end yet.
pub(super) struct Busy(Rc<Client>);

impl Drop for Busy {
    fn drop(&mut self) {
        let client = &self.0;
        client.in_flight.set(client.in_flight.get() - 1);
        client.quiet_since_ms.set(client.clock.now_ms());
        // What came meanwhile was the body.
        client.head_since_ms.store(0, Relaxed);
    }
}

/// An answer on its way to the client, and whether it waits for the client or for the cell.
pub(super) struct Watched {
    body: ResponseBody,
    busy: Busy,
    /// A part was handed over and nothing was asked for since: the client has no room for it yet.
    waiting: bool,
}

impl Watched {
    pub(super) fn new(body: ResponseBody, busy: Busy) -> Self {
        Watched {
            body,
            busy,
            waiting: false,
        }
    }

    fn wait(&mut self, waiting: bool) {
        if std::mem::replace(&mut self.waiting, waiting) == waiting {
            return;
        }
        let client = &self.busy.0;
        if waiting {
            client.waiting.set(client.waiting.get() + 1);
        } else {
            client.waiting.set(client.waiting.get() - 1);
            client.taken.set(client.taken.get().wrapping_add(1));
        }
    }
}

impl Body for Watched {
    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Part, BoxError>>> {
        self.wait(false);
        let part = self.body.poll_part(context);
        self.wait(matches!(part, Poll::Ready(Some(Ok(_)))));
        part
    }

    fn is_end(&self) -> bool {
        self.body.is_end()
    }

    fn length(&self) -> Option<u64> {
        self.body.length()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.wait(false);
    }
}
