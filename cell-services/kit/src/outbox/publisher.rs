//! The worker that carries the outbox to Kafka: one replica at a time, in order, at least once.
//!
//! Each topic has a lane of its own: a producer, at most one batch in flight, and a pause after a failure. A topic
//! that Kafka does not take, or an event of it that Kafka refuses, delays the events of that topic alone.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;
use sqlx::{Connection, Executor, FromRow, PgConnection, Row};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::database::{Database, within};

/// How many events of a topic are in flight at once.
const BATCH: i64 = 500;
/// How soon a commit of another replica is found.
const POLL: Duration = Duration::from_millis(100);
/// How often the ends of the outbox are looked at.
const SURVEY: Duration = Duration::from_secs(1);
/// How often a replica that does not publish asks whether it may.
const ASK: Duration = Duration::from_secs(1);
/// How long a batch in flight may take to finish when the process ends.
const FINISH: Duration = Duration::from_secs(3);
/// The pause of a topic after its first failure. It doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause of a topic after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The pause before a new session is opened. A new primary of PostgreSQL is looked for at a steady pace.
const NEXT_SESSION: Duration = Duration::from_millis(200);

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

/// An event of the outbox.
#[derive(Debug, FromRow)]
struct Event {
    xid: String,
    seq: i64,
    owner_id: i64,
    event_id: String,
    topic: String,
    payload: String,
    traceparent: Option<String>,
}

/// A batch of one topic, after Kafka has answered.
struct Delivered {
    topic: String,
    events: Vec<Event>,
    /// How many of the events, from the first, Kafka has acknowledged without a gap.
    acknowledged: usize,
    failure: Option<KafkaError>,
}

/// What the publisher knows of a topic.
struct Lane {
    /// None after a failure: the sequence numbers of a producer that failed are not to be trusted.
    producer: Option<FutureProducer>,
    in_flight: bool,
    pause: Duration,
    not_before: Option<Instant>,
}

impl Lane {
    fn new() -> Self {
        Lane {
            producer: None,
            in_flight: false,
            pause: FIRST_PAUSE,
            not_before: None,
        }
    }

    fn is_busy(&self, now: Instant) -> bool {
        self.in_flight || self.not_before.is_some_and(|at| at > now)
    }

    fn succeeded(&mut self) {
        *self = Lane {
            producer: self.producer.take(),
            ..Lane::new()
        };
    }

    fn failed(&mut self, now: Instant) {
        *self = Lane {
            producer: None,
            in_flight: false,
            pause: (self.pause * 2).min(LONGEST_PAUSE),
            not_before: Some(now + self.pause),
        };
    }
}

impl Publisher {
    /// A worker over the outbox of `database`.
    pub fn new(database: Database, config: PublisherConfig) -> Self {
        Publisher { database, config }
    }

