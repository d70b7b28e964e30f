//! What is read: frames, and what they mean.

use super::streams::{Past, StreamKey};
use super::{Connection, DRAINING, DRIBBLE, Event, Leaving, PROBE, Role, UNLIMITED_STREAMS};
use crate::frame::{
    self, Code, DEFAULT_WINDOW, HEADER_BYTES, Header, MAX_31_BITS, MAX_PAYLOAD, PREFACE, flag,
    kind, setting,
};
use crate::hpack::Block;

/// How many parameters of SETTINGS take as much work as an idle frame.
const SETTINGS_AT_ONCE: usize = 8;

/// What reading a frame comes to: an event that the caller must hear of, nothing, or the end of the connection.
pub(super) type Read = Result<Option<Event>, Code>;

/// The stream that a frame is for.
pub(super) enum Place {
    Open(StreamKey),
    /// It ended early, or we do not serve it: what comes for it is read over.
    Abandoned,
    Complete,
}

impl Connection {
    /// Reads on from `at`, up to something that the caller must hear of, and moves `at` behind it. None when more bytes
    /// have to come first: those from `at` on are to be given again, with more behind them. At most a frame is kept
    /// back, which is 16,393 bytes.
    ///
    /// What a block means with an [`Event`] is in `block`, up to the next call.
    ///
    /// # Errors
    /// When the connection must end. The peer is told by what is in [`Connection::out`] then; nothing more is read.
    #[inline]
    pub fn read(&mut self, input: &[u8], at: &mut usize, block: &mut Block) -> Read {
        if let Some(code) = self.failed {
            return Err(code);
        }
        let event = self.read_on(input, at, block);
        if let Err(code) = event {
            self.fail(code);
            self.failed = Some(code);
        }
        event
    }

    fn read_on(&mut self, input: &[u8], at: &mut usize, block: &mut Block) -> Read {
        if !self.greeted {
            let came = &input[*at..];
            let most = PREFACE.len().min(came.len());
            if came[..most] != PREFACE[..most] {
                return Err(Code::PROTOCOL);
            }
            if most < PREFACE.len() {
                return Ok(None);
            }
            self.greeted = true;
            *at += most;
        }
        loop {
            let rest = &input[*at..];
            let Some(header) = Header::read(rest) else {
                return Ok(None);
            };
            if header.length > MAX_PAYLOAD {
                return Err(Code::FRAME_SIZE);
            }
            let Some(payload) = rest.get(HEADER_BYTES..HEADER_BYTES + header.length) else {
                return Ok(None);
            };
            let start = *at + HEADER_BYTES;
            *at = start + header.length;
            if let Some(event) = self.frame(header, payload, start, block)? {
                return Ok(Some(event));
            }
        }
    }

    fn frame(&mut self, header: Header, payload: &[u8], start: usize, block: &mut Block) -> Read {
        if let Some(partial) = &self.partial
            && (header.kind != kind::CONTINUATION || header.stream != partial.id)
        {
            return Err(Code::PROTOCOL);
        }
        if !self.settled && (header.kind != kind::SETTINGS || header.has(flag::ACK)) {
            return Err(Code::PROTOCOL);
        }
        match header.kind {
            kind::DATA => self.on_data(header, payload, start),
            kind::HEADERS => self.on_headers(header, payload, block),
            kind::CONTINUATION => self.on_continuation(header, payload, block),
            kind::WINDOW_UPDATE => self.on_window(header, payload),
            kind::RST_STREAM => self.on_reset(header, payload),
            kind::SETTINGS => self.on_settings(header, payload),
            kind::PING => self.on_ping(header, payload),
            kind::GOAWAY => self.on_goaway(header, payload),
            kind::PRIORITY => self.on_priority(header, payload),
            // A client does not push, and a server was told not to.
            kind::PUSH_PROMISE => Err(Code::PROTOCOL),
            _ => self.idle(),
        }
    }

    /// A frame that leads to nothing.
    pub(super) fn idle(&mut self) -> Read {
        self.budget.idle(1)?;
        Ok(None)
    }

    /// The stream that a frame is for.
    ///
    /// # Errors
    /// When it did not begin yet: nothing but a head may come for it.
    pub(super) fn place(&self, id: u32) -> Result<Place, Code> {
        if let Some(key) = self.streams.find(id) {
            return Ok(if self.streams[key].ended {
                Place::Abandoned
            } else {
                Place::Open(key)
            });
        }
        let odd = id & 1 == 1;
        match self.role {
            // Of ours that ended, nothing is remembered: servers are believed to have sent what comes before they
            // heard of it.
            Role::Client if odd && id < self.streams.next => return Ok(Place::Abandoned),
            Role::Server if odd => {}
            _ => return Err(Code::PROTOCOL),
        }
        if let Leaving::After(last) = self.leaving
            && id > last
        {
            return Ok(Place::Abandoned);
        }
        match self.streams.past(id) {
            Past::Idle => Err(Code::PROTOCOL),
            Past::Complete => Ok(Place::Complete),
            Past::Abandoned => Ok(Place::Abandoned),
        }
    }

