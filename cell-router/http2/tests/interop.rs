//! Against the `h2` crate, in both roles: bodies of all sizes both ways, trailers, small windows, many streams, resets,
//! settings that change, tables that shrink, and ends without failures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use proptest::prelude::*;
use support::{Ask, End, Fields, Got};
use titan_http2::{Code, Limits, Role};
use tokio::task::LocalSet;

type Error = Box<dyn std::error::Error>;

/// How the other side, our side and the wire between them are set up.
#[derive(Clone, Debug)]
struct Setup {
    stream_window: u32,
    window: u32,
    table: u32,
    frame: u32,
    /// How many streams the other side has under way before it heard how many it may have.
    first: usize,
    limits: Limits,
    wire: usize,
    /// The windows of the other side, later on. They do not shrink: h2 may then forget to open them again.
    later: Vec<u32>,
}

/// What h2 takes of small frames that were not read yet: here they are as small as the windows are.
const SMALL: usize = 1 << 30;

fn setups() -> impl Strategy<Value = Setup> {
    let window = || prop_oneof![100_u32..1_000, 1_000_u32..100_000, Just(65_535)];
    let limits = (1_usize..20, window(), 65_535_u32..200_000).prop_map(
        |(streams, stream_window, window)| Limits {
            streams,
            header_bytes: 64 * 1024,
            stream_window,
            window,
        },
    );
    let table = prop_oneof![Just(0_u32), Just(100), Just(4_096), Just(65_536)];
    let later = prop::collection::btree_set(window(), 0..3);
    (
        window(),
        65_535_u32..200_000,
        table,
        16_384_u32..100_000,
        prop_oneof![Just(1_usize), Just(100)],
        limits,
        prop_oneof![100_usize..1_000, Just(64 * 1024)],
        later,
    )
        .prop_map(
            |(stream_window, window, table, frame, first, limits, wire, later)| Setup {
                stream_window,
                window,
                table,
                frame,
                first,
                limits,
                wire,
                later: later.into_iter().map(|more| stream_window + more).collect(),
            },
        )
}

/// Fields that have no meaning, of which some come again.
fn any_fields(most: usize) -> impl Strategy<Value = Fields> {
    let name = prop_oneof![
        3 => "x-[a-c]",
        1 => "x-[a-z-]{1,60}",
        1 => prop::sample::select(vec!["accept", "cookie", "grpc-encoding", "traceparent", "x-titan-odd"])
            .prop_map(str::to_owned),
    ];
    let byte = prop_oneof![10 => b' '..=b'~', 1 => 0x80_u8..=0xff];
    let value = prop_oneof![
        3 => "[ab]{0,2}".prop_map(String::into_bytes),
        2 => prop::collection::vec(byte, 0..80),
        1 => prop::collection::vec(b'a'..=b'z', 1_000..3_000),
    ];
    let pair = (name.prop_map(String::into_bytes), value);
    prop::collection::vec(pair, 0..most)
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let size = prop_oneof![
        2 => Just(0_usize),
        2 => 1_usize..200,
        2 => 1_000_usize..40_000,
        1 => Just(16_384),
    ];
    let path = prop_oneof![8 => Just("/echo"), 1 => Just("/refuse"), 1 => Just("/reset")];
    let ask = (path, any_fields(8), size, prop::option::of(any_fields(4)));
    let ask = ask.prop_map(|(path, fields, size, trailers)| Ask {
        path: path.to_owned(),
        fields,
        body: (0..size).map(|at| at.to_le_bytes()[0]).collect(),
        trailers,
    });
    prop::collection::vec(ask, 1..30)
}

fn map(fields: &Fields) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name).unwrap();
        map.append(name, HeaderValue::from_bytes(value).unwrap());
    }
    map
}

async fn send(
    mut stream: SendStream<Bytes>,
    body: Bytes,
    trailers: Option<HeaderMap>,
) -> Result<(), Error> {
    let mut rest = body;
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len());
        let capacity = std::future::poll_fn(|context| stream.poll_capacity(context)).await;
        let capacity = capacity.ok_or("the stream ended")??;
        let part = rest.split_to(capacity.min(rest.len()));
        stream.send_data(part, rest.is_empty() && trailers.is_none())?;
    }
    if let Some(trailers) = trailers {
        stream.send_trailers(trailers)?;
    }
    Ok(())
}

async fn receive(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        all.extend_from_slice(&part);
        body.flow_control().release_capacity(part.len())?;
    }
    let trailers = body.trailers().await?;
    Ok((all, trailers))
}

