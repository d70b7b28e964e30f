//! What every request passes before its handler: trace, count, and the check of ownership.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use http::{HeaderMap, Request as HttpRequest, Response as HttpResponse};
use titan_routing::{Epoch, Key};
use tonic::body::Body;
use tonic::{Request, Status};
use tower::{Layer, Service};
use tracing::{Instrument, field};

use crate::metrics::Metrics;
use crate::ownership::{Owner, Ownership};
use crate::{headers, idempotency, telemetry};

/// Who calls, as the request's metadata says.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The key of the request, served by this cell.
    pub owner: Owner,
    /// The full path of the method.
    pub method: String,
    /// The trace that the request belongs to.
    pub traceparent: Option<String>,
    idempotency_key: Option<String>,
}

impl Caller {
    /// The caller of a request.
    ///
    /// # Errors
    /// When the request did not pass the [`Gate`], which is a mistake of the server.
    pub fn of<T>(request: &Request<T>) -> Result<&Caller, Status> {
        request
            .extensions()
            .get::<Caller>()
            .ok_or_else(|| Status::internal("the request did not pass the ownership check"))
    }

    /// The key that makes a mutation take effect once.
    ///
    /// # Errors
    /// When it is missing or cannot be used.
    pub fn idempotency_key(&self) -> Result<&str, Status> {
        let key = self.idempotency_key.as_deref().unwrap_or_default();
        if key.is_empty() {
            return Err(Status::invalid_argument(format!(
                "metadata `{}` is missing: send a unique text (a UUID will do) with each new mutation, and the same one with each retry",
                headers::IDEMPOTENCY_KEY
            )));
        }
        if key.len() > idempotency::MAX_KEY {
            return Err(Status::invalid_argument(format!(
                "metadata `{}` is longer than {} bytes",
                headers::IDEMPOTENCY_KEY,
                idempotency::MAX_KEY
            )));
        }
        Ok(key)
    }
}

/// The layer over a service's methods.
#[derive(Clone, Debug)]
pub struct GateLayer {
    ownership: Ownership,
    metrics: Metrics,
    /// The prefixes of paths that need a key: `/titan.user.v1.UserService/`.
    guarded: std::sync::Arc<[String]>,
}

impl GateLayer {
    /// A layer that asks requests to `grpc` services for a key.
    #[must_use]
    pub fn new(ownership: Ownership, metrics: Metrics, grpc: &[&str]) -> Self {
        GateLayer {
            ownership,
            metrics,
            guarded: grpc.iter().map(|name| format!("/{name}/")).collect(),
        }
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate {
            inner,
            layer: self.clone(),
        }
    }
}

/// See [`GateLayer`].
#[derive(Clone, Debug)]
pub struct Gate<S> {
    inner: S,
    layer: GateLayer,
}

impl<S> Service<HttpRequest<Body>> for Gate<S>
where
    S: Service<HttpRequest<Body>, Response = HttpResponse<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<HttpResponse<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: HttpRequest<Body>) -> Self::Future {
        // The clone is not known to be ready, so it is the one that stays.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let layer = self.layer.clone();
        let path = request.uri().path().to_owned();
        if !layer
            .guarded
            .iter()
            .any(|prefix| path.starts_with(prefix.as_str()))
        {
            return Box::pin(async move { inner.call(request).await });
        }

        let span = tracing::info_span!(
            "request",
            otel.name = %path.trim_start_matches('/'),
            otel.kind = "server",
            rpc.system = "grpc",
            titan.key = field::Empty,
            grpc.code = field::Empty,
        );
        telemetry::set_parent(&span, request.headers());
        let recorded = span.clone();
        Box::pin(
            async move {
                let timer = layer.metrics.start(&path);
                let started = Instant::now();
                let response = match identify(&layer.ownership, &path, request.headers()).await {
                    Ok(caller) => {
                        recorded.record("titan.key", caller.owner.key.get());
                        request.extensions_mut().insert(caller);
                        inner.call(request).await?
                    }
                    Err(status) => {
                        if status.code() == tonic::Code::FailedPrecondition {
                            layer.metrics.refused("check");
                        }
                        status.into_http()
                    }
                };
                // An answer without the header has its status in the trailers, and is OK as far as it got.
                let code = response
                    .headers()
                    .get("grpc-status")
                    .and_then(|code| code.to_str().ok()?.parse::<i32>().ok())
                    .map_or(tonic::Code::Ok, tonic::Code::from);
                recorded.record("grpc.code", field::debug(code));
                timer.finish(code);
                tracing::debug!(elapsed = ?started.elapsed(), ?code, "answered");
                Ok(response)
            }
            .instrument(span),
        )
    }
}

async fn identify(
    ownership: &Ownership,
    path: &str,
    metadata: &HeaderMap,
) -> Result<Caller, Status> {
    let text = |name: &'static str| {
        metadata
            .get(name)
            .map(|value| {
                value.to_str().map_err(|_| {
                    Status::invalid_argument(format!("metadata `{name}` is not ASCII text"))
                })
            })
            .transpose()
    };
    let key = text(headers::KEY)?.ok_or_else(|| {
        Status::invalid_argument(format!(
            "metadata `{}` is missing: the router sets it from the verified token; without a router, send the user's key as a decimal number",
            headers::KEY
        ))
    })?;
    let key: Key = key.parse().map_err(|error| {
        Status::invalid_argument(format!("metadata `{}`: {error}", headers::KEY))
    })?;
    let routed_by = match text(headers::EPOCH)? {
        None => Epoch(0),
        Some(epoch) => Epoch(epoch.parse().map_err(|_| {
            Status::invalid_argument(format!(
                "metadata `{}` is not a decimal number",
                headers::EPOCH
            ))
        })?),
    };
    let owner = ownership.check(key, routed_by).await?;
    Ok(Caller {
        owner,
        method: path.to_owned(),
        traceparent: telemetry::current_traceparent()
            .or(text(headers::TRACEPARENT)?.map(str::to_owned)),
        idempotency_key: text(headers::IDEMPOTENCY_KEY)?.map(str::to_owned),
    })
}
