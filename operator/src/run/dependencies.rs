//! Slots and circuits of the servers that cells depend on outside of Kubernetes.
//!
//! One that does not answer must not delay who asks another. Each PostgreSQL, Redis and Kafka therefore has slots of its own, and a
//! circuit: after some failures in a row it is not asked for a while, and then by one caller first.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use titan_planner::cell::ServerCredentials;
use titan_planner::circuit::{Admission, Circuit};
use tokio::sync::Semaphore;

use crate::ledger::System;
use crate::metrics::Metrics;
use crate::stores::StoreError;

/// Callers that ask one server at once. A server that many cells share answers each in milliseconds.
const SLOTS: usize = 8;
/// How long one caller may keep its slot. The clients give up sooner; this is for what they do not bound.
const LIMIT: Duration = Duration::from_secs(30);
/// Servers that are remembered before those are forgotten that nobody asks.
const REMEMBERED: usize = 1024;

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dependency {
    system: System,
    address: String,
}

impl Dependency {
    /// By its kind and its address: host and port, or the bootstrap servers of a Kafka.
    #[must_use]
    pub fn new(system: System, address: impl Into<String>) -> Self {
        Dependency {
            system,
            address: address.into(),
        }
    }

    /// The server of a database or a cache.
    #[must_use]
    pub fn of(system: System, server: &ServerCredentials) -> Self {
        Dependency::new(system, format!("{}:{}", server.host, server.port))
    }

    fn unreachable(&self, detail: &str) -> StoreError {
        StoreError::Unreachable {
            system: self.system,
            address: self.address.clone(),
            detail: detail.to_owned(),
        }
    }
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.system.as_str(), self.address)
    }
}

/// All servers that were asked.
pub struct Dependencies {
    servers: Mutex<HashMap<Dependency, Arc<Server>>>,
    metrics: Metrics,
}

struct Server {
    slots: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    circuit: Circuit,
    /// Why it did not answer the last time.
    detail: String,
}

impl Dependencies {
    /// None yet. How many circuits are open is a metric.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Dependencies {
            servers: Mutex::default(),
            metrics,
        }
    }

    /// Asks a server, when it is this caller's turn.
    ///
    /// # Errors
    /// Those of the request; while the circuit is open that of the last one, at once and without a request.
    pub async fn ask<T>(
        &self,
        dependency: &Dependency,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let server = self.server(dependency);
        server.admitted(|circuit, now| circuit.refuses(now), dependency)?;
        // Never closed, so that there is no error to speak of.
        let _slot = server.slots.acquire().await.ok();
        // What was waited for may have been somebody else's failure.
        let admit = |circuit: &mut Circuit, now| match circuit.admit(now, LIMIT) {
            Admission::Go | Admission::Probe => None,
            Admission::Refused(pause) => Some(pause),
        };
        server.admitted(admit, dependency)?;
        let asked = tokio::time::timeout(LIMIT, request)
            .await
            .unwrap_or_else(|_| {
                let detail = format!("no answer within {} s", LIMIT.as_secs());
                Err(dependency.unreachable(&detail))
            });
        self.take_in(dependency, &server, &asked);
        asked
    }

    /// How soon the server is asked again, if its circuit is open.
    #[must_use]
    pub fn asked_again_in(&self, dependency: &Dependency) -> Option<Duration> {
        let server = self.servers().get(dependency).cloned()?;
        server.state().circuit.refuses(Instant::now())
    }

    fn take_in<T>(&self, dependency: &Dependency, server: &Server, asked: &Result<T, StoreError>) {
        let mut state = server.state();
        let was_open = state.circuit.is_open();
        match asked {
            // It was not asked to the end.
            Err(StoreError::Interrupted(_)) => {}
            Err(StoreError::Unreachable { detail, .. }) => {
                state.circuit.failed(Instant::now(), rand::random());
                state.detail.clone_from(detail);
            }
            _ => state.circuit.answered(),
        }
        let open = &self.metrics.open_circuits;
        let open = open.with_label_values(&[dependency.system.as_str()]);
        match (was_open, state.circuit.is_open()) {
            (false, true) => {
                open.inc();
                tracing::warn!(%dependency, detail = state.detail, "does not answer; its circuit is open");
            }
            (true, false) => {
                open.dec();
                tracing::info!(%dependency, "answers again");
            }
            _ => {}
        }
    }

    fn server(&self, dependency: &Dependency) -> Arc<Server> {
        let mut servers = self.servers();
        if servers.len() >= REMEMBERED {
            servers.retain(|_, server| {
                Arc::strong_count(server) > 1 || server.state().circuit != Circuit::default()
            });
        }
        let server = servers.entry(dependency.clone()).or_insert_with(|| {
            Arc::new(Server {
                slots: Semaphore::new(SLOTS),
                state: Mutex::default(),
            })
        });
        Arc::clone(server)
    }

    fn servers(&self) -> MutexGuard<'_, HashMap<Dependency, Arc<Server>>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admitted(
        &self,
        refuses: impl FnOnce(&mut Circuit, Instant) -> Option<Duration>,
        dependency: &Dependency,
    ) -> Result<(), StoreError> {
        let mut state = self.state();
        match refuses(&mut state.circuit, Instant::now()) {
            Some(_) => Err(dependency.unreachable(&state.detail)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use titan_planner::circuit::FAILURES;

    use super::*;

    fn kafka() -> Dependency {
        Dependency::new(System::Kafka, "127.0.0.1:1")
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_left_alone_and_asked_again() {
        let dependencies = Dependencies::new(Metrics::new().unwrap());
        let (kafka, asked) = (kafka(), AtomicUsize::new(0));
        let fail = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            Err::<(), _>(kafka.unreachable("no broker"))
        };
        for _ in 0..2 * FAILURES {
            let error = dependencies.ask(&kafka, fail()).await.unwrap_err();
            assert!(error.to_string().contains("no broker"), "{error}");
        }
        assert_eq!(asked.load(Ordering::Relaxed), FAILURES as usize);
        let other = Dependency::new(System::Kafka, "127.0.0.1:2");
        dependencies.ask(&other, async { Ok(()) }).await.unwrap();

        let pause = dependencies.asked_again_in(&kafka).unwrap();
        tokio::time::sleep(pause).await;
        dependencies.ask(&kafka, async { Ok(()) }).await.unwrap();
        assert_eq!(dependencies.asked_again_in(&kafka), None);
    }

    #[tokio::test]
    async fn who_waits_for_a_slot_of_one_server_delays_nobody_at_another() {
        let dependencies = Arc::new(Dependencies::new(Metrics::new().unwrap()));
        let hanging: Vec<_> = (0..4 * SLOTS)
            .map(|_| {
                let dependencies = dependencies.clone();
                tokio::spawn(async move {
                    let never = std::future::pending::<Result<(), StoreError>>();
                    dependencies.ask(&kafka(), never).await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        let other = Dependency::new(System::Postgres, "127.0.0.1:2");
        let answer = dependencies.ask(&other, async { Ok(1) });
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await;
        assert_eq!(answer.unwrap().unwrap(), 1);
        hanging.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
