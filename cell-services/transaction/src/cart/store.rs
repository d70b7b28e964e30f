//! Carts in PostgreSQL: what is true.

use cell_kit::{Failure, Key, Query, Tx};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row};

use super::domain::{Cart, Line};

/// A cart and its version. Version 0 is a cart that nothing was ever put in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stored {
    pub(super) version: u64,
    pub(super) lines: Vec<Line>,
    pub(super) updated_at: Option<DateTime<Utc>>,
}

impl Stored {
    pub(super) fn cart(&self) -> Cart {
        Cart {
            lines: self.lines.clone(),
        }
    }
}

pub(super) fn read(connection: &mut PgConnection, owner: Key) -> Query<'_, Stored> {
    Box::pin(async move {
        let row = sqlx::query("SELECT version, lines, updated_at FROM carts WHERE owner_id = $1")
            .bind(owner.as_i64())
            .fetch_optional(connection)
            .await?;
        row.as_ref().map_or_else(|| Ok(Stored::default()), from_row)
    })
}

/// The cart, held until the end of the transaction. The first change of an owner makes it.
pub(super) async fn lock(tx: &mut Tx) -> Result<Stored, Failure> {
    let owner = tx.owner().as_i64();
    sqlx::query(
        "INSERT INTO carts (owner_id, id, version, lines, updated_at) VALUES ($1, $2, 0, '[]', $3)
         ON CONFLICT (owner_id) DO NOTHING",
    )
    .bind(owner)
    .bind(tx.new_id())
    .bind(tx.now())
    .execute(tx.connection()?)
    .await?;
    let row =
        sqlx::query("SELECT version, lines, updated_at FROM carts WHERE owner_id = $1 FOR UPDATE")
            .bind(owner)
            .fetch_one(tx.connection()?)
            .await?;
    from_row(&row)
}

/// Writes the cart under the next version, if it changed.
pub(super) async fn save(tx: &mut Tx, before: Stored, cart: Cart) -> Result<Stored, Failure> {
    if cart.lines == before.lines {
        return Ok(before);
    }
    let after = Stored {
        version: before.version + 1,
        lines: cart.lines,
        updated_at: Some(tx.now()),
    };
    let saved = sqlx::query(
        "UPDATE carts SET version = $2, lines = $3, updated_at = $4 WHERE owner_id = $1 AND version = $5",
    )
    .bind(tx.owner().as_i64())
    .bind(after.version.cast_signed())
    .bind(Json(&after.lines))
    .bind(tx.now())
    .bind(before.version.cast_signed())
    .execute(tx.connection()?)
    .await?;
    if saved.rows_affected() == 1 {
        Ok(after)
    } else {
        Err(Failure::conflict("the cart changed meanwhile; retry"))
    }
}

/// Remembers that a guest cart was merged. False when it was before.
pub(super) async fn remember_merge(tx: &mut Tx, guest: uuid::Uuid) -> Result<bool, Failure> {
    let inserted = sqlx::query(
        "INSERT INTO cart_merges (owner_id, id, merged_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
    )
    .bind(tx.owner().as_i64())
    .bind(guest)
    .bind(tx.now())
    .execute(tx.connection()?)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

fn from_row(row: &PgRow) -> Result<Stored, Failure> {
    let Json(lines) = row
        .try_get::<Json<Vec<Line>>, _>("lines")
        .map_err(|error| Failure::Corrupt(format!("a cart: {error}")))?;
    let version = row.get::<i64, _>("version").cast_unsigned();
    // The moment of a cart that nothing was put in yet means nothing.
    let updated_at = (version > 0).then(|| row.get("updated_at"));
    Ok(Stored {
        version,
        lines,
        updated_at,
    })
}
