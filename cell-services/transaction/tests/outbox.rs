//! The outbox, through the order service, into a real Kafka.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use cell_conformance::{Cell, CellOptions, MINE, fresh, http, key, with_key};
use cell_kit::metrics::Metrics;
use cell_kit::ownership::Ownership;
use cell_kit::{Database, Server, Tx};
use nix::sys::signal::Signal;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};
use sqlx::{Connection, Executor};
use titan_proto::order::v1::order_service_client::OrderServiceClient;
use titan_proto::order::v1::{
    CreateFromSagaRequest, LineInput, Money, OrderState, SplitBySellerRequest, TransitionRequest,
};
use titan_testbed::Kafka;
use titan_transaction::order::SERVICE;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

const PARTITIONS: i32 = 3;

struct Topic {
    consumer: BaseConsumer,
}

#[derive(Debug)]
struct Record {
    key: String,
    partition: i32,
    event: serde_json::Value,
}

impl Topic {
    async fn create(bootstrap: &str, name: &str) -> anyhow::Result<Self> {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .create()?;
        let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
        for result in admin.create_topics([&topic], &AdminOptions::new()).await? {
            result.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
        }
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", name)
            .set("enable.auto.commit", "false")
            .create()?;
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(name, partition, Offset::Beginning)?;
        }
        consumer.assign(&partitions)?;
        Ok(Topic { consumer })
    }

    /// Reads until there are so many records, and then for as long as it takes to see that there are no more.
    fn read(&self, expected: usize) -> anyhow::Result<Vec<Record>> {
        let mut records = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let patience = if records.len() >= expected {
                Duration::from_millis(700)
            } else {
                Duration::from_millis(200)
            };
            match self.consumer.poll(patience) {
                None if records.len() >= expected => return Ok(records),
                None => anyhow::ensure!(
                    Instant::now() < deadline,
                    "{} of {expected} records came",
                    records.len()
                ),
                Some(message) => {
                    let message = message?;
                    records.push(Record {
                        key: String::from_utf8(message.key().unwrap_or_default().to_vec())?,
                        partition: message.partition(),
                        event: serde_json::from_slice(message.payload().unwrap_or_default())?,
                    });
                }
            }
        }
    }
}

async fn start(
    kafka: &str,
    name: &str,
) -> anyhow::Result<(Cell, Topic, OrderServiceClient<Channel>)> {
    let topic = Topic::create(kafka, &format!("titan.{name}.order.events")).await?;
    let options = CellOptions {
        kafka: kafka.to_owned(),
        cell: name.to_owned(),
        ..CellOptions::default()
    };
    let cell = Cell::start_with(&SERVICE, options).await?;
    cell.wait_ready().await?;
    let client = OrderServiceClient::new(cell.channel().await?);
    Ok((cell, topic, client))
}

fn purchase(saga: &str, paid: bool) -> CreateFromSagaRequest {
    let price = Some(Money {
        minor_units: 100,
        currency: "SGD".to_owned(),
    });
    let line = LineInput {
        sku: "tea".to_owned(),
        seller_id: 7,
        quantity: 1,
        unit_price: price,
        title: String::new(),
    };
    CreateFromSagaRequest {
        saga_id: saga.to_owned(),
        lines: vec![line],
        shipping: None,
        discount: None,
        paid,
    }
}

async fn shared_kafka() -> anyhow::Result<&'static Kafka> {
    Ok(tokio::task::spawn_blocking(titan_testbed::kafka).await??)
}

async fn wait_for_empty_outbox(cell: &Cell) -> anyhow::Result<()> {
    wait_for_outbox(cell, 0).await
}

