//! The entry point of every service binary.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use sqlx::{Connection, PgConnection};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Command, Config};
use crate::database::connect_options;
use crate::error::StartError;
use crate::server::Server;
use crate::service::Service;
use crate::telemetry;

/// Runs a service from its command line: `serve` (the default), `migrate` or `describe`.
#[must_use]
pub fn main(service: &'static Service) -> ExitCode {
    let config = Config::parse();
    let outcome = match config.command.unwrap_or(Command::Serve) {
        Command::Describe => describe(service),
        Command::Migrate => run(migrate_with_logs(service, config)),
        Command::Serve => run(serve(service, config)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{}: {error}", service.name);
            ExitCode::FAILURE
        }
    }
}

fn run(work: impl Future<Output = Result<(), StartError>>) -> Result<(), StartError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| StartError::Io {
            action: "start the runtime",
            source,
        })?
        .block_on(work)
}

fn describe(service: &Service) -> Result<(), StartError> {
    use std::io::Write;
    let text = serde_json::to_string_pretty(&service.description())
        .map_err(|error| StartError::Other(error.to_string()))?;
    writeln!(std::io::stdout(), "{text}").map_err(|source| StartError::Io {
        action: "print",
        source,
    })
}

async fn migrate_with_logs(service: &'static Service, config: Config) -> Result<(), StartError> {
    let config = config.for_migrations(service)?;
    let _telemetry = telemetry::init(service.name, &config)?;
    migrate(service, &config).await
}

/// Runs the migrations of a service into its schema.
///
/// # Errors
/// When the database does not answer within half a minute, or a migration fails.
pub async fn migrate(service: &Service, config: &Config) -> Result<(), StartError> {
    let mut connection = connect_patiently(config).await?;
    service
        .migrator()
        .run(&mut connection)
        .await
        .map_err(|source| StartError::Migrate {
            schema: config.postgres.schema.clone(),
            database: config.postgres.database.clone(),
            host: config.postgres.host.clone(),
            source: Box::new(source),
        })?;
    tracing::info!(schema = config.postgres.schema, "migrated");
    connection
        .close()
        .await
        .map_err(|source| StartError::Database {
            host: config.postgres.host.clone(),
            source: Box::new(source),
        })
}

/// The leader may be elected only now; the Job that runs this would start again much later.
async fn connect_patiently(config: &Config) -> Result<PgConnection, StartError> {
    let options = connect_options(&config.postgres)?;
    let mut left = 60_u32;
    loop {
        let attempt =
            crate::database::within(Duration::from_secs(2), PgConnection::connect_with(&options))
                .await;
        match attempt {
            Ok(connection) => return Ok(connection),
            Err(source) if left == 0 || !crate::error::is_transient(&source) => {
                return Err(StartError::Database {
                    host: config.postgres.host.clone(),
                    source: Box::new(source),
                });
            }
            Err(error) => tracing::info!(%error, "PostgreSQL does not answer yet"),
        }
        left -= 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn serve(service: &'static Service, config: Config) -> Result<(), StartError> {
    let config = config.for_serving(service)?;
    let _telemetry = telemetry::init(service.name, &config)?;
    let registry = crate::registry::connect(&config);
    let stop = CancellationToken::new();
    let server = Server::bind(service, config, registry.tables()).await?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|source| StartError::Io {
        action: "listen for SIGTERM",
        source,
    })?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|source| StartError::Io {
        action: "listen for SIGINT",
        source,
    })?;
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopped.cancel();
    });
    server.run(stop).await
}
