//! A standby of a PostgreSQL server, by streaming replication.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::postgres::{Database, Postgres, USER};
use crate::process::{self, Server, Spec};
use crate::{Error, Result, cache};

/// A standby; it stops when dropped.
#[derive(Debug)]
pub struct Standby {
    _server: Server,
    name: String,
    database: Database,
}

impl Standby {
    /// Copies a server and follows it. The primary knows the standby by `name`, its `application_name`.
    pub fn of(primary: &Postgres, name: &str) -> Result<Self> {
        process::retrying(|| Self::start_once(primary, name))
    }

    fn start_once(primary: &Postgres, name: &str) -> Result<Self> {
        let there = primary.maintenance();
        let dir = process::data_dir("standby", USER)?;
        let data = dir.join("data").display().to_string();
        let source = format!(
            "host={} port={} user={} password={}",
            there.host, there.port, there.user, there.password
        );
        process::run(
            USER,
            &cache::postgres_executable("pg_basebackup")?,
            &[
                "--dbname",
                &source,
                "--pgdata",
                &data,
                "--checkpoint=fast",
                "--no-sync",
                "--write-recovery-conf",
            ],
            &[],
        )?;
        let port = process::free_port()?;
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            format!("unix_socket_directories={}", dir.display()),
            format!("primary_conninfo={source} application_name={name}"),
            "fsync=off".to_owned(),
            "wal_level=logical".to_owned(),
            // At least what the primary has.
            "max_connections=400".to_owned(),
            "max_prepared_transactions=20".to_owned(),
            "shared_buffers=64MB".to_owned(),
        ];
        let mut args = vec!["-D".to_owned(), data];
        args.extend(
            settings
                .into_iter()
                .flat_map(|setting| ["-c".to_owned(), setting]),
        );
        let mut server = Server::start(Spec {
            name: "standby",
            program: &cache::postgres_executable("postgres")?,
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
        Ok(Standby {
            _server: server,
            name: name.to_owned(),
            database: Database { port, ..there },
        })
    }

    /// The maintenance database. It can be read, and written once the standby was promoted.
    #[must_use]
    pub fn maintenance(&self) -> Database {
        self.database.clone()
    }

    /// Stops the primary's process that sends to this standby: nothing arrives here, and the connection stays.
    pub fn freeze(&self, primary: &Postgres) -> Result<Frozen> {
        let pid = primary.sql(&format!(
            "SELECT pid FROM pg_stat_replication WHERE application_name = '{}'",
            self.name
        ))?;
        let pid = pid
            .trim()
            .parse()
            .map_err(|_| Error::Shared(format!("{} does not follow", self.name)))?;
        let frozen = Frozen(Pid::from_raw(pid));
        frozen.signal(Signal::SIGSTOP)?;
        Ok(frozen)
    }
}

/// A process of the primary that is stopped, until it is thawed or dropped.
#[derive(Debug)]
pub struct Frozen(Pid);

impl Frozen {
    /// Lets it go on.
    pub fn thaw(self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Ends it, as the primary's end does.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::SIGKILL)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.0, signal).map_err(|errno| Error::Io {
            doing: format!("signal process {}", self.0),
            source: errno.into(),
        })
    }
}
