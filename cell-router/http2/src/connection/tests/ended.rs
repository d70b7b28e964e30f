//! Frames of streams that ended.

use super::*;

fn late(id: u32) -> [Vec<u8>; 4] {
    [
        data(false, id, 100),
        window(id, 100),
        head(END, id, &block(&[("grpc-status", "0")])),
        reset(id, Code::CANCEL),
    ]
}

#[test]
fn what_comes_for_a_stream_that_we_reset_is_read_over() {
    let mut peer = Peer::client(LIMITS);
    let stream = peer.begins(1);
    peer.connection.reset(stream, Code::CANCEL);
    // Also before the caller removed it.
    assert_eq!(peer.says(&late(1).concat()), []);
    peer.connection.remove(stream);
    assert_eq!(peer.says(&late(1).concat()), []);
    assert_eq!(peer.resets(), [(1, Code::CANCEL)], "and once");
    assert_eq!(peer.owed(), 0, "data is given back");
}

#[test]
fn a_client_that_is_refused_all_the_time_keeps_its_connection() {
    let mut peer = Peer::client(LIMITS);
    peer.connection.tick(1);
    for id in (1..10_001).step_by(2) {
        let stream = peer.begins(id);
        peer.answers(stream, true);
        peer.connection.reset(stream, Code::NO_ERROR);
        peer.connection.remove(stream);
    }
    peer.connection.out.clear();
    for id in (1..10_001).step_by(2) {
        assert_eq!(peer.says(&late(id).concat()), []);
    }
    assert_eq!(peer.owed(), 0);
    // There is no telling any more what the first of them were. The others are known.
    assert_eq!(peer.says(&data(true, 1, 1)), []);
    let complete = peer.begins(10_001);
    peer.says(&data(true, 10_001, 1));
    peer.answers(complete, true);
    peer.connection.remove(complete);
    peer.connection.passed_on(None, 1);
    assert_eq!(peer.ends(&data(true, 10_001, 1)), Code::STREAM_CLOSED);
}

#[test]
fn a_request_that_is_complete_leaves_nothing_to_remember() {
    let mut peer = Peer::client(LIMITS);
    peer.says(&head(END, 1, REQUEST));
    let stream = peer.connection.streams.find(1).unwrap();
    peer.connection.reset(stream, Code::NO_ERROR);
    peer.connection.remove(stream);
    assert_eq!(peer.ends(&data(true, 1, 1)), Code::STREAM_CLOSED);
}

#[test]
fn data_and_heads_after_the_end_of_a_stream_are_errors() {
    for (after, wrong) in [
        ("data", data(true, 1, 1)),
        ("a head", head(END, 1, REQUEST)),
    ] {
        let mut peer = Peer::client(LIMITS);
        peer.says(&head(END, 1, REQUEST));
        assert_eq!(peer.faults(&wrong), Code::STREAM_CLOSED, "{after}");
        let mut peer = Peer::client(LIMITS);
        peer.says(&head(END, 1, REQUEST));
        peer.answers(0, true);
        peer.connection.remove(0);
        assert_eq!(
            peer.says(&[window(1, 9), reset(1, Code::CANCEL)].concat()),
            []
        );
        assert_eq!(peer.ends(&wrong), Code::STREAM_CLOSED, "{after}");
        let mut peer = Peer::client(LIMITS);
        let stream = peer.begins(1);
        peer.says(&reset(1, Code::CANCEL));
        peer.connection.remove(stream);
    }
}

#[test]
fn nothing_but_heads_and_priorities_may_come_for_a_stream_that_did_not_begin() {
    let wrong = [data(true, 1, 1), window(1, 1), reset(1, Code::CANCEL)];
    for wrong in wrong.iter().chain(&[
        data(true, 2, 1),
        head(END, 2, REQUEST),
        window(2, 1),
        data(true, 0, 1),
        head(END, 0, REQUEST),
        reset(0, Code::CANCEL),
    ]) {
        let mut peer = Peer::client(LIMITS);
        assert_eq!(peer.ends(wrong), Code::PROTOCOL, "{wrong:?}");
    }
    let mut peer = Peer::client(LIMITS);
    peer.says(&frame(kind::PRIORITY, 0, 1, &[0; 5]));
    peer.begins(7);
    assert_eq!(peer.ends(&head(END, 5, REQUEST)), Code::STREAM_CLOSED);
}

#[test]
fn servers_send_only_for_streams_that_we_began() {
    for wrong in [
        data(true, 3, 1),
        head(END, 3, ANSWER),
        head(END, 2, ANSWER),
        window(2, 1),
    ] {
        let mut peer = Peer::server(LIMITS);
        peer.asked();
        assert_eq!(peer.ends(&wrong), Code::PROTOCOL, "{wrong:?}");
    }
    let mut peer = Peer::server(LIMITS);
    let stream = peer.asked();
    peer.connection.reset(stream, Code::CANCEL);
    peer.connection.remove(stream);
    assert_eq!(peer.says(&late(1).concat()), []);
    assert_eq!(peer.owed(), 0);
}

#[test]
fn heads_that_are_read_over_are_decoded_for_the_tables_sake() {
    let mut peer = Peer::client(LIMITS);
    let stream = peer.begins(1);
    peer.connection.reset(stream, Code::CANCEL);
    peer.connection.remove(stream);
    peer.says(&head(END, 1, b"\x40\x01a\x01b"));
    let request = [REQUEST, &[0xbe]].concat();
    assert_eq!(peer.says(&head(END, 3, &request)).len(), 1);
    let last = peer.block.fields().last().unwrap();
    assert_eq!(
        (peer.block.name(last), peer.block.value(last)),
        (&b"a"[..], &b"b"[..])
    );
}

#[test]
fn nothing_is_written_for_a_stream_that_was_reset() {
    for by_peer in [true, false] {
        let mut peer = Peer::client(LIMITS);
        let stream = peer.begins(1);
        peer.says(&data(false, 1, 15_000).repeat(4));
        if by_peer {
            peer.says(&reset(1, Code::CANCEL));
        } else {
            peer.connection.reset(stream, Code::CANCEL);
        }
        peer.connection.out.clear();
        peer.answers(stream, false);
        assert_eq!(peer.connection.allowance(stream, 10), 0);
        peer.connection.data(stream, &[], true);
        peer.connection.passed_on(Some(stream), 60_000);
        peer.connection.reset(stream, Code::CANCEL);
        assert_eq!(peer.told(), []);
        assert_eq!(peer.owed(), 0);
    }
}

#[test]
fn a_burst_of_streams_leaves_little_memory_behind() {
    let mut peer = Peer::client(LIMITS);
    for id in (1..512).step_by(2) {
        peer.begins(id);
    }
    let keys: Vec<StreamKey> = peer.connection.streams().map(|(key, _)| key).collect();
    for key in keys {
        peer.connection.allowance(key, 1 << 30);
        peer.connection.reset(key, Code::CANCEL);
        peer.connection.remove(key);
    }
    assert!(peer.connection.streams.kept() < 64);
    assert!(peer.connection.waiting.is_empty() && peer.connection.waiting.capacity() < 64);
    assert!(size_of::<Connection>() < 1_024 && size_of::<Stream>() < 100);
    peer.begins(601);
}
