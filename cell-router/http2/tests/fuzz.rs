//! Fuzz target: what clients and servers send, tampered with and cut anyhow.
//!
//! It runs for a few seconds as a test; `TITAN_FUZZ_SECONDS` makes it longer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashMap;
use std::time::Duration;

use bolero::check;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use support::{Ask, End};
use titan_http2::frame::{self, HEADER_BYTES, Header, PREFACE, flag, kind, setting};
use titan_http2::hpack::{Block, Decoder};
use titan_http2::{Code, Limits, Role};
use tokio::task::LocalSet;

/// Changes of a valid input: what, where, and with which byte.
type Edits = Vec<(u8, u16, u8)>;

const LIMITS: Limits = Limits {
    streams: 8,
    header_bytes: 2_000,
    stream_window: 30_000,
    window: 65_535,
};

/// What a client of the h2 crate says: its heads are Huffman coded and use the table.
fn recorded() -> Vec<u8> {
    let talk = async {
        let (here, there) = tokio::io::duplex(1 << 16);
        let server = tokio::task::spawn_local(async move {
            let mut record = Vec::new();
            let end = End::new(Role::Server, LIMITS);
            let (_, ended) = end.run(there, |_| {}, &mut record).await;
            ended.unwrap();
            record
        });
        let (mut sender, connection) = h2::client::handshake(here).await.unwrap();
        let driver = tokio::task::spawn_local(connection);
        for size in [0_u8, 1, 200, 3, 0] {
            let mut request = Request::post("http://order/titan.order.v1.Orders/Get");
            request = request.header("content-type", "application/grpc");
            request = request.header("x-titan-key", size.to_string());
            let request = request.body(()).unwrap();
            let (answer, mut stream) = sender.send_request(request, size == 0).unwrap();
            if size > 0 {
                let body = Bytes::from(vec![size; usize::from(size)]);
                stream.send_data(body, false).unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("x-checksum", HeaderValue::from(u16::from(size)));
                stream.send_trailers(trailers).unwrap();
            }
            let mut body = answer.await.unwrap().into_body();
            while let Some(part) = body.data().await {
                let size = part.unwrap().len();
                body.flow_control().release_capacity(size).unwrap();
            }
        }
        drop(sender);
        driver.await.unwrap().unwrap();
        server.await.unwrap()
    };
    let runtime = tokio::runtime::Builder::new_current_thread();
    LocalSet::new().block_on(&{ runtime }.build().unwrap(), talk)
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// All that there is in the protocol, once.
fn written(role: Role) -> Vec<u8> {
    let mut out = Vec::new();
    let mut say = |kind, flags, stream, payload: &[u8]| {
        frame::write(&mut out, kind, flags, stream, payload);
    };
    let (head, end) = (flag::END_HEADERS, flag::END_HEADERS | flag::END_STREAM);
    let first: &[u8] = match role {
        Role::Server => b"\x83\x86\x84\x40\x01a\x01b",
        Role::Client => b"\x88\x40\x01a\x01b",
    };
    let window = setting(setting::INITIAL_WINDOW_SIZE, 9);
    say(kind::SETTINGS, 0, 0, &window);
    say(kind::SETTINGS, flag::ACK, 0, &[]);
    say(kind::HEADERS, head, 1, first);
    say(kind::DATA, 0, 1, &[7; 3_000]);
    say(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 5]);
    say(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 5]);
    say(kind::HEADERS, head | flag::PADDED | flag::PRIORITY, 3, &{
        let priority = [2, 0, 0, 0, 0, 7];
        [&priority[..], first, &[0, 0]].concat()
    });
    say(
        kind::DATA,
        flag::PADDED | flag::END_STREAM,
        3,
        &[2, 7, 0, 0],
    );
    say(kind::PRIORITY, 0, 9, &[0, 0, 0, 1, 1]);
    say(kind::PING, 0, 0, b"question");
    let window = setting(setting::INITIAL_WINDOW_SIZE, 70_000);
    say(
        kind::SETTINGS,
        0,
        0,
        &[setting(1, 0), setting(1, 4_096), window].concat(),
    );
    say(kind::DATA, flag::END_STREAM, 1, &[7; 30]);
    say(kind::HEADERS, flag::END_STREAM, 5, &first[..3]);
    say(kind::CONTINUATION, 0, 5, &first[3..]);
    say(
        kind::CONTINUATION,
        flag::END_HEADERS,
        5,
        b"\xbe\x10\x01c\x01d",
    );
    say(kind::HEADERS, head, 7, &[first, b"\x0f\x0d\x013"].concat());
    say(kind::DATA, 0, 7, b"abc");
    say(kind::HEADERS, end, 7, b"\x00\x01t\x01u\xbe");
    say(kind::HEADERS, head, 9, first);
    say(kind::RST_STREAM, 0, 9, &[0, 0, 0, 8]);
    say(kind::DATA, 0, 11, &[7; 10]);
    say(kind::GOAWAY, 0, 0, &[0; 8]);
    out
}

fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some(header) = Header::read(bytes) {
        let (one, rest) = bytes.split_at(bytes.len().min(HEADER_BYTES + header.length));
        frames.push(one.to_vec());
        bytes = rest;
    }
    frames
}

/// Applies the changes: to whole frames, to their headers, and to single bytes.
fn tampered(seed: &[u8], edits: &Edits) -> Vec<u8> {
    let mut frames = frames(seed);
    let edits = &edits[..edits.len().min(8)];
    for (what, at, byte) in edits {
        let count = frames.len();
        if count < 2 {
            break;
        }
        let at = usize::from(*at) % count;
        let other = usize::from(*byte) % count;
        match what % 12 {
            0 => frames.swap(at, other),
            1 => drop(frames.remove(at)),
            2 => frames.insert(other, frames[at].clone()),
            3 => frames[at][4] ^= 1 << (byte % 8),
            4 => frames[at][8] = byte % 16,
            5 => frames[at][3] = byte % 11,
            6 => (0..50 * usize::from(*byte)).for_each(|_| frames.push(frames[at].clone())),
            _ => {}
        }
    }
    let mut bytes = frames.concat();
    for (what, at, byte) in edits {
        let at = usize::from(*at) % (bytes.len() + 1);
        match what % 12 {
            7 => bytes.insert(at, *byte),
            8 | 9 => bytes.get_mut(at).into_iter().for_each(|old| *old = *byte),
            10 => drop(bytes.drain(at..(at + usize::from(*byte)).min(bytes.len()))),
            11 => bytes.truncate(at),
            _ => {}
        }
    }
    bytes
}

fn begun(role: Role) -> End {
    let mut end = End::new(role, LIMITS);
    if role == Role::Client {
        end.asks = (0..5_u8)
            .map(|at| Ask {
                path: "/".to_owned(),
                fields: Vec::new(),
                body: vec![at; usize::from(at) * 20],
                trailers: (at == 2).then(|| vec![(b"t".to_vec(), b"u".to_vec())]),
            })
            .collect();
        end.ask();
    }
    end
}

/// Feeds an end in pieces of these sizes.
fn fed(role: Role, bytes: &[u8], sizes: &[usize]) -> (End, Result<(), Code>) {
    let mut end = begun(role);
    let mut rest = bytes;
    let mut sizes = sizes.iter().copied().cycle();
    while !rest.is_empty() {
        let size = sizes.next().unwrap_or(usize::MAX).clamp(1, rest.len());
        let (some, later) = rest.split_at(size);
        rest = later;
        if let Err(code) = end.take(some) {
            return (end, Err(code));
        }
    }
    (end, Ok(()))
}

/// How many bytes of bodies, with padding, are in what was read.
fn taken(bytes: &[u8]) -> usize {
    let heads = frames(bytes)
        .into_iter()
        .filter_map(|one| Header::read(&one));
    let data = heads.filter(|header| header.kind == kind::DATA);
    data.map(|header| header.length).sum()
}

