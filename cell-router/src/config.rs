//! The configuration: a YAML file with the schema below, checked as a whole before any of it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Everything that can be configured. Every field has a default; unknown fields are refused.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Where requests come in. Read at start.
    pub listen: SocketAddr,
    /// Metrics and health. Read at start.
    pub metrics: SocketAddr,
    /// Who serves a key and why; loopback only. Read at start.
    pub admin: SocketAddr,
    /// Threads of the data plane; 0 means one a core. Read at start.
    pub threads: usize,
    /// TLS towards clients. Read at start; the files are read again when they change.
    pub tls: Option<Tls>,
    /// Whose `x-titan-key` is believed.
    pub trusted_peers: TrustedPeers,
    /// A file with the secret that trusted peers send in `x-titan-trust`.
    pub trust_secret_file: Option<PathBuf>,
    /// How tokens are verified; without it, no token is believed.
    pub jwt: Option<Jwt>,
    /// Whether requests without a key are served, by a healthy cell.
    pub anonymous: bool,
    /// The services and their ports.
    pub services: BTreeMap<String, Service>,
    /// Addresses of names that are not to be looked up in DNS.
    pub hosts: BTreeMap<String, Vec<SocketAddr>>,
    /// Connections to the cells.
    pub upstream: Upstream,
    /// Limits towards clients.
    pub limits: Limits,
    /// When a cell is given a rest.
    pub breaker: Breaker,
    /// When a request is tried again.
    pub retry: Retry,
    /// What happens to requests for a range that is being moved.
    pub hold: Hold,
    /// How the process ends.
    pub drain: Drain,
    /// Which requests are logged.
    pub access_log: AccessLog,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            metrics: SocketAddr::from(([0, 0, 0, 0], 9090)),
            admin: SocketAddr::from(([127, 0, 0, 1], 9091)),
            threads: 0,
            tls: None,
            trusted_peers: TrustedPeers::None,
            trust_secret_file: None,
            jwt: None,
            anonymous: false,
            services: BTreeMap::new(),
            hosts: BTreeMap::new(),
            upstream: Upstream::default(),
            limits: Limits::default(),
            breaker: Breaker::default(),
            retry: Retry::default(),
            hold: Hold::default(),
            drain: Drain::default(),
            access_log: AccessLog::default(),
        }
    }
}

/// Whose `x-titan-key` is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TrustedPeers {
    /// Nobody's: keys come from verified tokens alone.
    #[default]
    None,
    /// Theirs who send the secret in `x-titan-trust`, or show a certificate of the client CA.
    Secret,
    /// Everybody's: only for networks in which nobody but trusted peers can reach the router.
    Any,
}

/// TLS towards clients.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Clients that show a certificate of this CA are trusted peers.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

/// How tokens are verified. The key is made from the claim `sub`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Jwt {
    /// Where the keys (JWKS) are fetched: `http://...`, `https://...` with `ca`, or `file:///...`.
    pub jwks: String,
    /// The CA of an `https` address, PEM.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// The issuer that tokens must name.
    #[serde(default)]
    pub issuer: Option<String>,
    /// The audience that tokens must name.
    #[serde(default)]
    pub audience: Option<String>,
    /// How often the keys are fetched again. A token of an unknown key makes that happen at once, but not more often
    /// than every second.
    #[serde(default = "Jwt::default_refresh")]
    pub refresh: Span,
}

impl Jwt {
    fn default_refresh() -> Span {
        Span(Duration::from_mins(5))
    }
}

/// A service: its port, or more.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// The port that its pods listen on.
    pub port: u16,
    /// What its pods speak.
    pub protocol: Protocol,
}

/// What the pods of a service speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/2 without TLS, as gRPC does.
    #[default]
    H2,
    /// HTTP/1.1, as WebSocket needs.
    H1,
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Full {
            port: u16,
            #[serde(default)]
            protocol: Protocol,
        }
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a port, or {port, protocol: h2|h1}")]
        enum Form {
            Port(u16),
            Full(Full),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Port(port) => Service {
                port,
                protocol: Protocol::H2,
            },
            Form::Full(Full { port, protocol }) => Service { port, protocol },
        })
    }
}

