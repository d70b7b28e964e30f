//! One service of one cell, on real stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cell_kit::config::Config;
use cell_kit::{Addresses, Server, Service, StartError, Store};
use clap::Parser;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use titan_routing::{
    Assignment, AssignmentState, CellEndpoint, Epoch, Key, KeyRange, KeyspaceMode, RoutingTable,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::transport::Channel;

use crate::proxy::Proxy;

/// The first keys of the cell under test, which has 1000 of them and the last 1000 of all.
pub const MINE: u64 = 1_000;
/// The first keys of another cell.
pub const OTHERS: u64 = 5_000;

const CELL: &str = "cell-001";
const FIRST_EPOCH: Epoch = Epoch(10);

/// A key from a number.
///
/// # Panics
/// When it is too large.
#[must_use]
#[expect(clippy::expect_used, reason = "tests alone call this")]
pub fn key(number: u64) -> Key {
    Key::new(number).expect("a key")
}

/// The largest key there is, which belongs to the cell under test.
#[must_use]
pub fn last_key() -> Key {
    Key::MAX
}

/// What a test wants to be different.
#[derive(Clone, Debug)]
pub struct CellOptions {
    /// Whether the migrations run before the server.
    pub migrate: bool,
    /// Kafka's address; a port that nobody listens on unless given.
    pub kafka: String,
    /// Whether the service reaches PostgreSQL through a [`Proxy`].
    pub proxy: bool,
    /// The name of the cell, part of its topics' names.
    pub cell: String,
}

impl Default for CellOptions {
    fn default() -> Self {
        CellOptions {
            migrate: true,
            proxy: false,
            kafka: "127.0.0.1:9".to_owned(),
            cell: CELL.to_owned(),
        }
    }
}

/// One service of one cell.
pub struct Cell {
    /// The service.
    pub service: &'static Service,
    /// A superuser's pool, with the service's schema as search path.
    pub admin: PgPool,
    /// Where the service listens.
    pub addresses: Addresses,
    /// The settings it runs with.
    pub config: Config,
    /// The database, as its superuser.
    pub postgres: titan_testbed::Database,
    /// Redis, for services that need it.
    pub redis: Option<titan_testbed::Redis>,
    /// The way to PostgreSQL, if it was asked for.
    pub proxy: Option<Proxy>,
    table: watch::Sender<Arc<RoutingTable>>,
    stop: CancellationToken,
    task: Option<JoinHandle<Result<(), StartError>>>,
}

impl Cell {
    /// Starts a service and waits until it is ready.
    ///
    /// # Errors
    /// When a store or the service does not start.
    pub async fn start(service: &'static Service) -> anyhow::Result<Self> {
        let cell = Self::start_with(service, CellOptions::default()).await?;
        cell.wait_ready().await?;
        Ok(cell)
    }

    /// Starts a service.
    ///
    /// # Errors
    /// When a store or the service does not start.
    pub async fn start_with(
        service: &'static Service,
        options: CellOptions,
    ) -> anyhow::Result<Self> {
        let postgres = tokio::task::spawn_blocking(titan_testbed::postgres).await??;
        let redis = if service.stores.contains(&Store::Redis) {
            Some(tokio::task::spawn_blocking(titan_testbed::redis).await??)
        } else {
            None
        };
        let schema = service.schema();
        let role = format!("{}_{schema}", postgres.name);
        prepare_database(&postgres, &role, &schema, &options.cell).await?;

        let proxy = if options.proxy {
            Some(Proxy::to((postgres.host.as_str(), postgres.port)).await?)
        } else {
            None
        };
        let port = proxy.as_ref().map_or(postgres.port, Proxy::port);

        let mut arguments: Vec<String> = [
            "service",
            "--cell",
            &options.cell,
            "--pg-host",
            &postgres.host,
            "--pg-port",
            &port.to_string(),
            "--pg-database",
            &postgres.name,
            "--pg-user",
            &role,
            "--pg-password",
            "secret",
            "--registry",
            "http://127.0.0.1:9",
            "--kafka-bootstrap",
            &options.kafka,
            "--grpc-port",
            "0",
            "--metrics-port",
            "0",
            "--drain-delay-ms",
            "300",
        ]
        .map(str::to_owned)
        .to_vec();
        if let Some(redis) = &redis {
            arguments.extend(["--redis-addrs".to_owned(), redis.address()]);
            arguments.extend([
                "--redis-password".to_owned(),
                titan_testbed::Redis::PASSWORD.to_owned(),
            ]);
        }
        let config = Config::try_parse_from(arguments)?.for_serving(service)?;
        if options.migrate {
            cell_kit::migrate(service, &config).await?;
        }
        let table = watch::Sender::new(Arc::new(routing_table(
            &options.cell,
            FIRST_EPOCH,
            FIRST_EPOCH,
        )?));
        let mut cell = Cell {
            service,
            admin: PgPoolOptions::new().max_connections(20).connect_lazy_with(
                postgres
                    .url()
                    .parse::<sqlx::postgres::PgConnectOptions>()?
                    .options([("search_path", format!("\"{schema}\""))]),
            ),
            addresses: Addresses {
                grpc: ([127, 0, 0, 1], 0).into(),
                admin: ([127, 0, 0, 1], 0).into(),
            },
            config,
            postgres,
            redis,
            proxy,
            table,
            stop: CancellationToken::new(),
            task: None,
        };
        cell.serve().await?;
        Ok(cell)
    }

    /// Starts the server, again if it was stopped before.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn serve(&mut self) -> anyhow::Result<()> {
        let server =
            Server::bind(self.service, self.config.clone(), self.table.subscribe()).await?;
        let mut addresses = server.addresses()?;
        addresses.grpc.set_ip([127, 0, 0, 1].into());
        addresses.admin.set_ip([127, 0, 0, 1].into());
        self.addresses = addresses;
        self.stop = CancellationToken::new();
        self.task = Some(tokio::spawn(server.run(self.stop.clone())));
        Ok(())
    }

    /// Tells the server to end, as SIGTERM does.
    pub fn terminate(&self) {
        self.stop.cancel();
    }

    /// Ends the server and starts it again with other settings, until it is ready.
    ///
    /// # Errors
    /// When it does not end or does not start.
    pub async fn restart_with(&mut self, change: impl FnOnce(&mut Config)) -> anyhow::Result<()> {
        self.terminate();
        self.ended().await?;
        change(&mut self.config);
        self.serve().await?;
        self.wait_ready().await
    }

    /// Waits for the server's end.
    ///
    /// # Errors
    /// When it ended with an error.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        let task = self.task.take().context("the server does not run")?;
        Ok(task.await??)
    }

    /// Waits until `/readyz` says yes.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn wait_ready(&self) -> anyhow::Result<()> {
        self.wait_ready_is(true).await
    }

    /// Waits until `/readyz` says what is expected.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn wait_ready_is(&self, ready: bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = crate::http::get(self.addresses.admin, "/readyz").await;
            if answer
                .as_ref()
                .is_ok_and(|(status, _)| (*status == 200) == ready)
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("/readyz never became {ready}: {answer:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A connection to the gRPC server.
    ///
    /// # Errors
    /// When it does not listen.
    pub async fn channel(&self) -> anyhow::Result<Channel> {
        Ok(
            Channel::from_shared(format!("http://{}", self.addresses.grpc))?
                .connect()
                .await?,
        )
    }

    /// The epoch of the table in use.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.table.borrow().epoch()
    }

    /// Gives the service a table of a later epoch, in which its own rows changed last at `assigned`.
    ///
    /// # Errors
    /// When the table is wrong.
    pub fn publish(&self, epoch: Epoch, assigned: Epoch) -> anyhow::Result<()> {
        self.table
            .send_replace(Arc::new(routing_table(&self.config.cell, epoch, assigned)?));
        Ok(())
    }

    /// The table that the service sees, for another replica of it.
    #[must_use]
    pub fn tables(&self) -> watch::Receiver<Arc<RoutingTable>> {
        self.table.subscribe()
    }

    /// Gives the service any table.
    pub fn publish_table(&self, table: RoutingTable) {
        self.table.send_replace(Arc::new(table));
    }

    /// Fences the cell's first range in the data home.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn fence(&self, epoch: Epoch) -> anyhow::Result<()> {
        let (first, last) = (MINE.cast_signed(), (MINE + 999).cast_signed());
        let mut connection = self.admin.acquire().await?;
        // A budget and a time for quiet that no request of a test outlasts.
        let outcome: String = sqlx::query("CALL titan.fence($1, $2, $3, 2000, 5000)")
            .bind(first)
            .bind(last)
            .bind(epoch.0.cast_signed())
            .fetch_one(&mut *connection)
            .await?
            .try_get::<sqlx::types::JsonValue, _>("result")?
            .to_string();
        ensure!(outcome.contains("\"fenced\""), "{outcome}");
        Ok(())
    }

    /// Activates the cell's first range in the data home.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn activate(&self, cell: &str, epoch: Epoch) -> Result<(), sqlx::Error> {
        let (first, last) = (MINE.cast_signed(), (MINE + 999).cast_signed());
        let mut connection = self.admin.acquire().await?;
        sqlx::query("SELECT titan.activate($1, $2, $3, $4)")
            .bind(first)
            .bind(last)
            .bind(cell)
            .bind(epoch.0.cast_signed())
            .execute(&mut *connection)
            .await?;
        Ok(())
    }

    /// A connection as the service's role, with no guard and no pool: what a forgetful program would have.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn as_service(&self) -> Result<PgConnection, sqlx::Error> {
        let url = self.postgres.url_as(&self.config.postgres.user, "secret");
        let options = url
            .parse::<sqlx::postgres::PgConnectOptions>()?
            .options([("search_path", format!("\"{}\"", self.service.schema()))]);
        PgConnection::connect_with(&options).await
    }
}

