//! The streams of a connection, and what is known of those that ended.

use std::collections::VecDeque;
use std::ops::{Index, IndexMut};

use rustc_hash::FxHashMap;
use slab::Slab;

use super::resets::Held;

/// A stream, by its place among those of its connection. Keys of streams that were removed are used again.
pub type StreamKey = usize;

/// How many of the streams that we ended early are remembered one by one.
const REMEMBERED: usize = 1024;
/// For how many streams memory is kept when there are none.
pub(super) const KEPT: usize = 16;

/// A stream that is under way.
#[derive(Debug)]
pub struct Stream {
    /// Its number on the wire.
    pub id: u32,
    /// Whether the peer sent all that it will.
    pub receive_done: bool,
    /// Whether we sent all that we will.
    pub send_done: bool,
    /// Whether one side reset it. Nothing is read and nothing is written any more.
    pub(super) ended: bool,
    /// How, when the peer is not told yet.
    pub(super) held: Option<Held>,
    /// Whether the peer's head came.
    pub(super) headed: bool,
    /// Whether it waits for the connection.
    pub(super) queued: bool,
    /// Whether no byte of the peer's body came yet.
    pub(super) empty: bool,
    /// What we may send, and what the peer may send, in bytes. Settings can make either negative.
    pub(super) send: i64,
    pub(super) receive: i64,
    /// What was passed on and the peer was not told of.
    pub(super) passed: u32,
    /// What is left of the body's length, when it was announced.
    pub(super) left: Option<u64>,
}

/// Where a stream is that is not among those under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Past {
    /// It did not begin yet.
    Idle,
    /// It came to its end, and nothing of weight can follow.
    Complete,
    /// We ended it early. What the peer sent before it heard of it still comes.
    Abandoned,
}

#[derive(Debug)]
pub(super) struct Streams {
    all: Slab<Stream>,
    /// By id. Clients choose the ids, but not so that looking one up takes more steps than there are streams.
    keys: FxHashMap<u32, StreamKey>,
    /// The highest id that the peer began.
    pub(super) last: u32,
    /// The next id that we begin, when it is on us to begin any.
    pub(super) next: u32,
    /// Those that we ended early, oldest first.
    abandoned: VecDeque<u32>,
    /// The highest id that was pushed out of there: up to it, there is no telling any more.
    forgotten: u32,
}

impl Default for Streams {
    fn default() -> Self {
        Streams {
            all: Slab::new(),
            keys: FxHashMap::default(),
            last: 0,
            next: 1,
            abandoned: VecDeque::new(),
            forgotten: 0,
        }
    }
}

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (StreamKey, &Stream)> {
        self.all.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (StreamKey, &mut Stream)> {
        self.all.iter_mut()
    }

    pub(super) fn get_mut(&mut self, key: StreamKey) -> Option<&mut Stream> {
        self.all.get_mut(key)
    }

    #[inline]
    pub(super) fn find(&self, id: u32) -> Option<StreamKey> {
        self.keys.get(&id).copied()
    }

    /// Adds a stream with these windows, of which nothing came yet.
    pub(super) fn add(&mut self, id: u32, send: i64, receive: i64) -> StreamKey {
        let key = self.all.insert(Stream {
            id,
            receive_done: false,
            send_done: false,
            ended: false,
            held: None,
            headed: false,
            queued: false,
            empty: true,
            send,
            receive,
            passed: 0,
            left: None,
        });
        self.keys.insert(id, key);
        key
    }

    pub(super) fn remove(&mut self, key: StreamKey) -> Stream {
        let stream = self.all.remove(key);
        self.keys.remove(&stream.id);
        if self.all.is_empty() && self.all.capacity() > KEPT {
            self.all = Slab::with_capacity(KEPT);
            self.keys = FxHashMap::default();
        }
        stream
    }

    /// Remembers that frames of a stream of the peer's may still come.
    pub(super) fn abandon(&mut self, id: u32) {
        if self.abandoned.len() == REMEMBERED
            && let Some(oldest) = self.abandoned.pop_front()
        {
            self.forgotten = self.forgotten.max(oldest);
        }
        self.abandoned.push_back(id);
    }

    /// For how many streams there is memory.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.all.capacity() + self.keys.capacity()
    }

    /// What is known of a stream of the peer's that is not under way.
    pub(super) fn past(&self, id: u32) -> Past {
        if id > self.last {
            Past::Idle
        } else if id <= self.forgotten || self.abandoned.contains(&id) {
            Past::Abandoned
        } else {
            Past::Complete
        }
    }
}

impl Index<StreamKey> for Streams {
    type Output = Stream;

    #[inline]
    fn index(&self, key: StreamKey) -> &Stream {
        &self.all[key]
    }
}

impl IndexMut<StreamKey> for Streams {
    #[inline]
    fn index_mut(&mut self, key: StreamKey) -> &mut Stream {
        &mut self.all[key]
    }
}
