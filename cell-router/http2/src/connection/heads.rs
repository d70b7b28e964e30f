//! Heads and trailers as they are read.

use super::reading::{Place, Read};
use super::streams::Stream;
use super::{Connection, Event, Leaving, Role};
use crate::frame::{self, Code, Header, MAX_31_BITS, MAX_PAYLOAD, flag};
use crate::hpack::Block;
use crate::message;

/// In how many more frames than one a head may come. Those of honest peers are full.
const CONTINUATIONS: u32 = 16;

/// A head whose rest comes in more frames.
#[derive(Clone, Copy, Debug)]
pub(super) struct Partial {
    pub(super) id: u32,
    end: bool,
    frames: u32,
    /// Whether its priority makes the stream depend on itself.
    itself: bool,
}

impl Stream {
    /// Reckons bytes of the body. False when they are more than was announced.
    pub(super) fn counts(&mut self, bytes: usize) -> bool {
        self.empty &= bytes == 0;
        let Some(left) = &mut self.left else {
            return true;
        };
        match left.checked_sub(bytes as u64) {
            Some(less) => *left = less,
            None => return false,
        }
        true
    }

    /// Whether the body may end here. Answers to HEAD, and those that tell of no change, announce the length of a body
    /// that does not come (RFC 9113, section 8.1.1); whether this is one of them is for those who know the request.
    pub(super) fn may_end(&self, role: Role) -> bool {
        self.left.is_none_or(|left| left == 0) || role == Role::Client && self.empty
    }

    /// It was reset.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.receive_done = true;
        self.send_done = true;
    }
}

impl Connection {
    pub(super) fn on_headers(&mut self, header: Header, payload: &[u8], block: &mut Block) -> Read {
        if header.stream == 0 {
            return Err(Code::PROTOCOL);
        }
        let mut coded = frame::unpadded(header, payload)?;
        let mut itself = false;
        if header.has(flag::PRIORITY) {
            let (priority, rest) = coded.split_at_checked(5).ok_or(Code::FRAME_SIZE)?;
            itself = frame::number(priority) & MAX_31_BITS == header.stream;
            coded = rest;
        }
        let partial = Partial {
            id: header.stream,
            end: header.has(flag::END_STREAM),
            frames: 0,
            itself,
        };
        if header.has(flag::END_HEADERS) {
            return self.on_block(partial, coded, block);
        }
        self.fragment.extend_from_slice(coded);
        self.partial = Some(partial);
        Ok(None)
    }

    pub(super) fn on_continuation(
        &mut self,
        header: Header,
        payload: &[u8],
        block: &mut Block,
    ) -> Read {
        let mut partial = self.partial.take().ok_or(Code::PROTOCOL)?;
        partial.frames += 1;
        // A block that is not read to its end leaves the table unknown, so that the connection cannot go on.
        let most = self.limits.header_bytes.saturating_mul(2).max(MAX_PAYLOAD);
        if partial.frames > CONTINUATIONS || self.fragment.len() + payload.len() > most {
            return Err(Code::CALM);
        }
        self.fragment.extend_from_slice(payload);
        if !header.has(flag::END_HEADERS) {
            self.partial = Some(partial);
            return Ok(None);
        }
        // Its memory is not kept.
        let fragment = std::mem::take(&mut self.fragment);
        self.on_block(partial, &fragment, block)
    }

    fn on_block(&mut self, head: Partial, coded: &[u8], block: &mut Block) -> Read {
        self.decoder
            .decode(coded, block, self.limits.header_bytes)
            .map_err(|_| Code::COMPRESSION)?;
        if self.begins(head.id) {
            return self.on_request(head, block);
        }
        let Partial { id, end, .. } = head;
        let place = self.place(id)?;
        if self.role == Role::Client {
            self.on_taken(id, end);
        }
        let stream = match place {
            Place::Open(stream) => stream,
            Place::Complete => return Err(Code::STREAM_CLOSED),
            Place::Abandoned => return self.idle(),
        };
        let state = &mut self.streams[stream];
        if state.receive_done {
            return self.fault(stream, Code::STREAM_CLOSED);
        }
        if head.itself || block.over {
            return self.fault(stream, Code::PROTOCOL);
        }
        if state.headed {
            if !end || !state.may_end(self.role) || !message::are_trailers(block) {
                return self.fault(stream, Code::PROTOCOL);
            }
            state.receive_done = true;
            return Ok(Some(Event::Trailers { stream }));
        }
        let Ok(answer) = message::answer(block) else {
            return self.fault(stream, Code::PROTOCOL);
        };
        if answer.status < 200 {
            return if end {
                self.fault(stream, Code::PROTOCOL)
            } else {
                self.idle()
            };
        }
        state.headed = true;
        state.receive_done = end;
        state.left = answer.length;
        Ok(Some(Event::Answer { stream, end }))
    }

    /// Whether a head with this id is that of a new stream that we serve.
    fn begins(&self, id: u32) -> bool {
        self.role == Role::Server
            && id & 1 == 1
            && id > self.streams.last
            && !matches!(self.leaving, Leaving::After(_))
    }

    fn on_request(&mut self, head: Partial, block: &Block) -> Read {
        let Partial {
            id, end, itself, ..
        } = head;
        self.streams.last = id;
        // A client that did not read our settings yet may begin more than it may.
        if self.streams.len() >= self.limits.streams {
            return self.turn_away(head, Code::REFUSED);
        }
        let mut left = None;
        if block.over {
            // Much work for few bytes.
            self.budget.fault()?;
        } else {
            match message::request(block) {
                Ok(request) if !itself => left = request.length,
                _ => return self.turn_away(head, Code::PROTOCOL),
            }
            if end && left.is_some_and(|left| left > 0) {
                return self.turn_away(head, Code::PROTOCOL);
            }
        }
        let stream = self.streams.add(id, self.first_send, self.first_receive);
        let state = &mut self.streams[stream];
        state.headed = true;
        state.receive_done = end;
        state.left = left;
        Ok(Some(Event::Request { stream, end }))
    }

    /// Ends a stream that did not even begin: the caller never hears of it.
    fn turn_away(&mut self, head: Partial, code: Code) -> Read {
        self.budget.fault()?;
        self.write_reset(head.id, code);
        if !head.end {
            self.streams.abandon(head.id);
        }
        Ok(None)
    }
}
