//! Logs, and traces when there is somewhere to send them.

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::{Config, LogFormat};
use crate::error::StartError;
use crate::headers;

/// Sends what is left when dropped.
#[derive(Debug, Default)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown()
        {
            tracing::debug!(%error, "cannot send the last traces");
        }
    }
}

/// Sets up the process's logs and traces.
///
/// # Errors
/// When the exporter cannot be made, or there is a logger already.
pub fn init(service: &'static str, config: &Config) -> Result<Telemetry, StartError> {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,librdkafka=error,rdkafka=error"));
    let logs = match config.log {
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
        LogFormat::Pretty => fmt::layer().with_target(false).boxed(),
    };
    let provider = if config.otlp_endpoint.is_empty() {
        None
    } else {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&config.otlp_endpoint)
            .build()
            .map_err(|error| {
                StartError::Telemetry(format!(
                    "OTEL_EXPORTER_OTLP_ENDPOINT={}: {error}",
                    config.otlp_endpoint
                ))
            })?;
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attributes([
                opentelemetry::KeyValue::new("titan.cell", config.cell.clone()),
                opentelemetry::KeyValue::new("titan.fleet", config.fleet.clone()),
                opentelemetry::KeyValue::new("cloud.region", config.region.clone()),
                opentelemetry::KeyValue::new("service.version", config.release.clone()),
            ])
            .build();
        Some(
            SdkTracerProvider::builder()
                .with_batch_exporter(exporter)
                .with_resource(resource)
                .build(),
        )
    };
    let traces = provider
        .as_ref()
        .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer("cell-kit")));
    tracing_subscriber::registry()
        .with(filter)
        .with(traces)
        .with(logs)
        .try_init()
        .map_err(|error| StartError::Telemetry(error.to_string()))?;
    Ok(Telemetry { provider })
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Makes a span a child of the caller's.
pub(crate) fn set_parent(span: &Span, metadata: &HeaderMap) {
    if metadata.contains_key(headers::TRACEPARENT) {
        // Fails only where no tracer is set up, and then there is nothing to tell.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&Headers(metadata)));
    }
}

/// The trace context of the current span, when traces are made.
pub(crate) fn current_traceparent() -> Option<String> {
    let context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| {
        format!(
            "00-{}-{}-{:02x}",
            span.trace_id(),
            span.span_id(),
            span.trace_flags().to_u8()
        )
    })
}
