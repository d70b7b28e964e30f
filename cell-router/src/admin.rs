//! Pages for machines and people: metrics and health on one port, who serves a key and why on loopback.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use titan_routing::client::RegistryClient;
use titan_routing::{Key, KeyspaceMode};

use crate::dns::Addresses;
use crate::shared::{Phase, Shared};

/// What the pages read.
#[derive(Clone)]
pub struct Pages {
    /// The state of the data plane.
    pub shared: Arc<Shared>,
    /// The client of the registry.
    pub registry: Arc<RegistryClient>,
}

/// `/metrics`, `/healthz`, `/readyz`.
pub fn public(pages: Pages) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(pages)
}

/// `/who?key=K` (or `?user=ID`), `/cells`, `/addresses`, `/config`, and an index of them.
pub fn private(pages: Pages) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/who", get(who))
        .route("/cells", get(cells))
        .route("/addresses", get(addresses))
        .route("/config", get(config))
        .with_state(pages)
}

async fn metrics(State(pages): State<Pages>) -> String {
    let status = pages.registry.status();
    let age = status.age.map_or(-1.0, |age| age.as_secs_f64());
    let keys = pages.shared.identity.fetched();
    let age_of_keys = keys.last.map_or(-1.0, |last| last.elapsed().as_secs_f64());
    let on_disk = f64::from(u8::from(status.source.as_str() == "disk"));
    pages.shared.metrics.render(&[
        (
            "cell_router_table_age_seconds",
            "Time since the registry confirmed the routing table; -1 without a table.",
            age,
        ),
        (
            "cell_router_table_from_disk",
            "Whether the routing table is the one of an earlier run.",
            on_disk,
        ),
        (
            "cell_router_overloaded",
            "Whether new requests are refused to save memory.",
            f64::from(u8::from(pages.shared.is_overloaded())),
        ),
        (
            "cell_router_memory_short",
            "Whether new connections are refused to save memory.",
            f64::from(u8::from(pages.shared.memory_short.load(Relaxed))),
        ),
        (
            "cell_router_key_set_age_seconds",
            "Time since the key set of the issuer was fetched; -1 without one.",
            age_of_keys,
        ),
        (
            "cell_router_key_set_failed_fetches",
            "Fetches of the key set that failed since the last one that did not.",
            keys.failures as f64,
        ),
    ])
}

async fn ready(State(pages): State<Pages>) -> (StatusCode, Cow<'static, str>) {
    let shared = &pages.shared;
    let not = |why| (StatusCode::SERVICE_UNAVAILABLE, why);
    if *shared.phase.borrow() > Phase::Serving {
        return not("draining\n".into());
    }
    if shared.table.load().epoch().0 == 0 {
        return not("no routing table yet\n".into());
    }
    if shared.config.load().jwt.is_some() && shared.identity.lacks_keys() {
        let error = shared.identity.fetched().error;
        let error = error.as_deref().unwrap_or("being fetched");
        return not(format!("no key set of the issuer yet (no-keys): {error}\n").into());
    }
    (StatusCode::OK, "ready\n".into())
}

async fn index() -> &'static str {
    "cell-router\n\n\
     /who?key=K        which cell serves a key, and why\n\
     /who?user=ID      the same for a user id\n\
     /cells            the cells, their circuits and failures\n\
     /addresses        names of services and the pods behind them\n\
     /config           the configuration in use\n"
}

#[derive(Deserialize)]
struct Whom {
    key: Option<u64>,
    user: Option<String>,
}

async fn who(State(pages): State<Pages>, Query(whom): Query<Whom>) -> (StatusCode, Json<Value>) {
    let table = pages.shared.table.load_full();
    let key = match (whom.key, whom.user) {
        (Some(key), None) => Key::new(key).map_err(|error| error.to_string()),
        (None, Some(user)) => match table.mode() {
            KeyspaceMode::UserId => user
                .parse()
                .map_err(|error: titan_routing::KeyRangeError| error.to_string()),
            KeyspaceMode::Hash => Ok(Key::from_user_id_hash(&user)),
        },
        _ => Err("give `key` or `user`".to_owned()),
    };
    let key = match key {
        Ok(key) => key,
        Err(error) => return (StatusCode::BAD_REQUEST, Json(json!({ "error": error }))),
    };
    let status = pages.registry.status();
    let found = table.lookup(key);
    let why = match &found {
        None => format!("no row of the table covers key {key}"),
        Some(found) if found.pinned => format!("key {key} is pinned to {}", found.cell.cell),
        Some(found) => found.assignment.map_or_else(String::new, |row| {
            format!(
                "key {key} lies in {} of {}, which is {:?} since epoch {}",
                row.range, row.cell, row.state, row.epoch
            )
        }),
    };
    let body = json!({
        "key": key,
        "why": why,
        "cell": found.map(|found| found.cell),
        "assignment": found.and_then(|found| found.assignment),
        "pinned": found.is_some_and(|found| found.pinned),
        "circuitOpen": found.map(|found| pages.shared.cell(&found.cell.cell).health.is_open()),
        "table": {
            "epoch": table.epoch(),
            "from": status.source.as_str(),
            "ageSeconds": status.age.map(|age| age.as_secs()),
            "registryConnected": status.connected,
            "lastRefusal": status.last_refusal,
        },
    });
    let code = if found.is_some() {
        StatusCode::OK
    } else {
        StatusCode::NOT_FOUND
    };
    (code, Json(body))
}

async fn cells(State(pages): State<Pages>) -> Json<Value> {
    let table = pages.shared.table.load_full();
    let healths = pages.shared.healths();
    let cells: Vec<Value> = table
        .cells()
        .iter()
        .map(|cell| {
            let shared = pages.shared.cell(&cell.cell);
            let services: Vec<Value> = healths
                .iter()
                .filter(|((name, _), _)| **name == *cell.cell)
                .map(|((_, service), health)| {
                    json!({
                        "service": &**service,
                        "circuitOpen": health.is_open(),
                        "consecutiveFailures": health.consecutive_failures(),
                        "failures": health.failures(),
                        "lastFailure": health.detail(),
                    })
                })
                .collect();
            json!({
                "cell": cell,
                "circuitOpen": shared.health.is_open(),
                "consecutiveFailures": shared.health.consecutive_failures(),
                "services": services,
            })
        })
        .collect();
    Json(json!({ "epoch": table.epoch(), "cells": cells }))
}

async fn addresses(State(pages): State<Pages>) -> Json<Value> {
    let known = pages.shared.resolver.known();
    let names: serde_json::Map<String, Value> = known
        .into_iter()
        .map(|(name, addresses)| {
            let value = match addresses {
                Addresses::Pending => json!("looking up"),
                Addresses::Known(addresses) => json!(addresses),
                Addresses::Failed(why) => json!({ "error": why }),
            };
            (name, value)
        })
        .collect();
    Json(Value::Object(names))
}

async fn config(State(pages): State<Pages>) -> Json<Value> {
    let config = pages.shared.config.load_full();
    Json(
        serde_json::to_value(&*config)
            .unwrap_or_else(|error| json!({ "error": error.to_string() })),
    )
}
