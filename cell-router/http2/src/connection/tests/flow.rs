//! Windows.

use super::*;
use crate::connection::DRIBBLE;

fn first_window(value: u32) -> Vec<u8> {
    settings(&[(setting::INITIAL_WINDOW_SIZE, value)])
}

#[test]
fn settings_move_the_windows_of_open_streams_also_below_zero() {
    let mut peer = Peer::client(LIMITS);
    let stream = peer.begins(1);
    peer.answers(stream, false);
    assert_eq!(peer.connection.allowance(stream, 100_000), 65_535);
    peer.connection.data(stream, &[7; 60_000], false);
    assert_eq!(peer.says(&first_window(10_000)), []);
    assert_eq!(peer.connection.allowance(stream, 1), 0, "50,000 too much");
    assert_eq!(peer.says(&window(1, 49_999)), [Event::Window { stream }]);
    assert_eq!(peer.connection.allowance(stream, 1), 0);
    assert_eq!(peer.says(&window(1, 101)), [Event::Window { stream }]);
    assert_eq!(peer.connection.allowance(stream, 1_000), 100);
    // Back again: whoever waits for its window is among those that wait.
    assert_eq!(peer.says(&first_window(10_050)), [Event::Windows]);
    assert_eq!(peer.connection.waiter(), Some(stream));
    assert_eq!(peer.connection.waiter(), None);
    assert_eq!(peer.connection.allowance(stream, 1_000), 150);
    let other = peer.begins(3);
    assert_eq!(peer.connection.streams[other].send, 10_050);
}

#[test]
fn the_last_of_many_windows_in_one_frame_counts() {
    let mut peer = Peer::client(LIMITS);
    let stream = peer.begins(1);
    let id = setting::INITIAL_WINDOW_SIZE;
    peer.says(&settings(&[(id, 1), (id, MAX_31_BITS), (id, 77)]));
    assert_eq!(peer.connection.allowance(stream, 1_000), 77);
}

#[test]
fn no_window_may_be_too_wide() {
    let mut peer = Peer::client(LIMITS);
    peer.begins(1);
    peer.says(&window(1, MAX_31_BITS - 65_535));
    assert_eq!(peer.faults(&window(1, 1)), Code::FLOW_CONTROL);
    peer.says(&window(0, MAX_31_BITS - 65_535));
    assert_eq!(peer.ends(&window(0, 1)), Code::FLOW_CONTROL);
    let mut peer = Peer::client(LIMITS);
    peer.begins(1);
    peer.says(&window(1, 1));
    assert_eq!(peer.ends(&first_window(MAX_31_BITS)), Code::FLOW_CONTROL);
    let mut peer = Peer::client(LIMITS);
    assert_eq!(peer.ends(&first_window(1 << 31)), Code::FLOW_CONTROL);
}

#[test]
fn updates_by_nothing_are_errors() {
    let mut peer = Peer::client(LIMITS);
    peer.begins(1);
    assert_eq!(peer.faults(&window(1, 0)), Code::PROTOCOL);
    assert_eq!(peer.ends(&window(0, 0)), Code::PROTOCOL);
    let mut peer = Peer::client(LIMITS);
    let short = frame(kind::WINDOW_UPDATE, 0, 0, &[1; 3]);
    assert_eq!(peer.ends(&short), Code::FRAME_SIZE);
}

#[test]
fn the_peer_keeps_to_our_windows() {
    let limits = Limits {
        stream_window: 70_000,
        window: 100_000,
        ..LIMITS
    };
    let fill = |id, size: usize| -> Vec<u8> {
        let whole = data(false, id, 10_000).repeat(size / 10_000);
        [whole, data(false, id, size % 10_000)].concat()
    };
    let mut peer = Peer::client(limits);
    peer.begins(1);
    peer.begins(3);
    peer.says(&fill(1, 69_999));
    assert_eq!(peer.faults(&data(false, 1, 2)), Code::FLOW_CONTROL);
    // What was too much for the stream was given back to the connection, and what came before waits for the caller.
    assert_eq!(peer.owed(), 69_999);
    peer.connection.passed_on(None, 69_999);
    let mut peer = Peer::client(limits);
    peer.begins(1);
    peer.begins(3);
    peer.says(&fill(1, 70_000));
    peer.says(&fill(3, 30_000));
    peer.says(&data(true, 3, 0));
    assert_eq!(peer.ends(&data(false, 1, 1)), Code::FLOW_CONTROL);
}

#[test]
fn padding_counts_and_is_given_back() {
    let mut peer = Peer::client(LIMITS);
    let stream = peer.begins(1);
    let padded = frame(kind::DATA, flag::PADDED, 1, &[3, 7, 7, 0, 0, 0]);
    let events = peer.says(&padded);
    let at = HEADER_BYTES + 1..HEADER_BYTES + 3;
    assert_eq!(
        events,
        [Event::Data {
            stream,
            at,
            end: false
        }]
    );
    assert_eq!(peer.owed(), 2);
    assert_eq!(peer.connection.streams[stream].passed, 4);
    let lie = frame(kind::DATA, flag::PADDED, 1, &[3, 0, 0]);
    assert_eq!(peer.ends(&lie), Code::PROTOCOL);
}

