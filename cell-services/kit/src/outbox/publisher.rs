//! The worker that carries the outbox to Kafka: one replica at a time, in order, at least once.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use sqlx::{PgConnection, Row};
use tokio_util::sync::CancellationToken;

use crate::database::{Database, within};

/// How many events are in flight at once.
const BATCH: i64 = 500;
/// How soon a commit of another replica is found.
const POLL: Duration = Duration::from_millis(100);
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
                PublishError::Kafka(_) => (pause * 2).min(LONGEST_PAUSE),
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
        loop {
            if stop.is_cancelled() {
                return Ok(());
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
                "SELECT xid::text AS xid, seq, owner_id, event_id::text AS event_id, topic, payload, traceparent,
                        extract(epoch FROM clock_timestamp() - created_at)::float8 AS age
                   FROM outbox WHERE xid < pg_snapshot_xmin(pg_current_snapshot())
                  ORDER BY outbox.xid, outbox.seq LIMIT $1",
            )
            .bind(BATCH)
            .fetch_all(&mut *session),
        )
        .await?;
        let metrics = self.database.metrics();
        metrics.outbox_lag(
            rows.first()
                .map_or(0.0, |row| row.get::<f64, _>("age").max(0.0)),
        );
        if rows.is_empty() {
            return Ok(Round::Empty);
        }

        let mut deliveries = FuturesOrdered::new();
        for row in &rows {
            let topic = format!("titan.{}.{}", self.config.cell, row.get::<&str, _>("topic"));
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
            // Queued here and now, in order; the answer comes later.
            match producer.send_result(record) {
                Ok(delivery) => deliveries.push_back(delivery),
                Err((
                    KafkaError::MessageProduction(rdkafka::types::RDKafkaErrorCode::QueueFull),
                    _,
                )) => break,
                Err((error, _)) => return Err(error.into()),
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
        let done = rows.get(..acknowledged).unwrap_or_default();
        let xids: Vec<&str> = done.iter().map(|row| row.get("xid")).collect();
        let seqs: Vec<i64> = done.iter().map(|row| row.get("seq")).collect();
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
        metrics.outbox_published(acknowledged);
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(Round::Published),
        }
    }
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
