//! Addresses, under the lock of their profile.

use cell_kit::{Effect, Failure, Key, Query, Tx, cursor, parse_id};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use titan_proto::user::v1::{
    AddAddressRequest, Address, AddressFields, ListAddressesRequest, ListAddressesResponse,
    RemoveAddressRequest, RemoveAddressResponse, SetDefaultAddressRequest, UpdateAddressRequest,
};
use tonic::Code;
use uuid::Uuid;

use super::address_book::AddressBook;
use super::{fields, profile};

const LIST: &str = "addresses";

pub(super) fn add<'t>(tx: &'t mut Tx, request: &'t AddAddressRequest) -> Effect<'t, Address> {
    Box::pin(async move {
        let fields = fields::address(request.fields.as_ref())?;
        let mut book = load(tx).await?;
        let id = tx.new_id();
        book.add(id, request.make_default)
            .map_err(|full| Failure::refused(Code::ResourceExhausted, full.to_string()))?;
        sqlx::query(
            "INSERT INTO addresses (owner_id, id, is_default, recipient, phone, line1, line2, city, region, postal_code, country)
             VALUES ($1, $2, false, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(tx.owner().as_i64())
        .bind(id)
        .bind(&fields.recipient)
        .bind(&fields.phone)
        .bind(&fields.line1)
        .bind(&fields.line2)
        .bind(&fields.city)
        .bind(&fields.region)
        .bind(&fields.postal_code)
        .bind(&fields.country)
        .execute(tx.connection()?)
        .await?;
        store_default(tx, &book).await?;
        Ok(Address {
            id: id.to_string(),
            fields: Some(fields),
            is_default: book.default_id() == Some(id),
        })
    })
}

pub(super) fn update<'t>(tx: &'t mut Tx, request: &'t UpdateAddressRequest) -> Effect<'t, Address> {
    Box::pin(async move {
        let id = parse_id("id", &request.id)?;
        let fields = fields::address(request.fields.as_ref())?;
        profile::lock(tx).await?;
        let row = sqlx::query(
            "UPDATE addresses SET recipient = $3, phone = $4, line1 = $5, line2 = $6, city = $7, region = $8,
                    postal_code = $9, country = $10 WHERE owner_id = $1 AND id = $2 RETURNING *",
        )
        .bind(tx.owner().as_i64())
        .bind(id)
        .bind(&fields.recipient)
        .bind(&fields.phone)
        .bind(&fields.line1)
        .bind(&fields.line2)
        .bind(&fields.city)
        .bind(&fields.region)
        .bind(&fields.postal_code)
        .bind(&fields.country)
        .fetch_optional(tx.connection()?)
        .await?;
        row.as_ref().map(from_row).ok_or_else(|| missing(id))
    })
}

pub(super) fn remove<'t>(
    tx: &'t mut Tx,
    request: &'t RemoveAddressRequest,
) -> Effect<'t, RemoveAddressResponse> {
    Box::pin(async move {
        let id = parse_id("id", &request.id)?;
        let mut book = load(tx).await?;
        if !book.remove(id) {
            return Err(missing(id));
        }
        sqlx::query("DELETE FROM addresses WHERE owner_id = $1 AND id = $2")
            .bind(tx.owner().as_i64())
            .bind(id)
            .execute(tx.connection()?)
            .await?;
        store_default(tx, &book).await?;
        Ok(RemoveAddressResponse {
            default_id: book
                .default_id()
                .map(|id| id.to_string())
                .unwrap_or_default(),
        })
    })
}

pub(super) fn set_default<'t>(
    tx: &'t mut Tx,
    request: &'t SetDefaultAddressRequest,
) -> Effect<'t, Address> {
    Box::pin(async move {
        let id = parse_id("id", &request.id)?;
        let mut book = load(tx).await?;
        if !book.set_default(id) {
            return Err(missing(id));
        }
        store_default(tx, &book).await?;
        let row = sqlx::query("SELECT * FROM addresses WHERE owner_id = $1 AND id = $2")
            .bind(tx.owner().as_i64())
            .bind(id)
            .fetch_one(tx.connection()?)
            .await?;
        Ok(from_row(&row))
    })
}

pub(super) fn list<'c>(
    connection: &'c mut PgConnection,
    owner: Key,
    request: &'c ListAddressesRequest,
) -> Query<'c, ListAddressesResponse> {
    Box::pin(async move {
        let size = cursor::page_size(request.page_size);
        let before: Option<Uuid> = cursor::decode(LIST, owner, &request.page_cursor)?;
        let rows = sqlx::query(
        "SELECT * FROM addresses WHERE owner_id = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
    )
    .bind(owner.as_i64())
    .bind(before)
    .bind(i64::from(size) + 1)
    .fetch_all(connection)
    .await?;
        let (rows, next) = cursor::page(&rows, size, |row| row.get::<Uuid, _>("id"));
        Ok(ListAddressesResponse {
            addresses: rows.iter().map(from_row).collect(),
            next_page_cursor: cursor::encode_next(LIST, owner, next.as_ref())?,
        })
    })
}

/// The address book, held by the lock of the profile.
async fn load(tx: &mut Tx) -> Result<AddressBook, Failure> {
    profile::lock(tx).await?;
    let rows = sqlx::query("SELECT id, is_default FROM addresses WHERE owner_id = $1 ORDER BY id")
        .bind(tx.owner().as_i64())
        .fetch_all(tx.connection()?)
        .await?;
    Ok(AddressBook::new(
        rows.iter()
            .map(|row| (row.get("id"), row.get("is_default"))),
    ))
}

/// Two statements, for the index allows no moment with two defaults.
async fn store_default(tx: &mut Tx, book: &AddressBook) -> Result<(), Failure> {
    sqlx::query("UPDATE addresses SET is_default = false WHERE owner_id = $1 AND is_default AND id IS DISTINCT FROM $2")
        .bind(tx.owner().as_i64())
        .bind(book.default_id())
        .execute(tx.connection()?)
        .await?;
    sqlx::query(
        "UPDATE addresses SET is_default = true WHERE owner_id = $1 AND id = $2 AND NOT is_default",
    )
    .bind(tx.owner().as_i64())
    .bind(book.default_id())
    .execute(tx.connection()?)
    .await?;
    Ok(())
}

fn missing(id: Uuid) -> Failure {
    Failure::not_found(format!("there is no address {id}"))
}

fn from_row(row: &PgRow) -> Address {
    Address {
        id: row.get::<Uuid, _>("id").to_string(),
        is_default: row.get("is_default"),
        fields: Some(AddressFields {
            recipient: row.get("recipient"),
            phone: row.get("phone"),
            line1: row.get("line1"),
            line2: row.get("line2"),
            city: row.get("city"),
            region: row.get("region"),
            postal_code: row.get("postal_code"),
            country: row.get("country"),
        }),
    }
}
