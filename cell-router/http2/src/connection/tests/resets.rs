//! Resets that wait until the server's service took what they end.

use super::super::resets::UNTAKEN;
use super::*;

/// A server that acknowledged our settings.
fn server() -> Peer {
    let mut peer = Peer::server(LIMITS);
    peer.acknowledges();
    peer
}

impl Peer {
    fn acknowledges(&mut self) {
        assert_eq!(self.says(&frame(kind::SETTINGS, flag::ACK, 0, &[])), []);
    }

    /// The server is asked for so much, and nobody wants the answers.
    fn left(&mut self, streams: usize) {
        let all: Vec<_> = (0..streams).map(|_| self.asked()).collect();
        self.told();
        for stream in all {
            self.connection.reset(stream, Code::CANCEL);
            self.connection.remove(stream);
        }
    }

    /// The streams that were reset since the last time, and how often the server was asked how far it is.
    fn ended(&mut self) -> (Vec<u32>, usize) {
        let told = self.told();
        let of = |kind: u8| {
            let frames = told.iter().filter(move |(header, _)| header.kind == kind);
            frames.map(|(header, _)| header.stream)
        };
        (of(kind::RST_STREAM).collect(), of(kind::SETTINGS).count())
    }
}

fn ids(range: std::ops::Range<u32>) -> Vec<u32> {
    range.map(|index| index * 2 + 1).collect()
}

#[test]
fn few_resets_are_told_at_once_and_the_others_one_by_one() {
    let mut peer = server();
    peer.left(15);
    let few = u32::try_from(UNTAKEN).unwrap();
    assert_eq!(peer.ended(), (ids(0..few), 1));
    assert_eq!(peer.connection.busy(), 0);
    for index in few..14 {
        peer.acknowledges();
        assert_eq!(peer.ended(), (ids(index..index + 1), 1));
    }
    peer.acknowledges();
    assert_eq!(
        peer.ended(),
        (ids(14..15), 0),
        "there is nothing to ask for"
    );
    peer.acknowledges();
    assert_eq!(peer.told(), []);
    // What was told counts until more is known.
    peer.left(1);
    assert_eq!(peer.ended(), (vec![], 1));
}

#[test]
fn what_was_taken_before_is_reset_at_once() {
    let mut peer = server();
    let streams: Vec<_> = (0..100).map(|_| peer.asked()).collect();
    // An answer to one says that those before were taken.
    peer.says(&head(flag::END_HEADERS, 101, ANSWER));
    peer.told();
    for stream in &streams[..60] {
        peer.connection.reset(*stream, Code::CANCEL);
        peer.connection.remove(*stream);
    }
    assert_eq!(peer.resets().len(), 51 + 9);
    for stream in &streams[60..] {
        peer.connection.reset(*stream, Code::CANCEL);
        peer.connection.remove(*stream);
    }
    assert_eq!(peer.resets().len(), 1);
    peer.says(&head(flag::END_HEADERS, 199, ANSWER));
    assert_eq!(peer.resets().len(), 39);
}

/// Not what was last is let go first, but what the server takes first.
#[test]
fn an_answer_to_a_question_is_worth_one_stream() {
    let mut peer = server();
    let streams: Vec<_> = (0..30).map(|_| peer.asked()).collect();
    peer.told();
    for stream in streams.into_iter().rev() {
        peer.connection.reset(stream, Code::CANCEL);
        peer.connection.remove(stream);
    }
    let mut told = peer.ended().0;
    assert_eq!(told.len(), UNTAKEN);
    for taken in 1..=30 {
        peer.acknowledges();
        told.extend(peer.ended().0);
        // As many as may be taken already do not count.
        let untaken = told.iter().filter(|id| **id > taken * 2 - 1).count();
        assert!(untaken <= UNTAKEN, "{untaken} after {taken}");
    }
    assert_eq!(told.len(), 30);
}

#[test]
fn what_waits_for_its_reset_takes_up_room_and_gives_back_what_comes() {
    let mut peer = server();
    peer.says(&settings(&[(setting::MAX_CONCURRENT_STREAMS, 2)]));
    peer.left(12);
    peer.told();
    assert!(!peer.connection.has_room());
    assert_eq!(peer.connection.busy(), 0);
    // The head comes first and says that all were taken.
    assert_eq!(peer.says(&head(flag::END_HEADERS, 23, ANSWER)), []);
    assert_eq!(peer.ended().0, ids(10..12));
    assert_eq!(peer.says(&data(false, 23, 1_000)), []);
    assert_eq!(peer.owed(), 0);
    assert!(peer.connection.has_room());
    assert_eq!(peer.connection.streams.len(), 0);
}

#[test]
fn what_the_server_ends_needs_no_reset() {
    let mut peer = server();
    peer.left(14);
    peer.told();
    assert_eq!(peer.says(&reset(21, Code::REFUSED)), []);
    assert_eq!(peer.connection.streams.len(), 3);
    // The whole answer to a whole request: nothing is left to reset. It says that those before were taken, too.
    assert_eq!(peer.says(&head(END, 25, ANSWER)), []);
    assert_eq!(peer.ended().0, [23, 27]);
    peer.left(20);
    peer.told();
    let leaves = [27_u32.to_be_bytes(), 0_u32.to_be_bytes()].concat();
    peer.says(&frame(kind::GOAWAY, 0, 0, &leaves));
    assert_eq!(peer.connection.streams.len(), 0);
    assert!(peer.connection.is_done());
}

#[test]
fn a_connection_that_ends_waits_for_no_reset() {
    let mut peer = server();
    peer.left(20);
    let stream = peer.asked();
    peer.connection.drain();
    assert!(!peer.connection.is_done());
    peer.connection.reset(stream, Code::CANCEL);
    peer.connection.remove(stream);
    assert!(peer.connection.is_done());
}

/// The acknowledgement of our first settings is no answer to a question.
#[test]
fn the_first_acknowledgement_says_nothing_of_streams() {
    let mut peer = Peer::server(LIMITS);
    peer.left(20);
    assert_eq!(peer.ended().0.len(), UNTAKEN);
    peer.acknowledges();
    assert_eq!(peer.ended(), (vec![], 0));
    peer.acknowledges();
    assert_eq!(peer.ended().0.len(), 1);
}