async fn wait_for_outbox(cell: &Cell, expected: i64) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox")
            .fetch_one(&cell.admin)
            .await?;
        if waiting == expected {
            return Ok(());
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "{waiting} events stay in the outbox"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_leaves_once_with_its_envelope() -> anyhow::Result<()> {
    let kafka = shared_kafka().await?;
    let (cell, topic, mut client) = start(kafka.bootstrap(), "cell-once").await?;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut request = with_key(key(MINE), "place", purchase("saga", true));
    request.metadata_mut().insert("traceparent", trace.parse()?);
    let order = client.create_from_saga(request).await?.into_inner();
    client
        .create_from_saga(with_key(key(MINE), "place", purchase("saga", true)))
        .await?;

    let records = topic.read(2)?;
    let types: Vec<_> = records
        .iter()
        .map(|record| record.event["eventType"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["OrderPlaced", "OrderConfirmed"]);
    for record in &records {
        assert_eq!(record.key, MINE.to_string());
        assert_eq!(record.event["userId"], MINE.to_string());
        assert_eq!(record.event["aggregateId"], order.id);
        assert_eq!(record.event["cell"], "cell-once");
        assert_eq!(record.event["epoch"], 10);
        assert_eq!(record.event["traceparent"], trace);
        assert!(record.event["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(record.event["eventId"].as_str().unwrap().len(), 36);
    }
    assert_eq!(records[0].event["data"]["lines"][0]["sku"], "tea");
    wait_for_empty_outbox(&cell).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_commits_late_is_neither_lost_nor_overtaken() -> anyhow::Result<()> {
    let kafka = shared_kafka().await?;
    let (cell, topic, mut client) = start(kafka.bootstrap(), "cell-late").await?;
    // A transaction that has written its event, and takes its time.
    let mut late = sqlx::PgConnection::connect(&cell.postgres.url()).await?;
    late.execute("BEGIN").await?;
    late.execute(
        "INSERT INTO \"order\".outbox (owner_id, event_id, topic, payload)
         VALUES (1000, gen_random_uuid(), 'order.events', '{\"eventType\": \"Late\"}')",
    )
    .await?;
    // Later ones commit meanwhile.
    for number in 0..5 {
        client
            .create_from_saga(fresh(key(MINE), purchase(&format!("saga {number}"), false)))
            .await?;
    }
    // No batch selects them, and they are late all the same.
    wait_for_lag(&cell, |seconds| seconds > 0.0).await?;
    late.execute("COMMIT").await?;
    let records = topic.read(6)?;
    let types: Vec<_> = records
        .iter()
        .map(|record| record.event["eventType"].as_str().unwrap())
        .collect();
    assert_eq!(
        types,
        [
            "Late",
            "OrderPlaced",
            "OrderPlaced",
            "OrderPlaced",
            "OrderPlaced",
            "OrderPlaced"
        ]
    );
    wait_for_empty_outbox(&cell).await?;
    wait_for_lag(&cell, |seconds| seconds == 0.0).await
}

/// Uses up transaction ids until they have a digit more.
const GROW: &str = "
DO $$
DECLARE
    now bigint := pg_current_xact_id()::text::bigint;
    goal bigint := (10::numeric ^ length(now::text))::bigint;
BEGIN
    CREATE TEMPORARY TABLE used (one int) ON COMMIT DROP;
    FOR step IN now..goal LOOP
        -- A subtransaction that writes takes an id.
        BEGIN INSERT INTO used VALUES (1); EXCEPTION WHEN others THEN NULL; END;
    END LOOP;
END $$";

#[tokio::test(flavor = "multi_thread")]
async fn order_holds_when_transaction_ids_grow_by_a_digit() -> anyhow::Result<()> {
    let kafka = shared_kafka().await?;
    let (cell, topic, mut client) = start(kafka.bootstrap(), "cell-digits").await?;
    // Holds everything back, so that it is published at once.
    let mut late = sqlx::PgConnection::connect(&cell.postgres.url()).await?;
    late.execute("BEGIN").await?;
    late.execute("SELECT pg_current_xact_id()").await?;
    let mut placed = Vec::new();
    for saga in ["saga before", "saga after"] {
        let order = client.create_from_saga(fresh(key(MINE), purchase(saga, false)));
        placed.push(order.await?.into_inner().id);
        if placed.len() == 1 {
            let mut other = sqlx::PgConnection::connect(&cell.postgres.url()).await?;
            other.execute(GROW).await?;
        }
    }
    late.execute("COMMIT").await?;
    let records = topic.read(2)?;
    let published: Vec<_> = records
        .iter()
        .map(|record| record.event["aggregateId"].as_str().unwrap())
        .collect();
    assert_eq!(published, placed);
    wait_for_empty_outbox(&cell).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_keep_the_order_of_each_owner() -> anyhow::Result<()> {
    const OWNERS: u64 = 8;
    const ORDERS: usize = 25;
    let kafka = shared_kafka().await?;
    let (mut cell, topic, first) = start(kafka.bootstrap(), "cell-two").await?;
    // The second replica; its end is the test's.
    let server = Server::bind(&SERVICE, cell.config.clone(), cell.tables()).await?;
    let mut address = server.addresses()?.grpc;
    address.set_ip([127, 0, 0, 1].into());
    let stop = CancellationToken::new();
    let replica = tokio::spawn(server.run(stop.clone()));
    let second = OrderServiceClient::new(
        Channel::from_shared(format!("http://{address}"))?
            .connect()
            .await?,
    );

    let mut writers = Vec::new();
    for owner in 0..OWNERS {
        let mut clients = [first.clone(), second.clone()];
        writers.push(tokio::spawn(async move {
            for number in 0..ORDERS {
                let request = fresh(
                    key(MINE + owner),
                    purchase(&format!("saga {number:03}"), true),
                );
                clients[number % 2].create_from_saga(request).await?;
            }
            Ok::<_, tonic::Status>(())
        }));
    }
    for writer in writers {
        writer.await??;
    }
    // Whichever of them publishes: when the first ends, the second takes over.
    cell.terminate();
    cell.ended().await?;
    let more = OWNERS as usize;
    for owner in 0..OWNERS {
        let mut client = second.clone();
        client
            .create_from_saga(fresh(key(MINE + owner), purchase("saga 999", true)))
            .await?;
    }
    wait_for_empty_outbox(&cell).await?;
    stop.cancel();
    replica.await??;

    let records = topic.read((OWNERS as usize * ORDERS + more) * 2)?;
    let mut seen = HashSet::new();
    let mut by_owner: BTreeMap<&str, Vec<(String, String)>> = BTreeMap::new();
    let mut partitions: BTreeMap<&str, HashSet<i32>> = BTreeMap::new();
    for record in &records {
        // At least once: what was published twice has the same id, and the first of them counts.
        if !seen.insert(record.event["eventId"].as_str().unwrap().to_owned()) {
            continue;
        }
        partitions
            .entry(&record.key)
            .or_default()
            .insert(record.partition);
        by_owner.entry(&record.key).or_default().push((
            record.event["aggregateId"].as_str().unwrap().to_owned(),
            record.event["eventType"].as_str().unwrap().to_owned(),
        ));
    }
    assert_eq!(by_owner.len(), OWNERS as usize);
    for (owner, events) in by_owner {
        assert_eq!(
            partitions[owner].len(),
            1,
            "an owner's events lie in one partition"
        );
        assert_eq!(events.len(), (ORDERS + 1) * 2, "owner {owner}");
        let stored: Vec<(String, String)> = sqlx::query_as(
            "SELECT order_id::text, type FROM order_events WHERE owner_id = $1 ORDER BY order_id, version",
        )
        .bind(owner.parse::<i64>()?)
        .fetch_all(&cell.admin)
        .await?;
        // Ids are made one after the other here, so their order is that of the commits.
        assert_eq!(events, stored, "owner {owner}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kafka_that_hangs_or_dies_delays_events_and_nothing_else() -> anyhow::Result<()> {
    let mut kafka = tokio::task::spawn_blocking(Kafka::start).await??;
    let (cell, topic, mut client) = start(kafka.bootstrap(), "cell-away").await?;
    client
        .create_from_saga(fresh(key(MINE), purchase("before", false)))
        .await?;
    wait_for_empty_outbox(&cell).await?;

    kafka.server().signal(Signal::SIGSTOP)?;
    let started = Instant::now();
    for number in 0..20 {
        client
            .create_from_saga(fresh(
                key(MINE),
                purchase(&format!("while {number:02}"), false),
            ))
            .await?;
    }
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "requests wait for Kafka"
    );
    assert_eq!(http::get(cell.addresses.admin, "/readyz").await?.0, 200);
    let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox")
        .fetch_one(&cell.admin)
        .await?;
    assert_eq!(waiting, 20);

    kafka.server().signal(Signal::SIGCONT)?;
    wait_for_empty_outbox(&cell).await?;
    let records = topic.read(21)?;
    let mut seen = HashSet::new();
    let orders: Vec<&str> = records
        .iter()
        .filter(|record| seen.insert(record.event["eventId"].to_string()))
        .map(|record| record.event["data"]["sagaId"].as_str().unwrap())
        .collect();
    let expected: Vec<String> = std::iter::once("before".to_owned())
        .chain((0..20).map(|number| format!("while {number:02}")))
        .collect();
    assert_eq!(orders, expected);
    Ok(())
}

/// How late the service says that its events are, in seconds.
async fn lag(cell: &Cell) -> anyhow::Result<f64> {
    let (_, metrics) = http::get(cell.addresses.admin, "/metrics").await?;
    let line = metrics
        .lines()
        .find(|line| line.starts_with("titan_outbox_lag_seconds"));
    Ok(line.unwrap().rsplit(' ').next().unwrap().parse()?)
}

async fn wait_for_lag(cell: &Cell, holds: impl Fn(f64) -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds(lag(cell).await?) {
        anyhow::ensure!(Instant::now() < deadline, "still {} s", lag(cell).await?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_publishes_says_how_late_and_nobody_else() -> anyhow::Result<()> {
    const LEASE: &str = "SELECT pg_advisory_lock(hashtext('outbox ' || current_schema()), 2)";
    // The address of the default leads to no Kafka.
    let cell = Cell::start_with(&SERVICE, CellOptions::default()).await?;
    cell.wait_ready().await?;
    let mut client = OrderServiceClient::new(cell.channel().await?);
    client
        .create_from_saga(fresh(key(MINE), purchase("late", false)))
        .await?;
    wait_for_lag(&cell, |seconds| seconds > 0.0).await?;

    // Another replica gets the lease, and keeps it.
    let mut other = cell.admin.acquire().await?;
    let taking = tokio::spawn(async move {
        let taken = other.execute(LEASE).await;
        taken.map(|_| other)
    });
    while !taking.is_finished() {
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_locks
              WHERE locktype = 'advisory' AND granted AND objid = 2 AND objsubid = 2
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND pid NOT IN (SELECT pid FROM pg_stat_activity WHERE query = $1)",
        )
        .bind(LEASE)
        .execute(&cell.admin)
        .await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _lease = taking.await??;
    wait_for_lag(&cell, |seconds| seconds == 0.0).await
}

fn types(records: &[Record]) -> Vec<&str> {
    let types = records
        .iter()
        .map(|record| record.event["eventType"].as_str().unwrap());
    types.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_another_server_come_first_and_in_their_order() -> anyhow::Result<()> {
    // As COPY and logical replication write them, with the old server's ids.
    const COPY: &str = "
        INSERT INTO outbox (xid, seq, owner_id, event_id, topic, payload, created_at) OVERRIDING SYSTEM VALUE
        SELECT xid::xid8, seq, 1000, gen_random_uuid(), 'order.events', json_build_object('eventType', type),
               now() - interval '1 hour'
          FROM (VALUES ('9000000000', 8, 'third'), ('10000000000', 7, 'second'), ('10000000000', 6, 'first'),
                       -- This server has passed it.
                       ('5', 9, 'fourth')) AS old (xid, seq, type)";
    let kafka = shared_kafka().await?;
    let (mut cell, topic, _) = start(kafka.bootstrap(), "cell-restored").await?;
    cell.terminate();
    cell.ended().await?;
    let new = "INSERT INTO outbox (owner_id, event_id, topic, payload)
               VALUES (1000, gen_random_uuid(), 'order.events', '{\"eventType\": \"new\"}')";
    cell.admin.execute(new).await?;
    cell.admin.execute(COPY).await?;
    cell.serve().await?;
    let records = topic.read(5)?;
    assert_eq!(
        types(&records),
        ["first", "second", "third", "fourth", "new"]
    );

    // And when they come while a replica publishes.
    cell.admin.execute(COPY).await?;
    wait_for_empty_outbox(&cell).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_kafka_refuses_takes_none_before_it_along() -> anyhow::Result<()> {
    const WRITE: &str = "
        INSERT INTO outbox (owner_id, event_id, topic, payload)
        SELECT 1000, gen_random_uuid(), 'order.events',
               json_build_object('eventType', type, 'data', repeat('x', size))
          FROM unnest($1::text[], $2::int[]) WITH ORDINALITY AS event (type, size, place) ORDER BY place";
    let kafka = shared_kafka().await?;
    let (cell, topic, _) = start(kafka.bootstrap(), "cell-refused").await?;
    // Written by a release that had no limit.
    sqlx::query(WRITE)
        .bind(["first", "second", "large", "last"])
        .bind([1, 1, 1_000_000, 1])
        .execute(&cell.admin)
        .await?;
    wait_for_outbox(&cell, 2).await?;
    // What on call does.
    let large = "DELETE FROM outbox WHERE length(payload) > 1000000";
    assert_eq!(cell.admin.execute(large).await?.rows_affected(), 1);
    wait_for_empty_outbox(&cell).await?;
    assert_eq!(types(&topic.read(3)?), ["first", "second", "last"]);
    Ok(())
}

/// A database as the service has it, for transactions that a test steps through.
fn database(cell: &Cell) -> anyhow::Result<Database> {
    let ownership = Ownership::new(&cell.config.cell, &cell.config.cell, cell.tables());
    let metrics = Metrics::new(SERVICE.name, SERVICE.descriptor)?;
    Ok(Database::new(&cell.config.postgres, ownership, metrics)?)
}

async fn begin(database: &Database, owner: u64) -> anyhow::Result<Tx> {
    let ownership = database.ownership();
    let owner = ownership.check(key(owner), ownership.epoch()).await?;
    Ok(Tx::begin(database, owner).await?)
}

async fn emit(tx: &mut Tx, aggregate_id: uuid::Uuid, version: u64) -> anyhow::Result<()> {
    let event = cell_kit::Event {
        topic: "order.events",
        event_type: "Changed",
        aggregate_id,
        version,
        data: &(),
    };
    Ok(tx.emit(&event).await?)
}

fn versions(records: &[Record], aggregate: uuid::Uuid) -> Vec<u64> {
    let of_aggregate = records
        .iter()
        .filter(|record| record.event["aggregateId"] == aggregate.to_string());
    of_aggregate
        .map(|record| record.event["version"].as_u64().unwrap())
        .collect()
}

/// The guard gives a transaction its id, before the row's lock decides who is first. Rows in the order of
/// (xid, seq) would swap versions here.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_an_aggregate_leave_in_the_order_of_its_versions() -> anyhow::Result<()> {
    let kafka = shared_kafka().await?;
    let (cell, topic, _) = start(kafka.bootstrap(), "cell-order").await?;
    let database = database(&cell)?;
    let aggregate = uuid::Uuid::now_v7();
    let marker = uuid::Uuid::now_v7();
    // Ids in this order, and another transaction open between them.
    let mut slow = begin(&database, MINE).await?;
    let mut of_another_owner = begin(&database, MINE + 1).await?;
    let mut open = sqlx::PgConnection::connect(&cell.postgres.url()).await?;
    open.execute("BEGIN").await?;
    open.execute("SELECT pg_current_xact_id()").await?;
    let mut fast = begin(&database, MINE).await?;
    // The row is locked by the one that began last.
    emit(&mut fast, aggregate, 2).await?;
    fast.commit(&database).await?;
    emit(&mut slow, aggregate, 3).await?;
    slow.commit(&database).await?;
    // What was written after them, and waits for nothing, is published; they are not.
    emit(&mut of_another_owner, marker, 1).await?;
    of_another_owner.commit(&database).await?;
    wait_for_outbox(&cell, 2).await?;
    let early = topic.read(1)?;
    assert_eq!((versions(&early, marker), early.len()), (vec![1], 1));

    open.execute("COMMIT").await?;
    wait_for_empty_outbox(&cell).await?;
    assert_eq!(versions(&topic.read(2)?, aggregate), [2, 3]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_race_for_an_order_publish_its_versions_in_order() -> anyhow::Result<()> {
    const ORDERS: usize = 15;
    let kafka = shared_kafka().await?;
    let (cell, topic, mut client) = start(kafka.bootstrap(), "cell-race").await?;
    let mut orders = Vec::new();
    for number in 0..ORDERS {
        let request = fresh(key(MINE), purchase(&format!("saga {number}"), true));
        orders.push(client.create_from_saga(request).await?.into_inner().id);
    }
    let writers = orders.iter().map(|id| {
        let (mut moving, mut splitting) = (client.clone(), client.clone());
        let to_processing = TransitionRequest {
            id: id.clone(),
            to: OrderState::Processing.into(),
            expected_version: 0,
        };
        let split = SplitBySellerRequest { id: id.clone() };
        async move {
            let (moved, split) = tokio::join!(
                moving.transition(fresh(key(MINE), to_processing)),
                splitting.split_by_seller(fresh(key(MINE), split))
            );
            moved?;
            split.map(drop)
        }
    });
    for written in futures::future::join_all(writers).await {
        written?;
    }
    wait_for_empty_outbox(&cell).await?;
    let records = topic.read(ORDERS * 4)?;
    for id in orders {
        assert_eq!(versions(&records, id.parse()?), [1, 2, 3, 4], "order {id}");
    }
    Ok(())
}

/// One producer and one queue for all topics would hold up the second topic.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_kafka_refuses_delays_its_own_topic_alone() -> anyhow::Result<()> {
    const WRITE: &str = "
        INSERT INTO outbox (owner_id, event_id, topic, payload)
        SELECT 1000, gen_random_uuid(), topic, json_build_object('eventType', type, 'data', repeat('x', size))
          FROM unnest($1::text[], $2::text[], $3::int[]) WITH ORDINALITY AS event (topic, type, size, place)
         ORDER BY place";
    let kafka = shared_kafka().await?;
    let (cell, events, _) = start(kafka.bootstrap(), "cell-poison").await?;
    let other = Topic::create(kafka.bootstrap(), "titan.cell-poison.order.other").await?;
    // The refused one is the first, and enough of its topic follow it to fill a batch.
    let mut rows = vec![("order.events", "large", 1_000_000)];
    rows.extend(std::iter::repeat_n(("order.events", "waits", 1), 600));
    rows.push(("order.other", "passes", 1));
    let (topics, (types_, sizes)): (Vec<&str>, (Vec<&str>, Vec<i32>)) = rows
        .into_iter()
        .map(|(topic, name, size)| (topic, (name, size)))
        .unzip();
    sqlx::query(WRITE)
        .bind(topics)
        .bind(types_)
        .bind(sizes)
        .execute(&cell.admin)
        .await?;
    assert_eq!(types(&other.read(1)?), ["passes"]);
    wait_for_outbox(&cell, 601).await?;
    let large = "DELETE FROM outbox WHERE length(payload) > 1000000";
    assert_eq!(cell.admin.execute(large).await?.rows_affected(), 1);
    wait_for_empty_outbox(&cell).await?;
    assert_eq!(events.read(600)?.len(), 600);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_too_large_is_refused_to_its_writer() -> anyhow::Result<()> {
    let kafka = shared_kafka().await?;
    let (cell, topic, _) = start(kafka.bootstrap(), "cell-large").await?;
    let database = database(&cell)?;
    let mut tx = begin(&database, MINE).await?;
    let mut emitted = Vec::new();
    // The envelope adds some hundred bytes.
    for size in [989_000, 990_000] {
        let event = cell_kit::Event {
            topic: "order.events",
            event_type: "Large",
            aggregate_id: tx.new_id(),
            version: 1,
            data: &"x".repeat(size),
        };
        emitted.push(tx.emit(&event).await);
    }
    assert!(emitted[0].is_ok(), "{emitted:?}");
    let status = tonic::Status::from(emitted.pop().unwrap().unwrap_err());
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("event Large of "), "{status:?}");
    // What is not refused gets through.
    tx.commit(&database).await?;
    wait_for_empty_outbox(&cell).await?;
    assert_eq!(types(&topic.read(1)?), ["Large"]);
    Ok(())
}
