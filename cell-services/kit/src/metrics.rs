//! What a service counts, for Prometheus.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use prometheus::{
    Encoder, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use tonic::Code;

/// The metrics of one service process.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    methods: HashSet<String>,
    requests: IntCounterVec,
    seconds: HistogramVec,
    in_flight: IntGaugeVec,
    refusals: IntCounterVec,
    retries: IntCounterVec,
    replays: IntCounter,
    database_up: IntGauge,
    routing_epoch: IntGauge,
    outbox_published: IntCounter,
    outbox_lag: Gauge,
}

impl Metrics {
    /// Metrics for the methods of the gRPC services in an encoded file descriptor set.
    ///
    /// # Errors
    /// When two metrics have one name, which is a mistake in this file.
    pub fn new(service: &str, descriptor: &[u8]) -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(
            Some("titan".to_owned()),
            Some(std::iter::once(("service".to_owned(), service.to_owned())).collect()),
        )?;
        let inner = Inner {
            methods: methods(descriptor),
            requests: IntCounterVec::new(
                Opts::new("requests_total", "Requests answered"),
                &["method", "code"],
            )?,
            seconds: HistogramVec::new(
                HistogramOpts::new("request_seconds", "Time to answer").buckets(vec![
                    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
                ]),
                &["method"],
            )?,
            in_flight: IntGaugeVec::new(
                Opts::new("requests_in_flight", "Requests being answered"),
                &["method"],
            )?,
            refusals: IntCounterVec::new(
                Opts::new(
                    "ownership_refusals_total",
                    "Requests for keys that are not owned here",
                ),
                &["by"],
            )?,
            retries: IntCounterVec::new(
                Opts::new("database_retries_total", "Transactions run again"),
                &["reason"],
            )?,
            replays: IntCounter::new(
                "idempotent_replays_total",
                "Mutations answered from a saved answer",
            )?,
            database_up: IntGauge::new(
                "database_up",
                "Whether PostgreSQL has a leader that answers",
            )?,
            routing_epoch: IntGauge::new("routing_epoch", "The epoch of the routing table in use")?,
            outbox_published: IntCounter::new(
                "outbox_published_total",
                "Events that Kafka has acknowledged",
            )?,
            outbox_lag: Gauge::new(
                "outbox_lag_seconds",
                "Age of the oldest event that waits, where it is published",
            )?,
            registry,
        };
        inner.registry.register(Box::new(inner.requests.clone()))?;
        inner.registry.register(Box::new(inner.seconds.clone()))?;
        inner.registry.register(Box::new(inner.in_flight.clone()))?;
        inner.registry.register(Box::new(inner.refusals.clone()))?;
        inner.registry.register(Box::new(inner.retries.clone()))?;
        inner.registry.register(Box::new(inner.replays.clone()))?;
        inner
            .registry
            .register(Box::new(inner.database_up.clone()))?;
        inner
            .registry
            .register(Box::new(inner.routing_epoch.clone()))?;
        inner
            .registry
            .register(Box::new(inner.outbox_published.clone()))?;
        inner
            .registry
            .register(Box::new(inner.outbox_lag.clone()))?;
        Ok(Metrics {
            inner: Arc::new(inner),
        })
    }

    /// The registry, for metrics of a service's own.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// All metrics in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.inner.registry.gather(), &mut text) {
            tracing::warn!(%error, "cannot write the metrics");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    pub(crate) fn start(&self, path: &str) -> Timer {
        // Paths that are no methods share a label: a client must not make series.
        let method = if self.inner.methods.contains(path) {
            path
        } else {
            "unknown"
        }
        .to_owned();
        self.inner.in_flight.with_label_values(&[&method]).inc();
        Timer {
            metrics: self.clone(),
            method,
            started: Instant::now(),
        }
    }

    pub(crate) fn refused(&self, by: &str) {
        self.inner.refusals.with_label_values(&[by]).inc();
    }

    pub(crate) fn retried(&self, reason: &str) {
        self.inner.retries.with_label_values(&[reason]).inc();
    }

    pub(crate) fn replayed(&self) {
        self.inner.replays.inc();
    }

    pub(crate) fn database_up(&self, up: bool) {
        self.inner.database_up.set(i64::from(up));
    }

    pub(crate) fn routing_epoch(&self, epoch: u64) {
        self.inner.routing_epoch.set(epoch.cast_signed());
    }

    pub(crate) fn outbox_published(&self, events: usize) {
        self.inner.outbox_published.inc_by(events as u64);
    }

    pub(crate) fn outbox_lag(&self, seconds: f64) {
        self.inner.outbox_lag.set(seconds);
    }
}

/// Counts one request; in flight until it is dropped, which is also what a cancelled request does.
#[derive(Debug)]
pub(crate) struct Timer {
    metrics: Metrics,
    method: String,
    started: Instant,
}

impl Timer {
    pub(crate) fn finish(self, code: Code) {
        let inner = &self.metrics.inner;
        inner
            .requests
            .with_label_values(&[self.method.as_str(), name(code)])
            .inc();
        inner
            .seconds
            .with_label_values(&[&self.method])
            .observe(self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.metrics
            .inner
            .in_flight
            .with_label_values(&[&self.method])
            .dec();
    }
}

fn methods(descriptor: &[u8]) -> HashSet<String> {
    use prost::Message;
    let Ok(set) = prost_types::FileDescriptorSet::decode(descriptor) else {
        return HashSet::new();
    };
    set.file
        .iter()
        .flat_map(|file| {
            file.service.iter().flat_map(move |service| {
                service.method.iter().map(move |method| {
                    format!("/{}.{}/{}", file.package(), service.name(), method.name())
                })
            })
        })
        .collect()
}

/// The name of a code in the gRPC specification.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
