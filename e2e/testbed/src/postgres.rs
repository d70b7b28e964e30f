//! PostgreSQL, the Debian package's server in a folder of its own.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::pki::{Authority, Subject};
use crate::process::{self, Server, Spec};
use crate::{Error, Result, cache};

/// PostgreSQL refuses to run as root, so the package's own user runs it then.
pub(crate) const USER: Option<&str> = Some("postgres");
const SUPERUSER: &str = "postgres";
const PASSWORD: &str = "testbed";

/// A fresh, empty database on a server shared by this process.
pub fn postgres() -> Result<Database> {
    static SHARED: OnceLock<Result<Postgres>> = OnceLock::new();
    match SHARED.get_or_init(Postgres::start) {
        Ok(server) => server.create_database(),
        Err(error) => Err(Error::Shared(error.to_string())),
    }
}

/// A PostgreSQL server: passwords checked with SCRAM, logical replication possible, no fsync.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    port: u16,
    data: PathBuf,
    ca: Option<String>,
}

/// A database and how to reach it as superuser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// The server's address.
    pub host: String,
    /// The server's port.
    pub port: u16,
    /// The database's name.
    pub name: String,
    /// A superuser.
    pub user: String,
    /// The superuser's password.
    pub password: String,
}

impl Database {
    /// The connection URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_as(&self.user, &self.password)
    }

    /// The connection URL for another role.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!(
            "postgres://{user}:{password}@{}:{}/{}",
            self.host, self.port, self.name
        )
    }
}

impl Postgres {
    /// Starts a server of one's own; it stops when dropped.
    pub fn start() -> Result<Self> {
        process::retrying(|| Self::start_once(false))
    }

    /// Starts a server that takes no connection over TCP without TLS, under the name `localhost`.
    pub fn start_with_tls() -> Result<Self> {
        process::retrying(|| Self::start_once(true))
    }

    fn start_once(tls: bool) -> Result<Self> {
        let server = cache::postgres_executable("postgres")?;
        let dir = process::data_dir("postgres", USER)?;
        let data = dir.join("data");
        let secret = dir.join("password");
        std::fs::write(&secret, PASSWORD)
            .map_err(Error::io(format!("write {}", secret.display())))?;
        let data_arg = data.display().to_string();
        process::run(
            USER,
            &cache::postgres_executable("initdb")?,
            &[
                "--no-sync",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                &format!("--username={SUPERUSER}"),
                &format!("--pwfile={}", secret.display()),
                "--pgdata",
                &data_arg,
            ],
            &[],
        )?;
        let port = process::free_port()?;
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            format!("unix_socket_directories={}", dir.display()),
            "fsync=off".to_owned(),
            "full_page_writes=off".to_owned(),
            "wal_level=logical".to_owned(),
            "max_connections=400".to_owned(),
            "max_prepared_transactions=20".to_owned(),
            "shared_buffers=64MB".to_owned(),
        ];
        let mut ca = None;
        let mut tls_settings = Vec::new();
        if tls {
            let folder = process::data_dir("postgres-pki", None)?;
            let authority = Authority::create(&folder)?;
            let pair = authority.sign(
                "server",
                &Subject {
                    name: "postgres",
                    dns: vec!["localhost".to_owned()],
                    ..Subject::default()
                },
            )?;
            ca = Some(read(&authority.certificate())?);
            // The server refuses a key that others could read, and has a user of its own.
            for (from, to) in [(&pair.certificate, "server.crt"), (&pair.key, "server.key")] {
                process::write_as(USER, &data.join(to), &read(from)?)?;
            }
            let local = "local all all scram-sha-256\nhostssl all all all scram-sha-256\n";
            process::write_as(USER, &data.join("pg_hba.conf"), local)?;
            tls_settings.push("ssl=on".to_owned());
        }
        let mut args = vec!["-D".to_owned(), data_arg];
        args.extend(
            settings
                .into_iter()
                .chain(tls_settings)
                .flat_map(|setting| ["-c".to_owned(), setting]),
        );
        let mut server = Server::start(Spec {
            name: "PostgreSQL",
            program: &server,
            args,
            env: Vec::new(),
            log: dir.join("log"),
            stop: Signal::SIGQUIT,
            user: USER,
        })?;
        let probe = cache::postgres_executable("pg_isready")?;
        let port_arg = port.to_string();
        server.wait_ready(Duration::from_secs(30), || {
            process::run(
                None,
                &probe,
                &["-q", "-h", "127.0.0.1", "-p", &port_arg],
                &[],
            )
            .is_ok()
        })?;
        Ok(Self {
            server,
            port,
            data,
            ca,
        })
    }

    /// Makes a fresh, empty database.
    pub fn create_database(&self) -> Result<Database> {
        static SERIAL: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{:04}", SERIAL.fetch_add(1, Ordering::Relaxed));
        self.sql(&format!("CREATE DATABASE {name}"))?;
        Ok(Database {
            name,
            ..self.maintenance()
        })
    }

    /// The maintenance database `postgres`, for a test that creates databases itself.
    #[must_use]
    pub fn maintenance(&self) -> Database {
        Database {
            host: "127.0.0.1".to_owned(),
            port: self.port,
            name: "postgres".to_owned(),
            user: SUPERUSER.to_owned(),
            password: PASSWORD.to_owned(),
        }
    }

    /// Runs one statement as superuser, and returns psql's unaligned output.
    pub fn sql(&self, statement: &str) -> Result<String> {
        let url = self.maintenance().url();
        let psql = cache::postgres_executable("psql")?;
        process::run(
            None,
            &psql,
            &[
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-d",
                &url,
                "-c",
                statement,
            ],
            &[],
        )
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

    /// The data folder.
    #[must_use]
    pub fn data_dir(&self) -> &std::path::Path {
        &self.data
    }
}

fn read(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(Error::io(format!("read {}", path.display())))
}
