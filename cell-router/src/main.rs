//! `cell-router`: serves, or checks a configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use cell_router::config::Config;
use cell_router::router::{Router, Start};
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use titan_routing::client::RegistryConfig;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Requests allocate pieces of some kilobytes, for which the system's allocator takes its slow path. It also keeps what a
/// burst of connections took, and load is shed by resident memory: the router would refuse requests for good.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(version, about = "Sends each request to the cell of its key")]
struct Arguments {
    /// The configuration file.
    #[arg(
        long,
        global = true,
        env = "TITAN_ROUTER_CONFIG",
        default_value = "/etc/titan/router.yaml"
    )]
    config: PathBuf,
    /// The fleet whose table it routes by.
    #[arg(long, env = "TITAN_FLEET", default_value = "main")]
    fleet: String,
    /// Addresses of the registry, separated by commas.
    #[arg(long, env = "TITAN_REGISTRY", default_value = "")]
    registry: String,
    /// Where the last good table is kept.
    #[arg(long, env = "TITAN_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// `json` or `pretty`.
    #[arg(long, env = "TITAN_LOG", default_value = "json")]
    log: String,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serves; the default.
    Serve,
    /// Says whether the configuration is right, and everything that is wrong with it.
    Check,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Check) => check(&arguments),
        Some(Command::Serve) | None => serve(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cell-router: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the answer to the command")]
fn check(arguments: &Arguments) -> Result<()> {
    let config = Config::read(&arguments.config)?;
    let mut problems = config.problems();
    let identity = cell_router::identity::Identity::new().configure(&config);
    problems.extend(identity.err().map(|error| error.to_string()));
    let tls = config.tls.as_ref().map(cell_router::tls::server_config);
    problems.extend(tls.and_then(Result::err).map(|error| error.to_string()));
    if !problems.is_empty() {
        let path = arguments.config.display();
        anyhow::bail!("{path} is wrong:\n- {}", problems.join("\n- "));
    }
    println!(
        "{}: right, with {} services",
        arguments.config.display(),
        config.services.len()
    );
    Ok(())
}

fn serve(arguments: Arguments) -> Result<()> {
    start_log(&arguments.log);
    allow_files();
    let config = Config::load(&arguments.config)?;
    let mut registry = RegistryConfig::new(arguments.fleet, &arguments.registry);
    registry.state_dir = arguments.state_dir;
    registry.client = std::env::var("HOSTNAME").unwrap_or_else(|_| "cell-router".to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .context("no runtime for the control tasks")?;
    let served = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let router = Router::start(Start {
            config,
            config_file: Some(arguments.config),
            registry,
        })
        .await?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        router.drain().await;
        Ok(())
    });
    // What did not end in time, like a long stream, ends with the process: nothing waits for it.
    runtime.shutdown_background();
    served
}

/// Each connection takes a file, and the limit that processes start with is that of programs that use `select`.
fn allow_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(())
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the number of open files");
    }
}

fn start_log(format: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A log that nobody takes any more must not end the process: complaining about it on stderr would.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .log_internal_errors(false);
    if format == "pretty" {
        log.init();
    } else {
        log.json().flatten_event(true).init();
    }
}
