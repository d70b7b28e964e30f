//! One stream: what came in and was not taken yet, and who waits for more or for room.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes, BytesMut};
use titan_http2::hpack::Block;
use titan_http2::{Code, StreamKey};

use super::link::Link;
use crate::body::Part;

/// Why a stream did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The other side reset it.
    #[error("the stream was reset: {0}")]
    Reset(Code),
    /// The other side did what HTTP/2 forbids on it, and was told so.
    #[error("the peer broke the rules of the stream: {0}")]
    Fault(Code),
    /// The other side leaves and did nothing with it.
    #[error("the peer leaves and did not begin with it")]
    Unprocessed,
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Lost(Lost),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The other side closed it.
    #[error("closed by the peer")]
    Closed,
    /// Reading or writing failed.
    #[error("{0}")]
    Io(std::io::ErrorKind),
    /// The other side broke the rules.
    #[error("the peer broke the rules: {0}")]
    Fault(Code),
    /// The other side does not answer.
    #[error("no answer to a ping")]
    Silent,
    /// This side gave it up.
    #[error("closed here")]
    Here,
}

impl Broken {
    /// What to tell others about a stream that broke like this.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Broken::Reset(code) | Broken::Fault(code) => code,
            Broken::Unprocessed => Code::REFUSED,
            Broken::Lost(_) => Code::INTERNAL,
        }
    }

    /// Whether the other side certainly did nothing with it.
    #[must_use]
    pub fn not_processed(self) -> bool {
        matches!(self, Broken::Unprocessed | Broken::Reset(Code::REFUSED))
    }
}

/// Data below this size joins what waits already. Apart from each other, small parts would take many times the memory
/// that the window speaks of; and pods that take many small frames for an attack (h2 does, and counts those that its
/// service did not read yet) would end the connection of everybody.
const SMALL: usize = 256;
/// What waits grows no further than this by joining.
const JOINED: usize = 16 * 1024;

/// What came in.
#[derive(Default)]
struct Inbox {
    /// The head of an answer.
    head: Option<Block>,
    data: VecDeque<Bytes>,
    trailers: Option<Block>,
    ended: bool,
    broken: Option<Broken>,
}

impl Inbox {
    fn push(&mut self, data: Bytes) {
        let joins = data.len() < SMALL
            && self
                .data
                .back()
                .is_some_and(|last| last.len() + data.len() <= JOINED);
        if joins && let Some(last) = self.data.pop_back() {
            let mut joined = BytesMut::from(last);
            joined.extend_from_slice(&data);
            self.data.push_back(joined.freeze());
        } else if !data.is_empty() {
            self.data.push_back(data);
        }
    }
}

/// A stream as its connection and its two handles share it.
pub(super) struct Stream {
    link: Rc<Link>,
    key: StreamKey,
    inbox: RefCell<Inbox>,
    receiver: Cell<Option<Waker>>,
    sender: Cell<Option<Waker>>,
    /// Whether the connection still has it.
    alive: Cell<bool>,
    handles: Cell<u8>,
}

impl Stream {
    pub(super) fn new(link: &Rc<Link>, key: StreamKey) -> (Rc<Self>, Receiver, Sender) {
        let stream = Rc::new(Stream {
            link: Rc::clone(link),
            key,
            inbox: RefCell::default(),
            receiver: Cell::default(),
            sender: Cell::default(),
            alive: Cell::new(true),
            handles: Cell::new(2),
        });
        let receiver = Receiver(Rc::clone(&stream));
        let sender = Sender(Rc::clone(&stream));
        (stream, receiver, sender)
    }

    pub(super) fn answered(&self, head: Block, end: bool) {
        let mut inbox = self.inbox.borrow_mut();
        inbox.head = Some(head);
        inbox.ended = end;
        wake(&self.receiver);
    }

    pub(super) fn came(&self, data: Bytes, end: bool) {
        let mut inbox = self.inbox.borrow_mut();
        inbox.push(data);
        inbox.ended = end;
        wake(&self.receiver);
    }

    pub(super) fn ended(&self, trailers: Option<Block>) {
        let mut inbox = self.inbox.borrow_mut();
        inbox.trailers = trailers;
        inbox.ended = true;
        wake(&self.receiver);
    }

    pub(super) fn broke(&self, broken: Broken) {
        self.alive.set(false);
        let mut inbox = self.inbox.borrow_mut();
        inbox.broken.get_or_insert(broken);
        let unread: usize = inbox.data.iter().map(Bytes::len).sum();
        drop(inbox);
        self.link.returned(None, unread);
        wake(&self.receiver);
        wake(&self.sender);
    }

    /// There may be room to send.
    pub(super) fn may_send(&self) {
        wake(&self.sender);
    }

