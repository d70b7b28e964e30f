//! Requests that a pod would take for malformed: they end no connection, open no circuit and say nothing for the router.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cell_router::config::Config;
use cell_router::router::Router;
use http::{HeaderMap, Response};
use support::{Client, PATIENCE, PREFACE, frame, router, row, table, touchy, until};
use titan_http2::hpack::{Block, Decoder};
use titan_routing::AssignmentState::Active;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PROTOCOL_ERROR: u32 = 1;
const CHUNKED: &str = "POST /x HTTP/1.1\r\nhost: order.x\r\nx-titan-key: 5\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n";

/// A pod on h2, with what it heard. It ends no connection by itself, and answers `/reset` with what h2 says to a request that it
/// takes for malformed.
struct Pod {
    endpoint: String,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<HeaderMap>>>,
    trailers: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Pod {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pod = Pod {
            endpoint: listener.local_addr().unwrap().to_string(),
            connections: Arc::default(),
            heads: Arc::default(),
            trailers: Arc::default(),
        };
        let (connections, heads) = (pod.connections.clone(), pod.heads.clone());
        let trailers = pod.trailers.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, SeqCst);
                tokio::spawn(serve(stream, heads.clone(), trailers.clone()));
            }
        });
        pod
    }

    fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    fn heard(&self) -> usize {
        self.heads.lock().unwrap().len()
    }
}

async fn serve(
    stream: TcpStream,
    heads: Arc<Mutex<Vec<HeaderMap>>>,
    trailers: Arc<Mutex<Vec<HeaderMap>>>,
) {
    // As hyper's and tonic's servers have it.
    let mut builder = h2::server::Builder::new();
    builder.max_header_list_size(16 * 1024);
    let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        heads.lock().unwrap().push(request.headers().clone());
        let trailers = trailers.clone();
        tokio::spawn(async move {
            if request.uri().path() == "/reset" {
                respond.send_reset(h2::Reason::PROTOCOL_ERROR);
                return;
            }
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
            }
            if let Ok(Some(fields)) = body.trailers().await {
                trailers.lock().unwrap().push(fields);
            }
            let _ = respond.send_response(Response::new(()), true);
        });
    }
}

async fn router_to(endpoint: &str, config: Config) -> Router {
    let rows = vec![row(0, 9, "cell-001", Active)];
    let table = table(1, rows, &[("cell-001", endpoint)]);
    router(config, Some(&table)).await
}

fn failures(router: &Router) -> u64 {
    router.shared.cell("cell-001").health.failures()
}

type Fields<'a> = &'a [(&'a str, &'a [u8])];

/// What a client hears of one of its requests.
#[derive(Debug, Default)]
struct Heard {
    head: Vec<(String, String)>,
    body: Vec<u8>,
    /// Whether the head was all of it.
    head_alone: bool,
    reset: Option<u32>,
}

impl Heard {
    fn field(&self, name: &str) -> &str {
        let field = self.head.iter().find(|field| field.0 == name);
        field.map_or("", |field| &field.1)
    }

    fn status(&self) -> &str {
        self.field(":status")
    }
}

/// A client that says over HTTP/2 what no library would.
struct Raw {
    stream: TcpStream,
    decoder: Decoder,
    next: u32,
}

