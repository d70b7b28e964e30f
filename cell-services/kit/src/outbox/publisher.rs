//! The worker that carries the outbox to Kafka: one replica at a time, in order, at least once.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;
use sqlx::postgres::PgRow;
use sqlx::{Connection, Executor, PgConnection, Row};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::database::{Database, within};

/// How many events are in flight at once.
const BATCH: i64 = 500;
/// How soon a commit of another replica is found.
const POLL: Duration = Duration::from_millis(100);
/// How often the ends of the outbox are looked at.
const SURVEY: Duration = Duration::from_secs(1);
/// How often a replica that does not publish asks whether it may.
const ASK: Duration = Duration::from_secs(1);
/// How long a batch in flight may take to finish when the process ends.
const FINISH: Duration = Duration::from_secs(3);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Where events go.
#[derive(Clone, Debug)]
pub struct PublisherConfig {
    /// Kafka's bootstrap servers.
    pub bootstrap: String,
    /// The cell, which is part of a topic's name.
    pub cell: String,
    /// How long Kafka may take to take an event.
    pub delivery_timeout: Duration,
}

/// The worker.
pub struct Publisher {
    database: Database,
    config: PublisherConfig,
}

#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("PostgreSQL: {0}")]
    Database(#[from] sqlx::Error),
    #[error("Kafka: {0}; events wait in the outbox, nothing is lost")]
    Kafka(#[from] KafkaError),
    #[error(
        "Kafka: {source}, of event {event_id} for topic {topic}; it waits in the outbox, and so do later ones"
    )]
    Event {
        event_id: String,
        topic: String,
        source: KafkaError,
    },
}

/// What one round did.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    Empty,
    Published,
}

impl Publisher {
    /// A worker over the outbox of `database`.
    pub fn new(database: Database, config: PublisherConfig) -> Self {
        Publisher { database, config }
    }

    /// Publishes until `stop`. A batch in flight may finish; what is left waits for the next process.
    pub async fn run(self, stop: CancellationToken) {
        let mut pause = Duration::from_millis(100);
        loop {
            let error = tokio::select! {
                () = async { stop.cancelled().await; tokio::time::sleep(FINISH).await } => return,
                outcome = self.lead(&stop) => match outcome {
                    Ok(()) => return,
                    Err(error) => error,
                },
            };
            tracing::warn!(%error, "the outbox publisher starts again");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = match error {
                // A new leader of PostgreSQL is looked for at a steady pace.
                PublishError::Database(_) => Duration::from_millis(200),
                PublishError::Kafka(_) | PublishError::Event { .. } => {
                    (pause * 2).min(LONGEST_PAUSE)
                }
            };
        }
    }

