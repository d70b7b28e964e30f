//! What a service reads from its environment.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::service::{Service, Store};

/// The settings of one service process. Each is a flag and an environment variable; the operator sets the latter.
#[derive(Clone, Debug, Parser)]
#[command(about = "A cell service", disable_version_flag = true)]
pub struct Config {
    /// What to do: serve, run the migrations, or print the definition.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The fleet that the cell belongs to.
    #[arg(long, env = "TITAN_FLEET", default_value = "titan")]
    pub fleet: String,
    /// The cell that this process computes for.
    #[arg(long, env = "TITAN_CELL", default_value = "")]
    pub cell: String,
    /// The cell whose databases this process is connected to; the cell itself unless it failed over.
    #[arg(long, env = "TITAN_DATA_HOME", default_value = "")]
    pub data_home: String,
    /// The region of the cell.
    #[arg(long, env = "TITAN_REGION", default_value = "")]
    pub region: String,
    /// The release that runs, for logs and traces.
    #[arg(long, env = "TITAN_RELEASE", default_value = "")]
    pub release: String,
    /// The port of the gRPC server; the service's own port unless set.
    #[arg(long, env = "TITAN_GRPC_PORT")]
    pub grpc_port: Option<u16>,
    /// The port of metrics and health.
    #[arg(long, env = "TITAN_METRICS_PORT", default_value_t = 9090)]
    pub metrics_port: u16,
    /// Where the routing table comes from.
    #[arg(long, env = "TITAN_REGISTRY", default_value = "")]
    pub registry: String,
    /// The router, for calls to keys of other cells.
    #[arg(long, env = "TITAN_ROUTER", default_value = "")]
    pub router: String,
    /// Where the last good routing table is kept.
    #[arg(long, env = "TITAN_STATE_DIR", default_value = "/var/lib/titan")]
    pub state_dir: PathBuf,
    /// How logs are written.
    #[arg(long, env = "TITAN_LOG", value_enum, default_value_t = LogFormat::Json)]
    pub log: LogFormat,
    /// Where traces go; none are made when it is empty.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", default_value = "")]
    pub otlp_endpoint: String,
    /// PostgreSQL.
    #[command(flatten)]
    pub postgres: PostgresConfig,
    /// Redis.
    #[command(flatten)]
    pub redis: RedisConfig,
    /// Kafka's bootstrap servers.
    #[arg(long, env = "TITAN_KAFKA_BOOTSTRAP", default_value = "")]
    pub kafka_bootstrap: String,
    /// How long the process goes on serving after readiness failed, so that clients learn of it.
    #[arg(long, env = "TITAN_DRAIN_DELAY_MS", default_value_t = 3_000)]
    pub drain_delay_ms: u64,
    /// How long requests in flight may take to finish after that.
    #[arg(long, env = "TITAN_DRAIN_TIMEOUT_MS", default_value_t = 20_000)]
    pub drain_timeout_ms: u64,
    /// How long a request that knows a newer routing table waits for this process to learn of it.
    #[arg(long, env = "TITAN_CATCH_UP_MS", default_value_t = 500)]
    pub catch_up_ms: u64,
}

/// What the binary does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Serve until SIGTERM (the default).
    Serve,
    /// Run the schema migrations and exit.
    Migrate,
    /// Print the service's definition as JSON and exit.
    Describe,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

