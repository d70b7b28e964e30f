//! Resets that a server is spared until its service took what they end.
//!
//! Servers take many streams that are reset before anybody served them for an attack ("rapid reset", CVE-2023-44487), and
//! end the connection of everybody. To h2 more than 20 are many, at any one time. A proxy cannot choose when those whose
//! streams it carries leave, but it can keep what they leave for a moment.
//!
//! Which streams the service took is not said, but follows:
//!
//! - streams are taken in their order, so that an answer to one says that those before it were taken, too;
//! - a server that read all there is takes one, if there is any, before it reads again. So each answer to a question that
//!   came behind the streams is worth one of them. The question is SETTINGS that set nothing: pings are what servers of
//!   gRPC count and punish.

use std::collections::BTreeSet;

use super::streams::StreamKey;
use super::{Connection, Role};
use crate::frame::{self, Code, kind};

/// How many streams that the service may not have taken yet are reset. Half of what h2 lets pass.
pub(super) const UNTAKEN: usize = 10;

/// A stream whose reset waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    code: Code,
    /// Whether we sent all that we wanted to: then it needs no reset once the server sent all, too.
    sent: bool,
    /// Whether it was [removed](Connection::remove), and is kept for its reset alone.
    pub(super) removed: bool,
}

/// What is known of the server's service, and the resets that wait for it.
#[derive(Debug)]
pub(super) struct Resets {
    /// The lowest id that it may not have taken.
    first: u32,
    /// The streams from there on that the server was told to be reset.
    told: Vec<u32>,
    /// Those that it was not told of.
    held: BTreeSet<u32>,
    /// The id behind the last stream that began before the question that was not answered yet.
    asked: Option<u32>,
}

impl Default for Resets {
    fn default() -> Self {
        Resets {
            first: 1,
            told: Vec::new(),
            held: BTreeSet::new(),
            asked: None,
        }
    }
}

impl Resets {
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether the server may be told now that this one is reset.
    fn may_tell(&mut self, id: u32) -> bool {
        if id < self.first {
            return true;
        }
        let few = self.told.len() < UNTAKEN;
        if few {
            self.told.push(id);
        }
        few
    }

    /// All before this id were taken.
    fn taken(&mut self, before: u32) {
        if before > self.first {
            self.first = before;
            self.told.retain(|id| *id >= before);
        }
    }
}

impl Connection {
    /// Whether a stream of ours that ends now may be reset now. If not, it is when the server took enough of the others.
    pub(super) fn may_reset(&mut self, stream: StreamKey, code: Code, sent: bool) -> bool {
        let id = self.streams[stream].id;
        if self.role == Role::Server || self.resets.may_tell(id) {
            return true;
        }
        self.streams[stream].held = Some(Held {
            code,
            sent,
            removed: false,
        });
        self.resets.held.insert(id);
        self.ask();
        false
    }

    fn ask(&mut self) {
        if self.resets.asked.is_none() {
            self.resets.asked = Some(self.streams.next);
            // It is answered, as what else we say may be.
            self.budget.earn();
            frame::write(&mut self.out, kind::SETTINGS, 0, 0, &[]);
        }
    }

    /// The server acknowledged settings that set nothing.
    pub(super) fn on_asked(&mut self) {
        if let Some(behind) = self.resets.asked.take() {
            self.resets.taken(behind.min(self.resets.first + 2));
            self.tell();
        }
    }

    /// The server began to answer a stream, with all that it has to say if it is the end.
    pub(super) fn on_taken(&mut self, id: u32, end: bool) {
        if let Some(stream) = self.streams.find(id)
            && self.streams[stream]
                .held
                .is_some_and(|held| held.sent && end)
        {
            self.spare(id);
        }
        self.resets.taken(id + 2);
        self.tell();
    }

    /// Resets what may be by now.
    fn tell(&mut self) {
        while let Some(id) = self.resets.held.first().copied()
            && self.resets.may_tell(id)
        {
            if let Some(held) = self.spare(id) {
                self.write_reset(id, held.code);
            }
        }
        if !self.resets.held.is_empty() {
            self.ask();
        }
    }

    /// Forgets a reset that waits, because it is written now or because the server ended the stream.
    pub(super) fn spare(&mut self, id: u32) -> Option<Held> {
        if !self.resets.held.remove(&id) {
            return None;
        }
        let stream = self.streams.find(id)?;
        let held = self.streams[stream].held.take()?;
        if held.removed {
            self.remove(stream);
        }
        Some(held)
    }

    /// The server does nothing with streams above this id.
    pub(super) fn spare_above(&mut self, last: u32) {
        while let Some(id) = self.resets.held.last().copied().filter(|id| *id > last) {
            self.spare(id);
        }
    }
}
