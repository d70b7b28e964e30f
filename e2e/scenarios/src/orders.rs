//! Orders, through the router and past it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::{Value, json};
use titan_proto::order::v1::Order;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::cluster::{Cluster, SYSTEM, ensure};
use crate::shop::{ORDER_PORT, ROUTER_PORT, Shop};

pub async fn router(cluster: &Cluster) -> Result<Shop> {
    Shop::at(
        &cluster
            .service_address(SYSTEM, "cell-router", ROUTER_PORT)
            .await?,
    )
}

/// Places an order in a cell that has just become ready: the router may learn a moment later where its pods are.
async fn first_order(shop: &Shop, key: u64, once: Uuid) -> Result<Order, Status> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match shop.place(key, once).await {
            Err(status) if status.code() == Code::Unavailable && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            placed => return placed,
        }
    }
}

/// An order placed through the router is read back, is placed once, and is on the cell's topic.
pub async fn order_through_the_router(cluster: &Cluster) -> Result<Value> {
    cluster.wait_ready("cell-001").await?;
    let shop = router(cluster).await?;
    let (key, once) = (42, Uuid::now_v7());
    let placed = first_order(&shop, key, once)
        .await
        .context("place an order")?;
    let read = shop.get(key, &placed.id).await.context("read the order")?;
    ensure(read == placed, || {
        format!("read {read:?}, placed {placed:?}")
    })?;

    let again = shop.place(key, once).await.context("place it again")?;
    ensure(again == placed, || {
        format!("the same idempotency key gave another order: {again:?}")
    })?;
    match shop.place_some(key, once, 2).await {
        Err(status)
            if [
                Code::InvalidArgument,
                Code::AlreadyExists,
                Code::FailedPrecondition,
            ]
            .contains(&status.code()) => {}
        other => bail!("the same idempotency key with another request must be refused: {other:?}"),
    }
    match shop.get(43, &placed.id).await {
        Err(status) if status.code() == Code::NotFound => {}
        other => bail!("another customer must not see the order: {other:?}"),
    }

    let events = events_of(cluster, "titan.cell-001.order.events", &placed.id).await?;
    ensure(
        events
            .iter()
            .filter(|event| {
                event["eventType"]
                    .as_str()
                    .is_some_and(|name| name.to_lowercase().contains("placed"))
            })
            .count()
            == 1,
        || format!("one event should tell of the placing: {events:#?}"),
    )?;
    let first = &events[0];
    for field in [
        "eventType",
        "aggregateId",
        "userId",
        "data",
        "timestamp",
        "eventId",
        "cell",
        "epoch",
    ] {
        ensure(!first[field].is_null(), || {
            format!("the envelope lacks {field}: {first}")
        })?;
    }
    ensure(first["cell"] == "cell-001", || {
        format!("wrong cell in {first}")
    })?;
    Ok(json!({ "order": placed.id, "events": events.len() }))
}

/// Keys land in their own cell; a request for the wrong cell is refused, with the way to the right one.
pub async fn two_cells(cluster: &Cluster) -> Result<Value> {
    let began = Instant::now();
    for cell in cluster.example_cells("two-cells/cells.yaml")? {
        cluster.apply(&cell).await?;
    }
    cluster.wait_ready("cell-002").await?;
    let seconds = began.elapsed().as_secs_f64();
    let shop = router(cluster).await?;

    let mut placed = Vec::new();
    for (key, cell) in [
        (1, "cell-001"),
        (10_000, "cell-001"),
        (10_001, "cell-002"),
        (20_000, "cell-002"),
    ] {
        let order = first_order(&shop, key, Uuid::now_v7())
            .await
            .with_context(|| format!("place an order for key {key}"))?;
        placed.push((key, cell, order));
    }
    for (key, home, order) in &placed {
        for cell in ["cell-001", "cell-002"] {
            let pod = Shop::at(&cluster.pod_address(cell, "order", ORDER_PORT).await?)?;
            let answer = pod.get(*key, &order.id).await;
            if cell == *home {
                answer.with_context(|| format!("read the order of key {key} in {cell} itself"))?;
                continue;
            }
            let Err(status) = answer else {
                bail!("{cell} answered for key {key} of {home}");
            };
            ensure(status.code() == Code::FailedPrecondition, || {
                format!("{cell} should refuse key {key}: {status:?}")
            })?;
            let header = |name: &str| {
                status
                    .metadata()
                    .get(name)
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default()
                    .to_owned()
            };
            ensure(header("x-titan-moved-to") == *home, || {
                format!("{cell} should name {home} for key {key}: {status:?}")
            })?;
            ensure(header("x-titan-epoch").parse::<u64>().is_ok(), || {
                format!("the refusal should carry the epoch: {status:?}")
            })?;
        }
    }
    match shop.place(999_999_999, Uuid::now_v7()).await {
        Err(_) => {}
        Ok(order) => bail!("a key that no cell has must not be served: {order:?}"),
    }
    cluster.wait_ready("cell-003").await?;
    Ok(json!({ "secondCellReadySeconds": seconds }))
}

/// The events of an order, from the topic itself.
async fn events_of(cluster: &Cluster, topic: &str, order: &str) -> Result<Vec<Value>> {
    let (bootstrap, topic, order) = (cluster.kafka.clone(), topic.to_owned(), order.to_owned());
    tokio::task::spawn_blocking(move || read_events(&bootstrap, &topic, &order)).await?
}

fn read_events(bootstrap: &str, topic: &str, order: &str) -> Result<Vec<Value>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "scenarios")
        .set("enable.auto.commit", "false")
        .create()?;
    let limit = Duration::from_secs(10);
    let metadata = consumer
        .fetch_metadata(Some(topic), limit)
        .with_context(|| format!("read about topic {topic} at {bootstrap}"))?;
    let partitions = metadata
        .topics()
        .first()
        .map(|topic| topic.partitions().len())
        .filter(|count| *count > 0)
        .with_context(|| format!("topic {topic} does not exist"))?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..i32::try_from(partitions)? {
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut events = Vec::new();
    while Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(500)) {
            Some(message) => {
                let message = message?;
                let event: Value = serde_json::from_slice(message.payload().unwrap_or_default())?;
                if event["aggregateId"] == order {
                    events.push(event);
                }
            }
            // Nothing more for now; what was asked for is there.
            None if !events.is_empty() => return Ok(events),
            None => {}
        }
    }
    if events.is_empty() {
        bail!("no event of order {order} on topic {topic} after 20 s");
    }
    Ok(events)
}