impl Raw {
    async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        Raw {
            stream,
            decoder: Decoder::default(),
            next: 1,
        }
    }

    /// A request for key 5 of `order`: these fields, and others where they are not among them.
    async fn ask(&mut self, fields: Fields<'_>, trailers: Option<Fields<'_>>) -> Heard {
        let usual: [(&str, &[u8]); 4] = [
            (":method", b"POST"),
            (":scheme", b"http"),
            (":path", b"/x"),
            (":authority", b"order.x"),
        ];
        let mut all = Vec::new();
        for (name, value) in usual {
            let said = fields.iter().find(|field| field.0 == name);
            all.push((name, said.map_or(value, |said| said.1)));
        }
        all.extend(fields.iter().filter(|field| !field.0.starts_with(':')));
        all.push(("x-titan-key", b"5"));
        let id = self.next;
        self.next += 2;
        let end = if trailers.is_none() { END_STREAM } else { 0 };
        let mut out = Vec::new();
        let block = literals(&all);
        let mut parts = block.chunks(16 * 1024).peekable();
        let (mut kind, mut flags) = (HEADERS, end);
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                flags |= END_HEADERS;
            }
            out.extend(frame(kind, flags, id, part));
            (kind, flags) = (CONTINUATION, 0);
        }
        if let Some(trailers) = trailers {
            out.extend(frame(DATA, 0, id, b"x"));
            let flags = END_STREAM | END_HEADERS;
            out.extend(frame(HEADERS, flags, id, &literals(trailers)));
        }
        self.stream.write_all(&out).await.unwrap();
        let heard = tokio::time::timeout(PATIENCE, self.hear(id));
        heard.await.unwrap()
    }

    async fn hear(&mut self, id: u32) -> Heard {
        let mut heard = Heard::default();
        loop {
            let (kind, flags, stream, payload) = read_frame(&mut self.stream).await.unwrap();
            assert_ne!(kind, GOAWAY, "{payload:?}");
            if stream != id {
                continue;
            }
            let end = flags & END_STREAM != 0;
            match kind {
                HEADERS => {
                    let mut block = Block::default();
                    let decoded = self.decoder.decode(&payload, &mut block, 1 << 16);
                    assert!(decoded.is_ok());
                    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                    for field in block.fields() {
                        let field = (text(block.name(field)), text(block.value(field)));
                        heard.head.push(field);
                    }
                    heard.head_alone = end;
                }
                DATA => heard.body.extend(payload),
                RST_STREAM => {
                    heard.reset = Some(u32::from_be_bytes(payload.try_into().unwrap()));
                    return heard;
                }
                _ => continue,
            }
            if end {
                return heard;
            }
        }
    }
}

async fn read_frame(stream: &mut TcpStream) -> std::io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await?;
    let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Ok((head[3], head[4], id, payload))
}

fn literals(fields: Fields<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_bytes(), value] {
            // RFC 7541, section 5.1.
            let mut length = text.len();
            if length < 127 {
                block.push(u8::try_from(length).unwrap());
            } else {
                block.push(127);
                length -= 127;
                while length >= 128 {
                    block.push(u8::try_from(length % 128).unwrap() | 128);
                    length /= 128;
                }
                block.push(u8::try_from(length).unwrap());
            }
            block.extend(text);
        }
    }
    block
}

async fn raw(router: &Router, request: &str) -> String {
    support::raw(TcpStream::connect(router.listen).await.unwrap(), request).await
}

#[tokio::test]
async fn no_request_ends_the_connections_of_others() {
    let pod = Pod::start().await;
    let router = router_to(&pod.endpoint, touchy(3)).await;
    let mut client = Raw::connect(router.listen).await;
    for path in ["/x", "/\u{e9}?\u{e9}"] {
        let heard = client.ask(&[(":path", path.as_bytes())], None).await;
        assert_eq!(heard.status(), "200", "{path}: {heard:?}");
    }
    let bad: [(&str, &[u8]); 9] = [
        (":path", b"/x#\xff"),
        (":path", b"/x?y#\xff"),
        (":path", b"/x#y"),
        (":path", b"/\xff"),
        (":path", b"/x?\xc3\x28"),
        (":authority", b"order.\xff"),
        (":authority", b"order.x#\xff"),
        (":scheme", b"http\xff"),
        (":method", b"GET\xff"),
    ];
    for field in bad {
        let heard = client.ask(&[field], None).await;
        let why = heard.field("x-titan-router-error");
        assert_eq!((heard.status(), why), ("400", "bad-request"), "{field:?}");
    }
    let heard = client.ask(&[], None).await;
    assert_eq!(heard.status(), "200");
    assert_eq!((pod.connections(), pod.heard()), (1, 3));
}

#[tokio::test]
async fn a_request_over_which_pods_leave_does_not_meet_all_of_their_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let heard = Arc::new(AtomicUsize::new(0));
    let counted = heard.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                stream.read_exact(&mut [0; 24]).await?;
                stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
                while read_frame(&mut stream).await?.0 != HEADERS {}
                counted.fetch_add(1, SeqCst);
                let leaves = [[0; 4], PROTOCOL_ERROR.to_be_bytes()].concat();
                stream.write_all(&frame(GOAWAY, 0, 0, &leaves)).await?;
                // Until the router has read it and left.
                while read_frame(&mut stream).await.is_ok() {}
                std::io::Result::Ok(())
            });
        }
    });
    let router = router_to(&endpoint, touchy(3)).await;
    let mut client = Raw::connect(router.listen).await;
    for method in ["POST", "GET"] {
        let before = heard.load(SeqCst);
        let answer = client.ask(&[(":method", method.as_bytes())], None).await;
        assert_eq!(answer.field("x-titan-router-error"), "broken", "{method}");
        let sent = heard.load(SeqCst) - before;
        assert_eq!(sent, 2, "{method}: sent, and sent once more");
    }
}

