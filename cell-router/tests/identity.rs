//! Tokens: which are believed, keys that rotate, and an issuer that cannot be reached.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cell_router::config::{Config, Jwt, Span, TrustedPeers};
use cell_router::router::Router;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use support::tokens::{claims, in_seconds, signer};
use support::{Client, Pod, config, pod, row, table, until};
use titan_routing::AssignmentState::Active;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const PATH: &str = "/titan.order.v1.Orders/Get";

/// What an issuer says when it is asked for its keys.
#[derive(Clone)]
enum Says {
    Keys(Vec<Value>),
    /// This, whatever it is.
    Raw(&'static str),
    /// Nothing.
    Silence,
}

/// An issuer that publishes its keys over HTTP.
struct Issuer {
    address: SocketAddr,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start(keys: Vec<Value>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Issuer {
            address: listener.local_addr().unwrap(),
            says: Arc::new(Mutex::new(Says::Keys(keys))),
            asked: Arc::default(),
        };
        let (says, asked) = (issuer.says.clone(), issuer.asked.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                asked.fetch_add(1, SeqCst);
                let answer = match says.lock().unwrap().clone() {
                    Says::Keys(keys) => {
                        let body = json!({ "keys": keys }).to_string();
                        let length = body.len();
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
                    }
                    Says::Raw(text) => text.to_owned(),
                    Says::Silence => String::new(),
                };
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await?);
                    }
                    stream.write_all(answer.as_bytes()).await?;
                    // Until the client leaves.
                    stream.read_u8().await
                });
            }
        });
        issuer
    }

    fn says(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

/// A configuration in which keys come from this issuer's tokens alone.
fn config_with(issuer: &Issuer, refresh: Duration) -> Config {
    let mut config = config();
    config.trusted_peers = TrustedPeers::None;
    config.jwt = Some(Jwt {
        jwks: format!("http://{}/keys", issuer.address),
        ca: None,
        issuer: Some("titan".into()),
        audience: Some("shop".into()),
        refresh: Span(refresh),
    });
    config
}

async fn router(config: Config, pod: &Pod) -> Router {
    let cells = [("cell-001", &*pod.endpoint())];
    let table = table(1, vec![row(0, 99, "cell-001", Active)], &cells);
    support::router(config, Some(&table)).await
}

/// The key that the pod saw, or why it saw none.
async fn seen(client: &Client, token: &str) -> String {
    let reply = client
        .call(PATH, &[("authorization", token)])
        .await
        .unwrap();
    match reply.header("x-titan-router-error") {
        "" => reply.header("x-seen-key").to_owned(),
        error => error.to_owned(),
    }
}

#[tokio::test]
async fn tokens_are_believed_only_when_all_of_them_is_right() {
    let a = pod("a").await;
    let (known, impostor) = (signer("known"), signer("known"));
    let issuer = Issuer::start(vec![known.jwk.clone()]).await;
    let router = router(config_with(&issuer, Duration::from_mins(5)), &a).await;
    let client = Client::connect(router.listen).await;
    let good = known.token("42");
    for _ in 0..3 {
        assert_eq!(seen(&client, &good).await, "42");
    }
    let mut number = claims("");
    number["sub"] = json!(43);
    assert_eq!(seen(&client, &known.sign(&number)).await, "43");
    let headers = [("authorization", &*good), ("x-titan-key", "7")];
    let reply = client.call(PATH, &headers).await.unwrap();
    assert_eq!(reply.header("x-seen-key"), "42", "the token counts");
    assert_eq!(seen(&client, &known.token("maria")).await, "bad-key");

    let with = |name: &str, value: Value| {
        let mut claims = claims("42");
        claims[name] = value;
        known.sign(&claims)
    };
    let mut forged = good.clone();
    forged.replace_range(good.len() - 6.., "AAAAAA");
    let payload = good.split('.').nth(1).unwrap();
    let unsigned = |header: Value| {
        let header = URL_SAFE_NO_PAD.encode(header.to_string());
        format!("Bearer {header}.{payload}.")
    };
    // The public key, which everybody has, taken for a shared secret.
    let mut symmetric = Header::new(Algorithm::HS256);
    symmetric.kid = Some("known".into());
    let public = known.jwk["x"].as_str().unwrap().as_bytes();
    let symmetric = encode(&symmetric, &claims("42"), &EncodingKey::from_secret(public));
    let refused = [
        ("a forged signature", forged),
        ("expired", with("exp", json!(in_seconds(-60)))),
        ("never expires", with("exp", Value::Null)),
        ("not valid yet", with("nbf", json!(in_seconds(120)))),
        ("another issuer", with("iss", json!("somebody"))),
        ("no issuer", with("iss", Value::Null)),
        ("another audience", with("aud", json!("bank"))),
        ("no audience", with("aud", Value::Null)),
        ("nobody", with("sub", Value::Null)),
        ("another key of the same name", impostor.token("42")),
        ("alg none", unsigned(json!({"alg": "none", "kid": "known"}))),
        (
            "alg ES256 without a signature",
            unsigned(json!({"alg": "ES256", "kid": "known"})),
        ),
        (
            "alg HS256 by the public key",
            format!("Bearer {}", symmetric.unwrap()),
        ),
        ("too large", format!("{good}.{}", "x".repeat(9_000))),
        ("nonsense", "Bearer nonsense".into()),
        ("empty", "Bearer ".into()),
    ];
    let before = a.requests();
    for (what, token) in &refused {
        assert_eq!(seen(&client, token).await, "bad-token", "{what}");
    }
    assert_eq!(seen(&client, "Basic dTpw").await, "no-key");
    assert_eq!(a.requests(), before, "the cell saw none of them");
}

#[tokio::test]
async fn keys_rotate_and_unknown_ones_cannot_make_the_router_hammer_the_issuer() {
    let a = pod("a").await;
    let (first, second, unknown) = (signer("first"), signer("second"), signer("unknown"));
    let issuer = Issuer::start(vec![first.jwk.clone()]).await;
    let router = router(config_with(&issuer, Duration::from_mins(5)), &a).await;
    let client = Client::connect(router.listen).await;
    let good = first.token("42");
    assert_eq!(seen(&client, &good).await, "42");
    assert_eq!(issuer.asked(), 1);

    // The first token of the new key makes the router ask, long before the next refresh.
    issuer.says(Says::Keys(vec![first.jwk.clone(), second.jwk.clone()]));
    assert_eq!(seen(&client, &second.token("44")).await, "44");
    assert_eq!(issuer.asked(), 2);
    issuer.says(Says::Keys(vec![second.jwk.clone()]));

    let started = Instant::now();
    let flood: Vec<_> = (0..200)
        .map(|index| {
            let (client, token) = (client.clone(), unknown.token(&index.to_string()));
            tokio::spawn(async move { seen(&client, &token).await })
        })
        .collect();
    for request in flood {
        assert_eq!(request.await.unwrap(), "bad-token");
    }
    for index in 0..3 {
        assert_eq!(
            seen(&client, &unknown.token(&format!("1{index}"))).await,
            "bad-token"
        );
    }
    let most = 3 + usize::try_from(started.elapsed().as_secs()).unwrap();
    assert!(issuer.asked() <= most, "asked {} times", issuer.asked());
    assert_eq!(
        seen(&client, &good).await,
        "bad-token",
        "a key that went verifies nothing"
    );
}

#[tokio::test]
async fn an_issuer_that_cannot_be_had_leaves_the_keys_as_they_are() {
    let a = pod("a").await;
    let (known, later) = (signer("known"), signer("later"));
    let issuer = Issuer::start(vec![known.jwk.clone()]).await;
    let router = router(config_with(&issuer, Duration::from_millis(100)), &a).await;
    let client = Client::connect(router.listen).await;
    let good = known.token("42");
    assert_eq!(seen(&client, &good).await, "42");
    let faults = [
        Says::Raw("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"),
        Says::Raw("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"),
        Says::Raw("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"keys\":[]}"),
        Says::Raw("SSH-2.0-OpenSSH_9.2\r\n"),
        Says::Silence,
    ];
    for fault in faults {
        issuer.says(fault);
        let asked = issuer.asked();
        until("the issuer to be asked again", || {
            issuer.asked() >= asked + 2
        })
        .await;
        assert_eq!(seen(&client, &good).await, "42", "the last keys count");
        // Another token, which no thread remembers.
        assert_eq!(seen(&client, &known.token("43")).await, "43");
    }
    let started = Instant::now();
    assert_eq!(seen(&client, &later.token("44")).await, "bad-token");
    assert!(
        started.elapsed() < support::PATIENCE,
        "it does not wait for long"
    );
    issuer.says(Says::Keys(vec![later.jwk.clone()]));
    let back = async { while seen(&client, &later.token("44")).await != "44" {} };
    tokio::time::timeout(support::PATIENCE, back).await.unwrap();
}

#[tokio::test]
async fn without_any_key_set_nobody_is_logged_out() {
    const DOWN: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
    let a = pod("a").await;
    let known = signer("known");
    let issuer = Issuer::start(vec![known.jwk.clone()]).await;
    issuer.says(Says::Raw(DOWN));
    let router = router(config_with(&issuer, Duration::from_mins(5)), &a).await;
    let client = Client::connect(router.listen).await;
    let good = known.token("42");
    let reply = client
        .call(PATH, &[("authorization", &good)])
        .await
        .unwrap();
    assert_eq!(
        (reply.grpc_status(), reply.header("x-titan-router-error")),
        (Some(14), "no-keys")
    );
    let page = support::page(router.metrics, "/readyz").await;
    assert!(
        page.starts_with("HTTP/1.1 503") && page.contains("no-keys") && page.contains("500"),
        "{page}"
    );
    let page = support::page(router.metrics, "/metrics").await;
    assert!(
        page.contains("cell_router_key_set_age_seconds -1\n"),
        "{page}"
    );
    assert!(!page.contains("cell_router_key_set_failed_fetches 0\n"));

    issuer.says(Says::Keys(vec![known.jwk.clone()]));
    let back = async { while seen(&client, &good).await != "42" {} };
    tokio::time::timeout(support::PATIENCE, back).await.unwrap();
    let page = support::page(router.metrics, "/readyz").await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    let page = support::page(router.metrics, "/metrics").await;
    assert!(page.contains("cell_router_key_set_failed_fetches 0\n"));
    // From here on, a key that is not known is the token's fault.
    let other = signer("other");
    assert_eq!(seen(&client, &other.token("42")).await, "bad-token");
}

#[tokio::test]
async fn a_token_does_not_outlive_what_it_was_verified_with() {
    let a = pod("a").await;
    let known = signer("known");
    let issuer = Issuer::start(vec![known.jwk.clone()]).await;
    let mut config = config_with(&issuer, Duration::from_mins(5));
    config.threads = 1;
    let router = router(config.clone(), &a).await;
    let client = Client::connect(router.listen).await;
    let good = known.token("42");
    assert_eq!(seen(&client, &good).await, "42");
    for (issuer, audience, wanted) in [
        ("titan", "bank", "bad-token"),
        ("titan", "shop", "42"),
        ("other", "shop", "bad-token"),
    ] {
        let jwt = config.jwt.as_mut().unwrap();
        jwt.issuer = Some(issuer.into());
        jwt.audience = Some(audience.into());
        router.shared.use_config(config.clone()).unwrap();
        assert_eq!(seen(&client, &good).await, wanted, "{issuer} {audience}");
    }
}

/// A browser cannot set `authorization` on a WebSocket.
#[tokio::test]
async fn a_websocket_brings_its_token_among_its_protocols() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let saw = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            saw.lock()
                .unwrap()
                .push(String::from_utf8_lossy(&head).to_lowercase());
            let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: chat.v1\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let known = signer("known");
    let issuer = Issuer::start(vec![known.jwk.clone()]).await;
    let cells = [("cell-001", &*endpoint)];
    let table = table(1, vec![row(0, 99, "cell-001", Active)], &cells);
    let config = config_with(&issuer, Duration::from_mins(5));
    let router = support::router(config, Some(&table)).await;
    let open = async |protocols: &str| {
        let request = format!(
            "GET /socket HTTP/1.1\r\nHost: chat.cells.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: {protocols}\r\n\r\n"
        );
        let mut stream = TcpStream::connect(router.listen).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap().to_lowercase()
    };
    let token = known.token("42").replace("Bearer ", "titan.bearer.");
    let answer = open(&format!("chat.v2, {token},chat.v1")).await;
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(
        answer.contains("sec-websocket-protocol: chat.v1\r\n"),
        "{answer}"
    );
    {
        let heads = heads.lock().unwrap();
        assert!(heads[0].contains("x-titan-key: 42\r\n"), "{}", heads[0]);
        assert!(
            heads[0].contains("sec-websocket-protocol: chat.v2, chat.v1\r\n"),
            "{}",
            heads[0]
        );
        assert!(!heads[0].contains("titan.bearer"), "{}", heads[0]);
    }
    for refused in ["titan.bearer.nonsense, chat.v1", "chat.v1"] {
        let answer = open(refused).await;
        assert!(answer.starts_with("http/1.1 401"), "{refused}: {answer}");
    }
    assert_eq!(heads.lock().unwrap().len(), 1);
}