/// What we say is well-formed whatever we hear: blocks can be decoded, nothing follows the end of a stream, and the
/// connection's window is opened by what came, less what is held back.
fn is_sound(end: &End, ended: Result<(), Code>, role: Role, read: &[u8]) {
    let out = end.connection.out.as_slice();
    let out = out.strip_prefix(PREFACE).unwrap_or(out);
    let mut decoder = Decoder::default();
    let mut block = Block::default();
    let mut sent = HashMap::new();
    let mut given = 0;
    let mut goaways = 0;
    for one in frames(out) {
        let header = Header::read(&one).unwrap();
        let payload = &one[HEADER_BYTES..];
        assert_eq!(payload.len(), header.length);
        assert_eq!(goaways, 0, "nothing is said after goodbye");
        match header.kind {
            kind::DATA | kind::HEADERS => {
                let done = sent.insert(header.stream, header.has(flag::END_STREAM));
                assert_ne!(done, Some(true), "after the end of {}", header.stream);
                if header.kind == kind::HEADERS {
                    decoder.decode(payload, &mut block, 1 << 20).unwrap();
                }
            }
            kind::RST_STREAM => {
                let done = sent.insert(header.stream, true);
                assert!(done.is_some() || role == Role::Server);
            }
            kind::WINDOW_UPDATE => {
                assert_ne!(frame::number(payload), 0);
                if header.stream == 0 {
                    given += frame::number(payload) as usize;
                }
            }
            kind::GOAWAY => goaways += 1,
            _ => {}
        }
    }
    assert_eq!(goaways, usize::from(ended.is_err()));
    assert!(role == Role::Client || end.connection.busy() <= LIMITS.streams);
    // Twice what came, and bodies up to where they wait.
    assert!(out.len() <= 2 * read.len() + 200_000, "{} bytes", out.len());
    let taken = taken(read);
    assert!(given <= taken, "{given} of {taken}");
    if ended.is_ok() {
        let owed = taken - given - end.held_of_peer();
        assert!(owed < LIMITS.window as usize / 2, "{owed} bytes are lost");
    }
}

fn time() -> Duration {
    let seconds = std::env::var("TITAN_FUZZ_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(3))
}

fn fuzz(role: Role, seeds: &[Vec<u8>]) {
    let target = |bytes: &[u8], sizes: &[usize]| {
        let (one, ended) = fed(role, bytes, &[]);
        let start = if role == Role::Server {
            PREFACE.len()
        } else {
            0
        };
        let read = bytes.get(start..one.read).unwrap_or_default();
        is_sound(&one, ended, role, read);
        let (other, other_ended) = fed(role, bytes, sizes);
        assert_eq!(ended, other_ended);
        assert_eq!(one.log, other.log);
        assert_eq!(
            one.connection.out, other.connection.out,
            "however it was cut"
        );
        assert_eq!(one.got, other.got);
        ended
    };
    for seed in seeds {
        assert_eq!(target(seed, &[1]), Ok(()), "a good one");
    }
    check!()
        .with_type::<(u8, Edits, Vec<u16>)>()
        .with_test_time(time())
        .for_each(|(which, edits, sizes)| {
            let mut seed = &seeds[usize::from(*which) % seeds.len()][..];
            let start = if role == Role::Server {
                PREFACE.len()
            } else {
                0
            };
            let begin = &seed[..start];
            seed = &seed[start..];
            let sizes: Vec<usize> = sizes.iter().map(|size| usize::from(*size % 600)).collect();
            let _ = target(&[begin, &tampered(seed, edits)].concat(), &sizes);
        });
}

#[test]
fn whatever_clients_say() {
    let written = [PREFACE, &written(Role::Server)].concat();
    // Without what comes for a stream that did not begin.
    let cut = written.len() - (HEADER_BYTES + 10) - (HEADER_BYTES + 8);
    fuzz(Role::Server, &[recorded(), written[..cut].to_vec()]);
}

#[test]
fn whatever_servers_say() {
    let written = written(Role::Client);
    let cut = written.len() - (HEADER_BYTES + 10) - (HEADER_BYTES + 8);
    fuzz(Role::Client, &[written[..cut].to_vec()]);
}
