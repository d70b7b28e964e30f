//! The configuration: a YAML file with the schema below, checked as a whole before any of it is used.

mod problems;
mod values;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use values::{Share, Span};

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
        /// Connections without requests are closed after this, and services that nobody asks for are looked up no more.
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
        /// Of these, requests to one cell: a cell that hangs must leave room for the others.
        per_cell_in_flight: Share = Share::Percent(50),
        /// Above this resident memory, new requests are refused; above 80% of it, new connections. 0 means no limit.
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
        /// How long such a row must last: a pod that dies takes many requests along in one moment.
        min_span: Span = Span(Duration::from_millis(200)),
        /// How long it stays open at first; doubled each time up to `max_open`.
        open: Span = Span(Duration::from_millis(500)),
        /// How long it stays open at most.
        max_open: Span = Span(Duration::from_secs(10)),
        /// The services whose answers can be late, and after which time they are.
        slow_after: BTreeMap<String, Span> = BTreeMap::new(),
        /// So many late answers of a hundred open the circuit of such a service.
        slow_percent: u32 = 50,
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
    /// How many threads the data plane has.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            threads => threads,
        }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, is not of the schema, or its values do not fit together.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config = Self::read(path)?;
        let problems = config.problems();
        if problems.is_empty() {
            return Ok(config);
        }
        Err(ConfigError::Invalid {
            path: path.to_owned(),
            problem: problems.join("; "),
        })
    }

    /// Reads a file, without checking how its values fit together.
    ///
    /// # Errors
    /// When it cannot be read or is not of the schema.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        })
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
}
