//! Kafka: one broker that is its own controller.

use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::{self, Server, Spec};
use crate::{Error, Result, cache};

/// A Kafka broker shared by this process: give topics names of your own.
pub fn kafka() -> Result<&'static Kafka> {
    static SHARED: OnceLock<Result<Kafka>> = OnceLock::new();
    SHARED
        .get_or_init(Kafka::start)
        .as_ref()
        .map_err(|error| Error::Shared(error.to_string()))
}

/// A Kafka broker.
#[derive(Debug)]
pub struct Kafka {
    server: Server,
    bootstrap: String,
}

/// Where a single broker keeps its data and how it is reached.
#[derive(Debug)]
pub struct Broker<'a> {
    /// Its folder: configuration and data.
    pub dir: &'a Path,
    /// The address it listens on and tells clients.
    pub address: IpAddr,
    /// The port for clients.
    pub port: u16,
    /// The port of its controller, on loopback.
    pub controller_port: u16,
    /// The Java heap, in MiB.
    pub heap: u16,
}

impl Broker<'_> {
    fn properties(&self) -> PathBuf {
        self.dir.join("server.properties")
    }

    /// Writes the configuration and formats the data folder, unless that is done.
    pub fn prepare(&self) -> Result<()> {
        std::fs::create_dir_all(self.dir)
            .map_err(Error::io(format!("create {}", self.dir.display())))?;
        let data = self.dir.join("data");
        let (address, port, controller) = (self.address, self.port, self.controller_port);
        let text = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=CLIENTS://{address}:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=CLIENTS://{address}:{port}\n\
             listener.security.protocol.map=CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             inter.broker.listener.name=CLIENTS\ncontroller.listener.names=CONTROLLER\n\
             log.dirs={data}\nnum.partitions=1\nauto.create.topics.enable=false\n\
             default.replication.factor=1\noffsets.topic.replication.factor=1\noffsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=4\nshare.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\ngroup.initial.rebalance.delay.ms=0\n\
             num.network.threads=2\nnum.io.threads=2\nbackground.threads=2\nlog.cleaner.dedupe.buffer.size=16777216\n",
            data = data.display(),
        );
        std::fs::write(self.properties(), text)
            .map_err(Error::io("write Kafka's configuration"))?;
        if data.join("meta.properties").exists() {
            return Ok(());
        }
        let properties = self.properties().display().to_string();
        let mut args = java_args(64)?;
        args.extend(
            [
                "kafka.tools.StorageTool",
                "format",
                "-t",
                CLUSTER_ID,
                "-c",
                &properties,
            ]
            .map(str::to_owned),
        );
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        process::run(None, &java()?, &args, &[])?;
        Ok(())
    }

    /// The command line that runs the broker.
    pub fn command(&self) -> Result<(PathBuf, Vec<String>)> {
        let mut args = java_args(self.heap)?;
        args.extend([
            "kafka.Kafka".to_owned(),
            self.properties().display().to_string(),
        ]);
        Ok((java()?, args))
    }

    /// Whether clients can connect.
    #[must_use]
    pub fn accepts(&self) -> bool {
        TcpStream::connect_timeout(&(self.address, self.port).into(), Duration::from_secs(1))
            .is_ok()
    }
}

/// Any 16 bytes in base64 will do.
const CLUSTER_ID: &str = "dGl0YW4tY2VsbHMtMDAwMQ";

fn java() -> Result<PathBuf> {
    cache::require("Java", PathBuf::from("/usr/bin/java"))
}

fn java_args(heap: u16) -> Result<Vec<String>> {
    let classes = cache::kafka_libs()?.join("*").display().to_string();
    Ok([
        format!("-Xmx{heap}m"),
        "-Xshare:auto".to_owned(),
        "-XX:+UseSerialGC".to_owned(),
    ]
    .into_iter()
    .chain([
        "-XX:TieredStopAtLevel=1".to_owned(),
        "-cp".to_owned(),
        classes,
    ])
    .collect())
}

impl Kafka {
    /// Starts a broker of one's own; it stops when dropped.
    pub fn start() -> Result<Self> {
        process::retrying(Self::start_once)
    }

    fn start_once() -> Result<Self> {
        let dir = process::data_dir("kafka", None)?;
        let broker = Broker {
            dir: &dir,
            address: Ipv4Addr::LOCALHOST.into(),
            port: process::free_port()?,
            controller_port: process::free_port()?,
            heap: 256,
        };
        broker.prepare()?;
        let (program, args) = broker.command()?;
        let mut server = Server::start(Spec {
            name: "Kafka",
            program: &program,
            args,
            env: Vec::new(),
            log: dir.join("log"),
            stop: Signal::SIGKILL,
            user: None,
        })?;
        server.wait_ready(Duration::from_secs(60), || broker.accepts())?;
        Ok(Self {
            server,
            bootstrap: format!("127.0.0.1:{}", broker.port),
        })
    }

    /// The address clients start from.
    #[must_use]
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The process, to signal or crash it.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}
