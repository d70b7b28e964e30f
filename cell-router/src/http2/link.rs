//! One connection as its streams share it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use titan_http2::hpack::{Block, Encoder};
use titan_http2::{Code, Connection, Event, Limits, Role, StreamKey};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::stream::{Broken, Lost, Receiver, Sender, Stream};

/// For how many streams an idle connection keeps memory.
const KEPT: usize = 16;

/// A connection.
pub struct Link {
    role: Role,
    pub(super) connection: RefCell<Connection>,
    /// By key.
    streams: RefCell<Vec<Option<Rc<Stream>>>>,
    /// Of the task that moves its bytes.
    driver: Cell<Option<Waker>>,
    /// Whether that task will run anyway.
    kicked: Cell<bool>,
    /// For requests that wait until the other side takes one more, and whether any ever did.
    room: Arc<Notify>,
    crowded: Cell<bool>,
    lost: Cell<Option<Lost>>,
    /// No more requests: it ends with its last stream.
    closing: Cell<bool>,
    ponged: Cell<bool>,
}

/// A new stream of the other side.
pub(super) struct Begun {
    pub(super) head: Block,
    pub(super) receiver: Receiver,
    pub(super) sender: Sender,
}

impl Link {
    /// A connection to a client.
    #[must_use]
    pub fn server(limits: Limits) -> Rc<Self> {
        Self::new(Role::Server, limits)
    }

    /// A connection to a pod.
    #[must_use]
    pub fn client(limits: Limits) -> Rc<Self> {
        Self::new(Role::Client, limits)
    }

    fn new(role: Role, limits: Limits) -> Rc<Self> {
        Rc::new(Link {
            role,
            connection: RefCell::new(Connection::new(role, limits)),
            streams: RefCell::default(),
            driver: Cell::default(),
            kicked: Cell::new(false),
            room: Arc::default(),
            crowded: Cell::new(false),
            lost: Cell::new(None),
            closing: Cell::new(false),
            ponged: Cell::new(false),
        })
    }

