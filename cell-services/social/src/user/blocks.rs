//! Whom a user does not want to meet. The other side is not told, and its rows are not touched: it may live in
//! another cell.

use cell_kit::{Effect, Failure, Key, Query, Tx, cursor};
use sqlx::{PgConnection, Row};
use titan_proto::user::v1::{
    BlockRequest, BlockResponse, ListBlockedRequest, ListBlockedResponse, UnblockRequest,
    UnblockResponse,
};
use uuid::Uuid;

use super::profile;

const LIST: &str = "blocked";

pub(super) fn block<'t>(tx: &'t mut Tx, request: &'t BlockRequest) -> Effect<'t, BlockResponse> {
    Box::pin(async move {
        let blocked = other(tx.owner(), request.user_id)?;
        profile::lock(tx).await?;
        sqlx::query(
            "INSERT INTO blocks (owner_id, id, blocked_id, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (owner_id, blocked_id) DO NOTHING",
        )
        .bind(tx.owner().as_i64())
        .bind(tx.new_id())
        .bind(blocked.as_i64())
        .bind(tx.now())
        .execute(tx.connection()?)
        .await?;
        Ok(BlockResponse {})
    })
}

pub(super) fn unblock<'t>(
    tx: &'t mut Tx,
    request: &'t UnblockRequest,
) -> Effect<'t, UnblockResponse> {
    Box::pin(async move {
        let blocked = other(tx.owner(), request.user_id)?;
        profile::lock(tx).await?;
        let removed = sqlx::query("DELETE FROM blocks WHERE owner_id = $1 AND blocked_id = $2")
            .bind(tx.owner().as_i64())
            .bind(blocked.as_i64())
            .execute(tx.connection()?)
            .await?;
        Ok(UnblockResponse {
            removed: removed.rows_affected() > 0,
        })
    })
}

pub(super) fn list<'c>(
    connection: &'c mut PgConnection,
    owner: Key,
    request: &'c ListBlockedRequest,
) -> Query<'c, ListBlockedResponse> {
    Box::pin(async move {
        let size = cursor::page_size(request.page_size);
        let before: Option<Uuid> = cursor::decode(LIST, owner, &request.page_cursor)?;
        let rows = sqlx::query(
        "SELECT id, blocked_id FROM blocks WHERE owner_id = $1 AND ($2::uuid IS NULL OR id < $2)
          ORDER BY id DESC LIMIT $3",
    )
    .bind(owner.as_i64())
    .bind(before)
    .bind(i64::from(size) + 1)
    .fetch_all(connection)
    .await?;
        let (rows, next) = cursor::page(&rows, size, |row| row.get::<Uuid, _>("id"));
        Ok(ListBlockedResponse {
            user_ids: rows
                .iter()
                .map(|row| row.get::<i64, _>("blocked_id").cast_unsigned())
                .collect(),
            next_page_cursor: cursor::encode_next(LIST, owner, next.as_ref())?,
        })
    })
}

fn other(owner: Key, user_id: u64) -> Result<Key, Failure> {
    let key = Key::new(user_id).map_err(|error| Failure::invalid(format!("user_id: {error}")))?;
    if key == owner {
        return Err(Failure::invalid("nobody can block themselves"));
    }
    Ok(key)
}
