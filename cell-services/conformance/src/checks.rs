//! The promises of the kit, checked one by one.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cell_kit::{Service, TableClass, headers};
use futures::future::{BoxFuture, join_all};
use sqlx::{Executor, Row};
use titan_routing::{Epoch, Key};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::cell::{Cell, CellOptions, MINE, OTHERS, key, last_key, with_key};
use crate::{http, shipped};

/// A sample mutation of the service: it takes effect when its first two arguments are new, and answers with its
/// encoded message and metadata. Another `variant` is another request.
pub type Mutation =
    fn(Channel, Request<u32>) -> BoxFuture<'static, Result<(Vec<u8>, MetadataMap), Status>>;

/// Runs every check.
///
/// # Errors
/// Names the promise that is broken.
pub async fn passes(service: &'static Service, mutation: Mutation) -> Result<()> {
    shipped::agrees(service).context("what ships says the same of it")?;
    not_ready_before_migrations(service)
        .await
        .context("readiness waits for migrations")?;
    let mut cell = Cell::start(service).await?;
    let check = Check {
        cell: &cell,
        mutation,
        channel: cell.channel().await?,
    };
    // All of them, so that one broken promise does not hide another.
    let mut broken = Vec::new();
    let mut note = |promise: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            broken.push(format!("{promise}: {error:#}"));
        }
    };
    note("tables are as declared", check.tables().await);
    note("health answers", check.health().await);
    note("reflection answers", check.reflection().await);
    note("missing metadata is named", check.missing_metadata().await);
    note("an idempotency key is answered once", check.replay().await);
    note(
        "concurrent duplicates execute once",
        check.duplicates().await,
    );
    note(
        "the largest key is as good as any",
        check.largest_key().await,
    );
    note(
        "a foreign key is refused with its cell",
        check.foreign_key().await,
    );
    note(
        "an unguarded write is refused",
        check.unguarded_writes().await,
    );
    note(
        "a fence is obeyed by a service that has not heard of it",
        check.fence().await,
    );
    note(
        "advisory locks of the guard are the guard's alone",
        check.advisory_locks().await,
    );
    note("metrics tell", check.metrics().await);
    // What follows is seen while a request waits or the service drains, and a busy machine needs time to look.
    cell.restart_with(|config| {
        config.catch_up_ms = 10_000;
        config.drain_delay_ms = 5_000;
        config.postgres.request_budget_ms = 60_000;
    })
    .await?;
    let check = Check {
        cell: &cell,
        mutation,
        channel: cell.channel().await?,
    };
    note("a newer epoch is waited for", check.catches_up().await);
    note("the end of a fence is waited for", check.unfenced().await);
    note("it drains", drain(&mut cell, mutation).await);
    ensure!(
        broken.is_empty(),
        "{} breaks promises:\n{}",
        service.name,
        broken.join("\n")
    );
    Ok(())
}

struct Check<'a> {
    cell: &'a Cell,
    mutation: Mutation,
    channel: Channel,
}

type Answer = Result<(Vec<u8>, MetadataMap), Status>;