    /// Publishes until `stop`. Batches in flight may finish; what is left waits for the next process.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let error = tokio::select! {
                () = async { stop.cancelled().await; tokio::time::sleep(FINISH).await } => return,
                outcome = self.lead(&stop) => match outcome {
                    Ok(()) => return,
                    Err(error) => error,
                },
            };
            tracing::warn!(%error, "the outbox publisher lost PostgreSQL and starts again");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(NEXT_SESSION) => {}
            }
        }
    }

    /// Waits for the lease, then publishes as long as it holds. The lease is a lock of a session: it is gone
    /// when the session is, and a session that is gone cannot read either.
    async fn lead(&self, stop: &CancellationToken) -> Result<(), sqlx::Error> {
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
        let mut lanes: HashMap<String, Lane> = HashMap::new();
        let mut in_flight: FuturesUnordered<BoxFuture<'static, Delivered>> =
            FuturesUnordered::new();
        let mut surveyed: Option<Instant> = None;
        loop {
            // Before the first batch, too: rows of another server come before those written here since.
            if surveyed.is_none_or(|at| at.elapsed() >= SURVEY) {
                let lag = survey(&mut session).await?;
                self.database.metrics().outbox_lag(lag);
                surveyed = Some(Instant::now());
            }
            if !stop.is_cancelled() {
                for batch in next_batches(&mut session, &lanes).await? {
                    in_flight.push(self.deliver(&mut lanes, batch));
                }
            } else if in_flight.is_empty() {
                return Ok(());
            }
            tokio::select! {
                Some(delivered) = in_flight.next() => self.settle(&mut session, &mut lanes, delivered).await?,
                () = stop.cancelled(), if !stop.is_cancelled() => {}
                () = self.database.outbox_written().notified() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Gives a batch of one topic to its producer, in order; the answers come later.
    fn deliver(
        &self,
        lanes: &mut HashMap<String, Lane>,
        events: Vec<Event>,
    ) -> BoxFuture<'static, Delivered> {
        let topic = events
            .first()
            .map_or_else(String::new, |event| event.topic.clone());
        let lane = lanes.entry(topic.clone()).or_insert_with(Lane::new);
        lane.in_flight = true;
        let mut deliveries = FuturesOrdered::new();
        let mut failure = None;
        match self.producer_of(lane) {
            Err(error) => failure = Some(error),
            Ok(producer) => {
                for event in &events {
                    match self.send(producer, event) {
                        Ok(delivery) => deliveries.push_back(delivery),
                        Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => break,
                        // What is queued already gets its answers first: it must not be published again for this one.
                        Err(error) => {
                            failure = Some(error);
                            break;
                        }
                    }
                }
            }
        }
        Box::pin(async move {
            let mut acknowledged = 0;
            let mut first_failure = None;
            while let Some(delivery) = deliveries.next().await {
                match delivery {
                    Ok(Ok(_)) if first_failure.is_none() => acknowledged += 1,
                    Ok(Ok(_)) => {}
                    Ok(Err((error, _))) => {
                        first_failure.get_or_insert(error);
                    }
                    Err(_) => {
                        first_failure.get_or_insert(KafkaError::Canceled);
                    }
                }
            }
            Delivered {
                topic,
                events,
                acknowledged,
                failure: first_failure.or(failure),
            }
        })
    }

    /// Only what precedes the first failure is done; the rest is published again, and has the same event ids.
    async fn settle(
        &self,
        session: &mut PgConnection,
        lanes: &mut HashMap<String, Lane>,
        delivered: Delivered,
    ) -> Result<(), sqlx::Error> {
        let Delivered {
            topic,
            events,
            acknowledged,
            failure,
        } = delivered;
        let (done, rest) = events.split_at(acknowledged);
        delete(session, done).await?;
        self.database.metrics().outbox_published(acknowledged);
        let lane = lanes.entry(topic).or_insert_with(Lane::new);
        match failure {
            None => lane.succeeded(),
            Some(error) => {
                let event = rest.first();
                tracing::warn!(
                    %error,
                    topic = event.map_or_else(String::new, |event| self.topic(event)),
                    event_id = event.map_or("", |event| &event.event_id),
                    pause = ?lane.pause,
                    "Kafka did not take an event: it waits in the outbox, and so do later events of its topic"
                );
                lane.failed(Instant::now());
            }
        }
        Ok(())
    }

    fn producer_of<'l>(&self, lane: &'l mut Lane) -> Result<&'l FutureProducer, KafkaError> {
        let producer = match lane.producer.take() {
            Some(producer) => producer,
            None => self.producer()?,
        };
        Ok(lane.producer.insert(producer))
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

    fn topic(&self, event: &Event) -> String {
        format!("titan.{}.{}", self.config.cell, event.topic)
    }

    fn send(&self, producer: &FutureProducer, event: &Event) -> Result<DeliveryFuture, KafkaError> {
        let topic = self.topic(event);
        let key = event.owner_id.to_string();
        let mut headers = OwnedHeaders::new().insert(Header {
            key: "eventId",
            value: Some(event.event_id.as_str()),
        });
        if let Some(traceparent) = &event.traceparent {
            headers = headers.insert(Header {
                key: "traceparent",
                value: Some(traceparent.as_str()),
            });
        }
        let record = FutureRecord::to(&topic)
            .key(&key)
            .payload(&event.payload)
            .headers(headers);
        producer.send_result(record).map_err(|(error, _)| error)
    }
}

