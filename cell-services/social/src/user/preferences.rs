//! Preferences: one document a user.

use std::collections::BTreeMap;

use cell_kit::{Effect, Key, Query, Tx};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::types::Json;
use titan_proto::user::v1::{GetPreferencesRequest, Preferences, SetPreferencesRequest};

use super::{fields, profile};

/// What is stored. New fields default, so that old documents stay readable.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Document {
    currency: String,
    language: String,
    time_zone: String,
    marketing_opt_in: bool,
    switches: BTreeMap<String, String>,
}

pub(super) fn read<'c>(
    connection: &'c mut PgConnection,
    owner: Key,
    _request: &'c GetPreferencesRequest,
) -> Query<'c, Preferences> {
    Box::pin(async move {
        let document: Option<Json<Document>> =
            sqlx::query_scalar("SELECT document FROM preferences WHERE owner_id = $1")
                .bind(owner.as_i64())
                .fetch_optional(connection)
                .await?;
        let Document {
            currency,
            language,
            time_zone,
            marketing_opt_in,
            switches,
        } = document.map(|Json(document)| document).unwrap_or_default();
        Ok(Preferences {
            currency,
            language,
            time_zone,
            marketing_opt_in,
            switches,
        })
    })
}

pub(super) fn set<'t>(
    tx: &'t mut Tx,
    request: &'t SetPreferencesRequest,
) -> Effect<'t, Preferences> {
    Box::pin(async move {
        let given = fields::preferences(request.preferences.as_ref())?;
        profile::lock(tx).await?;
        let Preferences {
            currency,
            language,
            time_zone,
            marketing_opt_in,
            switches,
        } = given.clone();
        sqlx::query(
            "INSERT INTO preferences (owner_id, id, document) VALUES ($1, $2, $3)
             ON CONFLICT (owner_id) DO UPDATE SET document = excluded.document",
        )
        .bind(tx.owner().as_i64())
        .bind(tx.new_id())
        .bind(Json(Document {
            currency,
            language,
            time_zone,
            marketing_opt_in,
            switches,
        }))
        .execute(tx.connection()?)
        .await?;
        Ok(given)
    })
}