/// A mutation: metadata as the router sets it, and a fresh idempotency key.
pub fn fresh<T>(owner: Key, message: T) -> Request<T> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    with_key(
        owner,
        &format!("test-{}", SERIAL.fetch_add(1, Ordering::Relaxed)),
        message,
    )
}

/// A mutation with a given idempotency key.
///
/// # Panics
/// When the key is no ASCII text.
#[expect(clippy::expect_used, reason = "tests alone call this")]
pub fn with_key<T>(owner: Key, idempotency_key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert(cell_kit::headers::KEY, owner.get().into());
    metadata.insert(cell_kit::headers::EPOCH, FIRST_EPOCH.0.into());
    metadata.insert(
        cell_kit::headers::IDEMPOTENCY_KEY,
        idempotency_key.parse().expect("ASCII"),
    );
    request
}

fn routing_table(cell: &str, epoch: Epoch, assigned: Epoch) -> anyhow::Result<RoutingTable> {
    let row = |first: u64, last: u64, cell: &str| -> anyhow::Result<Assignment> {
        Ok(Assignment {
            range: KeyRange::new(Key::new(first)?, Key::new(last)?)?,
            cell: cell.to_owned(),
            home: cell.to_owned(),
            state: AssignmentState::Active,
            epoch: assigned,
        })
    };
    let endpoint = |cell: &str| CellEndpoint {
        cell: cell.to_owned(),
        region: "test".to_owned(),
        endpoint: format!("{cell}.svc.cluster.local"),
    };
    let last = Key::MAX.get();
    Ok(RoutingTable::new(
        epoch,
        KeyspaceMode::UserId,
        vec![
            row(MINE, MINE + 999, cell)?,
            row(OTHERS, OTHERS + 999, "cell-002")?,
            row(last - 999, last, cell)?,
        ],
        vec![endpoint(cell), endpoint("cell-002")],
        Vec::new(),
    )?)
}

/// What the operator does for a cell's database and for a service in it.
async fn prepare_database(
    postgres: &titan_testbed::Database,
    role: &str,
    schema: &str,
    cell: &str,
) -> anyhow::Result<()> {
    let mut admin = PgConnection::connect(&postgres.url()).await?;
    // Twice: it has to be idempotent.
    for _ in 0..2 {
        sqlx::raw_sql(cell_kit::ownership::BOOTSTRAP_SQL)
            .execute(&mut admin)
            .await?;
    }
    sqlx::raw_sql(AssertSqlSafe(format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'secret'; CREATE SCHEMA \"{schema}\" AUTHORIZATION {role};"
    )))
    .execute(&mut admin)
    .await?;
    let last = i64::MAX;
    for (first, last) in [
        (MINE.cast_signed(), (MINE + 999).cast_signed()),
        (last - 999, last),
    ] {
        sqlx::query("SELECT titan.activate($1, $2, $3, $4)")
            .bind(first)
            .bind(last)
            .bind(cell)
            .bind(FIRST_EPOCH.0.cast_signed())
            .execute(&mut admin)
            .await?;
    }
    admin.close().await?;
    Ok(())
}
