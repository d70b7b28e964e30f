//! One end of a connection: bytes are read out of a buffer into [`Event`]s, and frames are appended to a buffer.
//!
//! What the protocol demands of either side is kept here. Which stream belongs to what is the caller's.
//!
//! # What a peer can make it cost
//!
//! Peers are taken for hostile. What one of them can make a connection keep is bounded:
//!
//! - a stream takes about 100 bytes, and a client has no more of them than [`Limits::streams`] allows;
//! - the tables of HPACK take at most about 16 KiB each, and nothing before they are used;
//! - a head that comes in more than one frame takes twice [`Limits::header_bytes`], until it is complete;
//! - the ids of the last 1024 streams that were reset take 4 KiB;
//! - [`Connection::out`] takes what [`Connection::may_read`] says, about twice the bytes of one buffer that was read,
//!   and the heads that the caller writes;
//! - data that was read and not [passed on](Connection::passed_on), which the caller keeps, is at most
//!   [`Limits::stream_window`] of each stream and [`Limits::window`] of all of them.
//!
//! An idle connection keeps less than 4 KiB, what is in its tables, and those ids. What a peer can make it do is bounded
//! by budgets for each second, which [`Connection::tick`] begins anew.

mod budget;
mod heads;
mod reading;
mod resets;
mod streams;
#[cfg(test)]
mod tests;
mod writing;

use std::collections::VecDeque;
use std::ops::Range;

use crate::frame::{self, Code, DEFAULT_WINDOW, MAX_31_BITS, PREFACE, kind, setting};
use crate::hpack::{Decoder, Encoder};
use budget::Budget;
use heads::Partial;
use resets::Resets;
use streams::Streams;
pub use streams::{Stream, StreamKey};

/// How many bytes may wait to be written before no more bodies are taken in.
const ROOM: usize = 128 * 1024;
/// How many more may wait (answers to pings, resets, heads) before nothing is read of a peer that does not read.
const SLACK: usize = 64 * 1024;
/// How many streams we may have under way before a server says so (RFC 9113, section 6.5.2, recommends to allow 100).
const FIRST_STREAMS: usize = 100;
/// The same of a server that sets no limit. Each stream has a request behind it, and how many of these there may be is for
/// others to say; this only keeps ids and memory in proportion.
const UNLIMITED_STREAMS: usize = 10_000;

/// An update of a window below so many bytes is an idle frame: a peer that opens its windows byte by byte makes us send
/// frames of a byte ("data dribble", CVE-2019-9511).
const DRIBBLE: usize = 64;
/// The payload of pings that ask whether the peer is there.
const PROBE: [u8; 8] = *b"anybody?";
/// The payload of the ping behind the first GOAWAY.
const DRAINING: [u8; 8] = *b"draining";

/// Which end of the connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Towards a client.
    Server,
    /// Towards a server.
    Client,
}

/// What the other side may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many streams it may have under way. Of servers only: a client has none of its peer's.
    pub streams: usize,
    /// How large a head may be, in bytes as `SETTINGS_MAX_HEADER_LIST_SIZE` reckons them: 32 and its bytes a field.
    ///
    /// A request whose head is larger is an [`Event::Request`] with a block that is [over](crate::hpack::Block::over),
    /// to be answered with 431; anything else that is larger resets its stream. The connection ends with a head that is
    /// larger than twice this as it is coded, or than four times as it is decoded.
    pub header_bytes: usize,
    /// How many bytes of a stream's body may be under way before they are [passed on](Connection::passed_on).
    pub stream_window: u32,
    /// How many of all streams. At least 65,535: the protocol has no way to say less.
    pub window: u32,
}

/// What bytes that were read mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client began a stream. Its head is in the block: well-formed (also CONNECT, with an authority alone), or
    /// [over](crate::hpack::Block::over), and then anything may be missing.
    Request {
        /// The new stream.
        stream: StreamKey,
        /// Whether there is no body.
        end: bool,
    },
    /// A server answered. The head of the final answer is in the block; interim answers (1xx) are read over.
    Answer {
        /// The stream of the request.
        stream: StreamKey,
        /// Whether there is no body.
        end: bool,
    },
    /// A part of a body.
    Data {
        /// The stream it is of.
        stream: StreamKey,
        /// Where in the input it is. It may be empty at the end.
        at: Range<usize>,
        /// Whether it is the last part and no trailers follow.
        end: bool,
    },
    /// The body ended with trailers, which are in the block.
    Trailers {
        /// The stream that ended.
        stream: StreamKey,
    },
    /// The stream ended before its time. It is to be [removed](Connection::remove).
    Reset {
        /// The stream that ended.
        stream: StreamKey,
        /// Why.
        code: Code,
        /// Whether the peer reset it. If not, the peer did what it may not, and was told so.
        by_peer: bool,
    },
    /// More can be sent on a stream.
    Window {
        /// Which.
        stream: StreamKey,
    },
    /// More can be sent on those that [wait](Connection::waiter).
    Windows,
    /// The peer begins no more streams and takes no more. It did nothing with streams of ours above this id: their
    /// requests may be sent again elsewhere. It may be told more than once, with ever lower ids.
    Leaves {
        /// The last id.
        last: u32,
    },
    /// The peer answered our [ping](Connection::ping).
    Pong,
}

/// How far a connection is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// We told the peer to begin no more streams, and serve those that it began before it heard of it.
    Announced,
    /// We serve none above this id.
    After(u32),
}