/// How to reach PostgreSQL, and what to ask of it.
#[derive(Clone, Debug, clap::Args)]
pub struct PostgresConfig {
    /// Host of the leader.
    #[arg(id = "pg_host", long = "pg-host", env = "PGHOST", default_value = "")]
    pub host: String,
    /// Port of the leader.
    #[arg(
        id = "pg_port",
        long = "pg-port",
        env = "PGPORT",
        default_value_t = 5432
    )]
    pub port: u16,
    /// The cell's database.
    #[arg(
        id = "pg_database",
        long = "pg-database",
        env = "PGDATABASE",
        default_value = ""
    )]
    pub database: String,
    /// The service's login role.
    #[arg(id = "pg_user", long = "pg-user", env = "PGUSER", default_value = "")]
    pub user: String,
    /// Its password.
    #[arg(
        id = "pg_password",
        long = "pg-password",
        env = "PGPASSWORD",
        default_value = "",
        hide_env_values = true
    )]
    pub password: Secret,
    /// disable, prefer, require, verify-ca or verify-full.
    #[arg(
        id = "pg_sslmode",
        long = "pg-sslmode",
        env = "PGSSLMODE",
        default_value = "prefer"
    )]
    pub sslmode: String,
    /// Certificates in PEM that verify-ca and verify-full trust instead of the public ones.
    #[arg(id = "pg_ca", long = "pg-ca", env = "TITAN_DB_CA", default_value = "")]
    pub ca: String,
    /// The service's schema.
    #[arg(
        id = "pg_schema",
        long = "pg-schema",
        env = "TITAN_DB_SCHEMA",
        default_value = ""
    )]
    pub schema: String,
    /// Connections of this process.
    #[arg(
        id = "pg_pool",
        long = "pg-pool",
        env = "TITAN_DB_POOL",
        default_value_t = 8
    )]
    pub pool: u32,
    /// The longest statement.
    #[arg(
        id = "pg_statement_timeout_ms",
        long = "pg-statement-timeout-ms",
        env = "TITAN_DB_STATEMENT_TIMEOUT_MS",
        default_value_t = 5_000
    )]
    pub statement_timeout_ms: u64,
    /// How long a request goes on trying while the leader is away.
    #[arg(
        id = "pg_request_budget_ms",
        long = "pg-request-budget-ms",
        env = "TITAN_DB_REQUEST_BUDGET_MS",
        default_value_t = 10_000
    )]
    pub request_budget_ms: u64,
}

/// How to reach Redis.
#[derive(Clone, Debug, clap::Args)]
pub struct RedisConfig {
    /// Addresses, separated by commas: `redis://host:port`, or `rediss://` with TLS.
    #[arg(
        id = "redis_addrs",
        long = "redis-addrs",
        env = "TITAN_REDIS_ADDRS",
        default_value = "",
        value_delimiter = ','
    )]
    pub addrs: Vec<String>,
    /// Whether the addresses are nodes of a Redis Cluster.
    #[arg(id = "redis_cluster", long = "redis-cluster", env = "TITAN_REDIS_CLUSTER", default_value_t = false, action = clap::ArgAction::Set)]
    pub cluster: bool,
    /// The user, where the server has more than the default one.
    #[arg(
        id = "redis_username",
        long = "redis-username",
        env = "TITAN_REDIS_USERNAME",
        default_value = ""
    )]
    pub username: String,
    /// Certificates in PEM that are trusted instead of the public ones, where the address is `rediss://`.
    #[arg(
        id = "redis_ca",
        long = "redis-ca",
        env = "TITAN_REDIS_CA",
        default_value = ""
    )]
    pub ca: String,
    /// The password.
    #[arg(
        id = "redis_password",
        long = "redis-password",
        env = "REDIS_PASSWORD",
        default_value = "",
        hide_env_values = true
    )]
    pub password: Secret,
}

/// A text that neither logs nor error messages show.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret(text.to_owned())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<hidden>")
    }
}

/// A setting that is missing or wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A variable that this service cannot do without.
    #[error(
        "{variable} is not set: {purpose}. The operator sets it; by hand, export {variable}={example}"
    )]
    Missing {
        /// The variable.
        variable: &'static str,
        /// What it is for.
        purpose: &'static str,
        /// A value that would do.
        example: &'static str,
    },
    /// A variable with a value that cannot be used.
    #[error("{variable}={value} cannot be used: {reason}")]
    Invalid {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// Why, and what would do.
        reason: String,
    },
}

impl Config {
    /// How long the process goes on serving after readiness failed.
    #[must_use]
    pub fn drain_delay(&self) -> Duration {
        Duration::from_millis(self.drain_delay_ms)
    }

