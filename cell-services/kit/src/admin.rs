//! The HTTP server beside the gRPC one: metrics and health.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::metrics::Metrics;
use crate::ownership::Ownership;

/// Whether the process should get requests.
///
/// PostgreSQL, Redis and Kafka are no part of it once the process has started: when one of them is away it is
/// away for every replica, and taking all of them out of DNS helps nobody.
#[derive(Clone, Debug)]
pub struct Readiness {
    inner: Arc<Flags>,
}

#[derive(Debug)]
struct Flags {
    ownership: Ownership,
    schema: Mutex<Schema>,
    draining: AtomicBool,
}

/// What is known of the service's schema.
#[derive(Debug)]
enum Schema {
    Unknown,
    Missing(Vec<i64>),
    Migrated,
}

impl Readiness {
    /// Not ready.
    #[must_use]
    pub fn new(ownership: Ownership) -> Self {
        let inner = Flags {
            ownership,
            schema: Mutex::new(Schema::Unknown),
            draining: AtomicBool::new(false),
        };
        Readiness {
            inner: Arc::new(inner),
        }
    }

    /// The schema is as the code wants it.
    pub fn migrated(&self) {
        *self.schema() = Schema::Migrated;
    }

    /// The schema lacks these migrations.
    pub fn lacks(&self, versions: Vec<i64>) {
        *self.schema() = Schema::Missing(versions);
    }

    fn schema(&self) -> MutexGuard<'_, Schema> {
        self.inner
            .schema
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The process is about to end.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Release);
    }

    /// Why the process should not get requests.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.inner.draining.load(Ordering::Acquire) {
            reasons.push("draining: the process was told to end".to_owned());
        }
        match &*self.schema() {
            Schema::Migrated => {}
            Schema::Unknown => reasons.push("the database has not answered yet".to_owned()),
            Schema::Missing(versions) => reasons.push(format!(
                "migrations are missing: {versions:?}; run `migrate` of this release"
            )),
        }
        if !self.inner.ownership.is_known() {
            reasons.push(
                "no routing table yet: the registry has not answered and none is saved".to_owned(),
            );
        }
        reasons
    }
}

#[derive(Clone)]
struct Admin {
    readiness: Readiness,
    metrics: Metrics,
}

/// The routes.
pub fn router(readiness: Readiness, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(render))
        .with_state(Admin { readiness, metrics })
}

async fn ready(State(admin): State<Admin>) -> Response {
    let reasons = admin.readiness.reasons();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("not ready\n{}\n", reasons.join("\n")),
    )
        .into_response()
}

async fn render(State(admin): State<Admin>) -> Response {
    admin
        .metrics
        .routing_epoch(admin.readiness.inner.ownership.epoch().0);
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        admin.metrics.render(),
    )
        .into_response()
}