impl Check<'_> {
    async fn call(&self, request: Request<u32>) -> Answer {
        (self.mutation)(self.channel.clone(), request).await
    }

    async fn tables(&self) -> Result<()> {
        let admin = &self.cell.admin;
        let mut found: Vec<String> = sqlx::query_scalar(
            "SELECT relname::text FROM pg_class WHERE relnamespace = current_schema()::regnamespace
                AND relkind IN ('r', 'p') AND NOT relispartition AND relname <> '_sqlx_migrations'",
        )
        .fetch_all(admin)
        .await?;
        found.sort();
        let mut declared: Vec<&str> = self
            .cell
            .service
            .tables
            .iter()
            .map(|table| table.name)
            .collect();
        declared.sort_unstable();
        ensure!(found == declared, "declared {declared:?}, found {found:?}");
        for table in self
            .cell
            .service
            .tables
            .iter()
            .filter(|table| table.class == TableClass::Owned)
        {
            let triggers: Vec<String> = sqlx::query_scalar(
                "SELECT tgname::text FROM pg_trigger WHERE tgrelid = $1::regclass AND NOT tgisinternal
                    AND tgenabled = 'O' AND tgfoid = 'titan.refuse_unguarded'::regproc ORDER BY 1",
            )
            .bind(table.name)
            .fetch_all(admin)
            .await?;
            ensure!(
                triggers == ["titan_guard", "titan_no_truncate"],
                "{} has triggers {triggers:?}",
                table.name
            );
            let wrong: Vec<String> = sqlx::query_scalar(
                "SELECT i.indexrelid::regclass::text FROM pg_index i
                   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                  WHERE i.indrelid = $1::regclass AND i.indisunique AND a.attname <> 'owner_id'
                 UNION ALL
                 SELECT c.conname::text FROM pg_constraint c
                   JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
                  WHERE c.conrelid = $1::regclass AND c.contype = 'f' AND a.attname <> 'owner_id'
                 UNION ALL
                 SELECT attname::text FROM pg_attribute WHERE attrelid = $1::regclass
                    AND (attidentity <> '' OR pg_get_serial_sequence($1, attname) IS NOT NULL)",
            )
            .bind(table.name)
            .fetch_all(admin)
            .await?;
            ensure!(
                wrong.is_empty(),
                "{}: {wrong:?} do not start with owner_id, or use a sequence",
                table.name
            );
        }
        Ok(())
    }

    async fn health(&self) -> Result<()> {
        let admin = self.cell.addresses.admin;
        ensure!(http::get(admin, "/healthz").await?.0 == 200);
        ensure!(http::get(admin, "/readyz").await?.0 == 200);
        let mut health = HealthClient::new(self.channel.clone());
        for name in std::iter::once(&"").chain(self.cell.service.grpc) {
            let mut tries = 0;
            loop {
                let request = HealthCheckRequest {
                    service: (*name).to_owned(),
                };
                let status = health.check(request).await?.into_inner().status();
                if status == tonic_health::pb::health_check_response::ServingStatus::Serving {
                    break;
                }
                tries += 1;
                ensure!(tries < 100, "`{name}` is {status:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    async fn reflection(&self) -> Result<()> {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut answers = ServerReflectionClient::new(self.channel.clone())
            .server_reflection_info(futures::stream::iter([request]))
            .await?
            .into_inner();
        let answer = answers.message().await?.context("no answer")?;
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            bail!("another answer: {answer:?}");
        };
        for name in self.cell.service.grpc {
            ensure!(
                list.service.iter().any(|service| service.name == *name),
                "reflection does not know {name}"
            );
        }
        Ok(())
    }

    async fn missing_metadata(&self) -> Result<()> {
        for name in [headers::KEY, headers::IDEMPOTENCY_KEY] {
            let mut request = with_key(key(MINE), "missing", 0);
            request.metadata_mut().remove(name);
            let status = self.call(request).await.err().context("it was served")?;
            ensure!(
                status.code() == Code::InvalidArgument && status.message().contains(name),
                "{status:?}"
            );
        }
        Ok(())
    }

    async fn replay(&self) -> Result<()> {
        let owner = key(MINE + 1);
        let (first, metadata) = self.call(with_key(owner, "replay", 1)).await?;
        ensure!(metadata.get(headers::REPLAYED).is_none());
        let (second, metadata) = self.call(with_key(owner, "replay", 1)).await?;
        ensure!(first == second, "the answers differ");
        ensure!(
            metadata.get(headers::REPLAYED).is_some(),
            "the second answer is not marked as replayed"
        );
        let status = self
            .call(with_key(owner, "replay", 2))
            .await
            .err()
            .context("another request was served")?;
        ensure!(status.code() == Code::AlreadyExists, "{status:?}");
        Ok(())
    }

    async fn duplicates(&self) -> Result<()> {
        let owner = key(MINE + 2);
        let answers = join_all((0..16).map(|_| self.call(with_key(owner, "duplicate", 1)))).await;
        let mut bodies = Vec::new();
        let mut fresh = 0;
        for answer in answers {
            let (body, metadata) = answer?;
            fresh += usize::from(metadata.get(headers::REPLAYED).is_none());
            bodies.push(body);
        }
        bodies.dedup();
        ensure!(
            bodies.len() == 1 && fresh == 1,
            "{} answers, {fresh} executions",
            bodies.len()
        );
        Ok(())
    }

    async fn largest_key(&self) -> Result<()> {
        self.call(with_key(last_key(), "last", 1)).await?;
        Ok(())
    }

    async fn foreign_key(&self) -> Result<()> {
        refused(
            self.call(with_key(key(OTHERS), "foreign", 1)).await,
            Some("cell-002"),
            self.cell.epoch(),
        )?;
        refused(
            self.call(with_key(key(1), "nobody's", 1)).await,
            None,
            self.cell.epoch(),
        )
    }

    async fn catches_up(&self) -> Result<()> {
        let next = self.cell.epoch().next();
        // The router knows that the other cell's keys came here; this process learns it a moment later.
        let mut request = with_key(key(OTHERS + 1), "early", 1);
        request.metadata_mut().insert(headers::EPOCH, next.0.into());
        let call = self.call(request);
        let publish = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mine = self.cell.config.cell.clone();
            let epoch = self.cell.epoch();
            let table = taken_over(&mine, next)?;
            self.cell.publish_table(table);
            anyhow::Ok(epoch)
        };
        let (answer, before) = tokio::join!(call, publish);
        // The data home was not told, so the guard refuses: but with the new epoch, not with "go to cell-002".
        refused(answer, None, next)?;
        self.cell.publish(next.next(), before?)?;
        Ok(())
    }

    async fn unguarded_writes(&self) -> Result<()> {
        let mut forgetful = self.cell.as_service().await?;
        let error = forgetful
            .execute("UPDATE idempotency_keys SET method = method")
            .await
            .err()
            .context("updated")?;
        ensure!(code(&error) == "TC002", "{error}");
        let error = forgetful
            .execute("DELETE FROM idempotency_keys")
            .await
            .err()
            .context("deleted")?;
        ensure!(code(&error) == "TC002", "{error}");
        // Guarded for one owner is not guarded for another.
        let guarded = sqlx::query("SELECT titan.guard($1, $2, $3)")
            .bind(last_key().as_i64())
            .bind(&self.cell.config.cell)
            .bind(i64::MAX);
        forgetful.execute("BEGIN").await?;
        guarded.execute(&mut forgetful).await?;
        let error = sqlx::query("UPDATE idempotency_keys SET method = method WHERE owner_id = $1")
            .bind(key(MINE + 1).as_i64())
            .execute(&mut forgetful)
            .await
            .err()
            .context("updated another owner")?;
        ensure!(code(&error) == "TC002", "{error}");
        forgetful.execute("ROLLBACK").await?;
        for table in self
            .cell
            .service
            .tables
            .iter()
            .filter(|table| table.class == TableClass::Owned)
        {
            let statement = sqlx::AssertSqlSafe(format!("TRUNCATE {} CASCADE", table.name));
            let error = sqlx::raw_sql(statement)
                .execute(&mut forgetful)
                .await
                .err()
                .context("truncated")?;
            ensure!(code(&error) == "TC002", "{}: {error}", table.name);
        }
        // And a service's role cannot give itself what is not its own.
        for statement in [
            "SELECT titan.activate(1000, 1999, 'cell-001', 999)",
            "CALL titan.fence(1000, 1999, 999, 150, 0)",
            "SELECT titan.split(1500)",
            "SELECT titan.merge(1000, 1999)",
            "SELECT titan.remove(1000, 1999, 999)",
            "UPDATE titan.ranges SET cell = 'cell-001'",
        ] {
            let error = forgetful
                .execute(statement)
                .await
                .err()
                .context(statement)?;
            ensure!(code(&error) == "42501", "{statement}: {error}");
        }
        Ok(())
    }

    async fn fence(&self) -> Result<()> {
        let owner = key(MINE + 3);
        let fenced = self.cell.epoch().next();
        self.cell.fence(fenced).await?;
        refused(self.call(with_key(owner, "fenced", 1)).await, None, fenced)?;
        // Activated for another cell: the data home says which.
        self.cell.activate("cell-002", fenced).await?;
        refused(
            self.call(with_key(owner, "fenced", 1)).await,
            Some("cell-002"),
            fenced,
        )?;
        Ok(())
    }

    /// After `fence`: the range comes back, and the service hears of it while the request waits.
    async fn unfenced(&self) -> Result<()> {
        let owner = key(MINE + 3);
        let back = self.cell.epoch().next();
        self.cell.fence(back).await?;
        self.cell.activate(&self.cell.config.cell, back).await?;
        let publish = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            self.cell.publish(back, back)
        };
        let (answer, published) = tokio::join!(self.call(with_key(owner, "fenced", 1)), publish);
        published?;
        answer?;
        Ok(())
    }

    /// Negative bigints stand for keys that a transaction writes: a fence would wait for whoever else took one. The guard
    /// takes them shared, and until the transaction ends.
    async fn advisory_locks(&self) -> Result<()> {
        let others: Vec<String> = sqlx::query_scalar(
            "SELECT format('%s by a session that is %s after %s', l.mode, a.state, a.query)
               FROM pg_locks l JOIN pg_stat_activity a USING (pid)
              WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.classid::bigint >= 2147483648
                AND a.datname = current_database() AND a.usename = $1 AND (l.mode <> 'ShareLock' OR a.state = 'idle')",
        )
        .bind(&self.cell.config.postgres.user)
        .fetch_all(&self.cell.admin)
        .await?;
        ensure!(others.is_empty(), "{others:?}");
        Ok(())
    }

    async fn metrics(&self) -> Result<()> {
        let (status, text) = http::get(self.cell.addresses.admin, "/metrics").await?;
        ensure!(status == 200);
        for name in [
            "titan_requests_total",
            "titan_request_seconds_bucket",
            "titan_requests_in_flight",
            "titan_ownership_refusals_total",
            "titan_routing_epoch",
            "titan_database_up",
        ] {
            ensure!(text.contains(name), "no {name}");
        }
        ensure!(text.contains("code=\"FAILED_PRECONDITION\"") && text.contains("code=\"OK\""));
        Ok(())
    }
}

