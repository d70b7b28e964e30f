//! A browser: a page, its requests and its WebSockets go through the router.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use cell_router::config::{Jwt, Span, TrustedPeers};
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use support::tokens::signer;
use support::{config, router, row, table};
use titan_routing::AssignmentState::Active;
use titan_testbed::cache;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// A cold start on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_mins(2);

/// What the page does. It reports what it saw, and whatever went wrong.
const PAGE: &str = r#"<!doctype html>
<title>chat</title>
<script>
const token = "TOKEN";

function open(protocols) {
  const socket = new WebSocket("ws://" + location.host + "/socket", protocols);
  socket.binaryType = "arraybuffer";
  return socket;
}

function event(socket, name) {
  return new Promise((resolve, reject) => {
    socket.addEventListener(name, resolve, { once: true });
    if (name !== "close") {
      socket.addEventListener("close", (end) => reject("closed with " + end.code), { once: true });
    }
  });
}

async function echo(socket, message) {
  const heard = event(socket, "message");
  socket.send(message);
  return (await heard).data;
}

async function run() {
  const socket = open(["chat.v1", "titan.bearer." + token]);
  await event(socket, "open");
  const text = [await echo(socket, "hello, wörld"), await echo(socket, "")];
  const bytes = new Uint8Array(1 << 20).map((_, index) => index * 7);
  const back = new Uint8Array(await echo(socket, bytes));
  const binary = back.length === bytes.length && back.every((byte, index) => byte === bytes[index]);
  const closing = event(socket, "close");
  socket.close(4000, "enough");
  const { code, reason, wasClean } = await closing;
  const refused = await event(open(["chat.v1", "titan.bearer." + token + "x"]), "close");
  return {
    protocol: socket.protocol, text, binary, code, reason, wasClean,
    refused: [refused.code, refused.wasClean],
  };
}

run().catch((error) => ({ error: String(error) })).then((report) => fetch("/report", {
  method: "POST",
  headers: { authorization: "Bearer " + token },
  body: JSON.stringify(report),
}));
</script>
"#;

/// What reached the pod.
#[derive(Debug)]
enum Seen {
    Socket(HeaderMap),
    Report(HeaderMap, Value),
}

/// A pod of a service that has a page, takes reports, and says back what it hears on its WebSocket.
async fn chat_pod(page: String) -> (SocketAddr, mpsc::UnboundedReceiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, received) = mpsc::unbounded_channel();
    let page = Bytes::from(page);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (page, seen) = (page.clone(), seen.clone());
            let service = service_fn(move |request| answer(page.clone(), seen.clone(), request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection.with_upgrades());
        }
    });
    (address, received)
}

async fn answer(
    page: Bytes,
    seen: mpsc::UnboundedSender<Seen>,
    mut request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let response = match request.uri().path() {
        "/" => Response::builder()
            .header(header::CONTENT_TYPE, "text/html; charset=utf-8")
            .body(page.into()),
        "/socket" => {
            let key = request.headers().get(header::SEC_WEBSOCKET_KEY).unwrap();
            let accept = derive_accept_key(key.as_bytes());
            tokio::spawn(echo(hyper::upgrade::on(&mut request)));
            seen.send(Seen::Socket(request.headers().clone())).unwrap();
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, "websocket")
                .header(header::SEC_WEBSOCKET_ACCEPT, accept)
                .header(header::SEC_WEBSOCKET_PROTOCOL, "chat.v1")
                .body(Full::default())
        }
        "/report" => {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let report = serde_json::from_slice(&body).unwrap();
            seen.send(Seen::Report(head.headers, report)).unwrap();
            Response::builder().body(Full::default())
        }
        _ => Response::builder()
            .status(StatusCode::NOT_FOUND)
            .body(Full::default()),
    };
    Ok(response.unwrap())
}

async fn echo(upgrade: OnUpgrade) {
    let stream = TokioIo::new(upgrade.await.unwrap());
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// Chromium with a page open; it ends when it is dropped.
fn browse(url: &str, profile: &Path) -> Child {
    let program = cache::browser().unwrap_or_else(|missing| panic!("{missing}"));
    Command::new(program)
        // Its sandbox wants namespaces, which root in a container does not have; all it sees here is ours.
        .args(["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--no-proxy-server", "--disable-background-networking"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(url)
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browsers_page_requests_and_websocket_go_through_unchanged() {
    let known = signer("known");
    let files = tempfile::tempdir().unwrap();
    let jwks = files.path().join("jwks.json");
    std::fs::write(&jwks, json!({ "keys": [known.jwk] }).to_string()).unwrap();
    let token = known.token("42").replace("Bearer ", "");
    let (pod, mut seen) = chat_pod(PAGE.replace("TOKEN", &token)).await;
    let endpoint = pod.to_string();
    let cells = [("cell-001", &*endpoint)];
    let table = table(1, vec![row(0, 99, "cell-001", Active)], &cells);
    let mut config = config();
    config.trusted_peers = TrustedPeers::None;
    // The page itself: a browser opens it without a token.
    config.anonymous = true;
    config.jwt = Some(Jwt {
        jwks: format!("file://{}", jwks.display()),
        ca: None,
        issuer: Some("titan".into()),
        audience: Some("shop".into()),
        refresh: Span(Duration::from_mins(5)),
    });
    let router = router(config, Some(&table)).await;
    // Browsers know by themselves where names below `localhost` are.
    let url = format!("http://chat.localhost:{}/", router.listen.port());
    let profile = files.path().join("profile");
    let browser = browse(&url, &profile);
    let mut next = async || {
        let seen = tokio::time::timeout(PATIENCE, seen.recv()).await;
        seen.unwrap().unwrap()
    };

    let Seen::Socket(headers) = next().await else {
        panic!("a report before the WebSocket");
    };
    assert_eq!(headers["x-titan-key"], "42");
    assert_eq!(
        headers["sec-websocket-protocol"], "chat.v1",
        "the token ends at the router"
    );
    assert!(headers.contains_key("sec-websocket-extensions"));
    let Seen::Report(headers, report) = next().await else {
        panic!("the pod saw the WebSocket with a bad token");
    };
    assert_eq!(headers["x-titan-key"], "42");
    assert_eq!(
        report,
        json!({
            "protocol": "chat.v1", "text": ["hello, wörld", ""], "binary": true,
            "code": 4000, "reason": "enough", "wasClean": true, "refused": [1006, false],
        })
    );
    drop(browser);
}