/// One end of a connection.
#[derive(Debug)]
pub struct Connection {
    /// Which end.
    pub role: Role,
    limits: Limits,
    /// What is to be sent. The caller takes out of its front what was sent, and gives back its memory now and then.
    pub out: Vec<u8>,
    decoder: Decoder,
    encoder: Encoder,
    streams: Streams,
    budget: Budget,
    resets: Resets,
    /// What we may send, and what the peer may send, in bytes.
    send: i64,
    receive: i64,
    /// What was passed on and the peer was not told of.
    passed: u32,
    /// What we may send at first on a stream, and what the peer may.
    first_send: i64,
    first_receive: i64,
    /// How many streams the peer lets us have under way.
    peer_streams: usize,
    /// Whether the preface came, and the first settings.
    greeted: bool,
    settled: bool,
    /// Whether the peer acknowledged our settings.
    acknowledged: bool,
    /// A head whose rest comes in more frames, and what there is of it.
    partial: Option<Partial>,
    fragment: Vec<u8>,
    /// Streams that wait for the connection's window or for room in `out`.
    waiting: VecDeque<StreamKey>,
    leaving: Leaving,
    /// Whether the peer said that it leaves ([`Event::Leaves`]).
    pub left: bool,
    /// Whether a ping of ours was not answered yet.
    pinged: bool,
    /// Why reading ended.
    failed: Option<Code>,
}

impl Connection {
    /// A connection that was just established. What it says first is in [`Connection::out`].
    #[must_use]
    pub fn new(role: Role, limits: Limits) -> Self {
        let limits = Limits {
            stream_window: limits.stream_window.min(MAX_31_BITS),
            window: limits.window.clamp(DEFAULT_WINDOW, MAX_31_BITS),
            ..limits
        };
        let mut connection = Connection {
            role,
            limits,
            out: Vec::new(),
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            streams: Streams::default(),
            budget: Budget::default(),
            resets: Resets::default(),
            send: i64::from(DEFAULT_WINDOW),
            receive: i64::from(limits.window),
            passed: 0,
            first_send: i64::from(DEFAULT_WINDOW),
            // A peer that did not read our settings yet sends what it may without them.
            first_receive: i64::from(limits.stream_window.max(DEFAULT_WINDOW)),
            peer_streams: FIRST_STREAMS,
            greeted: role == Role::Client,
            settled: false,
            acknowledged: false,
            partial: None,
            fragment: Vec::new(),
            waiting: VecDeque::new(),
            leaving: Leaving::No,
            left: false,
            pinged: false,
            failed: None,
        };
        connection.greet();
        connection
    }

    fn greet(&mut self) {
        let number = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let first = match self.role {
            Role::Server => (setting::MAX_CONCURRENT_STREAMS, number(self.limits.streams)),
            Role::Client => {
                self.out.extend_from_slice(PREFACE);
                (setting::ENABLE_PUSH, 0)
            }
        };
        let all = [
            first,
            (setting::INITIAL_WINDOW_SIZE, self.limits.stream_window),
            (
                setting::MAX_HEADER_LIST_SIZE,
                number(self.limits.header_bytes),
            ),
        ];
        let mut settings = Vec::with_capacity(6 * all.len());
        for (id, value) in all {
            settings.extend_from_slice(&id.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        }
        frame::write(&mut self.out, kind::SETTINGS, 0, 0, &settings);
        let more = self.limits.window - DEFAULT_WINDOW;
        if more > 0 {
            self.write_window(0, more);
        }
    }

    /// A stream.
    ///
    /// # Panics
    /// When it was [removed](Connection::remove).
    #[inline]
    #[must_use]
    pub fn stream(&self, stream: StreamKey) -> &Stream {
        &self.streams[stream]
    }

    /// How many streams are under way. Those whose [reset](Connection::reset) waits are not, but still take up room.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.streams.len() - self.resets.held()
    }

    /// The streams under way, with their ids.
    pub fn streams(&self) -> impl Iterator<Item = (StreamKey, u32)> {
        self.streams.iter().map(|(key, stream)| (key, stream.id))
    }

    /// Whether it takes another stream of ours now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.left
            && self.leaving == Leaving::No
            && !self.is_exhausted()
            && self.streams.len() < self.peer_streams
            && self.may_read()
    }

    /// Whether all ids of our streams are used up. The connection is of no use any more but for its last streams.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.streams.next > MAX_31_BITS
    }

    /// Whether to read at all: not from a peer that does not read what we say.
    #[must_use]
    pub fn may_read(&self) -> bool {
        self.out.len() < ROOM + SLACK
    }

    /// Whether the peer is in the middle of something that it must bring to an end: the beginning of the connection, or a
    /// head in more than one frame. How long that may take is the caller's.
    #[must_use]
    pub fn is_amid_head(&self) -> bool {
        !self.settled || self.partial.is_some()
    }

    /// Whether one side leaves and nothing is left to do but to send [`Connection::out`].
    #[must_use]
    pub fn is_done(&self) -> bool {
        let leaves = self.left || matches!(self.leaving, Leaving::After(_));
        // The end of the connection resets what is left.
        leaves && self.busy() == 0
    }

    /// Says which second it is; budgets are for one each. To be called before reading.
    pub fn tick(&mut self, second: u64) {
        self.budget.tick(second);
    }
}