async fn not_ready_before_migrations(service: &'static Service) -> Result<()> {
    let cell = Cell::start_with(
        service,
        CellOptions {
            migrate: false,
            ..CellOptions::default()
        },
    )
    .await?;
    // The service has looked, and says what it misses.
    let newest = service.migrator().iter().map(|it| it.version).max();
    let missed = newest.context("no migrations")?.to_string();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let answer = http::get(cell.addresses.admin, "/readyz").await;
        if let Ok((status, reasons)) = &answer {
            ensure!(*status == 503, "ready without its migrations: {answer:?}");
            if reasons.contains("migrations are missing") && reasons.contains(&missed) {
                break;
            }
        }
        ensure!(tokio::time::Instant::now() < deadline, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(
        http::get(cell.addresses.admin, "/healthz").await?.0 == 200,
        "a process that waits is alive"
    );
    cell_kit::migrate(service, &cell.config).await?;
    cell.wait_ready().await?;
    // Again: nothing to do.
    cell_kit::migrate(service, &cell.config).await?;
    Ok(())
}

async fn drain(cell: &mut Cell, mutation: Mutation) -> Result<()> {
    let channel = cell.channel().await?;
    let owner = key(MINE + 4);
    // A request that is in flight: the test holds the row that its key has to be written to.
    let mut blocker = cell.as_service().await?;
    blocker.execute("BEGIN").await?;
    sqlx::query("SELECT titan.guard($1, $2, $3)")
        .bind(owner.as_i64())
        .bind(&cell.config.cell)
        .bind(i64::MAX)
        .execute(&mut blocker)
        .await?;
    sqlx::query("INSERT INTO idempotency_keys (owner_id, key, method, request_hash) VALUES ($1, 'in flight', '', '')")
        .bind(owner.as_i64())
        .execute(&mut blocker)
        .await?;
    let in_flight = tokio::spawn(mutation(channel.clone(), with_key(owner, "in flight", 1)));
    wait_for_a_blocked_session(cell).await?;

    cell.terminate();
    cell.wait_ready_is(false).await?;
    // Still served: clients have not heard of it yet.
    mutation(channel, with_key(key(MINE + 5), "late", 1))
        .await
        .context("a late request")?;
    // Wait until the listener is closed, then let the one in flight go on.
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    while tokio::net::TcpStream::connect(cell.addresses.grpc)
        .await
        .is_ok()
    {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "it goes on listening"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(
        !in_flight.is_finished(),
        "the request in flight was cut off"
    );
    blocker.execute("ROLLBACK").await?;
    in_flight.await?.context("the request in flight")?;
    tokio::time::timeout(Duration::from_mins(1), cell.ended())
        .await
        .context("it does not end")??;
    Ok(())
}

async fn wait_for_a_blocked_session(cell: &Cell) -> Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
    loop {
        let blocked: i64 = sqlx::query(
            "SELECT count(*) AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
        )
        .fetch_one(&cell.admin)
        .await?
        .get("n");
        if blocked > 0 {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            bail!("no request ever waited");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn refused(answer: Answer, moved_to: Option<&str>, at_least: Epoch) -> Result<()> {
    let status = answer.err().context("it was served")?;
    ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    let cell = status
        .metadata()
        .get(headers::MOVED_TO)
        .map(|cell| cell.to_str())
        .transpose()?;
    ensure!(
        cell == moved_to,
        "{} is {cell:?}, not {moved_to:?}: {status:?}",
        headers::MOVED_TO
    );
    let epoch: u64 = status
        .metadata()
        .get(headers::EPOCH)
        .context("no epoch")?
        .to_str()?
        .parse()?;
    ensure!(
        epoch >= at_least.0,
        "epoch {epoch} is older than {at_least}"
    );
    Ok(())
}

fn taken_over(cell: &str, epoch: Epoch) -> Result<titan_routing::RoutingTable> {
    use titan_routing::{
        Assignment, AssignmentState, CellEndpoint, KeyRange, KeyspaceMode, RoutingTable,
    };
    let row = |first: Key, last: Key| -> Result<Assignment> {
        Ok(Assignment {
            range: KeyRange::new(first, last)?,
            cell: cell.to_owned(),
            home: cell.to_owned(),
            state: AssignmentState::Active,
            epoch,
        })
    };
    let endpoint = CellEndpoint {
        cell: cell.to_owned(),
        region: String::new(),
        endpoint: format!("{cell}.svc.cluster.local"),
    };
    Ok(RoutingTable::new(
        epoch,
        KeyspaceMode::UserId,
        vec![row(key(MINE), key(OTHERS + 999))?],
        vec![endpoint],
        Vec::new(),
    )?)
}

fn code(error: &sqlx::Error) -> String {
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .unwrap_or_default()
        .into_owned()
}