    /// How long a request waits for the routing table that it knows of.
    #[must_use]
    pub fn catch_up(&self) -> Duration {
        Duration::from_millis(self.catch_up_ms)
    }

    /// How long requests in flight may take to finish.
    #[must_use]
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }

    /// Fills in what follows from other settings, and checks that nothing is missing to run the migrations.
    ///
    /// # Errors
    /// Names the first variable that is missing or wrong.
    pub fn for_migrations(mut self, service: &Service) -> Result<Self, ConfigError> {
        if self.postgres.schema.is_empty() {
            self.postgres.schema = service.schema();
        }
        let postgres = &self.postgres;
        require(
            "PGHOST",
            &postgres.host,
            "the service keeps its data in PostgreSQL",
            "postgres.cell-001.svc",
        )?;
        require(
            "PGDATABASE",
            &postgres.database,
            "it names the cell's database",
            "cell_001",
        )?;
        require(
            "PGUSER",
            &postgres.user,
            "it names the service's login role",
            "cell_001_order",
        )?;
        if !is_identifier(&postgres.schema) {
            return Err(ConfigError::Invalid {
                variable: "TITAN_DB_SCHEMA",
                value: postgres.schema.clone(),
                reason: "a schema has lower-case letters, digits and underscores alone".to_owned(),
            });
        }
        postgres.ssl_mode()?;
        Ok(self)
    }

    /// Fills in what follows from other settings, and checks that nothing is missing to serve.
    ///
    /// # Errors
    /// Names the first variable that is missing or wrong.
    pub fn for_serving(self, service: &Service) -> Result<Self, ConfigError> {
        let mut config = self.for_migrations(service)?;
        require(
            "TITAN_CELL",
            &config.cell,
            "it names the cell that this process computes for",
            "cell-001",
        )?;
        if config.data_home.is_empty() {
            config.data_home.clone_from(&config.cell);
        }
        require(
            "TITAN_REGISTRY",
            &config.registry,
            "the routing table comes from there",
            "http://titan-registry.titan-system.svc:50100",
        )?;
        if service.stores.contains(&Store::Redis) {
            let first = config.redis.addrs.first().map_or("", String::as_str);
            require(
                "TITAN_REDIS_ADDRS",
                first,
                "the service keeps data in Redis",
                "redis://redis:6379",
            )?;
        }
        if !service.topics.is_empty() {
            require(
                "TITAN_KAFKA_BOOTSTRAP",
                &config.kafka_bootstrap,
                "the service publishes events",
                "kafka:9092",
            )?;
        }
        Ok(config)
    }
}

impl PostgresConfig {
    /// The SSL mode.
    ///
    /// # Errors
    /// When PGSSLMODE is not one.
    pub fn ssl_mode(&self) -> Result<sqlx::postgres::PgSslMode, ConfigError> {
        self.sslmode.parse().map_err(|_| ConfigError::Invalid {
            variable: "PGSSLMODE",
            value: self.sslmode.clone(),
            reason: "use disable, allow, prefer, require, verify-ca or verify-full".to_owned(),
        })
    }
}

fn require(
    variable: &'static str,
    value: &str,
    purpose: &'static str,
    example: &'static str,
) -> Result<(), ConfigError> {
    if value.is_empty() {
        return Err(ConfigError::Missing {
            variable,
            purpose,
            example,
        });
    }
    Ok(())
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Config::command().debug_assert();
    }

    #[test]
    fn a_missing_variable_is_named_with_what_to_do() {
        let error = require("PGHOST", "", "the data is there", "postgres")
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "PGHOST is not set: the data is there. The operator sets it; by hand, export PGHOST=postgres"
        );
    }

    #[test]
    fn secrets_do_not_show() {
        let config = Config::parse_from(["user", "--pg-password", "hunter2"]);
        assert!(!format!("{config:?}").contains("hunter2"));
        assert_eq!(config.postgres.password.reveal(), "hunter2");
    }
}
