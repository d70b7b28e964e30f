//! What is written.

use std::collections::VecDeque;

use super::streams::{KEPT, StreamKey};
use super::{Connection, DRAINING, DRIBBLE, Leaving, PROBE, ROOM, Role};
use crate::frame::{self, Code, HEADER_BYTES, Header, MAX_31_BITS, MAX_PAYLOAD, flag, kind};
use crate::hpack::Encoder;

/// What a head is expected to take, in bytes.
const HEAD: usize = 512;

impl Connection {
    /// Begins a stream, where there is [room](Connection::has_room) for it. Its head is to be
    /// [written](Connection::headers) before another stream begins: ids must rise on the wire.
    pub fn open(&mut self) -> StreamKey {
        debug_assert!(self.role == Role::Client && !self.is_exhausted());
        let id = self.streams.next;
        self.streams.next += 2;
        self.streams.add(id, self.first_send, self.first_receive)
    }

    /// Writes a head or trailers: what `fields` writes with the encoder. Nothing on a stream that was reset.
    #[inline]
    pub fn headers(
        &mut self,
        stream: StreamKey,
        end: bool,
        fields: impl FnOnce(&mut Encoder, &mut Vec<u8>),
    ) {
        let state = &mut self.streams[stream];
        if state.ended {
            return;
        }
        state.send_done |= end;
        let id = state.id;
        self.budget.earn();
        let start = self.out.len();
        self.out.reserve(HEAD);
        self.out.extend_from_slice(&[0; HEADER_BYTES]);
        self.encoder.begin(&mut self.out);
        fields(&mut self.encoder, &mut self.out);
        let length = self.out.len() - start - HEADER_BYTES;
        let end = if end { flag::END_STREAM } else { 0 };
        if length <= MAX_PAYLOAD {
            let header = Header {
                length,
                kind: kind::HEADERS,
                flags: flag::END_HEADERS | end,
                stream: id,
            };
            self.out[start..start + HEADER_BYTES].copy_from_slice(&header.bytes());
            return;
        }
        let coded = self.out.split_off(start);
        let mut parts = coded[HEADER_BYTES..].chunks(MAX_PAYLOAD).peekable();
        let (mut kind, mut flags) = (kind::HEADERS, end);
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                flags |= flag::END_HEADERS;
            }
            frame::write(&mut self.out, kind, flags, id, part);
            (kind, flags) = (kind::CONTINUATION, 0);
        }
    }

    /// How many of `want` bytes of a body may be sent now. When these are not all, the stream is heard of again: by
    /// [`Event::Window`](super::Event::Window), or by [`Connection::waiter`].
    #[inline]
    pub fn allowance(&mut self, stream: StreamKey, want: usize) -> usize {
        let room = ROOM.saturating_sub(self.out.len());
        let open = usize::try_from(self.send).unwrap_or(0).min(room);
        let state = &mut self.streams[stream];
        if state.ended {
            return 0;
        }
        let of_stream = usize::try_from(state.send).unwrap_or(0);
        // Not when it is the stream's own window: that one is heard of by itself.
        if open < want && open < of_stream && !state.queued {
            state.queued = true;
            self.waiting.push_back(stream);
        }
        of_stream.min(open).min(want)
    }

    /// Writes a part of a body: no more bytes than were [allowed](Connection::allowance) just before. Nothing on a stream
    /// that was reset.
    #[inline]
    pub fn data(&mut self, stream: StreamKey, mut data: &[u8], end: bool) {
        let state = &mut self.streams[stream];
        if state.ended {
            return;
        }
        let size = data.len() as i64;
        debug_assert!(size == 0 || size <= state.send && size <= self.send);
        state.send -= size;
        self.send -= size;
        state.send_done |= end;
        let id = state.id;
        if end || data.len() >= DRIBBLE {
            self.budget.earn();
        }
        while let Some((part, rest)) = data.split_at_checked(MAX_PAYLOAD)
            && !rest.is_empty()
        {
            frame::write(&mut self.out, kind::DATA, 0, id, part);
            data = rest;
        }
        let flags = if end { flag::END_STREAM } else { 0 };
        frame::write(&mut self.out, kind::DATA, flags, id, data);
    }

    /// A stream that waited and may send now. To be asked until there is none, after
    /// [`Event::Windows`](super::Event::Windows) and when [`Connection::out`] was sent.
    pub fn waiter(&mut self) -> Option<StreamKey> {
        if self.send <= 0 || self.out.len() >= ROOM {
            return None;
        }
        let stream = self.waiting.pop_front()?;
        self.streams[stream].queued = false;
        Some(stream)
    }

    /// Bytes of [`Event::Data`](super::Event::Data) were passed on, or are not wanted: the peer may send as many again, on
    /// the connection and on the stream if it is still there.
    #[inline]
    pub fn passed_on(&mut self, stream: Option<StreamKey>, size: usize) {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        self.passed = self.passed.saturating_add(size);
        // Rarely, and long before the peer has to wait.
        if self.passed >= self.limits.window / 2 {
            let more = std::mem::take(&mut self.passed);
            self.receive += i64::from(more);
            self.write_window(0, more);
        }
        let Some(state) = stream.and_then(|stream| self.streams.get_mut(stream)) else {
            return;
        };
        state.passed = state.passed.saturating_add(size);
        if state.passed > 0 && state.passed >= self.limits.stream_window / 2 && !state.receive_done
        {
            let more = std::mem::take(&mut state.passed);
            state.receive += i64::from(more);
            let id = state.id;
            self.write_window(id, more);
        }
    }

    pub(super) fn write_window(&mut self, id: u32, more: u32) {
        let payload = more.to_be_bytes();
        frame::write(&mut self.out, kind::WINDOW_UPDATE, 0, id, &payload);
    }

    /// Ends a stream at once, in both directions. It is still to be [removed](Connection::remove). Does nothing when one
    /// side reset it before.
    ///
    /// A server whose service did not take many others yet that were reset is told later.
    pub fn reset(&mut self, stream: StreamKey, code: Code) {
        let state = &mut self.streams[stream];
        if state.ended {
            return;
        }
        let (id, complete, sent) = (state.id, state.receive_done, state.send_done);
        state.end();
        if !complete && self.role == Role::Server {
            self.streams.abandon(id);
        }
        if self.may_reset(stream, code, sent) {
            self.write_reset(id, code);
        }
    }

    pub(super) fn write_reset(&mut self, id: u32, code: Code) {
        self.budget.earn();
        let payload = code.0.to_be_bytes();
        frame::write(&mut self.out, kind::RST_STREAM, 0, id, &payload);
    }

    /// Forgets a stream that ended in both directions or was reset.
    ///
    /// # Panics
    /// When it was removed before.
    pub fn remove(&mut self, stream: StreamKey) {
        let state = &mut self.streams[stream];
        if std::mem::take(&mut state.queued) {
            self.waiting.retain(|waiting| *waiting != stream);
        }
        if let Some(held) = &mut state.held {
            held.removed = true;
            return;
        }
        let state = self.streams.remove(stream);
        if self.waiting.is_empty() && self.waiting.capacity() > KEPT {
            self.waiting = VecDeque::new();
        }
        if !state.receive_done && self.role == Role::Server {
            self.streams.abandon(state.id);
        }
    }

    /// Asks the peer whether it is there; [`Event::Pong`](super::Event::Pong) says that it is. Does nothing while it was
    /// asked and did not answer.
    pub fn ping(&mut self) {
        if !std::mem::replace(&mut self.pinged, true) {
            frame::write(&mut self.out, kind::PING, 0, 0, &PROBE);
        }
    }

    /// Leaves without failing any request (RFC 9113, section 6.8). The peer is told to begin no more streams, and those
    /// that it began before it heard of it are served: until it acknowledges a ping that is sent behind. Peers need not
    /// ever do so; how long to wait for [`Connection::is_done`] is the caller's.
    pub fn drain(&mut self) {
        if self.leaving != Leaving::No {
            return;
        }
        if self.role == Role::Client {
            // The peer begins none.
            return self.leave(0, Code::NO_ERROR);
        }
        self.leaving = Leaving::Announced;
        self.write_goaway(MAX_31_BITS, Code::NO_ERROR);
        frame::write(&mut self.out, kind::PING, 0, 0, &DRAINING);
    }

    /// Leaves at once: no streams but those that began until now are served. Does nothing when reading failed, which
    /// told the peer already.
    pub fn fail(&mut self, code: Code) {
        if self.failed.is_none() {
            self.leave(self.streams.last, code);
        }
    }

    pub(super) fn leave(&mut self, last: u32, code: Code) {
        self.leaving = Leaving::After(last);
        self.write_goaway(last, code);
    }

    fn write_goaway(&mut self, last: u32, code: Code) {
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&last.to_be_bytes());
        payload[4..].copy_from_slice(&code.0.to_be_bytes());
        frame::write(&mut self.out, kind::GOAWAY, 0, 0, &payload);
    }
}