/// One request of h2's client to our server.
async fn exchange(sender: h2::client::SendRequest<Bytes>, ask: Ask) -> Result<(), Error> {
    let mut sender = sender.ready().await?;
    let mut request = Request::post(format!("http://pod{}", ask.path)).body(())?;
    *request.headers_mut() = map(&ask.fields);
    let trailers = ask.trailers.as_ref().map(map);
    let end = ask.body.is_empty() && trailers.is_none();
    let (answer, stream) = sender.send_request(request, end)?;
    drop(sender);
    let body = Bytes::from(ask.body.clone());
    let echoes = ask.path == "/echo";
    let sending = tokio::task::spawn_local(async move {
        let sent = if end {
            Ok(())
        } else {
            send(stream, body, trailers).await
        };
        // Whoever does not echo may not want all of it.
        sent.map_err(|error| error.to_string())
    });
    let answer = match answer.await {
        Ok(answer) => answer,
        // Sent after the server was drained.
        Err(error) if error.is_go_away() => return Err(error.into()),
        // Sent before the client heard how many it may have under way.
        Err(error) if error.reason() == Some(Reason::REFUSED_STREAM) => return Ok(()),
        Err(error) => {
            assert_eq!(
                (&*ask.path, error.reason()),
                ("/reset", Some(Reason::CANCEL))
            );
            return Ok(());
        }
    };
    if !echoes {
        assert_eq!((&*ask.path, answer.status().as_u16()), ("/refuse", 403));
        assert!(receive(answer.into_body()).await?.0.is_empty());
        return Ok(());
    }
    assert_eq!(answer.headers(), &map(&ask.fields));
    let (body, came) = receive(answer.into_body()).await?;
    assert!(
        body == ask.body,
        "{} of {} bytes",
        body.len(),
        ask.body.len()
    );
    sending.await?.unwrap();
    assert_eq!(
        came.unwrap_or_default(),
        ask.trailers.as_ref().map(map).unwrap_or_default()
    );
    Ok(())
}

async fn h2_client(setup: Setup, asks: Vec<Ask>) -> Result<Vec<u8>, Error> {
    let (here, there) = tokio::io::duplex(setup.wire);
    let server = tokio::task::spawn_local(async move {
        let mut record = Vec::new();
        let mut asked = false;
        let end = End::new(Role::Server, setup.limits);
        let turn = |end: &mut End| {
            if !std::mem::replace(&mut asked, true) {
                end.connection.ping();
            }
            if end.log.len() > 40 {
                end.connection.drain();
            }
        };
        let (end, ended) = end.run(there, turn, &mut record).await;
        (end, ended, record)
    });
    let (sender, mut connection) = h2::client::Builder::new()
        .initial_window_size(setup.stream_window)
        .initial_connection_window_size(setup.window)
        .header_table_size(setup.table)
        .max_frame_size(setup.frame)
        .initial_max_send_streams(setup.first)
        .data_frame_budget(SMALL)
        .handshake::<_, Bytes>(here)
        .await?;
    let (change, mut changes) = tokio::sync::mpsc::unbounded_channel();
    let driver = tokio::task::spawn_local(async move {
        let mut changing = true;
        loop {
            tokio::select! {
                ended = &mut connection => return ended,
                window = changes.recv(), if changing => match window {
                    // One change at a time is taken.
                    Some(window) => drop(connection.set_initial_window_size(window)),
                    None => changing = false,
                },
            }
        }
    });
    let mut under_way = Vec::new();
    for ask in asks {
        under_way.push(tokio::task::spawn_local(exchange(sender.clone(), ask)));
    }
    for window in setup.later {
        tokio::task::yield_now().await;
        // The connection may have ended.
        let _ = change.send(window);
    }
    drop(change);
    let mut refused = 0;
    for exchange in under_way {
        if let Err(error) = exchange.await? {
            let error = error.downcast::<h2::Error>()?;
            // The server was drained, so that the rest goes elsewhere.
            assert!(
                error.is_go_away() && error.reason() == Some(Reason::NO_ERROR),
                "{error}"
            );
            refused += 1;
        }
    }
    drop(sender);
    driver.await??;
    let (end, ended, record) = server.await?;
    ended.map_err(|code| code.to_string())?;
    assert!(refused == 0 || end.log.len() > 40);
    assert_eq!(end.pongs, 1);
    assert_eq!((end.held(), end.connection.busy()), (0, 0));
    Ok(record)
}