    /// The connection has it no more, because both directions came to their end.
    pub(super) fn closed(&self) {
        self.alive.set(false);
    }

    fn release(&self) {
        let handles = self.handles.get() - 1;
        self.handles.set(handles);
        if handles > 0 {
            return;
        }
        let unread = self.inbox.borrow().data.iter().map(Bytes::len).sum();
        if self.alive.get() {
            self.link.abandon(self.key);
        }
        if self.inbox.borrow().broken.is_none() {
            self.link.returned(None, unread);
        }
    }
}

fn wake(waker: &Cell<Option<Waker>>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn wait(place: &Cell<Option<Waker>>, context: &Context<'_>) {
    let waker = match place.take() {
        Some(waker) if waker.will_wake(context.waker()) => waker,
        _ => context.waker().clone(),
    };
    place.set(Some(waker));
}

/// What comes in on a stream.
pub struct Receiver(Rc<Stream>);

impl Receiver {
    /// The head of the answer.
    ///
    /// # Errors
    /// When the stream breaks before.
    pub fn poll_head(&self, context: &Context<'_>) -> Poll<Result<Block, Broken>> {
        let mut inbox = self.0.inbox.borrow_mut();
        if let Some(head) = inbox.head.take() {
            return Poll::Ready(Ok(head));
        }
        if let Some(broken) = inbox.broken {
            return Poll::Ready(Err(broken));
        }
        wait(&self.0.receiver, context);
        Poll::Pending
    }

    /// The next part of the body, or its trailers. What is taken may be sent again by the other side.
    pub fn poll_part(&self, context: &Context<'_>) -> Poll<Option<Result<Part, Broken>>> {
        let mut inbox = self.0.inbox.borrow_mut();
        if let Some(data) = inbox.data.pop_front() {
            let broken = inbox.broken.is_some();
            drop(inbox);
            if !broken {
                let stream = self.0.alive.get().then_some(self.0.key);
                self.0.link.returned(stream, data.len());
            }
            return Poll::Ready(Some(Ok(Part::Data(data))));
        }
        if inbox.ended {
            let trailers = inbox.trailers.take();
            return Poll::Ready(trailers.map(|trailers| Ok(Part::Trailers(trailers))));
        }
        match inbox.broken {
            // A peer that has all it wants says so like this; what came until then is the body.
            Some(Broken::Reset(Code::NO_ERROR)) => Poll::Ready(None),
            Some(broken) => Poll::Ready(Some(Err(broken))),
            None => {
                wait(&self.0.receiver, context);
                Poll::Pending
            }
        }
    }

    /// Whether nothing more comes.
    #[must_use]
    pub fn is_end(&self) -> bool {
        let inbox = self.0.inbox.borrow();
        inbox.ended && inbox.data.is_empty() && inbox.trailers.is_none()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// What is sent on a stream.
pub struct Sender(Rc<Stream>);

impl Sender {
    /// Sends the head of an answer.
    ///
    /// # Errors
    /// When the stream broke.
    pub fn answer(&self, head: &Block, end: bool) -> Result<(), Broken> {
        self.check()?;
        let stream = &*self.0;
        stream.link.fields(stream.key, head, end);
        Ok(())
    }

    /// Sends data as far as there is room. Ready when all of it was sent.
    ///
    /// # Errors
    /// When the stream broke.
    pub fn poll_data(
        &self,
        context: &Context<'_>,
        data: &mut Bytes,
        end: bool,
    ) -> Poll<Result<(), Broken>> {
        self.check()?;
        let sent = self.0.link.data(self.0.key, data, end);
        data.advance(sent);
        if data.is_empty() {
            return Poll::Ready(Ok(()));
        }
        wait(&self.0.sender, context);
        Poll::Pending
    }

    /// Ends the stream with trailers.
    ///
    /// # Errors
    /// When the stream broke.
    pub fn trailers(&self, trailers: &Block) -> Result<(), Broken> {
        self.check()?;
        self.0.link.fields(self.0.key, trailers, true);
        Ok(())
    }

    /// Why it broke, once it did.
    pub fn poll_broken(&self, context: &Context<'_>) -> Poll<Broken> {
        match self.check() {
            Err(broken) => Poll::Ready(broken),
            Ok(()) => {
                wait(&self.0.sender, context);
                Poll::Pending
            }
        }
    }

    /// Breaks it.
    pub fn reset(&self, code: Code) {
        if self.0.alive.get() {
            self.0.link.reset(self.0.key, code);
            self.0.broke(Broken::Reset(code));
        }
    }

    fn check(&self) -> Result<(), Broken> {
        match self.0.inbox.borrow().broken {
            Some(broken) => Err(broken),
            None => Ok(()),
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.release();
    }
}