/// Declares a struct of the configuration with a default for each field.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        impl Default for $name {
            fn default() -> Self {
                $name { $($field: $default,)* }
            }
        }
    };
}

section! {
    /// Connections to the cells, of each thread.
    Upstream {
        /// Connections to one pod at most; a second one opens when the first is busy.
        connections_per_pod: usize = 4,
        /// How many requests a connection carries before another one opens.
        streams_per_connection: usize = 64,
        /// A connection attempt is given up after this.
        connect_timeout: Span = Span(Duration::from_secs(1)),
        /// Names are looked up again after their TTL, but not more often than this.
        min_ttl: Span = Span(Duration::from_secs(2)),
        /// Names are looked up again after this even when their TTL is longer.
        max_ttl: Span = Span(Duration::from_secs(30)),
        /// A pod that failed this often in a row gets no requests for a second, while others are there.
        eject_after: u32 = 3,
        /// A silent connection is probed with a PING this often.
        keep_alive: Span = Span(Duration::from_secs(20)),
        /// Connections without requests are closed after this.
        idle: Span = Span(Duration::from_mins(5)),
    }
}

section! {
    /// Limits towards clients.
    Limits {
        /// Connections of the whole process.
        connections: usize = 20_000,
        /// Streams of one HTTP/2 connection.
        streams_per_connection: u32 = 256,
        /// Requests in flight in the whole process; more are refused.
        in_flight: usize = 20_000,
        /// Above this resident memory, new requests are refused. 0 means no limit.
        memory_bytes: u64 = 192 * 1024 * 1024,
        /// Size of all headers of a request.
        header_bytes: u32 = 16 * 1024,
        /// Size of a request's body; 0 means no limit.
        body_bytes: u64 = 64 * 1024 * 1024,
        /// How long the headers of a request may take to arrive.
        header_timeout: Span = Span(Duration::from_secs(10)),
        /// A connection without requests is closed after this.
        idle: Span = Span(Duration::from_mins(5)),
        /// A client that takes nothing for so long is cut off.
        stalled: Span = Span(Duration::from_secs(30)),
        /// The deadline of requests that bring none, until the first byte of the answer. 0 means none.
        default_deadline: Span = Span(Duration::from_secs(30)),
        /// Longer deadlines are cut to this. 0 means no limit.
        max_deadline: Span = Span(Duration::from_hours(1)),
        /// Requests a second of one key; 0 means no limit.
        per_key_rate: u32 = 0,
        /// Requests of one key at once before the rate counts.
        per_key_burst: u32 = 50,
        /// Requests a second of one cell; 0 means no limit.
        per_cell_rate: u32 = 0,
        /// Requests of one cell at once before the rate counts.
        per_cell_burst: u32 = 1000,
    }
}

section! {
    /// When a cell, or one service of it, is given a rest.
    Breaker {
        /// Failures in a row that open it; 0 turns it off.
        consecutive_failures: u32 = 50,
        /// How long it stays open at first; doubled each time up to `max_open`.
        open: Span = Span(Duration::from_millis(500)),
        /// How long it stays open at most.
        max_open: Span = Span(Duration::from_secs(10)),
        /// How often failures are reported to the registry.
        report_interval: Span = Span(Duration::from_secs(1)),
    }
}

section! {
    /// When a request is tried again. A body is replayed only when it was kept whole.
    Retry {
        /// Retries, as percent of the requests.
        budget_percent: u32 = 10,
        /// Retries a second that are allowed in any case.
        min_per_second: u32 = 10,
        /// Bodies up to this size are kept for a replay.
        body_bytes: usize = 16 * 1024,
        /// How long to wait for the newer table that a service spoke of.
        table_wait: Span = Span(Duration::from_millis(500)),
    }
}