/// The next events of each topic that is not busy, a batch a topic, in order.
///
/// `seq` is given out under the lock of the aggregate's row, so it is the order of the aggregate. The transaction
/// id is not: it is given out earlier, by the guard. It only tells whether anything may still be written before a
/// row: below the horizon all transactions are decided. A row that was written by a transaction above the horizon
/// holds back later rows of its owner that lie below it. No row that precedes a visible one of its aggregate can be
/// invisible: its transaction ended before the lock was granted.
async fn next_batches(
    session: &mut PgConnection,
    lanes: &HashMap<String, Lane>,
) -> Result<Vec<Vec<Event>>, sqlx::Error> {
    let now = Instant::now();
    let busy: Vec<&str> = lanes
        .iter()
        .filter(|(_, lane)| lane.is_busy(now))
        .map(|(topic, _)| topic.as_str())
        .collect();
    let events: Vec<Event> = within(
        Duration::from_secs(5),
        sqlx::query_as(
            // The first part steps from topic to topic by the index. `held` is read only when there are candidates.
            "WITH RECURSIVE topics AS (
                 (SELECT topic FROM outbox ORDER BY topic LIMIT 1)
                 UNION ALL
                 SELECT (SELECT topic FROM outbox WHERE topic > topics.topic ORDER BY topic LIMIT 1)
                   FROM topics WHERE topics.topic IS NOT NULL
             ), held AS MATERIALIZED (
                 SELECT owner_id, min(seq) AS first FROM outbox
                  WHERE xid >= pg_snapshot_xmin(pg_current_snapshot()) GROUP BY owner_id
             )
             SELECT next.* FROM topics CROSS JOIN LATERAL (
                 SELECT xid::text AS xid, seq, owner_id, event_id::text AS event_id, outbox.topic, payload, traceparent
                   FROM outbox
                  WHERE outbox.topic = topics.topic AND outbox.xid < pg_snapshot_xmin(pg_current_snapshot())
                    AND NOT EXISTS (SELECT FROM held WHERE held.owner_id = outbox.owner_id AND held.first < outbox.seq)
                  ORDER BY outbox.seq LIMIT $1
             ) AS next
              WHERE topics.topic <> ALL ($2)
              ORDER BY next.topic, next.seq",
        )
        .bind(BATCH)
        .bind(&busy)
        .fetch_all(session),
    )
    .await?;
    let mut batches: Vec<Vec<Event>> = Vec::new();
    for event in events {
        match batches.last_mut() {
            Some(batch)
                if batch
                    .first()
                    .is_some_and(|first| first.topic == event.topic) =>
            {
                batch.push(event);
            }
            _ => batches.push(vec![event]),
        }
    }
    Ok(batches)
}

async fn delete(session: &mut PgConnection, events: &[Event]) -> Result<(), sqlx::Error> {
    if events.is_empty() {
        return Ok(());
    }
    let xids: Vec<&str> = events.iter().map(|event| event.xid.as_str()).collect();
    let seqs: Vec<i64> = events.iter().map(|event| event.seq).collect();
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
/// it. They get a `seq` below all that there are, in the order of the old `seq`: they were written first. The column
/// is an identity, so this is a delete and an insert, which also needs no right that the service lacks. The outbox
/// does not move with its owner, and no guard is on it.
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
                      lowest AS (SELECT min(seq) AS seq FROM outbox),
                      taken AS (DELETE FROM outbox USING newest WHERE outbox.created_at <= newest.at
                                RETURNING outbox.*)
                 INSERT INTO outbox (xid, seq, owner_id, event_id, topic, payload, traceparent, created_at)
                 OVERRIDING SYSTEM VALUE
                 SELECT '1'::xid8, lowest.seq - row_number() OVER (ORDER BY taken.seq DESC, taken.xid DESC),
                        owner_id, event_id, topic, payload, traceparent, created_at
                   FROM taken, lowest",
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