#[tokio::test]
async fn what_http1_may_say_and_http2_may_not_opens_no_circuit() {
    let pod = Pod::start().await;
    let router = router_to(&pod.endpoint, touchy(3)).await;
    for trailer in [
        "connection: x",
        "te: gzip",
        "transfer-encoding: chunked",
        "keep-alive: 5",
        "host: elsewhere",
        "content-length: 7",
    ] {
        let answer = raw(&router, &format!("{CHUNKED}{trailer}\r\nx-sum: 3\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{trailer}: {answer}");
        let trailers = pod.trailers.lock().unwrap().pop().unwrap();
        assert_eq!(trailers.len(), 1, "{trailer}: {trailers:?}");
        assert_eq!(trailers["x-sum"], "3");
    }
    for (length, body) in [("00000000000000000001", "x"), ("00000000000000000000", "")] {
        let answer = raw(
            &router,
            &format!("POST /x HTTP/1.1\r\nhost: order.x\r\nx-titan-key: 5\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{length}: {answer}");
        let head = pod.heads.lock().unwrap().pop().unwrap();
        assert_eq!(head["content-length"], body.len().to_string());
    }
    assert_eq!((failures(&router), pod.connections()), (0, 1));
}

#[tokio::test]
async fn a_request_with_two_hosts_is_refused() {
    let pod = Pod::start().await;
    let router = router_to(&pod.endpoint, touchy(3)).await;
    for target in ["/x", "http://order.x/x"] {
        let request = format!(
            "GET {target} HTTP/1.1\r\nhost: order.x\r\nhost: cart.x\r\nx-titan-key: 5\r\nconnection: close\r\n\r\n"
        );
        let answer = raw(&router, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{target}: {answer}");
        assert!(answer.contains("bad-request"), "{target}: {answer}");
    }
    assert_eq!((failures(&router), pod.heard()), (0, 0));
}

#[tokio::test]
async fn te_is_trailers_in_lower_case_over_http2() {
    let pod = Pod::start().await;
    let router = router_to(&pod.endpoint, touchy(3)).await;
    let mut client = Raw::connect(router.listen).await;
    let heard = client.ask(&[("te", b"trailers")], None).await;
    assert_eq!(heard.status(), "200");
    for _ in 0..5 {
        let heard = client.ask(&[("te", b"Trailers")], None).await;
        assert_eq!(heard.reset, Some(PROTOCOL_ERROR));
    }
    let heard = client.ask(&[], Some(&[("te", b"Trailers")])).await;
    assert_eq!(heard.reset, Some(PROTOCOL_ERROR));
    let heard = client.ask(&[], None).await;
    assert_eq!(heard.status(), "200");
    assert_eq!(failures(&router), 0);
}

#[tokio::test]
async fn what_a_pod_takes_for_malformed_opens_no_circuit_and_is_not_sent_again() {
    let pod = Pod::start().await;
    let router = router_to(&pod.endpoint, touchy(3)).await;
    let mut client = Raw::connect(router.listen).await;
    for method in ["GET", "POST"] {
        for _ in 0..5 {
            let asked: Fields<'_> = &[(":method", method.as_bytes()), (":path", b"/reset")];
            let heard = client.ask(asked, None).await;
            let why = heard.field("x-titan-router-error");
            assert_eq!((heard.status(), why), ("502", "broken"));
        }
    }
    assert_eq!((pod.heard(), failures(&router)), (10, 0));
    let heard = client.ask(&[], None).await;
    assert_eq!(heard.status(), "200");
}

#[tokio::test]
async fn trailers_do_not_speak_for_the_router() {
    let pod = Pod::start().await;
    let router = router_to(&pod.endpoint, touchy(3)).await;
    let mut client = Raw::connect(router.listen).await;
    let spoken = [
        ("x-titan-key", "7"),
        ("x-titan-epoch", "7"),
        ("x-titan-trust", "secret"),
        ("x-titan-anything", "7"),
    ];
    for other in [Some(("x-sum", "3")), None] {
        let fields: Vec<_> = spoken.into_iter().chain(other).collect();
        let bytes: Vec<_> = fields.iter().map(|it| (it.0, it.1.as_bytes())).collect();
        let heard = client.ask(&[], Some(&bytes)).await;
        assert_eq!(heard.status(), "200");
        let lines: String = fields
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let answer = raw(&router, &format!("{CHUNKED}{lines}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let came = std::mem::take(&mut *pod.trailers.lock().unwrap());
        let expected: HeaderMap = other
            .iter()
            .map(|it| (it.0.parse().unwrap(), it.1.parse().unwrap()))
            .collect();
        let most = if other.is_some() { 2 } else { 0 };
        assert_eq!(came, vec![expected; most]);
    }
}

#[tokio::test]
async fn head_is_refused_without_a_body() {
    let pod = Pod::start().await;
    let router = router_to(&pod.endpoint, touchy(3)).await;
    let mut client = Raw::connect(router.listen).await;
    let nobody: (&str, &[u8]) = (":authority", b"nobody.x");
    let get = client.ask(&[(":method", b"GET"), nobody], None).await;
    assert_eq!((get.status(), get.head_alone), ("404", false));
    assert_eq!(get.field("content-length"), get.body.len().to_string());
    let head = client.ask(&[(":method", b"HEAD"), nobody], None).await;
    assert!(head.head_alone && head.body.is_empty(), "{head:?}");
    let sorted = |mut fields: Vec<(String, String)>| {
        fields.sort();
        fields
    };
    assert_eq!(
        sorted(head.head),
        sorted(get.head),
        "as GET would have been answered"
    );
    let answer = raw(
        &router,
        "HEAD /x HTTP/1.1\r\nhost: nobody.x\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(answer.contains(&format!("content-length: {}\r\n", get.body.len())));
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn the_largest_heads_end_no_connection() {
    let with = |bytes: u32| {
        let mut config = touchy(3);
        config.limits.header_bytes = bytes;
        config
    };
    let allowed = |bytes: &u32| with(*bytes).problems().is_empty();
    let most = (1..=256).map(|kib| kib * 1024).rfind(allowed).unwrap();
    assert!(most >= 32 * 1024, "enough for what people send: {most}");
    let problems = with(most + 1).problems();
    assert!(problems[0].contains("`limits.headerBytes`"), "{problems:?}");

    let pod = Pod::start().await;
    let router = router_to(&pod.endpoint, with(most)).await;
    let mut client = Raw::connect(router.listen).await;
    let heard = client.ask(&[], None).await;
    assert_eq!(heard.status(), "200");
    // :method, :scheme, :path, :authority and the key, and the field itself.
    let others: usize = [7 + 4, 7 + 4, 5 + 2, 10 + 7, 11 + 1, 1].iter().sum();
    let room = most as usize - others - 6 * 32;
    let heard = client.ask(&[("x", &vec![b'x'; room])], None).await;
    assert_eq!(
        (heard.status(), heard.field("x-titan-router-error")),
        ("431", ""),
        "by the pod"
    );
    let heard = client.ask(&[("x", &vec![b'x'; room + 1])], None).await;
    assert_eq!(heard.status(), "431", "by the router");

    // As text it is smaller than HTTP/2 reckons it.
    let value = "x".repeat(most as usize / 95 - 20);
    let fields: String = (10..100).map(|n| format!("x-{n}: {value}\r\n")).collect();
    let answer = raw(
        &router,
        &format!("GET /x HTTP/1.1\r\nhost: order.x\r\nx-titan-key: 5\r\nconnection: close\r\n{fields}x-rest: {value}\r\nx-more: {value}\r\nx-last: {value}\r\n\r\n"),
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("limits.headerBytes"),
        "{answer}"
    );
    let good = Client::connect(router.listen).await.get(5).await;
    assert_eq!(good.status, 200);
    until("the pod", || pod.heard() == 2).await;
    assert_eq!(pod.connections(), 1);
}
