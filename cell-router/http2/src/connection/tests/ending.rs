//! How connections end.

use super::*;

fn ack(payload: &[u8]) -> Vec<u8> {
    frame(kind::PING, flag::ACK, 0, payload)
}

fn goaway(told: &(Header, Vec<u8>)) -> (u32, Code) {
    assert_eq!(told.0.kind, kind::GOAWAY);
    let [last, code] = [frame::number(&told.1), frame::number(&told.1[4..])];
    (last, Code(code))
}

#[test]
fn a_connection_is_drained_without_failing_a_request() {
    let mut peer = Peer::client(LIMITS);
    let first = peer.begins(1);
    peer.connection.drain();
    peer.connection.drain();
    let told = peer.told();
    assert_eq!(told.len(), 2);
    assert_eq!(goaway(&told[0]), (MAX_31_BITS, Code::NO_ERROR));
    assert_eq!(told[1].0.kind, kind::PING);
    // Begun before it heard of it.
    let second = peer.begins(3);
    peer.says(&ack(b"not ours"));
    peer.begins(5);
    peer.connection.remove(2);
    assert_eq!(peer.told(), []);
    assert!(!peer.connection.is_done());
    peer.says(&ack(&told[1].1));
    assert_eq!(goaway(&peer.told()[0]), (5, Code::NO_ERROR));
    assert_eq!(peer.says(&ack(&told[1].1)), []);
    // Begun against what it heard: read over, but for the tables and windows.
    let late = [
        head(flag::END_HEADERS, 7, &[REQUEST, b"\x40\x01a\x01b"].concat()),
        data(true, 7, 9),
    ];
    assert_eq!(peer.says(&late.concat()), []);
    assert_eq!(peer.owed(), 0);
    let trailers = head(END, 1, &[0xbe]);
    assert_eq!(peer.says(&trailers), [Event::Trailers { stream: first }]);
    assert_eq!(peer.told(), []);
    for stream in [first, second] {
        assert!(!peer.connection.is_done());
        peer.connection.remove(stream);
    }
    assert!(peer.connection.is_done());
}

#[test]
fn a_drained_connection_without_streams_ends_after_the_second_goaway() {
    let mut peer = Peer::client(LIMITS);
    peer.connection.drain();
    assert!(!peer.connection.is_done());
    let told = peer.told();
    peer.says(&ack(&told[1].1));
    assert!(peer.connection.is_done());
}

#[test]
fn rules_hold_while_a_connection_is_drained() {
    let mut peer = Peer::client(LIMITS);
    peer.begins(1);
    peer.connection.drain();
    assert_eq!(peer.ends(&data(true, 3, 1)), Code::PROTOCOL);
}

#[test]
fn a_connection_that_fails_says_so_once_and_reads_no_more() {
    let mut peer = Peer::client(LIMITS);
    peer.begins(1);
    peer.begins(3);
    let wrong = data(true, 0, 1);
    assert_eq!(peer.try_says(&wrong), Err(Code::PROTOCOL));
    assert_eq!(peer.try_says(&settings(&[])), Err(Code::PROTOCOL));
    peer.connection.fail(Code::INTERNAL);
    let told = peer.told();
    assert_eq!(told.len(), 1);
    assert_eq!(goaway(&told[0]), (3, Code::PROTOCOL));
}

#[test]
fn a_caller_may_end_a_connection_at_once() {
    let mut peer = Peer::client(LIMITS);
    peer.begins(5);
    peer.connection.drain();
    peer.connection.out.clear();
    peer.connection.fail(Code::CALM);
    assert_eq!(goaway(&peer.told()[0]), (5, Code::CALM));
    assert_eq!(peer.says(&head(END, 7, REQUEST)), []);
    assert!(!peer.connection.is_done());
    peer.connection.remove(0);
    assert!(peer.connection.is_done());
}

#[test]
fn a_server_that_leaves_serves_what_it_says() {
    let mut peer = Peer::server(LIMITS);
    let [first, second] = [peer.asked(), peer.asked()];
    let leaves = |last: u32| {
        frame(
            kind::GOAWAY,
            0,
            0,
            &[&last.to_be_bytes()[..], &[0; 9]].concat(),
        )
    };
    let events = peer.says(&[leaves(MAX_31_BITS), leaves(1)].concat());
    let last = MAX_31_BITS;
    assert_eq!(events, [Event::Leaves { last }, Event::Leaves { last: 1 }]);
    assert!(peer.connection.left && !peer.connection.has_room());
    let streams: Vec<_> = peer.connection.streams().collect();
    assert_eq!(streams, [(first, 1), (second, 3)]);
    peer.connection.remove(second);
    let events = peer.says(&head(END, 1, ANSWER));
    assert_eq!(
        events,
        [Event::Answer {
            stream: first,
            end: true
        }]
    );
    assert!(!peer.connection.is_done());
    peer.connection.remove(first);
    assert!(peer.connection.is_done());
}

#[test]
fn a_client_that_is_drained_begins_no_more() {
    let mut peer = Peer::server(LIMITS);
    let stream = peer.asked();
    peer.connection.drain();
    assert!(!peer.connection.has_room() && !peer.connection.is_done());
    assert_eq!(goaway(&peer.told()[1]), (0, Code::NO_ERROR));
    peer.connection.remove(stream);
    assert!(peer.connection.is_done());
}

#[test]
fn a_ping_is_answered_once() {
    let mut peer = Peer::client(LIMITS);
    assert_eq!(peer.says(&ack(&crate::connection::PROBE)), [], "to nothing");
    peer.connection.ping();
    peer.connection.ping();
    let told = peer.told();
    assert_eq!(told.len(), 1);
    assert_eq!(peer.says(&ack(b"not ours")), []);
    assert_eq!(peer.says(&ack(&told[0].1)), [Event::Pong]);
    assert_eq!(peer.says(&ack(&told[0].1)), []);
    peer.connection.ping();
    assert_eq!(peer.told().len(), 1);
    peer.says(&frame(kind::PING, 0, 0, b"question"));
    assert_eq!(frames(&ack(b"question")), peer.told());
}

#[test]
fn a_connection_whose_ids_are_used_up_takes_no_more_streams() {
    let mut peer = Peer::server(LIMITS);
    peer.connection.streams.next = MAX_31_BITS;
    assert!(peer.connection.has_room());
    let stream = peer.asked();
    assert_eq!(peer.connection.stream(stream).id, MAX_31_BITS);
    assert!(peer.connection.is_exhausted() && !peer.connection.has_room());
    let events = peer.says(&head(END, MAX_31_BITS, ANSWER));
    assert_eq!(events.len(), 1);
}
