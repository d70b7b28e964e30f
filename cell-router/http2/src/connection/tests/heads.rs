//! Heads, trailers, and the lengths that they announce.

use super::*;
use crate::hpack::token;

#[test]
fn connect_has_an_authority_and_is_left_to_the_caller() {
    let mut peer = Peer::client(LIMITS);
    let connect = block(&[(":method", "CONNECT"), (":authority", "a:443")]);
    let events = peer.says(&head(flag::END_HEADERS, 1, &connect));
    assert!(matches!(events[..], [Event::Request { end: false, .. }]));
    let extended = [
        REQUEST,
        &block(&[(":protocol", "websocket"), (":authority", "a")]),
    ]
    .concat();
    peer.says(&head(flag::END_HEADERS, 3, &extended));
    assert_eq!(peer.resets(), [(3, Code::PROTOCOL)]);
}

#[test]
fn malformed_requests_are_reset_and_the_connection_goes_on() {
    let bad = [
        block(&[(":method", "GET"), (":scheme", "http")]),
        request(&[("Upper", "1")]),
        [REQUEST, b"\x00\x00\x011"].concat(),
        request(&[("connection", "close")]),
        request(&[(":path", "/again")]),
        request(&[("content-length", "1x")]),
        Vec::new(),
    ];
    for (at, bad) in (0_u32..).zip(&bad) {
        let mut peer = Peer::client(LIMITS);
        let id = 2 * at + 1;
        assert_eq!(peer.says(&head(END, id, bad)), []);
        assert_eq!(peer.resets(), [(id, Code::PROTOCOL)], "{bad:?}");
        assert_eq!(peer.connection.busy(), 0);
        peer.begins(id + 2);
    }
}

#[test]
fn a_stream_that_depends_on_itself_is_reset() {
    let mut peer = Peer::client(LIMITS);
    let with = |on: u32| [&on.to_be_bytes()[..], &[0], REQUEST].concat();
    let flags = END | flag::PRIORITY;
    peer.says(&head(flags, 1, &with(1)));
    assert_eq!(peer.resets(), [(1, Code::PROTOCOL)]);
    assert_eq!(peer.says(&head(flags, 3, &with(1))).len(), 1);
    peer.begins(5);
    let priority = |on: u32| {
        frame(
            kind::PRIORITY,
            0,
            5,
            &[&on.to_be_bytes()[..], &[0]].concat(),
        )
    };
    peer.says(&priority(3));
    assert_eq!(peer.faults(&priority(5)), Code::PROTOCOL);
    assert_eq!(peer.ends(&head(flags, 7, &[0; 4])), Code::FRAME_SIZE);
}

#[test]
fn heads_in_many_frames_are_read_as_one() {
    let large = request(&[("a", &"x".repeat(1_000))]);
    let mut peer = Peer::client(LIMITS);
    peer.says(&head(flag::END_STREAM, 1, &large[..10]));
    assert!(peer.connection.is_amid_head());
    let mut bytes = frame(kind::CONTINUATION, 0, 1, &[]);
    bytes.extend(frame(kind::CONTINUATION, 0, 1, &large[10..500]));
    bytes.extend(frame(
        kind::CONTINUATION,
        flag::END_HEADERS,
        1,
        &large[500..],
    ));
    assert!(matches!(
        peer.says(&bytes)[..],
        [Event::Request { end: true, .. }]
    ));
    assert_eq!(peer.block.fields().len(), 4);
    assert_eq!(peer.connection.fragment.capacity(), 0, "not kept");
    assert!(!peer.connection.is_amid_head());
}

#[test]
fn nothing_comes_between_the_frames_of_a_head() {
    for wrong in [
        data(false, 1, 1),
        head(END, 3, REQUEST),
        frame(kind::CONTINUATION, 4, 3, &[]),
        frame(kind::PING, 0, 0, &[0; 8]),
        frame(99, 0, 1, &[]),
    ] {
        let mut peer = Peer::client(LIMITS);
        peer.says(&head(flag::END_STREAM, 1, REQUEST));
        assert_eq!(peer.ends(&wrong), Code::PROTOCOL);
    }
    let mut peer = Peer::client(LIMITS);
    let alone = frame(kind::CONTINUATION, 4, 1, REQUEST);
    assert_eq!(peer.ends(&alone), Code::PROTOCOL);
}