    /// The peer did with a stream what it may not: the stream ends.
    pub(super) fn fault(&mut self, stream: StreamKey, code: Code) -> Read {
        self.budget.fault()?;
        self.reset(stream, code);
        Ok(Some(Event::Reset {
            stream,
            code,
            by_peer: false,
        }))
    }

    fn on_data(&mut self, header: Header, payload: &[u8], start: usize) -> Read {
        if header.stream == 0 {
            return Err(Code::PROTOCOL);
        }
        let data = frame::unpadded(header, payload)?;
        // Padding counts too (RFC 9113, section 6.9.1).
        let taken = header.length as i64;
        if taken > 0 && taken > self.receive {
            return Err(Code::FLOW_CONTROL);
        }
        let end = header.has(flag::END_STREAM);
        let stream = match self.place(header.stream)? {
            Place::Open(stream) => stream,
            Place::Complete => return Err(Code::STREAM_CLOSED),
            Place::Abandoned => {
                self.receive -= taken;
                self.passed_on(None, header.length);
                return if data.is_empty() {
                    self.idle()
                } else {
                    Ok(None)
                };
            }
        };
        self.receive -= taken;
        let state = &mut self.streams[stream];
        let wrong = if state.receive_done {
            Some(Code::STREAM_CLOSED)
        } else if taken > 0 && taken > state.receive {
            Some(Code::FLOW_CONTROL)
        } else if !state.headed || !state.counts(data.len()) || end && !state.may_end(self.role) {
            Some(Code::PROTOCOL)
        } else {
            None
        };
        if let Some(code) = wrong {
            self.passed_on(None, header.length);
            return self.fault(stream, code);
        }
        state.receive -= taken;
        state.receive_done = end;
        if data.len() < header.length {
            self.passed_on(Some(stream), header.length - data.len());
        }
        if data.is_empty() && !end {
            return self.idle();
        }
        let first = start + usize::from(header.has(flag::PADDED));
        let at = first..first + data.len();
        Ok(Some(Event::Data { stream, at, end }))
    }

    fn on_window(&mut self, header: Header, payload: &[u8]) -> Read {
        if payload.len() != 4 {
            return Err(Code::FRAME_SIZE);
        }
        let more = i64::from(frame::number(payload) & MAX_31_BITS);
        let most = i64::from(MAX_31_BITS);
        let before;
        let event;
        if header.stream == 0 {
            before = self.send;
            if more == 0 {
                return Err(Code::PROTOCOL);
            }
            if before + more > most {
                return Err(Code::FLOW_CONTROL);
            }
            self.send += more;
            event = (!self.waiting.is_empty()).then_some(Event::Windows);
        } else {
            // It may have been sent before the end of the stream was heard of.
            let Place::Open(stream) = self.place(header.stream)? else {
                return self.idle();
            };
            let state = &mut self.streams[stream];
            before = state.send;
            if more == 0 {
                return self.fault(stream, Code::PROTOCOL);
            }
            if before + more > most {
                return self.fault(stream, Code::FLOW_CONTROL);
            }
            state.send += more;
            event = Some(Event::Window { stream });
        }
        let opens = before <= 0 && before + more >= DRIBBLE as i64;
        if !opens {
            self.budget.idle(1)?;
        }
        Ok(event)
    }

    fn on_reset(&mut self, header: Header, payload: &[u8]) -> Read {
        if payload.len() != 4 {
            return Err(Code::FRAME_SIZE);
        }
        if header.stream == 0 {
            return Err(Code::PROTOCOL);
        }
        let Place::Open(stream) = self.place(header.stream)? else {
            self.spare(header.stream);
            return self.idle();
        };
        if self.role == Role::Server {
            self.budget.fault()?;
        }
        self.streams[stream].end();
        let code = Code(frame::number(payload));
        Ok(Some(Event::Reset {
            stream,
            code,
            by_peer: true,
        }))
    }

