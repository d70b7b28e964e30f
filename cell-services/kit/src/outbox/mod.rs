//! Events: written with their effect, published after it, in order.
//!
//! Order is kept for each aggregate. `seq` is taken when the event is written, under the lock of the aggregate's row,
//! so it is the aggregate's order. A row that is not committed yet cannot be seen, and "rows with a larger `seq` than
//! the last" loses it. The publisher therefore reads rows whose transaction is below the oldest one that still runs,
//! and of those only the ones that no younger row of the same owner precedes. A transaction that stays open holds back
//! the events of all; the service's own sessions are ended when they idle in one.
//!
//! An event that Kafka does not take holds back later events of its topic. So an event that is too large is refused
//! where it is written, while somebody can still be told.

mod publisher;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Failure;
use crate::ownership::Owner;

pub(crate) use publisher::{Publisher, PublisherConfig};

/// The largest event, in bytes. The publisher's client takes 1,000,000 for a whole record, and a broker by
/// default a little more; the difference is for the key, the headers' names, the event's id and the framing.
const LARGEST: usize = 990_000;

/// An event of a service.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a, T> {
    /// The topic, without the cell: one of the service's definition.
    pub topic: &'a str,
    /// What happened, in the past tense: `OrderCancelled`.
    pub event_type: &'a str,
    /// What it happened to.
    pub aggregate_id: Uuid,
    /// The version of the aggregate after it. Consumers put events of an aggregate in order by it, and drop repeats.
    pub version: u64,
    /// The facts.
    pub data: &'a T,
}

/// What travels.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a, T> {
    event_type: &'a str,
    aggregate_id: Uuid,
    version: u64,
    /// A decimal number in a text, for keys do not fit the numbers of JavaScript.
    user_id: String,
    data: &'a T,
    timestamp: String,
    event_id: Uuid,
    cell: &'a str,
    epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
}

/// What the transaction adds to an event.
pub(crate) struct Row<'a> {
    pub(crate) owner: Owner,
    pub(crate) cell: &'a str,
    pub(crate) event_id: Uuid,
    pub(crate) at: DateTime<Utc>,
    pub(crate) traceparent: Option<&'a str>,
}

pub(crate) async fn write(
    connection: &mut PgConnection,
    row: &Row<'_>,
    event: &Event<'_, impl Serialize + Sync>,
) -> Result<(), Failure> {
    let payload = serde_json::to_string(&Envelope {
        event_type: event.event_type,
        aggregate_id: event.aggregate_id,
        version: event.version,
        user_id: row.owner.key.to_string(),
        data: event.data,
        timestamp: row.at.to_rfc3339_opts(SecondsFormat::Micros, true),
        event_id: row.event_id,
        cell: row.cell,
        epoch: row.owner.epoch.0,
        traceparent: row.traceparent,
    })
    .map_err(|error| Failure::Corrupt(error.to_string()))?;
    // The trace travels twice, as a header also, and is as long as the caller makes it.
    let size = payload.len() + row.traceparent.map_or(0, str::len);
    if size > LARGEST {
        return Err(Failure::invalid(format!(
            "event {} of {} would have {size} bytes, and Kafka takes {LARGEST}; ask for less in one request",
            event.event_type, event.aggregate_id
        )));
    }
    sqlx::query(
        "INSERT INTO outbox (owner_id, event_id, topic, payload, traceparent) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(row.owner.key.as_i64())
    .bind(row.event_id)
    .bind(event.topic)
    .bind(payload)
    .bind(row.traceparent)
    .execute(connection)
    .await?;
    Ok(())
}
