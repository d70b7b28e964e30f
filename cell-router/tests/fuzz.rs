//! Fuzz targets: everything that is parsed from outside, fed with valid input that was tampered with.
//!
//! They run for a few seconds each as tests; `TITAN_FUZZ_SECONDS` makes it longer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::IpAddr;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use bolero::check;
use cell_router::config::{Config, Jwt, Span, TrustedPeers};
use cell_router::identity::{Claim, Identity, KeySet, Peer};
use cell_router::services::Services;
use cell_router::{deadline, h1, head};
use http::HeaderValue;
use prost::Message as _;
use support::{row, table};
use titan_http2::hpack::Block;
use titan_routing::AssignmentState::{Active, Fenced, Moving, Pending};
use titan_routing::client::TableFile;
use titan_routing::{Delta, Key, KeyspaceMode, RoutingTable, proto};

/// Changes of a valid input: what, where, and with which byte.
type Edits = Vec<(u8, u16, u8)>;

/// Applies the changes. Bytes that mean something to some parser come up often.
fn tampered(seed: &[u8], edits: &Edits) -> Vec<u8> {
    const TELLING: [u8; 16] = *b"\0\x01\x7f\x80\xff0-9{}[]\",: ";
    let mut bytes = seed.to_vec();
    for (what, at, byte) in edits.iter().take(8) {
        let at = usize::from(*at) % (bytes.len() + 1);
        let telling = TELLING[usize::from(*byte) % TELLING.len()];
        let to = (at + usize::from(*byte)).min(bytes.len());
        match what % 7 {
            0 => bytes.insert(at, *byte),
            1 => bytes.insert(at, telling),
            2 => bytes.get_mut(at).into_iter().for_each(|old| *old = *byte),
            3 => bytes.get_mut(at).into_iter().for_each(|old| *old = telling),
            4 => drop(bytes.drain(at..to)),
            5 => bytes.extend_from_within(at..to),
            _ => bytes.truncate(at),
        }
    }
    bytes
}