    fn on_settings(&mut self, header: Header, payload: &[u8]) -> Read {
        if header.stream != 0 {
            return Err(Code::PROTOCOL);
        }
        let ack = header.has(flag::ACK);
        if !payload.len().is_multiple_of(6) || ack && !payload.is_empty() {
            return Err(Code::FRAME_SIZE);
        }
        if ack {
            self.on_acknowledged();
            return self.idle();
        }
        let count = payload.len() / 6;
        let cost = u32::try_from(1 + count / SETTINGS_AT_ONCE).unwrap_or(u32::MAX);
        self.budget.idle(cost)?;
        if !std::mem::replace(&mut self.settled, true) {
            // There is no limit but one that is set (RFC 9113, section 6.5.2), and it would be by now.
            self.peer_streams = UNLIMITED_STREAMS;
        }
        let mut window = None;
        for entry in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([entry[0], entry[1]]);
            let value = frame::number(&entry[2..]);
            match id {
                setting::HEADER_TABLE_SIZE => self.encoder.resize(value as usize),
                // A server must not even say that it may be pushed to (RFC 9113, section 6.5.2).
                setting::ENABLE_PUSH if value > u32::from(self.role == Role::Server) => {
                    return Err(Code::PROTOCOL);
                }
                setting::MAX_CONCURRENT_STREAMS => self.peer_streams = value as usize,
                setting::INITIAL_WINDOW_SIZE if value > MAX_31_BITS => {
                    return Err(Code::FLOW_CONTROL);
                }
                setting::INITIAL_WINDOW_SIZE => window = Some(i64::from(value)),
                // Smaller frames than anybody must take are never sent larger.
                setting::MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => {
                    return Err(Code::PROTOCOL);
                }
                // Also MAX_HEADER_LIST_SIZE, which is advice: the peer answers for what it does not take.
                _ => {}
            }
        }
        frame::write(&mut self.out, kind::SETTINGS, flag::ACK, 0, &[]);
        // Once for all that was said: each time takes a step for each stream.
        let wider = match window {
            Some(window) => self.resize_windows(window)?,
            None => false,
        };
        Ok(wider.then_some(Event::Windows))
    }

    /// The peer's streams begin with another window, which moves those of all streams (RFC 9113, section 6.9.2), also
    /// below 0. Whether any became wider.
    fn resize_windows(&mut self, window: i64) -> Result<bool, Code> {
        let more = window - self.first_send;
        self.first_send = window;
        for (key, stream) in self.streams.iter_mut() {
            stream.send += more;
            if stream.send > i64::from(MAX_31_BITS) {
                return Err(Code::FLOW_CONTROL);
            }
            if more > 0 && !stream.ended && !std::mem::replace(&mut stream.queued, true) {
                self.waiting.push_back(key);
            }
        }
        Ok(more > 0 && !self.waiting.is_empty())
    }

    /// The peer keeps to our settings from here on: streams that began with a wider window than we have lose the rest.
    fn on_acknowledged(&mut self) {
        if std::mem::replace(&mut self.acknowledged, true) {
            return self.on_asked();
        }
        let less = self.first_receive - i64::from(self.limits.stream_window);
        if less == 0 {
            return;
        }
        debug_assert!(less <= i64::from(DEFAULT_WINDOW));
        self.first_receive -= less;
        for (_, stream) in self.streams.iter_mut() {
            stream.receive -= less;
        }
    }

    fn on_ping(&mut self, header: Header, payload: &[u8]) -> Read {
        if header.stream != 0 {
            return Err(Code::PROTOCOL);
        }
        if payload.len() != 8 {
            return Err(Code::FRAME_SIZE);
        }
        if !header.has(flag::ACK) {
            frame::write(&mut self.out, kind::PING, flag::ACK, 0, payload);
            return self.idle();
        }
        if payload == DRAINING && self.leaving == Leaving::Announced {
            // Streams that the peer began before it heard that we leave came before this.
            self.leave(self.streams.last, Code::NO_ERROR);
            return Ok(None);
        }
        if payload == PROBE && std::mem::take(&mut self.pinged) {
            return Ok(Some(Event::Pong));
        }
        self.idle()
    }

    fn on_goaway(&mut self, header: Header, payload: &[u8]) -> Read {
        if header.stream != 0 {
            return Err(Code::PROTOCOL);
        }
        if payload.len() < 8 {
            return Err(Code::FRAME_SIZE);
        }
        self.budget.idle(1)?;
        self.left = true;
        let last = frame::number(payload) & MAX_31_BITS;
        self.spare_above(last);
        Ok(Some(Event::Leaves { last }))
    }

    /// Priorities mean nothing any more (RFC 9113, section 5.3.2). They may come for any stream, also before it began
    /// and after it ended.
    fn on_priority(&mut self, header: Header, payload: &[u8]) -> Read {
        if header.stream == 0 {
            return Err(Code::PROTOCOL);
        }
        let code = if payload.len() != 5 {
            Code::FRAME_SIZE
        } else if frame::number(payload) & MAX_31_BITS == header.stream {
            Code::PROTOCOL
        } else {
            return self.idle();
        };
        match self.streams.find(header.stream) {
            Some(stream) if !self.streams[stream].ended => self.fault(stream, code),
            // There is no stream to reset.
            _ => Err(code),
        }
    }
}