#[test]
fn a_head_without_an_end_ends_the_connection() {
    for size in [0, 1, 1_000, 16_384] {
        let mut peer = Peer::client(LIMITS);
        peer.says(&head(flag::END_STREAM, 1, REQUEST));
        let part = frame(kind::CONTINUATION, 0, 1, &vec![0; size]);
        let taken = (0..100).find(|_| peer.try_says(&part).is_err()).unwrap();
        assert!(taken <= 16, "{taken}");
        assert!(peer.connection.fragment.len() <= 2 * LIMITS.header_bytes);
    }
}

#[test]
fn a_head_that_is_too_large_is_for_the_caller_to_answer() {
    let mut peer = Peer::client(LIMITS);
    let large = request(&[
        ("a", &"x".repeat(9_000)),
        ("b", &"x".repeat(9_000)),
        ("c", "1"),
    ]);
    let mut bytes = head(flag::END_STREAM, 1, &large[..16_000]);
    bytes.extend(frame(
        kind::CONTINUATION,
        flag::END_HEADERS,
        1,
        &large[16_000..],
    ));
    let events = peer.says(&bytes);
    assert!(matches!(events[..], [Event::Request { end: true, .. }]));
    assert!(peer.block.over);
    assert_eq!(peer.block.fields().len(), 4, "what there was room for");
    // A few bytes that stand for many.
    let entry = request(&[]);
    let entry = [entry, b"\x40\x01a\x7f\x81\x0f".to_vec(), vec![b'x'; 2_048]].concat();
    peer.says(&head(END, 3, &entry));
    assert_eq!(peer.ends(&head(END, 5, &[0xbe; 100])), Code::COMPRESSION);
}

#[test]
fn trailers_that_break_rules_reset_their_stream() {
    let large = block(&[("a", &"x".repeat(10_000)), ("b", &"x".repeat(7_000))]);
    let [one, two] = [&large[..16_000], &large[16_000..]];
    let mut in_two = head(flag::END_STREAM, 1, one);
    in_two.extend(frame(kind::CONTINUATION, flag::END_HEADERS, 1, two));
    let bad = [
        (
            "without the end",
            head(flag::END_HEADERS, 1, &block(&[("a", "1")])),
        ),
        ("pseudo fields", head(END, 1, &block(&[(":path", "/")]))),
        ("upper case", head(END, 1, &block(&[("A", "1")]))),
        (
            "of the connection",
            head(END, 1, &block(&[("upgrade", "x")])),
        ),
        ("too large", in_two),
    ];
    for (what, bad) in bad {
        let mut peer = Peer::client(LIMITS);
        peer.begins(1);
        assert_eq!(peer.faults(&bad), Code::PROTOCOL, "{what}");
    }
    let mut peer = Peer::client(LIMITS);
    let stream = peer.begins(1);
    let good = head(END, 1, &block(&[("a", "1")]));
    assert_eq!(peer.says(&good), [Event::Trailers { stream }]);
    assert!(peer.connection.stream(stream).receive_done);
    assert_eq!(peer.faults(&good), Code::STREAM_CLOSED);
}

#[test]
fn bodies_of_requests_have_the_length_that_was_announced() {
    let five = |flags| head(flags, 1, &request(&[("content-length", "5")]));
    let trailers = head(END, 1, &block(&[("a", "1")]));
    let open = five(flag::END_HEADERS);
    for good in [
        [open.clone(), data(true, 1, 5)].concat(),
        [open.clone(), data(false, 1, 5), data(true, 1, 0)].concat(),
        [
            open.clone(),
            data(false, 1, 2),
            data(false, 1, 3),
            trailers.clone(),
        ]
        .concat(),
    ] {
        let mut peer = Peer::client(LIMITS);
        peer.says(&good);
        assert_eq!(peer.resets(), []);
        assert!(peer.connection.stream(0).receive_done);
    }
    for bad in [
        [open.clone(), data(false, 1, 6)].concat(),
        [open.clone(), data(false, 1, 3), data(true, 1, 3)].concat(),
        [open.clone(), data(true, 1, 4)].concat(),
        [open.clone(), data(true, 1, 0)].concat(),
        [open.clone(), data(false, 1, 4), trailers.clone()].concat(),
        [open, trailers].concat(),
        five(END),
    ] {
        let mut peer = Peer::client(LIMITS);
        peer.says(&bad);
        assert_eq!(peer.resets(), [(1, Code::PROTOCOL)]);
    }
}

