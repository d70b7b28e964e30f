//! The reads.

use cell_kit::{Currency, Failure, Key, Money, Query, cursor, parse_id, timestamp};
use sqlx::{PgConnection, Row};
use titan_proto::order::v1 as proto;
use uuid::Uuid;

use super::{store, wire};

const ORDERS: &str = "orders";

pub(super) fn get<'c>(
    connection: &'c mut PgConnection,
    buyer: Key,
    request: &'c proto::GetRequest,
) -> Query<'c, proto::Order> {
    Box::pin(async move {
        let id = parse_id("id", &request.id)?;
        let stored = store::read(connection, buyer, id)
            .await?
            .ok_or_else(|| store::missing(id))?;
        Ok(wire::order(&stored))
    })
}

pub(super) fn list<'c>(
    connection: &'c mut PgConnection,
    buyer: Key,
    request: &'c proto::ListRequest,
) -> Query<'c, proto::ListResponse> {
    Box::pin(async move {
        let size = cursor::page_size(request.page_size);
        let before: Option<Uuid> = cursor::decode(ORDERS, buyer, &request.page_cursor)?;
        let state = wire::state(request.state())?;
        let rows = sqlx::query(
            "SELECT id, state, total, currency, line_count, created_at FROM orders
              WHERE owner_id = $1 AND ($2::uuid IS NULL OR id < $2) AND ($3::text IS NULL OR state = $3)
              ORDER BY id DESC LIMIT $4",
        )
        .bind(buyer.as_i64())
        .bind(before)
        .bind(state.map(super::domain::State::name))
        .bind(i64::from(size) + 1)
        .fetch_all(connection)
        .await?;
        let (rows, next) = cursor::page(&rows, size, |row| row.get::<Uuid, _>("id"));
        let orders = rows
            .iter()
            .map(|row| {
                let currency = Currency::new(row.get("currency"))?;
                Ok(proto::OrderSummary {
                    id: row.get::<Uuid, _>("id").to_string(),
                    state: wire::state_from_name(row.get("state")).into(),
                    total: Some(wire::money(Money {
                        minor: row.get("total"),
                        currency,
                    })),
                    line_count: row.get::<i32, _>("line_count").unsigned_abs(),
                    created_at: Some(timestamp(row.get("created_at"))),
                })
            })
            .collect::<Result<_, Failure>>()?;
        Ok(proto::ListResponse {
            orders,
            next_page_cursor: cursor::encode_next(ORDERS, buyer, next.as_ref())?,
        })
    })
}

pub(super) fn timeline<'c>(
    connection: &'c mut PgConnection,
    buyer: Key,
    request: &'c proto::TimelineRequest,
) -> Query<'c, proto::TimelineResponse> {
    Box::pin(async move {
        let id = parse_id("id", &request.id)?;
        let list = format!("timeline of {id}");
        let size = cursor::page_size(request.page_size);
        let after: Option<i64> = cursor::decode(&list, buyer, &request.page_cursor)?;
        let rows = sqlx::query(
            "SELECT version, type, data::text AS data, at FROM order_events
              WHERE owner_id = $1 AND order_id = $2 AND version > $3 ORDER BY version LIMIT $4",
        )
        .bind(buyer.as_i64())
        .bind(id)
        .bind(after.unwrap_or(0))
        .bind(i64::from(size) + 1)
        .fetch_all(connection)
        .await?;
        if rows.is_empty() && after.is_none() {
            return Err(store::missing(id));
        }
        let (rows, next) = cursor::page(&rows, size, |row| row.get::<i64, _>("version"));
        Ok(proto::TimelineResponse {
            entries: rows
                .iter()
                .map(|row| proto::TimelineEntry {
                    version: row.get::<i64, _>("version").cast_unsigned(),
                    event_type: row.get("type"),
                    data: row.get("data"),
                    at: Some(timestamp(row.get("at"))),
                })
                .collect(),
            next_page_cursor: cursor::encode_next(&list, buyer, next.as_ref())?,
        })
    })
}
