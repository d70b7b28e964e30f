//! Starting servers so that none outlives the process that wanted it.
//!
//! A child asks the kernel (through `setpriv --pdeathsig`) for a signal when its parent dies. The kernel means the
//! parent *thread*, and test threads come and go, so all children are spawned by one thread that never ends.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};

use crate::{Error, Result};

/// How to start a server.
#[derive(Debug)]
pub struct Spec<'a> {
    /// Its name in messages.
    pub name: &'a str,
    /// The executable.
    pub program: &'a Path,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment variables added to ours.
    pub env: Vec<(String, String)>,
    /// Where both outputs go.
    pub log: PathBuf,
    /// The signal that stops it at once: on drop, and when this process dies.
    pub stop: Signal,
    /// Runs it as this user, when we are root.
    pub user: Option<&'a str>,
}

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    log: PathBuf,
    stop: Signal,
}

impl Server {
    /// Starts a server, without waiting for it to be ready.
    pub fn start(spec: Spec<'_>) -> Result<Self> {
        let log =
            File::create(&spec.log).map_err(Error::io(format!("create {}", spec.log.display())))?;
        let errors = log.try_clone().map_err(Error::io("share a log file"))?;
        let signal = spec.stop.as_str().trim_start_matches("SIG").to_owned();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", &signal])
            .args(as_user(spec.user))
            .arg("--")
            .arg(spec.program)
            .args(&spec.args);
        command
            .envs(spec.env)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        let child = spawn(command).map_err(Error::io(format!("start {}", spec.name)))?;
        Ok(Self {
            name: spec.name.to_owned(),
            child,
            log: spec.log,
            stop: spec.stop,
        })
    }

    /// Waits until `ready` says so, the server ends, or `limit` has passed.
    pub fn wait_ready(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self
                .child
                .try_wait()
                .map_err(Error::io(format!("wait for {}", self.name)))?
            {
                return Err(Error::Ended {
                    server: self.name.clone(),
                    status: status.to_string(),
                    log: self.log.clone(),
                    tail: tail(&self.log),
                });
            }
            if ready() {
                return Ok(());
            }
            if started.elapsed() > limit {
                return Err(Error::NotReady {
                    server: self.name.clone(),
                    waited: limit,
                    log: self.log.clone(),
                    tail: tail(&self.log),
                });
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, e.g. `SIGSTOP` to make the server hang.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(pid(&self.child), signal).map_err(|errno| Error::Io {
            doing: format!("signal {}", self.name),
            source: errno.into(),
        })
    }

    /// Kills it as a crash would, and waits until it is gone.
    pub fn crash(&mut self) -> Result<()> {
        self.child
            .kill()
            .map_err(Error::io(format!("kill {}", self.name)))?;
        self.child
            .wait()
            .map_err(Error::io(format!("wait for {}", self.name)))?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(pid(&self.child), self.stop);
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// The `setpriv` arguments that run a program as `user`; none unless we are root.
fn as_user(user: Option<&str>) -> Vec<String> {
    match user {
        Some(user) if Uid::effective().is_root() => {
            ["--reuid", user, "--regid", user, "--init-groups"]
                .map(str::to_owned)
                .to_vec()
        }
        _ => Vec::new(),
    }
}

/// Runs a command to its end, as `user` when we are root, and returns its standard output.
pub fn run(
    user: Option<&str>,
    program: &Path,
    args: &[&str],
    env: &[(&str, &str)],
) -> Result<String> {
    let mut command = match as_user(user) {
        none if none.is_empty() => Command::new(program),
        switch => {
            let mut command = Command::new("setpriv");
            command.args(switch).arg("--").arg(program);
            command
        }
    };
    command
        .args(args)
        .envs(env.iter().copied())
        .current_dir("/")
        .stdin(Stdio::null());
    let line = format!("{} {}", program.display(), args.join(" "));
    let output = command
        .output()
        .map_err(Error::io(format!("run `{line}`")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Command {
        command: line,
        status: output.status.to_string(),
        output: format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
    })
}

type Order = (Command, SyncSender<io::Result<Child>>);

/// Spawns on the thread that never ends; see the module's documentation.
fn spawn(command: Command) -> io::Result<Child> {
    static KEEPER: OnceLock<Sender<Order>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, child) = mpsc::sync_channel(1);
    keeper
        .send((command, answer))
        .map_err(|_| io::Error::other("the spawning thread is gone"))?;
    child
        .recv()
        .map_err(|_| io::Error::other("the spawning thread is gone"))?
}

/// A TCP port on loopback that is free now.
pub fn free_port() -> Result<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io("ask for a free port"))?;
    Ok(listener
        .local_addr()
        .map_err(Error::io("read the free port"))?
        .port())
}

/// Starts something on ports that were free a moment ago, and tries again when another process was faster.
pub fn retrying<T>(mut start: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..2 {
        match start() {
            Err(Error::Ended { tail, .. })
                if tail.to_lowercase().contains("address already in use") => {}
            other => return other,
        }
    }
    start()
}

/// A new folder for one server's data, owned by `user` when we are root. Folders of processes that are gone are
/// removed on the way.
pub fn data_dir(server: &str, user: Option<&str>) -> Result<PathBuf> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let base = std::env::temp_dir().join(format!("titan-testbed-{}", Uid::effective()));
    create_dir(&base)?;
    sweep(&base);
    let mine = base.join(std::process::id().to_string());
    create_dir(&mine)?;
    let dir = mine.join(format!(
        "{server}-{}",
        SERIAL.fetch_add(1, Ordering::Relaxed)
    ));
    create_dir(&dir)?;
    give_to(user, &dir)?;
    Ok(dir)
}

/// Writes a file that only `user` may read, where we are root, and else only we.
pub fn write_as(user: Option<&str>, path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(format!("write {}", path.display())))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(Error::io(format!("close {}", path.display())))?;
    give_to(user, path)
}

/// Makes `user` the owner of a file or folder, where we are root.
fn give_to(user: Option<&str>, path: &Path) -> Result<()> {
    if let Some(user) = user
        && Uid::effective().is_root()
    {
        let owner = User::from_name(user)
            .ok()
            .flatten()
            .ok_or_else(|| Error::Missing {
                what: format!("the system user {user}"),
                path: PathBuf::from("/etc/passwd"),
            })?;
        std::os::unix::fs::chown(path, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))
            .map_err(Error::io(format!("give {} to {user}", path.display())))?;
    }
    Ok(())
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io(format!("create {}", path.display())))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .map_err(Error::io(format!("open {}", path.display())))
}

/// Removes data folders whose process is gone.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The last lines of a log.
#[must_use]
pub fn tail(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(4000)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
