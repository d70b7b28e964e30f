//! The beginning of a connection, and what both sides agree on.

use super::*;

#[test]
fn a_client_begins_with_the_preface_and_settings() {
    let whole = [PREFACE, &settings(&[])].concat();
    for cut in 0..whole.len() {
        let mut connection = Connection::new(Role::Server, LIMITS);
        let mut block = Block::default();
        let mut at = 0;
        assert_eq!(
            connection.read(&whole[..cut], &mut at, &mut block),
            Ok(None)
        );
        assert_eq!(connection.read(&whole, &mut at, &mut block), Ok(None));
        assert_eq!(at, whole.len());
    }
    for wrong in [
        b"GET / HTTP/1.1\r\n".to_vec(),
        [PREFACE, &frame(kind::PING, 0, 0, &[0; 8])].concat(),
        [PREFACE, &frame(kind::SETTINGS, flag::ACK, 0, &[])].concat(),
        [PREFACE, &head(END, 1, REQUEST)].concat(),
    ] {
        let mut connection = Connection::new(Role::Server, LIMITS);
        let read = connection.read(&wrong, &mut 0, &mut Block::default());
        assert_eq!(read, Err(Code::PROTOCOL));
    }
}

#[test]
fn a_server_begins_with_settings() {
    let mut connection = Connection::new(Role::Client, LIMITS);
    let ping = frame(kind::PING, 0, 0, &[0; 8]);
    let read = connection.read(&ping, &mut 0, &mut Block::default());
    assert_eq!(read, Err(Code::PROTOCOL));
}

#[test]
fn what_we_want_is_said_first() {
    let said = |role, limits| {
        let connection = Connection::new(role, limits);
        let out = connection.out.as_slice();
        frames(out.strip_prefix(PREFACE).unwrap_or(out))
    };
    let told = said(Role::Server, LIMITS);
    assert_eq!(told.len(), 2);
    assert_eq!(told[0].1[..6], [0, 3, 0, 0, 1, 0], "256 streams");
    assert_eq!(frame::number(&told[1].1), (1 << 20) - 65_535);
    let narrow = Limits {
        window: 1,
        ..LIMITS
    };
    let told = said(Role::Client, narrow);
    assert_eq!(told.len(), 1, "no update of a window by nothing");
    assert_eq!(told[0].1[..6], [0, 2, 0, 0, 0, 0], "no push");
}

#[test]
fn settings_are_checked() {
    let wrong = [
        (settings(&[(setting::ENABLE_PUSH, 2)]), Code::PROTOCOL),
        (
            settings(&[(setting::MAX_FRAME_SIZE, 16_383)]),
            Code::PROTOCOL,
        ),
        (
            settings(&[(setting::MAX_FRAME_SIZE, 1 << 24)]),
            Code::PROTOCOL,
        ),
        (frame(kind::SETTINGS, 0, 1, &[]), Code::PROTOCOL),
        (frame(kind::SETTINGS, 0, 0, &[0; 5]), Code::FRAME_SIZE),
        (
            frame(kind::SETTINGS, flag::ACK, 0, &[0; 6]),
            Code::FRAME_SIZE,
        ),
        (frame(kind::PING, 0, 1, &[0; 8]), Code::PROTOCOL),
        (frame(kind::PING, 0, 0, &[0; 7]), Code::FRAME_SIZE),
        (frame(kind::GOAWAY, 0, 1, &[0; 8]), Code::PROTOCOL),
        (frame(kind::GOAWAY, 0, 0, &[0; 7]), Code::FRAME_SIZE),
        (frame(kind::PRIORITY, 0, 0, &[0; 5]), Code::PROTOCOL),
        (frame(kind::PRIORITY, 0, 3, &[0; 4]), Code::FRAME_SIZE),
        (frame(kind::RST_STREAM, 0, 1, &[0; 3]), Code::FRAME_SIZE),
        (
            Header {
                length: 16_385,
                kind: 99,
                flags: 0,
                stream: 0,
            }
            .bytes()
            .to_vec(),
            Code::FRAME_SIZE,
        ),
    ];
    for (wrong, code) in wrong {
        let mut peer = Peer::client(LIMITS);
        peer.begins(1);
        assert_eq!(peer.ends(&wrong), code, "{wrong:?}");
    }
    let mut peer = Peer::client(LIMITS);
    let fine = [
        (setting::ENABLE_PUSH, 1),
        (setting::MAX_FRAME_SIZE, (1 << 24) - 1),
        (setting::MAX_HEADER_LIST_SIZE, 0),
        (setting::HEADER_TABLE_SIZE, u32::MAX),
        (0x0a0a, 7),
    ];
    peer.says(&settings(&fine));
    let (header, payload) = peer.told().pop().unwrap();
    assert!(header.kind == kind::SETTINGS && header.has(flag::ACK) && payload.is_empty());
}

#[test]
fn a_server_must_not_say_that_it_may_be_pushed_to() {
    let mut peer = Peer::server(LIMITS);
    peer.says(&settings(&[(setting::ENABLE_PUSH, 0)]));
    let wrong = settings(&[(setting::ENABLE_PUSH, 1)]);
    assert_eq!(peer.ends(&wrong), Code::PROTOCOL);
}

#[test]
fn servers_say_how_many_streams_they_take() {
    let mut peer = Peer {
        connection: Connection::new(Role::Client, LIMITS),
        block: Block::default(),
    };
    for _ in 0..FIRST_STREAMS {
        assert!(peer.connection.has_room());
        peer.asked();
    }
    assert!(!peer.connection.has_room(), "it said nothing yet");
    peer.says(&settings(&[(setting::MAX_CONCURRENT_STREAMS, 101)]));
    assert!(peer.connection.has_room());
    peer.says(&settings(&[(setting::MAX_CONCURRENT_STREAMS, 0)]));
    assert!(!peer.connection.has_room());
    peer.says(&settings(&[]));
    assert!(!peer.connection.has_room(), "what was said holds");
}

/// RFC 9113, section 6.5.2: "Initially, there is no limit to this value."
#[test]
fn servers_that_say_nothing_of_streams_take_many() {
    let mut peer = Peer::server(LIMITS);
    for _ in 0..10 * FIRST_STREAMS {
        assert!(peer.connection.has_room());
        peer.asked();
        peer.connection.out.clear();
    }
}

#[test]
fn a_peer_that_takes_no_table_is_sent_none() {
    let mut peer = Peer::client(LIMITS);
    let mut decoder = Decoder::default();
    let mut read = Block::default();
    for (size, id) in [
        (4_096, 1),
        (0, 3),
        (0, 5),
        (4_096, 7),
        (100, 9),
        (1 << 30, 11),
    ] {
        peer.says(&settings(&[
            (setting::HEADER_TABLE_SIZE, 0),
            (setting::HEADER_TABLE_SIZE, size),
        ]));
        for id in [id * 10 + 1, id * 10 + 3] {
            let stream = peer.begins(id);
            peer.connection.headers(stream, true, |encoder, out| {
                encoder.pair(b":status", b"200", false, out);
                encoder.pair(b"x-habit", b"1", false, out);
            });
            let (_, payload) = peer.told().pop().unwrap();
            decoder.decode(&payload, &mut read, 1 << 16).unwrap();
            assert_eq!(read.fields().len(), 2);
            assert!(decoder.size() <= size as usize);
        }
    }
    assert!(decoder.size() > 0);
}