/// h2's server, which echoes.
async fn serve(request: Request<RecvStream>, mut answer: h2::server::SendResponse<Bytes>) {
    let (head, body) = request.into_parts();
    match head.uri.path() {
        "/reset" => answer.send_reset(Reason::CANCEL),
        "/refuse" => {
            let refusal = Response::builder().status(403).body(()).unwrap();
            let _ = answer.send_response(refusal, true);
        }
        _ => {
            let mut response = Response::new(());
            *response.headers_mut() = head.headers;
            let end = body.is_end_stream();
            let stream = answer.send_response(response, end).unwrap();
            if !end {
                let (body, trailers) = receive(body).await.unwrap();
                let trailers = trailers.or_else(|| body.is_empty().then(HeaderMap::new));
                send(stream, body.into(), trailers).await.unwrap();
            }
        }
    }
}

async fn h2_server(setup: Setup, mut asks: Vec<Ask>) -> Result<Vec<u8>, Error> {
    if asks.len() > setup.limits.streams {
        // h2 counts streams for a while after they ended and may refuse one more. It then takes the trailers of what it
        // refused for the client's fault, and ends the connection.
        asks.iter_mut().for_each(|ask| ask.trailers = None);
    }
    let (here, there) = tokio::io::duplex(setup.wire);
    let count = asks.len();
    let wanted = asks.clone();
    let client = tokio::task::spawn_local(async move {
        let mut record = Vec::new();
        let end = End::new(Role::Client, setup.limits);
        let mut asks = Some(asks);
        let mut pinged = false;
        let turn = |end: &mut End| {
            if !std::mem::replace(&mut pinged, true) {
                end.connection.ping();
            }
            // Once the server said how many streams it takes.
            if end.pongs > 0
                && let Some(asks) = asks.take()
            {
                end.asks = asks.into();
                end.ask();
            }
            if end.asks.is_empty() && end.connection.busy() == 0 && end.pongs > 0 {
                end.connection.drain();
            }
        };
        let (end, ended) = end.run(there, turn, &mut record).await;
        (end, ended, record)
    });
    let mut connection = h2::server::Builder::new()
        .initial_window_size(setup.stream_window)
        .initial_connection_window_size(setup.window)
        .max_concurrent_streams(u32::try_from(setup.limits.streams)?)
        .max_frame_size(setup.frame)
        .data_frame_budget(SMALL)
        .handshake::<_, Bytes>(here)
        .await?;
    let mut later = setup.later.into_iter();
    while let Some(request) = connection.accept().await {
        let (request, answer) = request?;
        tokio::task::spawn_local(serve(request, answer));
        if let Some(window) = later.next() {
            let _ = connection.set_initial_window_size(window);
        }
    }
    drop(connection);
    let (end, ended, record) = client.await?;
    ended.map_err(|code| code.to_string())?;
    for (got, ask) in end.got.iter().zip(&wanted) {
        check(got, ask);
    }
    assert_eq!((end.got.len(), end.pongs), (count, 1));
    Ok(record)
}

fn check(got: &Got, ask: &Ask) {
    match (got.reset, &*ask.path) {
        // h2 may still count a stream that just ended, and then did nothing with this one.
        (Some(Code::REFUSED), _) => return,
        (code, "/reset") => return assert_eq!(code, Some(Code::CANCEL)),
        (code, "/refuse") => {
            let status = got.head.first().map(|(_, value)| &value[..]);
            assert!(status == Some(b"403") || code.is_some(), "{got:?}");
            return;
        }
        _ => {}
    }
    assert_eq!((got.end, got.reset), (true, None));
    let mut head = got.head.clone();
    assert_eq!(head.remove(0), (b":status".to_vec(), b"200".to_vec()));
    assert_eq!(map(&head), map(&ask.fields));
    assert!(
        got.body == ask.body,
        "{} of {} bytes",
        got.body.len(),
        ask.body.len()
    );
    let trailers = |fields: &Option<Fields>| fields.as_ref().map(map).unwrap_or_default();
    assert_eq!(trailers(&got.trailers), trailers(&ask.trailers));
}

/// Runs to its end, which must come.
fn run(test: impl Future<Output = Result<Vec<u8>, Error>>) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let patience = std::time::Duration::from_mins(1);
    let test = async { tokio::time::timeout(patience, test).await };
    let ended = LocalSet::new().block_on(&runtime, test);
    let Ok(ended) = ended else {
        unreachable!("it hangs")
    };
    ended.unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn h2s_client_is_served(setup in setups(), asks in asks()) {
        run(h2_client(setup, asks));
    }

    #[test]
    fn h2s_server_is_asked(setup in setups(), asks in asks()) {
        run(h2_server(setup, asks));
    }
}
