//! Leader election by a Lease, and the gate that keeps a deposed leader from writing.
//!
//! The protocol is that of client-go's `leaderelection`: a candidate takes a Lease that nobody has renewed for its whole
//! duration *as seen by the candidate's own clock*, so that clocks need not agree; every write of the Lease is a
//! compare-and-swap on its resourceVersion. A Lease alone is no fence: a leader that was suspended does not know that
//! it was replaced. Therefore the [`WriteGate`] refuses each write that starts after the leader's own deadline, which lies
//! before the moment at which anybody else may take the Lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::Either;
use http::{Method, Request, Response};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::client::Body;
use kube::{Api, Client};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

use crate::execute::apply::{is_conflict, is_not_found};

/// How long a Lease holds after it was last renewed.
pub const LEASE_DURATION: Duration = Duration::from_secs(6);
/// How long after its last renewal a leader may still begin a write. Shorter than the Lease, so that a write that has
/// begun is over before the next leader's first.
const WRITE_WINDOW: Duration = Duration::from_secs(4);
/// How often a leader renews and a candidate looks.
const PERIOD: Duration = Duration::from_secs(1);
/// How long one try to take or renew the Lease may last. An apiserver answers in milliseconds; a connection to a node that lost
/// its power never answers, and the next try gets another one. Two tries fit into the write window.
const TRY: Duration = Duration::from_millis(1500);

/// Says whether this process may write: open from the outset, or opened and closed by a [`Candidate`].
#[derive(Clone)]
pub struct WriteGate {
    start: Instant,
    // Milliseconds after `start` until which writes may begin.
    open_until: Arc<AtomicU64>,
}

impl WriteGate {
    /// A gate that is never closed, for a process that is alone.
    #[must_use]
    pub fn open() -> Self {
        WriteGate {
            start: Instant::now(),
            open_until: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }

    /// A gate that is closed until leadership is won.
    #[must_use]
    pub fn closed() -> Self {
        WriteGate {
            start: Instant::now(),
            open_until: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Whether a write may begin now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// For how long writes may still begin.
    fn remaining(&self) -> Duration {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let until = self.open_until.load(Ordering::Acquire);
        Duration::from_millis(until.saturating_sub(now))
    }

    fn hold_open(&self, from: Instant) {
        let until = from.duration_since(self.start) + WRITE_WINDOW;
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.open_until.store(until, Ordering::Release);
    }

    /// Refuses all writes that begin from now on.
    pub fn close(&self) {
        self.open_until.store(0, Ordering::Release);
    }
}

/// A layer around the Kubernetes client that lets writes through only while the gate is open. The Lease itself is always
/// let through.
#[derive(Clone)]
pub struct GateLayer(pub WriteGate);

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated {
            inner,
            gate: self.0.clone(),
        }
    }
}

/// The service of [`GateLayer`].
#[derive(Clone)]
pub struct Gated<S> {
    inner: S,
    gate: WriteGate,
}

/// A write was refused because this process is not the leader.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("not the leader any more: the write was not sent")]
pub struct NotLeading;

impl<S, B> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Either<
        futures::future::Ready<Result<Self::Response, BoxError>>,
        futures::future::MapErr<S::Future, fn(S::Error) -> BoxError>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let lease = request
            .uri()
            .path()
            .starts_with("/apis/coordination.k8s.io/");
        if reads || lease || self.gate.is_open() {
            let forwarded = self.inner.call(request);
            Either::Right(futures::TryFutureExt::map_err(forwarded, Into::into))
        } else {
            Either::Left(futures::future::err(NotLeading.into()))
        }
    }
}

/// Why the Lease could not be taken or renewed.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error(transparent)]
    Kube(#[from] kube::Error),
    #[error("the apiserver did not answer within {0:?}")]
    TimedOut(Duration),
}

/// One process that would lead, for one term: a gate that was closed stays closed, and with it whatever still runs of the term.
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    gate: WriteGate,
    // The Lease as last seen, and when it was first seen so.
    observed: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    /// A candidate for the Lease `name` in `namespace`.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: String,
        gate: WriteGate,
    ) -> Self {
        Candidate {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            gate,
            observed: None,
        }
    }

    /// Waits until this process leads.
    pub async fn win(&mut self) {
        loop {
            match self.bounded(TRY).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot read or take the leader Lease; will try again");
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Renews the Lease for as long as that works, and returns when leadership is lost. The gate is shut by then.
    pub async fn keep(&mut self) {
        loop {
            tokio::time::sleep(PERIOD.min(self.gate.remaining())).await;
            // What is renewed after the gate has shut is won anew, by the candidate of another term.
            match self.bounded(TRY.min(self.gate.remaining())).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!(%error, "cannot renew the leader Lease; will try again");
                }
            }
            if !self.gate.is_open() {
                break;
            }
        }
        self.gate.close();
    }

    /// One try to take or renew the Lease. One that was given up may have succeeded, which the next try sees.
    async fn bounded(&mut self, limit: Duration) -> Result<bool, LeaseError> {
        match tokio::time::timeout(limit, self.try_hold()).await {
            Ok(held) => Ok(held?),
            Err(_) => Err(LeaseError::TimedOut(limit)),
        }
    }

    /// Gives the Lease back, so that another candidate need not wait for it to run out.
    pub async fn release(&mut self) {
        self.gate.close();
        let freed = async {
            let mut lease = self.leases.get(&self.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.identity) {
                spec.holder_identity = None;
                spec.renew_time = Some(MicroTime(Timestamp::now()));
                self.leases
                    .replace(&self.name, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<_, LeaseError>(())
        };
        let freed = tokio::time::timeout(TRY, freed)
            .await
            .unwrap_or(Err(LeaseError::TimedOut(TRY)));
        if let Err(error) = freed {
            tracing::warn!(%error, "could not give the leader Lease back; it runs out by itself");
        }
    }

    /// Takes or renews the Lease; false when somebody else holds it.
    async fn try_hold(&mut self) -> Result<bool, kube::Error> {
        let began = Instant::now();
        let held = match self.leases.get(&self.name).await {
            Ok(lease) => self.take_or_renew(lease).await?,
            Err(error) if is_not_found(&error) => self.create().await?,
            Err(error) => return Err(error),
        };
        if held {
            self.gate.hold_open(began);
        }
        Ok(held)
    }

    async fn take_or_renew(&mut self, mut lease: Lease) -> Result<bool, kube::Error> {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let mine = holder == self.identity;
        if !mine && !holder.is_empty() && !self.has_run_out(&spec) {
            return Ok(false);
        }
        let now = MicroTime(Timestamp::now());
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            renew_time: Some(now.clone()),
            acquire_time: if mine { spec.acquire_time } else { Some(now) },
            lease_transitions: Some(spec.lease_transitions.unwrap_or(0) + i32::from(!mine)),
            ..LeaseSpec::default()
        });
        let result = self
            .leases
            .replace(&self.name, &PostParams::default(), &lease)
            .await;
        match result {
            Ok(_) => Ok(true),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the Lease has stood unchanged for its whole duration, by this process's own clock.
    fn has_run_out(&mut self, spec: &LeaseSpec) -> bool {
        let now = Instant::now();
        let since = match &self.observed {
            Some((seen, since)) if seen == spec => *since,
            _ => {
                self.observed = Some((spec.clone(), now));
                now
            }
        };
        let duration = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(LEASE_DURATION, Duration::from_secs);
        now.duration_since(since) >= duration
    }

    async fn create(&self) -> Result<bool, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            }),
        };
        match self.leases.create(&PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