    /// Waits for the lease, then publishes as long as it holds. The lease is a lock of a session: it is gone
    /// when the session is, and a session that is gone cannot read either.
    async fn lead(&self, stop: &CancellationToken) -> Result<(), PublishError> {
        let mut session = self.database.dedicated().await?;
        while !try_lease(&mut session).await? {
            // Another replica publishes, and says how late; what this one said when it did is over.
            self.database.metrics().outbox_lag(0.0);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(ASK) => {}
            }
        }
        tracing::info!("this replica publishes the outbox");
        // A producer a lease: after a failure its sequence numbers are not to be trusted.
        let producer = self.producer()?;
        let mut surveyed: Option<Instant> = None;
        loop {
            if stop.is_cancelled() {
                return Ok(());
            }
            // Before the first batch, too: rows of another server come before those written here since.
            if surveyed.is_none_or(|at| at.elapsed() >= SURVEY) {
                let lag = survey(&mut session).await?;
                self.database.metrics().outbox_lag(lag);
                surveyed = Some(Instant::now());
            }
            let round = self.publish_batch(&mut session, &producer).await?;
            if round == Round::Published {
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.database.outbox_written().notified() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    fn producer(&self) -> Result<FutureProducer, KafkaError> {
        ClientConfig::new()
            .set("bootstrap.servers", &self.config.bootstrap)
            .set("client.id", format!("titan-outbox-{}", self.config.cell))
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "2")
            .set(
                "message.timeout.ms",
                self.config.delivery_timeout.as_millis().to_string(),
            )
            .set("reconnect.backoff.max.ms", "1000")
            .set("topic.metadata.refresh.interval.ms", "30000")
            .create()
    }

    async fn publish_batch(
        &self,
        session: &mut PgConnection,
        producer: &FutureProducer,
    ) -> Result<Round, PublishError> {
        let rows = within(
            Duration::from_secs(5),
            sqlx::query(
                // By the columns: `xid` alone would be the text, by which 1000 comes before 999.
                "SELECT xid::text AS xid, seq, owner_id, event_id::text AS event_id, topic, payload, traceparent
                   FROM outbox WHERE xid < pg_snapshot_xmin(pg_current_snapshot())
                  ORDER BY outbox.xid, outbox.seq LIMIT $1",
            )
            .bind(BATCH)
            .fetch_all(&mut *session),
        )
        .await?;
        if rows.is_empty() {
            return Ok(Round::Empty);
        }

        let mut deliveries = FuturesOrdered::new();
        let mut refused = None;
        for row in &rows {
            // Queued here and now, in order; the answer comes later.
            match self.send(producer, row) {
                Ok(delivery) => deliveries.push_back(delivery),
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => break,
                // What is queued already gets its answers first: it must not be published again for this one.
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }

        let mut acknowledged = 0;
        let mut failure = None;
        while let Some(delivery) = deliveries.next().await {
            match delivery {
                Ok(Ok(_)) if failure.is_none() => acknowledged += 1,
                Ok(Ok(_)) => {}
                Ok(Err((error, _))) => {
                    failure.get_or_insert(error);
                }
                Err(_) => {
                    failure.get_or_insert(KafkaError::Canceled);
                }
            }
        }
        // Only what precedes the first failure is done; the rest is published again, and has the same event ids.
        let (done, rest) = rows.split_at(acknowledged);
        delete(session, done).await?;
        self.database.metrics().outbox_published(acknowledged);
        match (failure.or(refused), rest.first()) {
            (Some(source), Some(row)) => Err(PublishError::Event {
                event_id: row.get("event_id"),
                topic: self.topic(row),
                source,
            }),
            _ => Ok(Round::Published),
        }
    }

    fn topic(&self, row: &PgRow) -> String {
        format!("titan.{}.{}", self.config.cell, row.get::<&str, _>("topic"))
    }

    fn send(&self, producer: &FutureProducer, row: &PgRow) -> Result<DeliveryFuture, KafkaError> {
        let topic = self.topic(row);
        let key = row.get::<i64, _>("owner_id").to_string();
        let mut headers = OwnedHeaders::new().insert(Header {
            key: "eventId",
            value: Some(row.get::<&str, _>("event_id")),
        });
        if let Some(traceparent) = row.get::<Option<&str>, _>("traceparent") {
            headers = headers.insert(Header {
                key: "traceparent",
                value: Some(traceparent),
            });
        }
        let record = FutureRecord::to(&topic)
            .key(&key)
            .payload(row.get::<&str, _>("payload"))
            .headers(headers);
        producer.send_result(record).map_err(|(error, _)| error)
    }
}

async fn delete(session: &mut PgConnection, rows: &[PgRow]) -> Result<(), sqlx::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let xids: Vec<&str> = rows.iter().map(|row| row.get("xid")).collect();
    let seqs: Vec<i64> = rows.iter().map(|row| row.get("seq")).collect();
    within(
        Duration::from_secs(5),
        sqlx::query(
            "DELETE FROM outbox USING unnest($1::text[], $2::bigint[]) AS done (xid, seq)
              WHERE outbox.xid = done.xid::xid8 AND outbox.seq = done.seq",
        )
        .bind(&xids)
        .bind(&seqs)
        .execute(session),
    )
    .await?;
    Ok(())
}

/// How long the oldest event has waited, in seconds. Rows of another server are adopted on the way.
///
/// It reads the first and the last row by the primary key, however many lie between: rows leave at the front,
/// and what no batch selects, for its transaction is thought open or yet to come, is at the back. An index on
/// `created_at` would cost every writer, and reading all rows would cost most when Kafka has been away for long.
async fn survey(session: &mut PgConnection) -> Result<f64, sqlx::Error> {
    let ends = within(
        Duration::from_secs(5),
        sqlx::query(
            "WITH first AS (SELECT created_at FROM outbox ORDER BY xid, seq LIMIT 1),
                  last AS (SELECT xid, created_at FROM outbox ORDER BY xid DESC, seq DESC LIMIT 1)
             SELECT last.xid >= pg_snapshot_xmax(pg_current_snapshot()) AS foreign_row,
                    extract(epoch FROM clock_timestamp() - least(first.created_at, last.created_at))::float8 AS age
               FROM first, last",
        )
        .fetch_optional(&mut *session),
    )
    .await?;
    let Some(ends) = ends else {
        return Ok(0.0);
    };
    if ends.get("foreign_row") {
        let rows = adopt(session).await?;
        tracing::warn!(
            rows,
            "the outbox has events from another server, by a restore or by replication: they are published first"
        );
    }
    Ok(ends.get::<f64, _>("age").max(0.0))
}

/// Makes rows publishable that another server wrote: a dump and logical replication keep that server's
/// transaction ids, which this one may reach in months.
///
/// They get the transaction id 1, which no transaction of any server has (the first is 3): nothing waits for
/// it, and it comes before all that was written here. Under one id the order is that of `seq`, and the old
/// `seq` has another order than (`xid`, `seq`): a transaction may take its id first and its `seq` last. So
/// `seq` is given anew, in the old order. It is always generated, so this is a delete and an insert, which
/// also needs no right that the service lacks. The outbox does not move with its owner, and no guard is on it.
///
/// An old row whose id this server has passed cannot be told by its id. It is as old as the others, and taken
/// along by its age, or they would overtake it.
///
/// It is one statement, for half of the rows would be in no order with the other half. It reads the table once.
async fn adopt(session: &mut PgConnection) -> Result<u64, sqlx::Error> {
    within(Duration::from_secs(60), async {
        let mut transaction = session.begin().await?;
        transaction
            .execute("SET LOCAL statement_timeout = '60s'")
            .await?;
        let adopted = transaction
            .execute(
                "WITH newest AS (SELECT max(created_at) AS at FROM outbox
                                  WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())),
                      taken AS (DELETE FROM outbox USING newest WHERE outbox.created_at <= newest.at
                                RETURNING outbox.*)
                 INSERT INTO outbox (xid, owner_id, event_id, topic, payload, traceparent, created_at)
                 SELECT '1'::xid8, owner_id, event_id, topic, payload, traceparent, created_at
                   FROM taken ORDER BY taken.xid, taken.seq",
            )
            .await?
            .rows_affected();
        transaction.commit().await?;
        Ok(adopted)
    })
    .await
}

async fn try_lease(session: &mut PgConnection) -> Result<bool, sqlx::Error> {
    within(
        Duration::from_secs(2),
        sqlx::query_scalar(
            "SELECT pg_try_advisory_lock(hashtext('outbox ' || current_schema()), 2)",
        )
        .fetch_one(session),
    )
    .await
}
