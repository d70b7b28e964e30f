//! Profiles. The row of a profile is also the lock under which everything else of its user changes.

use cell_kit::{Effect, Failure, Key, Query, Tx, timestamp};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use titan_proto::user::v1::{
    CreateProfileRequest, GetProfileRequest, Profile, UpdateProfileRequest,
};
use tonic::Code;

use super::fields;

/// Finds the caller's profile and holds it until the end of the transaction.
pub(super) async fn lock(tx: &mut Tx) -> Result<Profile, Failure> {
    let owner = tx.owner();
    let row = sqlx::query("SELECT * FROM profiles WHERE owner_id = $1 FOR UPDATE")
        .bind(owner.as_i64())
        .fetch_optional(tx.connection()?)
        .await?;
    let Some(row) = row else {
        refuse_erased(tx).await?;
        return Err(missing(owner));
    };
    Ok(from_row(&row))
}

/// Nothing is made again under a key that was erased.
async fn refuse_erased(tx: &mut Tx) -> Result<(), Failure> {
    let erased = sqlx::query("SELECT FROM erasures WHERE owner_id = $1")
        .bind(tx.owner().as_i64())
        .fetch_optional(tx.connection()?)
        .await?;
    match erased {
        Some(_) => Err(Failure::precondition(format!(
            "user {} was erased",
            tx.owner()
        ))),
        None => Ok(()),
    }
}

fn missing(owner: Key) -> Failure {
    Failure::not_found(format!("user {owner} has no profile; create one first"))
}

pub(super) fn read<'c>(
    connection: &'c mut PgConnection,
    owner: Key,
    _request: &'c GetProfileRequest,
) -> Query<'c, Profile> {
    Box::pin(async move {
        let row = sqlx::query("SELECT * FROM profiles WHERE owner_id = $1")
            .bind(owner.as_i64())
            .fetch_optional(connection)
            .await?;
        row.as_ref().map(from_row).ok_or_else(|| missing(owner))
    })
}

pub(super) fn create<'t>(tx: &'t mut Tx, request: &'t CreateProfileRequest) -> Effect<'t, Profile> {
    Box::pin(async move {
        refuse_erased(tx).await?;
        let row = sqlx::query(
            "INSERT INTO profiles (owner_id, id, display_name, email, phone, locale, avatar_url, version, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, 1, $8, $8)
             ON CONFLICT (owner_id) DO NOTHING RETURNING *",
        )
        .bind(tx.owner().as_i64())
        .bind(tx.new_id())
        .bind(fields::text("display_name", &request.display_name, true, 100)?)
        .bind(fields::email(&request.email)?)
        .bind(fields::phone(&request.phone)?)
        .bind(fields::language("locale", &request.locale, "en")?)
        .bind(fields::url("avatar_url", &request.avatar_url)?)
        .bind(tx.now())
        .fetch_optional(tx.connection()?)
        .await?;
        row.as_ref().map(from_row).ok_or_else(|| {
            Failure::refused(
                Code::AlreadyExists,
                format!("user {} has a profile already; update it", tx.owner()),
            )
        })
    })
}

pub(super) fn update<'t>(tx: &'t mut Tx, request: &'t UpdateProfileRequest) -> Effect<'t, Profile> {
    Box::pin(async move {
        let profile = lock(tx).await?;
        if request.expected_version != 0 && request.expected_version != profile.version {
            return Err(Failure::conflict(format!(
                "the profile is at version {}, not {}; read it again",
                profile.version, request.expected_version
            )));
        }
        let display_name = request
            .display_name
            .as_ref()
            .unwrap_or(&profile.display_name);
        let row = sqlx::query(
            "UPDATE profiles SET display_name = $2, email = $3, phone = $4, locale = $5, avatar_url = $6,
                    version = version + 1, updated_at = $7 WHERE owner_id = $1 RETURNING *",
        )
        .bind(tx.owner().as_i64())
        .bind(fields::text("display_name", display_name, true, 100)?)
        .bind(fields::email(request.email.as_ref().unwrap_or(&profile.email))?)
        .bind(fields::phone(request.phone.as_ref().unwrap_or(&profile.phone))?)
        .bind(fields::language("locale", request.locale.as_ref().unwrap_or(&profile.locale), "en")?)
        .bind(fields::url("avatar_url", request.avatar_url.as_ref().unwrap_or(&profile.avatar_url))?)
        .bind(tx.now())
        .fetch_one(tx.connection()?)
        .await?;
        Ok(from_row(&row))
    })
}

fn from_row(row: &PgRow) -> Profile {
    Profile {
        user_id: row.get::<i64, _>("owner_id").cast_unsigned(),
        display_name: row.get("display_name"),
        email: row.get("email"),
        phone: row.get("phone"),
        locale: row.get("locale"),
        avatar_url: row.get("avatar_url"),
        version: row.get::<i64, _>("version").cast_unsigned(),
        created_at: Some(timestamp(row.get("created_at"))),
        updated_at: Some(timestamp(row.get("updated_at"))),
    }
}
