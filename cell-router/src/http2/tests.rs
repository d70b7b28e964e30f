//! Streams between two ends of a connection: one of ours, and one of h2, which is not.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use titan_http2::hpack::Block;
use titan_http2::{Code, Limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::{JoinHandle, LocalSet};

use super::*;
use crate::body::{Body, BoxError, Part};
use crate::head;
use crate::inbound::Inbound;
use crate::outbound::{Outbound, OutboundError};

const LIMITS: Limits = Limits {
    streams: 100,
    header_bytes: 16 * 1024,
    stream_window: 64 * 1024,
    window: 1024 * 1024,
};
const NEVER: Duration = Duration::from_hours(1);

/// Parts of a body, and how many of them were taken.
struct Parts(std::vec::IntoIter<Result<Part, BoxError>>, Rc<Cell<usize>>);

impl Body for Parts {
    fn poll_part(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Part, BoxError>>> {
        let part = self.0.next();
        self.1.set(self.1.get() + usize::from(part.is_some()));
        Poll::Ready(part)
    }

    fn is_end(&self) -> bool {
        self.0.len() == 0
    }

    fn length(&self) -> Option<u64> {
        None
    }
}

/// A server whose streams are answered by `answer`.
fn serve<F: Future<Output = ()> + 'static>(
    socket: DuplexStream,
    answer: impl Fn(Block, Receiver, Sender) -> F + 'static,
) -> (Rc<Link>, JoinHandle<Lost>) {
    let link = Link::server(LIMITS);
    let mut driver = Driver::new(&link, socket, KeepAlive::new(NEVER, NEVER));
    let ended = tokio::task::spawn_local(async move {
        let mut accept = |head, receiver, sender| {
            tokio::task::spawn_local(answer(head, receiver, sender));
        };
        poll_fn(|context| driver.poll(context, &mut accept, || true)).await
    });
    (link, ended)
}

/// Answers the one request of an h2 client, which has a window of so many bytes, with a body: what the client has, how the
/// sending ends, and how many parts were taken so far.
async fn sent(
    window: u32,
    parts: Vec<Result<Part, BoxError>>,
) -> (
    Result<h2::RecvStream, h2::Error>,
    Rc<RefCell<Option<Result<(), OutboundError>>>>,
    Rc<Cell<usize>>,
) {
    let (here, there) = tokio::io::duplex(1 << 20);
    let taken = Rc::new(Cell::new(0));
    let ended = Rc::new(RefCell::new(None));
    let (counted, outcome) = (Rc::clone(&taken), Rc::clone(&ended));
    let parts = Cell::new(Some(parts));
    serve(there, move |_, _, sender| {
        let body = Parts(parts.take().unwrap().into_iter(), Rc::clone(&counted));
        let outcome = Rc::clone(&outcome);
        async move {
            sender
                .answer(&head::own(http::StatusCode::OK), false)
                .unwrap();
            let result = Outbound::new(body, sender).await;
            *outcome.borrow_mut() = Some(result);
        }
    });
    let (mut requests, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .handshake::<_, Bytes>(here)
        .await
        .unwrap();
    tokio::task::spawn_local(connection);
    let request = Request::get("http://pod/").body(()).unwrap();
    let (response, _) = requests.send_request(request, true).unwrap();
    let body = response.await.map(Response::into_body);
    (body, ended, taken)
}

fn data(size: usize) -> Result<Part, BoxError> {
    Ok(Part::Data(Bytes::from(vec![7; size])))
}

async fn outcome(ended: &RefCell<Option<Result<(), OutboundError>>>) -> Result<(), OutboundError> {
    let wait = async {
        loop {
            if let Some(outcome) = ended.take() {
                return outcome;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_body_waits_for_a_slow_receiver_and_arrives_whole() {
    let mut trailers = Block::default();
    trailers.push(b"grpc-status", b"0");
    let mut parts: Vec<_> = (0..20).map(|_| data(100)).collect();
    parts.push(Ok(Part::Trailers(trailers)));
    let test = async {
        let (body, ended, taken) = sent(150, parts).await;
        let mut body = body.unwrap();
        let mut size = 0;
        while size < 150 {
            size += body.data().await.unwrap().unwrap().len();
        }
        // The window is used up: one part is in it, one half in it, and one may wait.
        assert_eq!(size, 150);
        assert!(taken.get() <= 3, "{} parts were taken", taken.get());
        body.flow_control().release_capacity(size).unwrap();
        while let Some(more) = body.data().await {
            let more = more.unwrap().len();
            size += more;
            body.flow_control().release_capacity(more).unwrap();
        }
        assert_eq!(size, 2_000);
        assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
        outcome(&ended).await.unwrap();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_receiver_that_leaves_ends_the_sending() {
    let test = async {
        let (body, ended, _) = sent(10, vec![data(5), data(50), data(50)]).await;
        let mut body = body.unwrap();
        body.data().await.unwrap().unwrap();
        drop(body);
        let ended = outcome(&ended).await;
        assert!(
            matches!(ended, Err(OutboundError::Receiver(Broken::Reset(_)))),
            "{ended:?}"
        );
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_body_that_breaks_resets_the_stream() {
    let test = async {
        let broken = Err(Broken::Reset(Code::CANCEL).into());
        let (body, ended, _) = sent(1_000, vec![data(5), broken]).await;
        let error = async {
            let mut body = body?;
            while let Some(data) = body.data().await {
                data?;
            }
            Ok::<(), h2::Error>(())
        };
        assert_eq!(error.await.unwrap_err().reason(), Some(h2::Reason::CANCEL));
        assert!(matches!(outcome(&ended).await, Err(OutboundError::Body(_))));
    };
    LocalSet::new().run_until(test).await;
}

/// h2 ends a connection, with all of its streams, after a hundred frames of one byte that its service did not read.
#[tokio::test]
async fn many_small_frames_of_a_client_do_not_end_a_pods_connection() {
    const FRAMES: usize = 3_000;
    let test = async {
        let (here, there) = tokio::io::duplex(1 << 20);
        let sent = Rc::new(Cell::new(false));
        let pod = tokio::task::spawn_local({
            let sent = Rc::clone(&sent);
            async move {
                let mut connection = h2::server::handshake(there).await.unwrap();
                let (request, _respond) = connection.accept().await.unwrap().unwrap();
                let ended = tokio::task::spawn_local(async move {
                    while let Some(next) = connection.accept().await {
                        next?;
                    }
                    Ok::<(), h2::Error>(())
                });
                while !sent.get() && !ended.is_finished() {
                    tokio::task::yield_now().await;
                }
                let mut body = request.into_body();
                let mut size = 0;
                while let Some(data) = body.data().await {
                    size += data.unwrap().len();
                }
                size
            }
        });
        let to_pod = Link::client(LIMITS);
        let mut driver = Driver::new(&to_pod, here, KeepAlive::new(NEVER, NEVER));
        tokio::task::spawn_local(async move {
            poll_fn(|context| driver.poll(context, &mut |_, _, _| {}, || true)).await
        });
        let (mut client, there) = tokio::io::duplex(1 << 20);
        serve(there, move |head, receiver, _sender| {
            let (to_pod, sent) = (Rc::clone(&to_pod), Rc::clone(&sent));
            async move {
                let body = Inbound::h2(receiver, &head, None);
                let (_receiver, sender) = to_pod
                    .open(false, |encoder, out| {
                        for field in head.fields() {
                            encoder.field(&head, field, out);
                        }
                    })
                    .unwrap()
                    .unwrap();
                Outbound::new(body, sender).await.unwrap();
                sent.set(true);
                std::future::pending::<()>().await;
            }
        });
        let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        said.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        // POST http / a, by the tables of HPACK.
        said.extend([
            0, 0, 6, 1, 4, 0, 0, 0, 1, 0x83, 0x86, 0x84, 0x01, 0x01, b'a',
        ]);
        for frame in 1..=FRAMES {
            let end = u8::from(frame == FRAMES);
            said.extend([0, 0, 1, 0, end, 0, 0, 0, 1, 7]);
        }
        client.write_all(&said).await.unwrap();
        let size = tokio::time::timeout(Duration::from_secs(10), pod).await;
        assert_eq!(size.unwrap().unwrap(), FRAMES);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn who_does_not_answer_is_gone() {
    let (here, _silent) = tokio::io::duplex(1 << 16);
    let link = Link::client(LIMITS);
    let short = Duration::from_millis(10);
    let mut driver = Driver::new(&link, here, KeepAlive::new(short, short));
    let lost = poll_fn(|context| driver.poll(context, &mut |_, _, _| {}, || true)).await;
    assert_eq!(lost, Lost::Silent);
    assert!(!link.is_open());
}

/// For how long the connections of the next tests wait for a sign of life, and how often there is one.
const PATIENCE: Duration = Duration::from_secs(2);
const PACE: Duration = Duration::from_millis(100);

/// A peer that takes a little of what it is sent, or says a little, now and then; in either case it answers no ping. How its
/// connection ends when it does that no more.
async fn slow(reads: bool) -> Lost {
    let (mut peer, there) = tokio::io::duplex(1 << 10);
    let link = Link::server(LIMITS);
    let mut driver = Driver::new(&link, there, KeepAlive::new(PACE, PATIENCE));
    let ended = tokio::task::spawn_local(async move {
        let mut accept = |_, _, sender: Sender| {
            sender
                .answer(&head::own(http::StatusCode::OK), false)
                .unwrap();
            let parts: Vec<_> = (0..60).map(|_| data(1_000)).collect();
            let body = Parts(parts.into_iter(), Rc::default());
            tokio::task::spawn_local(Outbound::new(body, sender));
        };
        poll_fn(|context| driver.poll(context, &mut accept, || true)).await
    });
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    said.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // GET http / a, by the tables of HPACK.
    said.extend([
        0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x01, 0x01, b'a',
    ]);
    peer.write_all(&said).await.unwrap();
    let mut pace = tokio::time::interval(PACE);
    let since = tokio::time::Instant::now();
    while since.elapsed() < 3 * PATIENCE {
        pace.tick().await;
        assert!(!ended.is_finished(), "it is cut off; reads: {reads}");
        if reads {
            peer.read_exact(&mut [0; 100]).await.unwrap();
        } else {
            // An update of the connection's window.
            peer.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1])
                .await
                .unwrap();
        }
    }
    let ended = tokio::time::timeout(Duration::from_secs(10), ended).await;
    ended.unwrap().unwrap()
}

/// The answer to a ping may be long in coming: it waits behind what was sent before.
#[tokio::test]
async fn who_reads_or_says_something_is_not_gone() {
    let both = async { tokio::join!(slow(true), slow(false)) };
    let ended = LocalSet::new().run_until(both).await;
    assert_eq!(ended, (Lost::Silent, Lost::Silent));
}

/// The kernel takes much for somebody who is not there.
#[tokio::test]
async fn who_is_only_written_to_is_gone() {
    let test = async {
        let (here, _silent) = tokio::io::duplex(1 << 20);
        let link = Link::client(LIMITS);
        let mut driver = Driver::new(&link, here, KeepAlive::new(PACE, PATIENCE));
        let ended = tokio::task::spawn_local(async move {
            poll_fn(|context| driver.poll(context, &mut |_, _, _| {}, || true)).await
        });
        let mut pace = tokio::time::interval(PACE);
        let mut asked = Vec::new();
        while !ended.is_finished() {
            assert!(asked.len() < 90, "it is waited for");
            let writing = link.open(true, |encoder, out| {
                encoder.pair(b":method", b"GET", false, out);
            });
            asked.extend(writing.unwrap_or_default());
            pace.tick().await;
        }
        assert_eq!(ended.await.unwrap(), Lost::Silent);
    };
    LocalSet::new().run_until(test).await;
}

/// A client and an h2 server that takes one stream at a time.
async fn narrow(requests: usize) -> (Rc<Link>, JoinHandle<Lost>, JoinHandle<usize>) {
    let (here, there) = tokio::io::duplex(1 << 16);
    let server = tokio::task::spawn_local(async move {
        let mut connection = h2::server::Builder::new()
            .max_concurrent_streams(1)
            .handshake::<_, Bytes>(there)
            .await
            .unwrap();
        let mut served = 0;
        while served < requests {
            let Some(Ok((_, mut respond))) = connection.accept().await else {
                break;
            };
            respond.send_response(Response::new(()), true).unwrap();
            served += 1;
        }
        connection.graceful_shutdown();
        while connection.accept().await.is_some() {}
        served
    });
    let link = Link::client(LIMITS);
    let mut driver = Driver::new(&link, here, KeepAlive::new(NEVER, NEVER));
    let ended = tokio::task::spawn_local(async move {
        poll_fn(|context| driver.poll(context, &mut |_, _, _| {}, || true)).await
    });
    (link, ended, server)
}

async fn get(link: &Rc<Link>) -> Result<u16, Broken> {
    let opened = loop {
        let opened = link.open(true, |encoder, out| {
            for (name, value) in [
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "a"),
                (":path", "/"),
            ] {
                encoder.pair(name.as_bytes(), value.as_bytes(), false, out);
            }
        })?;
        match opened {
            Some(opened) => break opened,
            None => link.room().await,
        }
    };
    let (receiver, _sender) = opened;
    let head = poll_fn(|context| receiver.poll_head(context)).await?;
    Ok(head::status(&head).as_u16())
}

#[tokio::test]
async fn requests_wait_for_room_and_are_told_when_the_server_leaves() {
    let test = async {
        let (link, ended, server) = narrow(10).await;
        // The server says how many it takes with its first word.
        assert_eq!(get(&link).await, Ok(200));
        let all: Vec<_> = (0..20)
            .map(|_| {
                let link = Rc::clone(&link);
                tokio::task::spawn_local(async move { get(&link).await })
            })
            .collect();
        let mut outcomes = Vec::new();
        for one in all {
            outcomes.push(one.await.unwrap());
        }
        let served = outcomes
            .iter()
            .filter(|outcome| **outcome == Ok(200))
            .count();
        assert_eq!(served, 9);
        assert!(
            outcomes.iter().all(|outcome| match outcome {
                Ok(status) => *status == 200,
                Err(broken) => broken.not_processed() || matches!(broken, Broken::Lost(_)),
            }),
            "{outcomes:?}"
        );
        assert_eq!(server.await.unwrap(), 10);
        ended.await.unwrap();
        assert!(!link.is_open());
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_client_that_is_let_go_closes_its_connection() {
    let test = async {
        let (link, ended, server) = narrow(usize::MAX).await;
        assert_eq!(get(&link).await, Ok(200));
        link.drain();
        assert_eq!(ended.await.unwrap(), Lost::Here);
        assert_eq!(server.await.unwrap(), 1);
    };
    LocalSet::new().run_until(test).await;
}

/// What a client still says when the server is done must find somebody, or it hears a reset instead of its last answer.
#[tokio::test]
async fn a_server_that_leaves_waits_for_its_client_to_close() {
    const PING: usize = 8;
    let test = async {
        let (mut peer, there) = tokio::io::duplex(1 << 16);
        let (link, ended) = serve(there, |_, _, _| async {});
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        peer.write_all(&settings).await.unwrap();
        link.drain();
        // Its last frame before it waits is a ping; the answer to it lets it go.
        let mut said = Vec::new();
        while !said.ends_with(b"draining") {
            said.push(peer.read_u8().await.unwrap());
        }
        let mut pong = vec![0, 0, 8, 6, 1, 0, 0, 0, 0];
        pong.extend_from_slice(&said[said.len() - PING..]);
        peer.write_all(&pong).await.unwrap();
        let end = peer.read_to_end(&mut said);
        tokio::time::timeout(Duration::from_secs(10), end)
            .await
            .unwrap()
            .unwrap();
        peer.write_all(&settings).await.unwrap();
        tokio::task::yield_now().await;
        assert!(!ended.is_finished(), "nobody hears the client any more");
        drop(peer);
        assert_eq!(ended.await.unwrap(), Lost::Here);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn streams_of_a_task_that_is_dropped_hear_of_it() {
    let test = async {
        let (here, _there) = tokio::io::duplex(1 << 16);
        let link = Link::client(LIMITS);
        let driver = Driver::new(&link, here, KeepAlive::new(NEVER, NEVER));
        let waiting = tokio::task::spawn_local({
            let link = Rc::clone(&link);
            async move { get(&link).await }
        });
        tokio::task::yield_now().await;
        drop(driver);
        assert_eq!(waiting.await.unwrap(), Err(Broken::Lost(Lost::Here)));
    };
    LocalSet::new().run_until(test).await;
}