fn time() -> Duration {
    let seconds = std::env::var("TITAN_FUZZ_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(3))
}

/// Runs a target with one of the seeds, tampered with.
macro_rules! fuzz {
    ($seeds:expr, $target:expr) => {{
        let seeds: Vec<Vec<u8>> = $seeds;
        let target = $target;
        for seed in &seeds {
            target(seed, seed);
        }
        check!()
            .with_type::<(u8, Edits)>()
            .with_test_time(time())
            .for_each(|(which, edits)| {
                let seed = &seeds[usize::from(*which) % seeds.len()];
                target(seed, &tampered(seed, edits));
            });
    }};
}

static TABLE: LazyLock<RoutingTable> = LazyLock::new(|| {
    let rows = vec![
        row(0, 9_999, "cell-001", Active),
        row(10_000, 19_999, "cell-002", Moving),
        row(30_000, 39_999, "cell-003", Fenced),
        row(1 << 62, (1 << 63) - 1, "cell-004", Pending),
    ];
    let cells = ["cell-001", "cell-002", "cell-003", "cell-004"].map(|cell| (cell, "svc.local"));
    RoutingTable::clone(&table(7, rows, &cells))
});

/// The same with other rows, at a later epoch.
static LATER: LazyLock<RoutingTable> = LazyLock::new(|| {
    let rows = vec![
        row(0, 4_999, "cell-001", Active),
        row(5_000, 9_999, "cell-005", Active),
        row(30_000, 39_999, "cell-003", Active),
    ];
    let cells = ["cell-001", "cell-003", "cell-005"].map(|cell| (cell, "svc.local"));
    RoutingTable::clone(&table(9, rows, &cells))
});

/// What every table keeps to, wherever it came from.
fn is_sound(table: &RoutingTable) {
    for pair in table.assignments().windows(2) {
        assert!(
            pair[0].range.last() < pair[1].range.first(),
            "sorted, no overlap"
        );
    }
    for row in table.assignments() {
        for key in [row.range.first(), row.range.last()] {
            let found = table.locate(key).unwrap();
            assert!(found.pinned || table.cells()[found.cell].cell == row.cell);
        }
    }
    let again = RoutingTable::try_from(proto::Snapshot::from(table)).unwrap();
    assert_eq!(again, *table);
}

#[test]
fn a_table_on_the_wire() {
    let seeds = [&*TABLE, &*LATER].map(|table| proto::Table::from(table).encode_to_vec());
    fuzz!(seeds.to_vec(), |_: &[u8], bytes: &[u8]| {
        if let Ok(message) = proto::Table::decode(bytes)
            && let Ok(table) = RoutingTable::try_from(message)
        {
            is_sound(&table);
        }
    });
}

#[test]
fn a_snapshot_is_what_its_checksum_says() {
    let seeds = [&*TABLE, &*LATER].map(|table| proto::Snapshot::from(table).encode_to_vec());
    fuzz!(seeds.to_vec(), |_: &[u8], bytes: &[u8]| {
        if let Ok(message) = proto::Snapshot::decode(bytes)
            && let Ok(table) = RoutingTable::try_from(message)
        {
            assert!(
                table == *TABLE || table == *LATER,
                "another table: {table:?}"
            );
        }
    });
}

#[test]
fn a_delta_makes_the_table_that_was_meant_or_none() {
    let deltas = [
        Delta::between(&TABLE, &LATER),
        Delta::between(&LATER, &TABLE),
    ];
    let seeds = deltas.map(|delta| proto::Delta::from(&delta).encode_to_vec());
    fuzz!(seeds.to_vec(), |_: &[u8], bytes: &[u8]| {
        let Ok(message) = proto::Delta::decode(bytes) else {
            return;
        };
        let Ok(delta) = Delta::try_from(message) else {
            return;
        };
        for base in [&*TABLE, &*LATER] {
            if let Ok(made) = delta.apply(base) {
                assert!(made == *TABLE || made == *LATER, "another table: {made:?}");
            }
        }
    });
}

#[test]
fn a_table_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let file = TableFile::new(directory.path(), "main");
    file.save(&TABLE).unwrap();
    let seeds = vec![std::fs::read(file.path()).unwrap()];
    let file = TableFile::new(Path::new("/nowhere"), "main");
    fuzz!(seeds, |_: &[u8], bytes: &[u8]| {
        if let Ok(table) = file.decode(bytes) {
            assert_eq!(table, *TABLE, "another table");
        }
        // Without the checksum, which keeps most of it out.
        let plain = serde_json::from_slice::<serde_json::Value>(bytes);
        if let Ok(plain) = plain
            && let Ok(table) = serde_json::from_value(plain["table"].clone())
        {
            is_sound(&table);
        }
    });
}

#[test]
fn a_deadline() {
    let seeds =
        ["1H", "30S", "250m", "99999999u", "00000001n"].map(|text| text.as_bytes().to_vec());
    fuzz!(seeds.to_vec(), |_: &[u8], bytes: &[u8]| {
        let Some(read) = deadline::parse(bytes) else {
            return;
        };
        assert!((2..=9).contains(&bytes.len()));
        let passed_on = deadline::parse(deadline::text(read).as_bytes()).unwrap();
        assert!(passed_on <= read, "{read:?} became {passed_on:?}");
        let kept = passed_on + Duration::from_millis(1) >= read;
        assert!(kept || passed_on == Duration::from_millis(99_999_999));
    });
}

#[test]
fn a_service_by_path_or_host() {
    let config = support::config();
    let services = Services::new(&config.services);
    let seeds = [
        "/titan.order.v1.Orders/Get",
        "cart.example.com",
        "chat.example.com:8080",
        "order.example.com:443",
        "*",
    ];
    let seeds = seeds.map(|text| text.as_bytes().to_vec()).to_vec();
    fuzz!(seeds, |_: &[u8], bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        for (path, host) in [(&*text, None), ("/", Some(&*text)), (&*text, Some(&*text))] {
            if let Some(index) = services.find(path, host) {
                let name = &services.get(index).unwrap().name;
                assert!(text.contains(&**name), "{name} in {text}");
            }
        }
    });
}

