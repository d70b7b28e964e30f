//! Orders in PostgreSQL: events appended, folded when read.

use cell_kit::{Failure, Key, Tx};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::EVENTS;
use super::domain::{Event, Order, outgoing};

/// An order and where it lies.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) id: Uuid,
    pub(super) buyer: Key,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) order: Order,
}

/// Reads an order; none when the buyer has no such order.
pub(super) async fn read(
    connection: &mut PgConnection,
    buyer: Key,
    id: Uuid,
) -> Result<Option<Stored>, Failure> {
    let row = sqlx::query(
        "SELECT version, created_at, updated_at FROM orders WHERE owner_id = $1 AND id = $2",
    )
    .bind(buyer.as_i64())
    .bind(id)
    .fetch_optional(&mut *connection)
    .await?;
    match row {
        Some(row) => load(connection, buyer, id, &row).await.map(Some),
        None => Ok(None),
    }
}

/// Reads an order and holds it until the end of the transaction.
pub(super) async fn lock(tx: &mut Tx, id: Uuid) -> Result<Stored, Failure> {
    let buyer = tx.owner();
    let row = sqlx::query(
        "SELECT version, created_at, updated_at FROM orders WHERE owner_id = $1 AND id = $2 FOR UPDATE",
    )
    .bind(buyer.as_i64())
    .bind(id)
    .fetch_optional(tx.connection()?)
    .await?
    .ok_or_else(|| missing(id))?;
    load(tx.connection()?, buyer, id, &row).await
}

/// The buyer's order of a saga, held until the end of the transaction.
pub(super) async fn lock_by_saga(tx: &mut Tx, saga_id: &str) -> Result<Option<Stored>, Failure> {
    let id: Option<Uuid> =
        sqlx::query_scalar("SELECT id FROM orders WHERE owner_id = $1 AND saga_id = $2")
            .bind(tx.owner().as_i64())
            .bind(saga_id)
            .fetch_optional(tx.connection()?)
            .await?;
    match id {
        Some(id) => lock(tx, id).await.map(Some),
        None => Ok(None),
    }
}

pub(super) fn missing(id: Uuid) -> Failure {
    Failure::not_found(format!("there is no order {id}"))
}

/// Up to the version that the row names, so that an order read without a lock is one that was.
async fn load(
    connection: &mut PgConnection,
    buyer: Key,
    id: Uuid,
    row: &PgRow,
) -> Result<Stored, Failure> {
    let events: Vec<Json<Event>> = sqlx::query_scalar(
        "SELECT data FROM order_events WHERE owner_id = $1 AND order_id = $2 AND version <= $3 ORDER BY version",
    )
    .bind(buyer.as_i64())
    .bind(id)
    .bind(row.get::<i64, _>("version"))
    .fetch_all(connection)
    .await?;
    let order = Order::fold(events.iter().map(|Json(event)| event))
        .map_err(|error| Failure::Corrupt(format!("order {id}: {error}")))?
        .ok_or_else(|| Failure::Corrupt(format!("order {id} has no events")))?;
    Ok(Stored {
        id,
        buyer,
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
        order,
    })
}

/// Makes an order of its first events. False, and nothing made, when the saga has one already.
pub(super) async fn insert(
    tx: &mut Tx,
    id: Uuid,
    events: &[Event],
) -> Result<Option<Stored>, Failure> {
    let order = Order::fold(events)
        .map_err(|error| Failure::Corrupt(error.to_string()))?
        .ok_or_else(|| Failure::Corrupt("an order needs an event".to_owned()))?;
    let inserted = sqlx::query(
        "INSERT INTO orders (owner_id, id, saga_id, state, version, total, currency, line_count, created_at, updated_at)
         VALUES ($1, $2, $3, $4, 0, $5, $6, $7, $8, $8) ON CONFLICT (owner_id, saga_id) DO NOTHING",
    )
    .bind(tx.owner().as_i64())
    .bind(id)
    .bind(&order.saga_id)
    .bind(order.state.name())
    .bind(order.amounts.total.minor)
    .bind(order.amounts.total.currency.code())
    .bind(i32::try_from(order.lines.len()).unwrap_or(i32::MAX))
    .bind(tx.now())
    .execute(tx.connection()?)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(None);
    }
    append_all(tx, id, None, events).await.map(Some)
}

/// Appends one event to an order that this transaction holds, and publishes it.
pub(super) async fn append(tx: &mut Tx, stored: Stored, event: Event) -> Result<Stored, Failure> {
    append_all(tx, stored.id, Some(stored), &[event]).await
}

async fn append_all(
    tx: &mut Tx,
    id: Uuid,
    stored: Option<Stored>,
    events: &[Event],
) -> Result<Stored, Failure> {
    let buyer = tx.owner();
    let now = tx.now();
    let created_at = stored.as_ref().map_or(now, |stored| stored.created_at);
    let mut order = stored.map(|stored| stored.order);
    for event in events {
        let before = order.clone();
        let after = Order::after(order, event)
            .map_err(|error| Failure::Corrupt(format!("order {id}: {error}")))?;
        sqlx::query(
            "INSERT INTO order_events (owner_id, id, order_id, version, type, data, at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(buyer.as_i64())
        .bind(tx.new_id())
        .bind(id)
        .bind(after.version.cast_signed())
        .bind(event.name())
        .bind(Json(event))
        .bind(now)
        .execute(tx.connection()?)
        .await?;
        for message in outgoing(before.as_ref(), event) {
            tx.emit(&cell_kit::Event {
                topic: EVENTS.name,
                event_type: message.name(),
                aggregate_id: id,
                version: after.version,
                data: &message,
            })
            .await?;
        }
        order = Some(after);
    }
    let order = order.ok_or_else(|| Failure::Corrupt(format!("order {id} has no events")))?;
    sqlx::query("UPDATE orders SET state = $3, version = $4, updated_at = $5 WHERE owner_id = $1 AND id = $2")
        .bind(buyer.as_i64())
        .bind(id)
        .bind(order.state.name())
        .bind(order.version.cast_signed())
        .bind(now)
        .execute(tx.connection()?)
        .await?;
    Ok(Stored {
        id,
        buyer,
        created_at,
        updated_at: now,
        order,
    })
}