#[test]
fn bodies_of_answers_have_the_length_that_was_announced_or_none_at_all() {
    let announced = [ANSWER, &block(&[("content-length", "5")])].concat();
    let open = head(flag::END_HEADERS, 1, &announced);
    let trailers = head(END, 1, &block(&[("a", "1")]));
    for good in [
        head(END, 1, &announced),
        [open.clone(), data(true, 1, 0)].concat(),
        [open.clone(), trailers.clone()].concat(),
        [open.clone(), data(true, 1, 5)].concat(),
    ] {
        let mut peer = Peer::server(LIMITS);
        let stream = peer.asked();
        peer.connection.out.clear();
        peer.says(&good);
        assert_eq!(peer.resets(), []);
        assert!(peer.connection.stream(stream).receive_done);
    }
    for bad in [
        [open.clone(), data(false, 1, 6)].concat(),
        [open.clone(), data(true, 1, 4)].concat(),
        [open, data(false, 1, 4), trailers].concat(),
    ] {
        let mut peer = Peer::server(LIMITS);
        peer.asked();
        peer.connection.out.clear();
        peer.says(&bad);
        assert_eq!(peer.resets(), [(1, Code::PROTOCOL)]);
    }
}

#[test]
fn interim_answers_are_read_over() {
    let mut peer = Peer::server(LIMITS);
    let stream = peer.asked();
    let hints = head(flag::END_HEADERS, 1, &block(&[(":status", "103")]));
    assert_eq!(peer.says(&hints.repeat(3)), []);
    let events = peer.says(&head(flag::END_HEADERS, 1, ANSWER));
    assert_eq!(events, [Event::Answer { stream, end: false }]);
    assert_eq!(peer.block.get(token::STATUS), Some(&b"200"[..]));
}

#[test]
fn malformed_answers_reset_their_stream() {
    let large = "x".repeat(16_300);
    for (what, bad) in [
        ("data first", data(false, 1, 1)),
        (
            "an interim end",
            head(END, 1, &block(&[(":status", "100")])),
        ),
        ("switching", head(4, 1, &block(&[(":status", "101")]))),
        ("no status", head(4, 1, &block(&[("a", "1")]))),
        ("a request", head(4, 1, REQUEST)),
        (
            "too large",
            head(
                4,
                1,
                &[ANSWER, &block(&[("a", &large), ("b", "1")])].concat(),
            ),
        ),
    ] {
        let mut peer = Peer::server(LIMITS);
        peer.asked();
        peer.connection.out.clear();
        assert_eq!(peer.faults(&bad), Code::PROTOCOL, "{what}");
    }
}

#[test]
fn pushes_are_refused() {
    let promise = frame(kind::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2, 0x82]);
    let mut peer = Peer::server(LIMITS);
    peer.asked();
    assert_eq!(peer.ends(&promise), Code::PROTOCOL);
    let mut peer = Peer::client(LIMITS);
    peer.begins(1);
    assert_eq!(peer.ends(&promise), Code::PROTOCOL);
}

#[test]
fn heads_of_any_size_arrive() {
    for size in [0, 16_350, 16_384, 16_400, 40_000] {
        let limits = Limits {
            header_bytes: 64 * 1024,
            ..LIMITS
        };
        let mut there = Peer::client(limits);
        let mut here = Connection::new(Role::Client, limits);
        let value = "x".repeat(size);
        let stream = here.open();
        here.headers(stream, true, |encoder, out| {
            for (name, value) in [
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                ("a", &value),
            ] {
                encoder.pair(name.as_bytes(), value.as_bytes(), false, out);
            }
        });
        let events = there.says(&here.out[PREFACE.len()..]);
        assert!(matches!(events[..], [Event::Request { end: true, .. }]));
        let last = there.block.fields().last().unwrap();
        assert_eq!(there.block.value(last), value.as_bytes());
    }
}
