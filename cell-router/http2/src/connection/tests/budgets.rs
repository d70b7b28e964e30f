//! What a peer may make us do.

use super::*;
use crate::connection::budget::{FAULTS, IDLE};

#[test]
fn clients_may_cancel_all_of_their_streams_at_once_but_not_for_ever() {
    let mut peer = Peer::client(LIMITS);
    let mut id = 1;
    let mut cancel = |peer: &mut Peer| {
        let both = [head(END, id, REQUEST), reset(id, Code::CANCEL)].concat();
        id += 2;
        let events = peer.try_says(&both)?;
        let Some(Event::Reset {
            stream,
            code,
            by_peer,
        }) = events.last().cloned()
        else {
            panic!("{events:?}");
        };
        assert!(by_peer && code == Code::CANCEL);
        peer.connection.remove(stream);
        Ok(())
    };
    for second in 0..3 {
        peer.connection.tick(second);
        for _ in 0..FAULTS {
            cancel(&mut peer).unwrap();
        }
    }
    assert_eq!(cancel(&mut peer), Err(Code::CALM), "rapid reset");
}

#[test]
fn streams_that_break_rules_are_reset_up_to_a_number() {
    let mut peer = Peer::client(LIMITS);
    let mut id = 1;
    for _ in 0..FAULTS {
        assert_eq!(peer.says(&head(END, id, &[0x83])), []);
        id += 2;
    }
    assert_eq!(peer.resets().len(), FAULTS as usize);
    assert_eq!(peer.ends(&head(END, id, &[0x83])), Code::CALM);
}

#[test]
fn streams_that_we_are_made_to_reset_are_counted() {
    let mut peer = Peer::client(LIMITS);
    let mut id = 1;
    for _ in 0..FAULTS {
        peer.begins(id);
        assert_eq!(peer.faults(&window(id, 0)), Code::PROTOCOL);
        id += 2;
    }
    peer.begins(id);
    assert_eq!(peer.ends(&window(id, 0)), Code::CALM, "made you reset");
}

#[test]
fn a_client_that_did_not_hear_how_many_streams_it_may_have_is_refused_some() {
    let limits = Limits {
        streams: 2,
        ..LIMITS
    };
    let mut peer = Peer::client(limits);
    let first = peer.begins(1);
    peer.begins(3);
    for id in (5..5 + 2 * FAULTS).step_by(2) {
        assert_eq!(peer.says(&head(flag::END_HEADERS, id, REQUEST)), []);
        assert_eq!(peer.resets(), [(id, Code::REFUSED)]);
        assert_eq!(peer.says(&data(true, id, 10)), [], "sent before it heard");
    }
    assert_eq!(peer.connection.busy(), 2);
    peer.connection.reset(first, Code::CANCEL);
    peer.connection.remove(first);
    peer.begins(9_001);
    assert_eq!(peer.ends(&head(END, 9_003, REQUEST)), Code::CALM);
}

#[test]
fn heads_that_are_too_large_are_much_work() {
    let limits = Limits {
        header_bytes: 100,
        ..LIMITS
    };
    let mut peer = Peer::client(limits);
    let large = request(&[("a", &"x".repeat(100))]);
    for at in 0..FAULTS {
        let events = peer.says(&head(END, 2 * at + 1, &large));
        let [Event::Request { stream, end: true }] = events[..] else {
            panic!("{events:?}");
        };
        assert!(peer.block.over);
        peer.answers(stream, true);
        peer.connection.remove(stream);
    }
    assert_eq!(peer.ends(&head(END, 99_999, &large)), Code::CALM);
}

#[test]
fn frames_that_lead_to_nothing_are_taken_up_to_a_number_each_second() {
    let floods = [
        ("ping", frame(kind::PING, 0, 0, &[1; 8])),
        ("an answer to no ping", frame(kind::PING, 1, 0, &[1; 8])),
        ("settings", settings(&[])),
        ("acknowledged settings", frame(kind::SETTINGS, 1, 0, &[])),
        ("priority", frame(kind::PRIORITY, 0, 1, &[0; 5])),
        ("empty data", data(false, 1, 0)),
        ("only padding", frame(kind::DATA, flag::PADDED, 1, &[0])),
        ("empty data of a stream that ended", data(false, 3, 0)),
        ("a head of a stream that ended", head(END, 3, REQUEST)),
        ("a reset of a stream that ended", reset(3, Code::CANCEL)),
        ("an update of a stream that ended", window(3, 1_000)),
        ("an update by a byte", window(1, 1)),
        ("an update of all by a byte", window(0, 1)),
        ("an unknown frame", frame(99, 255, 7, &[0; 100])),
        ("goaway", frame(kind::GOAWAY, 0, 0, &[0; 8])),
    ];
    for (what, flood) in floods {
        let mut peer = Peer::client(LIMITS);
        peer.begins(1);
        let ended = peer.begins(3);
        peer.connection.reset(ended, Code::CANCEL);
        peer.connection.remove(ended);
        for second in 1..3 {
            peer.connection.tick(second);
            for _ in 0..IDLE {
                peer.says(&flood);
                peer.connection.out.clear();
            }
        }
        assert_eq!(peer.ends(&flood), Code::CALM, "{what}");
        assert_eq!(peer.owed(), 0, "{what}");
    }
}

#[test]
fn many_settings_in_one_frame_are_more_work() {
    let mut peer = Peer::client(LIMITS);
    peer.connection.tick(1);
    let many = settings(&[(setting::INITIAL_WINDOW_SIZE, 7); 2_000]);
    let ended = (0..IDLE).find(|_| peer.try_says(&many).is_err()).unwrap();
    assert!((30..50).contains(&ended), "{ended}");
}

#[test]
fn an_update_that_opens_a_window_is_not_idle_unless_it_is_of_a_few_bytes() {
    let mut peer = Peer::client(LIMITS);
    peer.connection.tick(1);
    let stream = peer.begins(1);
    for _ in 0..2 * IDLE {
        peer.connection.send = 0;
        peer.says(&window(0, 1_000));
        peer.connection.streams[stream].send = -10;
        peer.says(&window(1, 1_000));
    }
    for _ in 0..IDLE {
        peer.connection.send = 10;
        peer.connection.streams[stream].send = 0;
        peer.says(&window(1, 1));
        // Data of a byte earns nothing.
        peer.connection.data(stream, b"x", false);
    }
    peer.connection.streams[stream].send = 0;
    assert_eq!(peer.ends(&window(1, 1)), Code::CALM);
}

#[test]
fn a_busy_client_that_answers_all_that_it_gets_keeps_its_connection() {
    let mut peer = Peer::client(LIMITS);
    for id in (1..100_000).step_by(2) {
        let stream = peer.begins(id);
        peer.answers(stream, false);
        peer.connection.data(stream, &[7; 100], true);
        peer.connection.reset(stream, Code::NO_ERROR);
        peer.connection.remove(stream);
        peer.connection.out.clear();
        // A probe of the bandwidth, windows given back, and the end of what is not wanted.
        peer.says(&frame(kind::PING, 0, 0, &[1; 8]));
        peer.says(&[window(0, 100), window(id, 100)].concat());
        peer.says(&data(true, id, 0));
    }
}
