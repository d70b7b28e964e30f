//! What the law asks for: to hand out everything about a user, and to forget it.

use cell_kit::{Effect, Failure, Key, Query, Tx, timestamp};
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use titan_proto::user::v1::{EraseRequest, EraseResponse, ExportRequest, ExportResponse};

/// One statement, hence one moment.
pub(super) fn export<'c>(
    connection: &'c mut PgConnection,
    owner: Key,
    _request: &'c ExportRequest,
) -> Query<'c, ExportResponse> {
    Box::pin(async move {
        let json: String = sqlx::query_scalar(
            "SELECT json_build_object(
            'userId', $1::bigint::text,
            'profile', (SELECT to_jsonb(p) - 'id' - 'owner_id' FROM profiles p WHERE owner_id = $1),
            'addresses', (SELECT coalesce(jsonb_agg(to_jsonb(a) - 'owner_id' ORDER BY id), '[]')
                            FROM addresses a WHERE owner_id = $1),
            'preferences', (SELECT document FROM preferences WHERE owner_id = $1),
            'blocked', (SELECT coalesce(jsonb_agg(blocked_id::text ORDER BY id), '[]')
                          FROM blocks WHERE owner_id = $1),
            'erasedAt', (SELECT erased_at FROM erasures WHERE owner_id = $1))::text",
        )
        .bind(owner.as_i64())
        .fetch_one(connection)
        .await?;
        Ok(ExportResponse { json })
    })
}

pub(super) fn erase<'t>(tx: &'t mut Tx, request: &'t EraseRequest) -> Effect<'t, EraseResponse> {
    Box::pin(async move {
        let owner = tx.owner();
        if request.confirm_user_id != owner.get() {
            return Err(Failure::invalid("confirm_user_id is not the caller's key"));
        }
        // Saved answers hold what requests once showed. The one of this very request has no answer yet.
        for statement in [
            "SELECT FROM profiles WHERE owner_id = $1 FOR UPDATE",
            "DELETE FROM addresses WHERE owner_id = $1",
            "DELETE FROM preferences WHERE owner_id = $1",
            "DELETE FROM blocks WHERE owner_id = $1",
            "DELETE FROM profiles WHERE owner_id = $1",
            "DELETE FROM idempotency_keys WHERE owner_id = $1 AND response IS NOT NULL",
        ] {
            sqlx::query(statement)
                .bind(owner.as_i64())
                .execute(tx.connection()?)
                .await?;
        }
        let erased_at: DateTime<Utc> = sqlx::query_scalar(
            "INSERT INTO erasures (owner_id, id, erased_at) VALUES ($1, $2, $3)
             ON CONFLICT (owner_id) DO UPDATE SET erased_at = erasures.erased_at RETURNING erased_at",
        )
        .bind(owner.as_i64())
        .bind(tx.new_id())
        .bind(tx.now())
        .fetch_one(tx.connection()?)
        .await?;
        Ok(EraseResponse {
            erased_at: Some(timestamp(erased_at)),
        })
    })
}
