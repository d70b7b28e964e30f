//! Redis, the Debian package's server with nothing on disk.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::{self, Server, Spec};
use crate::{Result, cache};

/// A fresh Redis; it stops when dropped.
pub fn redis() -> Result<Redis> {
    Redis::start()
}

/// A Redis server that wants a password.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    port: u16,
}

impl Redis {
    /// The password of every server.
    pub const PASSWORD: &'static str = "testbed";

    /// Starts a server of one's own; it stops when dropped.
    pub fn start() -> Result<Self> {
        process::retrying(Self::start_once)
    }

    fn start_once() -> Result<Self> {
        let program = cache::require("Redis", PathBuf::from("/usr/bin/redis-server"))?;
        let dir = process::data_dir("redis", None)?;
        let port = process::free_port()?;
        let port_arg = port.to_string();
        let dir_arg = dir.display().to_string();
        let args = [
            "--bind",
            "127.0.0.1",
            "--port",
            &port_arg,
            "--dir",
            &dir_arg,
        ]
        .into_iter()
        .chain([
            "--requirepass",
            Self::PASSWORD,
            "--save",
            "",
            "--appendonly",
            "no",
        ])
        .map(str::to_owned)
        .collect();
        let mut server = Server::start(Spec {
            name: "Redis",
            program: &program,
            args,
            env: Vec::new(),
            log: dir.join("log"),
            stop: Signal::SIGKILL,
            user: None,
        })?;
        server.wait_ready(Duration::from_secs(10), || answers(port))?;
        Ok(Self { server, port })
    }

    /// The host, always loopback.
    #[must_use]
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL with the password in it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://:{}@127.0.0.1:{}", Self::PASSWORD, self.port)
    }

    /// The address without the password, for configuration that keeps the two apart.
    #[must_use]
    pub fn address(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The process, to signal or crash it.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// Whether a Redis with our password is on `port`: another process may have been faster to take it.
fn answers(port: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(format!("AUTH {}\r\n", Redis::PASSWORD).as_bytes())?;
        let mut answer = [0; 3];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"+OK")
    };
    ask().unwrap_or(false)
}
