//! Rules of the protocol, one by one.

mod budgets;
mod ended;
mod ending;
mod flow;
mod heads;
mod resets;
mod settings;

use super::*;
use crate::frame::{HEADER_BYTES, Header, flag};
use crate::hpack::Block;

const LIMITS: Limits = Limits {
    streams: 256,
    header_bytes: 16 * 1024,
    stream_window: 64 * 1024,
    window: 1 << 20,
};

/// `:method POST`, `:scheme http`, `:path /`.
const REQUEST: &[u8] = &[0x83, 0x86, 0x84];
/// `:status 200`.
const ANSWER: &[u8] = &[0x88];
const END: u8 = flag::END_STREAM | flag::END_HEADERS;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write(&mut out, kind, flags, stream, payload);
    out
}

fn head(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    frame(kind::HEADERS, flags, stream, block)
}

fn data(end: bool, stream: u32, size: usize) -> Vec<u8> {
    frame(kind::DATA, u8::from(end), stream, &vec![7; size])
}

fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

fn reset(stream: u32, code: Code) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &code.0.to_be_bytes())
}

fn settings(all: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in all {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(kind::SETTINGS, 0, 0, &payload)
}

/// A block of literals that enter no table.
fn block(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    let mut out = Vec::new();
    for (name, value) in pairs {
        encoder.pair(name.as_bytes(), value.as_bytes(), true, &mut out);
    }
    out
}

/// A request with more fields.
fn request(pairs: &[(&str, &str)]) -> Vec<u8> {
    [REQUEST, &block(pairs)].concat()
}

fn frames(mut out: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some(header) = Header::read(out) {
        let end = HEADER_BYTES + header.length;
        frames.push((header, out[HEADER_BYTES..end].to_vec()));
        out = &out[end..];
    }
    assert_eq!(out, b"", "whole frames");
    frames
}

/// A connection whose peer is the test.
struct Peer {
    connection: Connection,
    block: Block,
}

impl Peer {
    /// A client, whose settings came.
    fn client(limits: Limits) -> Self {
        let mut peer = Peer {
            connection: Connection::new(Role::Server, limits),
            block: Block::default(),
        };
        peer.says(PREFACE);
        peer.says(&settings(&[]));
        peer.connection.out.clear();
        peer
    }

    /// A server, whose settings came.
    fn server(limits: Limits) -> Self {
        let mut peer = Peer {
            connection: Connection::new(Role::Client, limits),
            block: Block::default(),
        };
        peer.says(&settings(&[]));
        peer.connection.out.clear();
        peer
    }

    /// The peer says something. What comes of it.
    fn try_says(&mut self, bytes: &[u8]) -> Result<Vec<Event>, Code> {
        let mut at = 0;
        let mut events = Vec::new();
        while let Some(event) = self.connection.read(bytes, &mut at, &mut self.block)? {
            events.push(event);
        }
        assert_eq!(at, bytes.len(), "all of it is read");
        Ok(events)
    }

    fn says(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.try_says(bytes).unwrap()
    }

    /// The peer says something by which its connection ends.
    fn ends(&mut self, bytes: &[u8]) -> Code {
        let code = self.try_says(bytes).unwrap_err();
        let (header, payload) = self.told().pop().unwrap();
        assert_eq!(header.kind, kind::GOAWAY);
        assert_eq!(frame::number(&payload[4..]), code.0);
        code
    }

    /// What the peer was told since the last time.
    fn told(&mut self) -> Vec<(Header, Vec<u8>)> {
        frames(&std::mem::take(&mut self.connection.out))
    }

    /// The resets that it was told.
    fn resets(&mut self) -> Vec<(u32, Code)> {
        let told = self.told().into_iter();
        told.filter(|(header, _)| header.kind == kind::RST_STREAM)
            .map(|(header, payload)| (header.stream, Code(frame::number(&payload))))
            .collect()
    }

    /// The client begins a stream with a body to come.
    fn begins(&mut self, id: u32) -> StreamKey {
        let events = self.says(&head(flag::END_HEADERS, id, REQUEST));
        match events[..] {
            [Event::Request { stream, end: false }] => stream,
            _ => panic!("{events:?}"),
        }
    }

    /// The server is asked for something, without a body.
    fn asked(&mut self) -> StreamKey {
        let stream = self.connection.open();
        self.connection.headers(stream, true, |encoder, out| {
            for (name, value) in [(":method", "GET"), (":scheme", "http"), (":path", "/")] {
                encoder.pair(name.as_bytes(), value.as_bytes(), false, out);
            }
        });
        stream
    }

    /// We answer.
    fn answers(&mut self, stream: StreamKey, end: bool) {
        self.connection.headers(stream, end, |encoder, out| {
            encoder.pair(b":status", b"200", false, out);
        });
    }

    /// The stream breaks a rule by this, and the peer is told so.
    fn faults(&mut self, bytes: &[u8]) -> Code {
        let mut events = self.says(bytes);
        let Some(Event::Reset {
            stream,
            code,
            by_peer: false,
        }) = events.pop()
        else {
            panic!("{events:?}");
        };
        let id = self.connection.stream(stream).id;
        assert_eq!(self.resets(), [(id, code)]);
        self.connection.remove(stream);
        code
    }

    /// What is neither under way nor open for the peer: nothing, when all was passed on.
    fn owed(&self) -> i64 {
        let connection = &self.connection;
        i64::from(connection.limits.window) - connection.receive - i64::from(connection.passed)
    }
}