#[test]
fn windows_are_given_back_in_few_frames() {
    let mut peer = Peer::client(LIMITS);
    let stream = peer.begins(1);
    for _ in 0..320 {
        peer.says(&data(false, 1, 1_024));
        peer.connection.passed_on(Some(stream), 1_024);
    }
    let told = peer.told();
    let half = 32 * 1_024_u32;
    assert_eq!(told.len(), 10);
    for (header, payload) in told {
        assert_eq!((header.kind, header.stream), (kind::WINDOW_UPDATE, 1));
        assert_eq!(frame::number(&payload), half);
    }
    for _ in 320..512 {
        peer.says(&data(false, 1, 1_024));
        peer.connection.passed_on(Some(stream), 1_024);
    }
    let told = peer.told();
    assert_eq!(
        told.iter().filter(|(header, _)| header.stream == 0).count(),
        1
    );
    peer.says(&data(true, 1, 40_000 % 16_384));
    peer.connection.out.clear();
    peer.connection.passed_on(Some(stream), 40_000);
    assert_eq!(peer.told(), [], "it sends no more on this stream");
}

#[test]
fn a_client_that_did_not_hear_of_a_small_window_may_fill_the_usual_one() {
    let limits = Limits {
        stream_window: 1_000,
        window: 0,
        ..LIMITS
    };
    let mut peer = Peer::client(limits);
    let stream = peer.begins(1);
    peer.begins(3);
    peer.says(&data(false, 1, 16_000));
    peer.says(&frame(kind::SETTINGS, flag::ACK, 0, &[]));
    peer.says(&data(false, 1, 0));
    assert_eq!(peer.faults(&data(false, 3, 1_001)), Code::FLOW_CONTROL);
    peer.connection.passed_on(Some(stream), 16_000);
    peer.says(&data(false, 1, 1_000));
    assert_eq!(peer.faults(&data(false, 1, 1)), Code::FLOW_CONTROL);
    peer.begins(5);
    peer.says(&data(false, 5, 1_000));
    assert_eq!(peer.faults(&data(false, 5, 1)), Code::FLOW_CONTROL);
}

#[test]
fn windows_of_any_size_can_be_agreed() {
    for (stream_window, size) in [(0, 0), (1, 1), (2, 2), (u32::MAX, 10)] {
        let limits = Limits {
            stream_window,
            window: stream_window,
            ..LIMITS
        };
        let mut peer = Peer::client(limits);
        peer.says(&frame(kind::SETTINGS, flag::ACK, 0, &[]));
        let stream = peer.begins(1);
        for _ in 0..4 {
            peer.says(&data(false, 1, size));
            peer.connection.passed_on(Some(stream), size);
        }
        for (_, payload) in peer.told() {
            assert_ne!(frame::number(&payload), 0);
        }
        assert_eq!(peer.owed(), 0);
    }
}

#[test]
fn bodies_wait_for_the_connection_and_go_on_in_turn() {
    let mut peer = Peer::client(LIMITS);
    let [first, second, third] = [1, 3, 5].map(|id| peer.begins(id));
    assert_eq!(peer.connection.allowance(first, 60_000), 60_000);
    peer.connection.data(first, &[7; 60_000], false);
    assert_eq!(peer.connection.allowance(second, 60_000), 5_535);
    peer.connection.data(second, &[7; 5_535], false);
    assert_eq!(peer.connection.allowance(third, 1), 0);
    assert_eq!(peer.connection.allowance(third, 1), 0);
    assert_eq!(peer.connection.waiter(), None);
    assert_eq!(peer.says(&window(0, 10)), [Event::Windows]);
    assert_eq!(peer.connection.waiter(), Some(second));
    assert_eq!(peer.connection.allowance(second, 60_000), 10);
    peer.connection.reset(third, Code::CANCEL);
    peer.connection.remove(third);
    assert_eq!(peer.connection.waiter(), Some(second));
    assert_eq!(peer.connection.waiter(), None, "the third is gone");
    // The first stream's own window is used up soon.
    assert_eq!(peer.says(&window(0, 100_000)), []);
    assert_eq!(peer.connection.allowance(first, 60_000), 5_535);
    assert_eq!(peer.says(&window(1, 9)), [Event::Window { stream: first }]);
}

#[test]
fn bodies_wait_until_what_was_written_is_sent() {
    let mut peer = Peer::client(LIMITS);
    let stream = peer.begins(1);
    peer.says(&[window(0, 1 << 20), window(1, 1 << 20)].concat());
    let room = peer.connection.allowance(stream, 1 << 20);
    assert!((ROOM - 1_000..=ROOM).contains(&room));
    peer.connection.data(stream, &vec![7; room], false);
    assert_eq!(peer.connection.allowance(stream, 1), 0);
    assert_eq!(peer.connection.waiter(), None);
    for _ in 0..SLACK / 17 {
        peer.says(&frame(kind::PING, 0, 0, &[1; 8]));
    }
    assert!(!peer.connection.may_read(), "who does not read is not read");
    let told = peer.told();
    let bodies = told.iter().filter(|(header, _)| header.kind == kind::DATA);
    assert!(bodies.clone().all(|(header, _)| header.length <= 16_384));
    assert_eq!(bodies.map(|(header, _)| header.length).sum::<usize>(), room);
    assert_eq!(peer.connection.waiter(), Some(stream));
    assert!(peer.connection.may_read());
}

#[test]
fn frames_of_data_end_where_they_should() {
    for size in [0, 1, DRIBBLE, MAX_FRAME, MAX_FRAME + 1, 2 * MAX_FRAME] {
        let mut peer = Peer::client(LIMITS);
        let stream = peer.begins(1);
        assert_eq!(peer.connection.allowance(stream, size), size);
        peer.connection.data(stream, &vec![7; size], true);
        let told = peer.told();
        assert_eq!(told.len(), size.div_ceil(MAX_FRAME).max(1));
        let ends: Vec<bool> = told
            .iter()
            .map(|(it, _)| it.has(flag::END_STREAM))
            .collect();
        assert_eq!(ends.iter().filter(|end| **end).count(), 1);
        assert!(ends[ends.len() - 1] && peer.connection.stream(stream).send_done);
    }
}

const MAX_FRAME: usize = crate::frame::MAX_PAYLOAD;
