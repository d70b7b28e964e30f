//! The task of a connection: reads, lets the streams know, and writes what they had to say.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use titan_http2::hpack::Block;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::keepalive::KeepAlive;
use super::link::Link;
use super::stream::{Lost, Receiver, Sender};

/// How often a connection is read before others have their turn.
const TURNS: usize = 4;
/// Buffers of a connection that is written to keep at most this.
const KEPT: usize = 64 * 1024;
/// A connection that ends says why, to those who listen for so long.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What a thread reads into and decodes into: nothing is kept in it from one read to the next.
struct Scratch {
    input: Box<[u8]>,
    block: Block,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        // A frame that came in part, and as much again.
        input: vec![0; 64 * 1024].into(),
        block: Block::default(),
    });
}

/// Moves the bytes of a connection.
pub struct Driver<S> {
    link: Rc<Link>,
    socket: S,
    keepalive: KeepAlive,
    started: Instant,
    /// The start of a frame whose rest did not come yet.
    partial: Vec<u8>,
    /// How much of what is to be written was.
    written: usize,
    /// Whether the socket may still have some of it for itself.
    flushing: bool,
    /// Whether it took no more when it was last asked to.
    full: bool,
    /// Whether this side was closed.
    closed: bool,
    /// Why nothing more is read, and until when the rest is written.
    ending: Option<(Lost, Pin<Box<Sleep>>)>,
}

impl<S> Drop for Driver<S> {
    fn drop(&mut self) {
        // Also when its task is dropped: those who wait for its streams hear of it.
        self.link.end(Lost::Here);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// For a connection over this socket.
    pub fn new(link: &Rc<Link>, socket: S, keepalive: KeepAlive) -> Self {
        Driver {
            link: Rc::clone(link),
            socket,
            keepalive,
            started: Instant::now(),
            partial: Vec::new(),
            written: 0,
            flushing: false,
            full: false,
            closed: false,
            ending: None,
        }
    }

    /// Ready when the connection ended. What the other side begins goes to `accept`; whether pings matter now is for `wanted`
    /// to say.
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        accept: &mut impl FnMut(Block, Receiver, Sender),
        wanted: impl Fn() -> bool,
    ) -> Poll<Lost> {
        let ended = ready!(self.poll_end(context, accept, wanted));
        self.link.end(ended);
        Poll::Ready(ended)
    }

    fn poll_end(
        &mut self,
        context: &mut Context<'_>,
        accept: &mut impl FnMut(Block, Receiver, Sender),
        wanted: impl Fn() -> bool,
    ) -> Poll<Lost> {
        self.link.begin(context.waker());
        let seconds = self.started.elapsed().as_secs();
        self.link.connection.borrow_mut().tick(seconds);
        let mut turns = 0;
        while self.ending.is_none() && self.link.connection.borrow().may_read() {
            if turns == TURNS {
                context.waker().wake_by_ref();
                break;
            }
            turns += 1;
            match self.poll_read(context, accept) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(lost)) => return Poll::Ready(lost),
                Poll::Pending => break,
            }
        }
        let stuck = !self.link.connection.borrow().may_read();
        let written = self.poll_write(context);
        // After reading and writing: a sign of life may have waited for as long as this process was not run.
        let gone = self.keepalive.poll_gone(context, &self.link, wanted);
        if gone.is_ready() {
            return Poll::Ready(Lost::Silent);
        }
        if let Some((lost, alarm)) = &mut self.ending
            && alarm.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(*lost);
        }
        if let Err(lost) = ready!(written) {
            return Poll::Ready(lost);
        }
        self.link.let_wait_end();
        if let Some((lost, _)) = &self.ending {
            let lost = *lost;
            ready!(self.poll_close(context, lost));
            return Poll::Ready(lost);
        }
        if self.link.is_done() {
            self.end(Lost::Here);
            context.waker().wake_by_ref();
        } else if stuck {
            // There is room again.
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn end(&mut self, lost: Lost) {
        self.ending = Some((lost, Box::pin(tokio::time::sleep(LAST_WORDS))));
    }

    /// Closes the connection, after a good end as soon as the other side does. What it still sends would else be answered by
    /// the kernel with a reset, which takes along what it did not read yet.
    fn poll_close(&mut self, context: &mut Context<'_>, lost: Lost) -> Poll<()> {
        if !self.closed {
            let _ = ready!(Pin::new(&mut self.socket).poll_shutdown(context));
            self.closed = true;
        }
        if lost != Lost::Here {
            return Poll::Ready(());
        }
        loop {
            let mut unread = [0; 1024];
            let mut unread = ReadBuf::new(&mut unread);
            let read = ready!(Pin::new(&mut self.socket).poll_read(context, &mut unread));
            if read.is_err() || unread.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    }

    /// Reads once.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        accept: &mut impl FnMut(Block, Receiver, Sender),
    ) -> Poll<Result<(), Lost>> {
        SCRATCH.with_borrow_mut(|Scratch { input, block }| {
            let before = self.partial.len();
            input[..before].copy_from_slice(&self.partial);
            let mut into = ReadBuf::new(&mut input[before..]);
            ready!(Pin::new(&mut self.socket).poll_read(context, &mut into)).map_err(lost)?;
            let count = into.filled().len();
            if count == 0 {
                return Poll::Ready(Err(Lost::Closed));
            }
            self.keepalive.seen();
            self.take_in(&input[..before + count], block, accept);
            block.shrink();
            Poll::Ready(Ok(()))
        })
    }

    fn take_in(
        &mut self,
        input: &[u8],
        block: &mut Block,
        accept: &mut impl FnMut(Block, Receiver, Sender),
    ) {
        let mut at = 0;
        loop {
            let event = self
                .link
                .connection
                .borrow_mut()
                .read(input, &mut at, block);
            match event {
                Ok(Some(event)) => {
                    if let Some(begun) = self.link.on(event, input, block) {
                        accept(begun.head, begun.receiver, begun.sender);
                    }
                }
                Ok(None) => break,
                Err(code) => {
                    self.end(Lost::Fault(code));
                    self.link.end(Lost::Fault(code));
                    break;
                }
            }
        }
        self.partial.clear();
        if at < input.len() && self.ending.is_none() {
            self.partial.extend_from_slice(&input[at..]);
        } else {
            self.partial = Vec::new();
        }
    }

    /// Writes all there is.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        let mut connection = self.link.connection.borrow_mut();
        let out = &mut connection.out;
        while self.written < out.len() {
            match Pin::new(&mut self.socket).poll_write(context, &out[self.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Lost::Closed)),
                Poll::Ready(Ok(count)) => {
                    self.written += count;
                    self.flushing = true;
                    // A socket has room for what nobody reads. That it has room again says that somebody does.
                    if std::mem::take(&mut self.full) {
                        self.keepalive.seen();
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(lost(error))),
                Poll::Pending => {
                    out.drain(..self.written);
                    self.written = 0;
                    self.full = true;
                    return Poll::Pending;
                }
            }
        }
        if self.flushing {
            self.written = 0;
            out.clear();
            out.shrink_to(KEPT);
            ready!(Pin::new(&mut self.socket).poll_flush(context)).map_err(lost)?;
            self.flushing = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether a head, or the first words of the other side, came in part only.
    #[must_use]
    pub fn is_amid_head(&self) -> bool {
        !self.partial.is_empty() || self.link.connection.borrow().is_amid_head()
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn lost(error: io::Error) -> Lost {
    Lost::Io(error.kind())
}
