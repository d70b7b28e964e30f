//! The operator's binary.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand, ValueEnum};
use kube::Config;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use titan_operator::metrics::{CountingLedger, Metrics};
use titan_operator::run::replica::{Settings, operate};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Provisions and manages cells.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a replica of the operator.
    Run(Run),
}

#[derive(Parser)]
struct Run {
    /// Where the registry of routing tables listens.
    #[arg(long, default_value = "0.0.0.0:50100")]
    registry_listen: SocketAddr,
    /// Where metrics and health are served.
    #[arg(long, default_value = "0.0.0.0:9090")]
    metrics_listen: SocketAddr,
    /// The name of this replica among the candidates for leadership.
    #[arg(long, env = "POD_NAME")]
    identity: String,
    /// The namespace of the operator, for its Lease and for Secrets of external servers.
    #[arg(long, env = "POD_NAMESPACE", default_value = "titan-system")]
    namespace: String,
    /// How logs are written.
    #[arg(long, env = "TITAN_LOG", default_value = "pretty")]
    log: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Json,
    Pretty,
}

fn main() -> ExitCode {
    let Command::Run(run) = Arguments::parse().command;
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("titan-operator: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    init_logs(run.log);
    allow_files();
    match runtime.block_on(serve(run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Each stream of the registry takes a file, and so does each request to the apiserver. The limit that processes start with is
/// that of programs that use `select`.
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

fn init_logs(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A log that nobody reads any more is no reason to die.
        .log_internal_errors(false);
    match format {
        LogFormat::Json => subscriber.json().init(),
        LogFormat::Pretty => subscriber.init(),
    }
}

async fn serve(run: Run) -> anyhow::Result<()> {
    let config = Config::infer().await?;
    let metrics = Metrics::new()?;
    let ledger = Arc::new(CountingLedger(metrics.clone()));
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
            stop.cancel();
        }
    });
    let settings = Settings {
        registry_listen: run.registry_listen,
        metrics_listen: run.metrics_listen,
        identity: run.identity,
        namespace: run.namespace,
    };
    operate(config, settings, metrics, ledger, stop).await?;
    Ok(())
}