section! {
    /// What happens to requests for a range that is being moved or is fenced.
    Hold {
        /// How long they wait. Requests for a moving range then go to its old cell; those for a fenced one are refused.
        max_wait: Span = Span(Duration::from_secs(5)),
        /// How many wait for one range, in each thread.
        max_requests: usize = 512,
        /// How many bytes of their bodies are taken in while they wait, in each thread.
        max_bytes: usize = 16 * 1024 * 1024,
    }
}

section! {
    /// How the process ends after SIGTERM.
    Drain {
        /// How long it goes on as before, but not ready, so that load balancers turn away.
        delay: Span = Span(Duration::from_secs(3)),
        /// How long requests in flight may take after that.
        timeout: Span = Span(Duration::from_secs(30)),
    }
}

section! {
    /// Which requests are logged.
    AccessLog {
        /// One in so many; 0 logs none.
        sample: u32 = 1000,
        /// Failures by the router itself or by the cell are all logged, up to so many a second.
        errors_per_second: u32 = 20,
    }
}

/// A duration as people write it: `250ms`, `5s`, `2m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let millis = self.0.as_millis();
        if millis.is_multiple_of(1000) {
            serializer.collect_str(&format_args!("{}s", millis / 1000))
        } else {
            serializer.collect_str(&format_args!("{millis}ms"))
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_span(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{text}` is not a duration; write a whole number and ms, s, m or h, for example 250ms"
            ))
        })
    }
}

fn parse_span(text: &str) -> Option<Span> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => number,
        "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        _ => return None,
    };
    Some(Span(Duration::from_millis(millis)))
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not the YAML that is wanted.
    #[error("the configuration {path} is wrong: {source}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_yaml::Error,
    },
    /// The values do not fit together.
    #[error("the configuration {path} is wrong: {problem}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What to change.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, is not of the schema, or its values do not fit together.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let config = Self::parse(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        })?;
        match config.problems().into_iter().next() {
            Some(problem) => Err(ConfigError::Invalid {
                path: path.to_owned(),
                problem,
            }),
            None => Ok(config),
        }
    }

    /// Reads the text of a file, without checking how its values fit together.
    ///
    /// # Errors
    /// When it is not of the schema.
    pub fn parse(text: &str) -> Result<Self, serde_yaml::Error> {
        if text.trim().is_empty() {
            return Ok(Config::default());
        }
        serde_yaml::from_str(text)
    }

    /// What does not fit together, as sentences.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut say = |wrong: bool, what: &str| {
            if wrong {
                problems.push(what.to_owned());
            }
        };
        say(
            !self.admin.ip().is_loopback(),
            "`admin` must be a loopback address: it shows where users live",
        );
        let has_client_ca = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        say(
            self.trusted_peers == TrustedPeers::Secret
                && self.trust_secret_file.is_none()
                && !has_client_ca,
            "`trustedPeers: secret` needs `trustSecretFile` or `tls.clientCa`",
        );
        say(
            self.trusted_peers == TrustedPeers::None && self.trust_secret_file.is_some(),
            "`trustSecretFile` has no effect with `trustedPeers: none`; set `trustedPeers: secret`",
        );
        say(
            self.limits.header_bytes < 1024,
            "`limits.headerBytes` must be at least 1024",
        );
        say(
            self.limits.streams_per_connection == 0 || self.upstream.streams_per_connection == 0,
            "`streamsPerConnection` must be at least 1",
        );
        say(
            self.upstream.connections_per_pod == 0,
            "`upstream.connectionsPerPod` must be at least 1",
        );
        say(
            self.retry.budget_percent > 100,
            "`retry.budgetPercent` must not be above 100",
        );
        let mut packages = BTreeSet::new();
        for (name, service) in &self.services {
            say(
                !is_dns_label(name),
                &format!("`services.{name}` is not a DNS label: use a-z, 0-9 and `-`"),
            );
            say(
                service.port == 0,
                &format!("`services.{name}` needs a port from 1 to 65535"),
            );
            say(
                !packages.insert(name.replace('-', "_")),
                &format!("`services.{name}` has the same gRPC package as another service"),
            );
        }
        problems
    }
}

fn is_dns_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}
