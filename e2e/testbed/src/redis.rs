//! Redis, the Debian package's server with nothing on disk.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::pki::{Authority, Subject};
use crate::process::{self, Server, Spec};
use crate::{Error, Result, cache};

/// A fresh Redis; it stops when dropped.
pub fn redis() -> Result<Redis> {
    Redis::start()
}

/// A Redis server that wants a password.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    port: u16,
    ca: Option<String>,
}

impl Redis {
    /// The password of every server.
    pub const PASSWORD: &'static str = "testbed";

    /// The user that a server with TLS has beside the default one.
    pub const USER: &'static str = "shop";
    /// The password of that user.
    pub const USER_PASSWORD: &'static str = "of-the-shop";

    /// Starts a server of one's own; it stops when dropped.
    pub fn start() -> Result<Self> {
        process::retrying(|| Self::start_once(false))
    }

    /// Starts a server that is reached by TLS alone, under the name `localhost`, and that has [`Self::USER`] besides.
    pub fn start_with_tls() -> Result<Self> {
        process::retrying(|| Self::start_once(true))
    }

    fn start_once(tls: bool) -> Result<Self> {
        let program = cache::require("Redis", PathBuf::from("/usr/bin/redis-server"))?;
        let dir = process::data_dir("redis", None)?;
        let port = process::free_port()?;
        let port_arg = port.to_string();
        let dir_arg = dir.display().to_string();
        let mut args: Vec<String> = [
            "--bind",
            "127.0.0.1",
            if tls { "--tls-port" } else { "--port" },
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
        let mut ca = None;
        if tls {
            let authority = Authority::create(&dir.join("pki"))?;
            let pair = authority.sign(
                "redis",
                &Subject {
                    name: "redis",
                    dns: vec!["localhost".to_owned()],
                    ..Subject::default()
                },
            )?;
            let path = authority.certificate();
            let text = std::fs::read_to_string(&path);
            ca = Some(text.map_err(Error::io(format!("read {}", path.display())))?);
            let (certificate, key) = (pair.certificate.display(), pair.key.display());
            args.extend(["--port", "0", "--tls-auth-clients", "no"].map(str::to_owned));
            args.extend(["--tls-cert-file".to_owned(), certificate.to_string()]);
            args.extend(["--tls-key-file".to_owned(), key.to_string()]);
            args.extend(["--tls-ca-cert-file".to_owned(), path.display().to_string()]);
            let password = format!(">{}", Self::USER_PASSWORD);
            let user = ["--user", Self::USER, "on", &password, "~*", "&*", "+@all"];
            args.extend(user.map(str::to_owned));
        }
        let mut server = Server::start(Spec {
            name: "Redis",
            program: &program,
            args,
            env: Vec::new(),
            log: dir.join("log"),
            stop: Signal::SIGKILL,
            user: None,
        })?;
        server.wait_ready(Duration::from_secs(10), || {
            if tls { listens(port) } else { answers(port) }
        })?;
        Ok(Self { server, port, ca })
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

    /// The authority that signed the server's certificate, as PEM; None without TLS.
    #[must_use]
    pub fn ca(&self) -> Option<&str> {
        self.ca.as_deref()
    }

    /// The process, to signal or crash it.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// Whether somebody listens on `port`; a Redis that finds it taken ends.
fn listens(port: u16) -> bool {
    let address = (IpAddr::from(Ipv4Addr::LOCALHOST), port).into();
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
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