#[test]
fn a_key_and_other_headers() {
    let config = support::config();
    let identity = Identity::new();
    let peer = Peer {
        ip: IpAddr::from([127, 0, 0, 1]),
        certified: false,
    };
    let seeds = [
        "5",
        "9223372036854775807",
        "close, x-titan-key",
        "Bearer a.b.c",
        "1S",
    ];
    let seeds = seeds.map(|text| text.as_bytes().to_vec()).to_vec();
    fuzz!(seeds, |_: &[u8], bytes: &[u8]| {
        let Ok(value) = HeaderValue::from_bytes(bytes) else {
            return;
        };
        let mut parts = http::Request::new(()).into_parts().0;
        for name in [
            "connection",
            "x-titan-key",
            "authorization",
            "grpc-timeout",
            "host",
            "upgrade",
            "traceparent",
        ] {
            parts.headers.append(name, value.clone());
        }
        let mut block = h1::request_from(&mut parts);
        let names = |block: &Block| -> Vec<String> {
            let fields = block.fields().iter();
            fields
                .map(|field| String::from_utf8(block.name(field).to_vec()).unwrap())
                .collect()
        };
        let of_connection = ["connection", "upgrade", "host"];
        assert!(
            names(&block)
                .iter()
                .all(|name| !of_connection.contains(&&**name))
        );
        if let Ok(claim) = identity.claim(&config, KeyspaceMode::UserId, &peer, &block) {
            let number: u64 = std::str::from_utf8(bytes).unwrap().parse().unwrap();
            assert_eq!(claim, Claim::Key(Key::new(number).unwrap()));
        }
        let _ = deadline::of(&block);
        let _ = (head::host(&block), head::path(&block), head::method(&block));
        head::clean_request(&mut block);
        head::trace(&mut block);
        let left = names(&block);
        assert!(left.iter().all(|name| !name.starts_with("x-titan-")));
        assert!(left.iter().any(|name| name == "traceparent"));
        assert!(h1::fields_to(&block).len() <= left.len());
    });
}

#[test]
fn a_token_and_the_keys_that_verify_it() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let (x, y) = pair.public_key_raw()[1..].split_at(32);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let set = serde_json::json!({ "keys": [
        { "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "one", "x": x, "y": y },
        { "kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "kid": "two" },
    ]});
    let set = set.to_string().into_bytes();
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
    header.kid = Some("one".into());
    let claims = serde_json::json!({ "sub": "42", "exp": 4_000_000_000_u64 });
    let key = jsonwebtoken::EncodingKey::from_ec_der(&pair.serialize_der());
    let token = jsonwebtoken::encode(&header, &claims, &key)
        .unwrap()
        .into_bytes();
    let jwt = Jwt {
        jwks: String::new(),
        ca: None,
        issuer: None,
        audience: None,
        refresh: Span(Duration::from_mins(5)),
    };
    let good = KeySet::parse(&set, 1).unwrap();
    fuzz!(vec![token, set], |seed: &[u8], bytes: &[u8]| {
        if seed.starts_with(b"{") {
            let _ = KeySet::parse(bytes, 2);
        } else if let Ok(text) = std::str::from_utf8(bytes)
            && let Ok(user) = good.user(&jwt, text)
        {
            // The last character of a signature has bits that mean nothing; the rest is as it was signed.
            assert_eq!(user, "42");
            assert_eq!(text.rsplit_once('.').unwrap().0.as_bytes(), {
                let dot = seed.iter().rposition(|byte| *byte == b'.').unwrap();
                &seed[..dot]
            });
        }
    });
}

#[test]
fn a_configuration() {
    let mut config = support::config();
    config.trusted_peers = TrustedPeers::Secret;
    let full = serde_yaml::to_string(&config).unwrap();
    let short =
        "services: { order: 50001, chat: { port: 50020, protocol: h1 } }\nlimits: { idle: 5m }\n";
    let seeds = vec![full.into_bytes(), short.as_bytes().to_vec(), Vec::new()];
    fuzz!(seeds, |_: &[u8], bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(config) = Config::parse(&text) {
            let written = serde_yaml::to_string(&config).unwrap();
            assert_eq!(Config::parse(&written).unwrap(), config);
            if config.problems().is_empty() {
                let _ = Services::new(&config.services);
            }
        }
    });
}