    /// Whether it takes requests.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let connection = self.connection.borrow();
        self.lost.get().is_none()
            && !self.closing.get()
            && !connection.left
            && !connection.is_exhausted()
    }

    /// Begins a request when the other side takes one more now. `write` writes its head.
    ///
    /// # Errors
    /// When the connection ended, or is about to: nothing of the request was sent.
    pub fn open(
        self: &Rc<Self>,
        end: bool,
        write: impl FnOnce(&mut Encoder, &mut Vec<u8>),
    ) -> Result<Option<(Receiver, Sender)>, Broken> {
        if let Some(lost) = self.lost.get() {
            return Err(Broken::Lost(lost));
        }
        if !self.is_open() {
            return Err(Broken::Unprocessed);
        }
        let mut connection = self.connection.borrow_mut();
        if !connection.has_room() {
            self.crowded.set(true);
            return Ok(None);
        }
        let key = connection.open();
        connection.headers(key, end, write);
        let more = connection.has_room();
        drop(connection);
        let (stream, receiver, sender) = Stream::new(self, key);
        self.keep(key, stream);
        self.kick();
        if more {
            self.let_one_open();
        }
        Ok(Some((receiver, sender)))
    }

    /// Ready when it is worth to try again. Who is told and then does not try leaves it to the next who waits.
    pub fn room(&self) -> OwnedNotified {
        Arc::clone(&self.room).notified_owned()
    }

    /// No new streams; those under way come to their end, and then the connection ends.
    pub fn drain(&self) {
        match self.role {
            Role::Server => self.connection.borrow_mut().drain(),
            Role::Client => self.closing.set(true),
        }
        self.kick();
    }

    /// Asks the other side whether it is there.
    pub fn ping(&self) {
        self.ponged.set(false);
        self.connection.borrow_mut().ping();
        self.kick();
    }

    /// Whether it answered the last ping.
    #[must_use]
    pub fn has_ponged(&self) -> bool {
        self.ponged.get()
    }

    // For the streams.

    /// Sends a head or trailers.
    pub(super) fn fields(&self, key: StreamKey, block: &Block, end: bool) {
        let mut connection = self.connection.borrow_mut();
        connection.headers(key, end, |encoder, out| {
            for field in block.fields() {
                encoder.field(block, field, out);
            }
        });
        drop(connection);
        self.sent(key, end);
    }

    /// Sends as much as there is room for. How much that was.
    pub(super) fn data(&self, key: StreamKey, data: &[u8], end: bool) -> usize {
        let mut connection = self.connection.borrow_mut();
        let room = connection.allowance(key, data.len());
        let all = room == data.len();
        // A frame without data that ends nothing says nothing, and peers count them.
        if room > 0 || (end && all) {
            connection.data(key, &data[..room], end && all);
            drop(connection);
            self.sent(key, end && all);
        }
        room
    }

    fn sent(&self, key: StreamKey, end: bool) {
        if end {
            self.forget_ended(key);
        }
        self.kick();
    }

    /// Data was taken: the other side may send as much again.
    pub(super) fn returned(&self, key: Option<StreamKey>, size: usize) {
        if size == 0 || self.lost.get().is_some() {
            return;
        }
        let mut connection = self.connection.borrow_mut();
        let before = connection.out.len();
        connection.passed_on(key, size);
        let told = connection.out.len() > before;
        drop(connection);
        if told {
            self.kick();
        }
    }

    pub(super) fn reset(&self, key: StreamKey, code: Code) {
        self.connection.borrow_mut().reset(key, code);
        self.remove(key);
        self.kick();
    }

    /// Nobody wants the rest of a stream.
    pub(super) fn abandon(&self, key: StreamKey) {
        let connection = self.connection.borrow();
        // Whoever has its whole answer may stop sending (RFC 9113, section 8.1).
        let answered = self.role == Role::Server && connection.stream(key).send_done;
        let code = if answered {
            Code::NO_ERROR
        } else {
            Code::CANCEL
        };
        drop(connection);
        self.reset(key, code);
    }

    // For the task that moves the bytes.

    pub(super) fn begin(&self, waker: &Waker) {
        self.kicked.set(false);
        let known = self.driver.take().filter(|known| known.will_wake(waker));
        self.driver
            .set(Some(known.unwrap_or_else(|| waker.clone())));
    }

    fn kick(&self) {
        if self.kicked.replace(true) {
            return;
        }
        if let Some(driver) = self.driver.take() {
            driver.wake_by_ref();
            self.driver.set(Some(driver));
        }
    }

    /// Lets the streams know of what came in. A new stream is returned.
    pub(super) fn on(self: &Rc<Self>, event: Event, input: &[u8], block: &Block) -> Option<Begun> {
        match event {
            Event::Request { stream, end } => return self.begun(stream, end, block),
            Event::Answer { stream, end } => {
                self.with(stream, |it| it.answered(block.clone(), end));
                if end {
                    self.forget_ended(stream);
                }
            }
            Event::Data { stream, at, end } => {
                let data = Bytes::copy_from_slice(input.get(at).unwrap_or_default());
                self.with(stream, |it| it.came(data, end));
                if end {
                    self.forget_ended(stream);
                }
            }
            Event::Trailers { stream } => {
                self.with(stream, |it| it.ended(Some(block.clone())));
                self.forget_ended(stream);
            }
            Event::Reset {
                stream,
                code,
                by_peer,
            } => {
                let broken = if by_peer {
                    Broken::Reset(code)
                } else {
                    Broken::Fault(code)
                };
                self.broke(stream, broken);
            }
            Event::Window { stream } => self.with(stream, Stream::may_send),
            Event::Windows => self.let_wait_end(),
            Event::Leaves { last } => {
                if self.role == Role::Client {
                    let connection = self.connection.borrow();
                    let unprocessed: Vec<StreamKey> = connection
                        .streams()
                        .filter_map(|(key, id)| (id > last).then_some(key))
                        .collect();
                    drop(connection);
                    for key in unprocessed {
                        self.broke(key, Broken::Unprocessed);
                    }
                }
                self.room.notify_waiters();
            }
            Event::Pong => self.ponged.set(true),
        }
        None
    }

    fn begun(self: &Rc<Self>, key: StreamKey, end: bool, block: &Block) -> Option<Begun> {
        if block.over {
            let mut connection = self.connection.borrow_mut();
            connection.headers(key, true, |encoder, out| {
                encoder.pair(b":status", b"431", false, out);
            });
            if !end {
                connection.reset(key, Code::NO_ERROR);
            }
            connection.remove(key);
            return None;
        }
        let (stream, receiver, sender) = Stream::new(self, key);
        if end {
            stream.ended(None);
        }
        self.keep(key, stream);
        Some(Begun {
            head: block.clone(),
            receiver,
            sender,
        })
    }

    /// Streams that waited for room in the connection may have it, and so may requests.
    pub(super) fn let_wait_end(&self) {
        loop {
            let waiter = self.connection.borrow_mut().waiter();
            let Some(key) = waiter else { break };
            self.with(key, Stream::may_send);
        }
        self.let_one_open();
    }

    /// The connection ended, and with it all of its streams.
    pub(super) fn end(&self, lost: Lost) {
        if self.lost.get().is_none() {
            self.lost.set(Some(lost));
        }
        let streams = std::mem::take(&mut *self.streams.borrow_mut());
        for stream in streams.into_iter().flatten() {
            stream.broke(Broken::Lost(lost));
        }
        self.room.notify_waiters();
    }

    /// Whether nothing is left to do. The other side is told so, if it was not yet.
    pub(super) fn is_done(&self) -> bool {
        let mut connection = self.connection.borrow_mut();
        if connection.is_done() {
            return true;
        }
        let closes = self.closing.get() && connection.busy() == 0;
        if closes {
            connection.fail(Code::NO_ERROR);
        }
        closes
    }

    fn broke(&self, key: StreamKey, broken: Broken) {
        if let Some(stream) = self.remove(key) {
            stream.broke(broken);
        }
    }

    fn keep(&self, key: StreamKey, stream: Rc<Stream>) {
        let mut streams = self.streams.borrow_mut();
        if streams.len() <= key {
            streams.resize(key + 1, None);
        }
        streams[key] = Some(stream);
    }

    fn with(&self, key: StreamKey, then: impl FnOnce(&Stream)) {
        let stream = self.streams.borrow().get(key).cloned().flatten();
        if let Some(stream) = stream {
            then(&stream);
        }
    }

    /// Both directions of a stream may have come to their end.
    fn forget_ended(&self, key: StreamKey) {
        let connection = self.connection.borrow();
        let stream = connection.stream(key);
        let ended = stream.send_done && stream.receive_done;
        drop(connection);
        if ended && let Some(stream) = self.remove(key) {
            stream.closed();
        }
    }

    fn remove(&self, key: StreamKey) -> Option<Rc<Stream>> {
        self.connection.borrow_mut().remove(key);
        self.let_one_open();
        let mut streams = self.streams.borrow_mut();
        let stream = streams.get_mut(key)?.take();
        if streams.len() > KEPT && self.connection.borrow().busy() == 0 {
            *streams = Vec::new();
        }
        stream
    }

    fn let_one_open(&self) {
        if self.crowded.get() {
            self.room.notify_one();
        }
    }
}
