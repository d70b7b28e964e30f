//! A request on its way: sent, sent once more when that is safe, and its answer passed on.

use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use titan_http2::Code;
use titan_http2::hpack::token;
use titan_routing::Epoch;

use super::Passage;
use super::pipe;
use super::route::Route;
use crate::body::answer::{Answer, ResponseBody};
use crate::body::request::{ClientFault, Recording, RequestBody};
use crate::config::Config;
use crate::exchange::{Exchange, Outcome};
use crate::head;
use crate::http2::Broken;
use crate::inbound::{Inbound, Response};
use crate::outgoing::Outgoing;
use crate::rejection::{Reason, Rejection};
use crate::upgrade::Upgrade;
use crate::upstream::{PoolError, SendError, Target};
use crate::worker::View;

impl Passage {
    /// Sends it, once more when that is safe, and passes the answer on.
    pub(super) async fn forward(
        &self,
        mut route: Route,
        mut exchange: Exchange,
        client_body: Inbound,
    ) -> Result<Answer, Rejection> {
        let view = self.worker.view();
        let config = &*view.config;
        self.worker.budget.request(&config.retry);
        let recording = Recording::new(config.retry.body_bytes);
        let slow_after = self.slow_after(&view);
        exchange.sends(Rc::clone(&recording), slow_after);
        let mut body = Some(RequestBody::new(
            client_body,
            Rc::clone(&recording),
            config.limits.body_bytes,
        ));
        let mut attempt = 0_u32;
        let mut turned_away = false;
        loop {
            attempt += 1;
            let Some(request_body) = body.take().or_else(|| recording.replay()) else {
                let broken = Rejection::new(
                    Reason::Broken,
                    "the request broke off and cannot be replayed",
                );
                return Err(self.give_up(&mut exchange, Outcome::Broken, broken));
            };
            let head = self.outgoing(&route, self.remaining(attempt));
            let mut request_body = Some(request_body);
            let sent = within(
                self.deadline,
                send(
                    &route.target,
                    config,
                    head,
                    &mut request_body,
                    None,
                    &mut exchange,
                ),
            )
            .await;
            let response = match sent {
                Some(Ok(response)) => response,
                None => {
                    let late = Rejection::new(
                        Reason::Deadline,
                        format!(
                            "{} of {} did not answer in time",
                            route.target.service, route.target.cell.name
                        ),
                    );
                    return Err(self.give_up(&mut exchange, Outcome::TimedOut, late));
                }
                Some(Err(Failed::NoPod(message))) => {
                    let unreachable = Rejection::new(Reason::Unreachable, message);
                    return Err(self.give_up(&mut exchange, Outcome::Broken, unreachable));
                }
                Some(Err(Failed::Refused(rejection))) => {
                    return Err(self.give_up(&mut exchange, Outcome::Cancelled, rejection));
                }
                Some(Err(Failed::Send(mut failure))) => {
                    if let Some(fault) = recording.fault() {
                        let refused = client_fault(fault, config);
                        return Err(self.give_up(&mut exchange, Outcome::Broken, refused));
                    }
                    let pods_fault = failure.is_the_pods_fault();
                    if let Some(unsent) = failure.unsent.take() {
                        body = Some(*unsent);
                    }
                    let broken = failure.error.downcast_ref::<Broken>();
                    if matches!(broken, Some(Broken::Reset(Code::PROTOCOL))) {
                        let malformed = Rejection::new(
                            Reason::Broken,
                            format!(
                                "{} of {} takes the request for malformed",
                                route.target.service, route.target.cell.name
                            ),
                        );
                        return Err(self.give_up(&mut exchange, Outcome::Malformed, malformed));
                    }
                    // It may be the request that makes pods leave, and must not go from one connection to the next.
                    let left = body.is_none() && matches!(broken, Some(Broken::Unprocessed));
                    let walks = left && std::mem::replace(&mut turned_away, true);
                    let safe = !walks
                        && (failure.not_processed() || body.is_some() || self.is_repeatable());
                    let possible = body.is_some() || recording.replay().is_some();
                    if attempt < 4
                        && !self.is_late()
                        && safe
                        && possible
                        && self.may_retry(&route.target, config, body.is_some())
                    {
                        if pods_fault {
                            exchange.pod_failed();
                        }
                        continue;
                    }
                    let broken = Rejection::new(
                        Reason::Broken,
                        format!(
                            "the connection to {} of {} broke: {}",
                            route.target.service, route.target.cell.name, failure.error
                        ),
                    );
                    return Err(self.give_up(&mut exchange, Outcome::Broken, broken));
                }
            };
            exchange.answered(&response.head);
            if attempt == 1
                && let Some(newer) = refused_for(&response, route.epoch)
                && recording.replay().is_some()
                && self.may_retry(&route.target, config, false)
                && Box::pin(self.wait_for(newer, config.retry.table_wait.0)).await
                && let Some(mut next) = self.reroute()
            {
                drop(response);
                if !Rc::ptr_eq(&next.target, &route.target) {
                    let sample = exchange.take_sample();
                    exchange.finish(Outcome::Answered);
                    exchange = self.exchange(&mut next);
                    exchange.sample(sample);
                    exchange.asked_at(Instant::now());
                    exchange.sends(Rc::clone(&recording), slow_after);
                }
                route = next;
                continue;
            }
            recording.forget();
            if exchange.head_failed() {
                exchange.describe_failure(None, || self.describe());
            }
            let until = self.deadline.filter(|_| self.deadline_of_client);
            return Ok(Answer {
                head: response.head,
                body: ResponseBody::cell(response.body, exchange, until),
            });
        }
    }

    /// The head as the cell gets it.
    fn outgoing(&self, route: &Route, remaining: Option<Duration>) -> Outgoing<'_> {
        Outgoing {
            head: &self.head,
            key: self.key,
            epoch: route.epoch,
            remaining,
        }
    }

    /// After which time the answer is late. A client that sets a longer deadline than others have is ready to wait, and may
    /// well have asked for what is to come.
    fn slow_after(&self, view: &View) -> Option<Duration> {
        let slow_after = view.slow_after(self.service)?;
        let usual = view.config.limits.default_deadline.0;
        let patient = self.deadline_of_client
            && !usual.is_zero()
            && self
                .deadline
                .is_none_or(|until| until.duration_since(self.started) > usual);
        (!patient).then_some(slow_after)
    }

    /// Ends it without an answer of the cell.
    fn give_up(
        &self,
        exchange: &mut Exchange,
        outcome: Outcome,
        rejection: Rejection,
    ) -> Rejection {
        exchange.describe_failure(Some(&rejection.message), || self.describe());
        exchange.finish(outcome);
        rejection
    }

    /// What is left of the deadline, when the cell has to be told another one than the client gave.
    fn remaining(&self, attempt: u32) -> Option<Duration> {
        let deadline = self.deadline.filter(|_| self.deadline_of_client)?;
        let waited = self.started.elapsed() > Duration::from_millis(2);
        (waited || attempt > 1 || self.deadline_cut)
            .then(|| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether nobody waits for the answer any more.
    pub(super) fn is_late(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Whether doing it twice is the same as doing it once.
    fn is_repeatable(&self) -> bool {
        matches!(head::method(&self.head), "GET" | "HEAD" | "OPTIONS")
            || self.head.find(b"idempotency-key").is_some()
    }

    fn may_retry(&self, target: &Target, config: &Config, unsent: bool) -> bool {
        // What was never sent costs the cell nothing.
        if unsent || self.worker.budget.take(&config.retry, Instant::now()) {
            target.metrics.retries.add(1);
            return true;
        }
        self.worker.metrics.retries_denied.add(1);
        false
    }

    async fn wait_for(&self, epoch: Epoch, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let view = self.worker.view();
            if view.table.epoch() >= epoch {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.worker.next_version(&view, left).await {
                return self.worker.view().table.epoch() >= epoch;
            }
        }
    }

    /// A WebSocket, or anything else that takes the connection over.
    pub(super) async fn upgrade(
        &self,
        route: Route,
        mut exchange: Exchange,
        client_body: Inbound,
        upgrade: Upgrade,
    ) -> Result<Answer, Rejection> {
        let view = self.worker.view();
        let config = &*view.config;
        let recording = Recording::new(0);
        exchange.sends(Rc::clone(&recording), None);
        let mut body = Some(RequestBody::new(client_body, recording, 0));
        let head = self.outgoing(&route, None);
        let target = &route.target;
        let sent = within(
            self.deadline,
            send(
                target,
                config,
                head,
                &mut body,
                Some(&upgrade),
                &mut exchange,
            ),
        )
        .await;
        let response = match sent {
            Some(Ok(response)) => response,
            Some(Err(Failed::NoPod(message))) => {
                let unreachable = Rejection::new(Reason::Unreachable, message);
                return Err(self.give_up(&mut exchange, Outcome::Broken, unreachable));
            }
            Some(Err(Failed::Refused(rejection))) => {
                return Err(self.give_up(&mut exchange, Outcome::Cancelled, rejection));
            }
            Some(Err(Failed::Send(failure))) => {
                let broken = Rejection::new(Reason::Broken, failure.error.to_string());
                return Err(self.give_up(&mut exchange, Outcome::Broken, broken));
            }
            None => {
                let late = Rejection::new(Reason::Deadline, "the cell did not answer in time");
                return Err(self.give_up(&mut exchange, Outcome::TimedOut, late));
            }
        };
        exchange.answered(&response.head);
        Ok(pipe::join(response, upgrade, exchange))
    }
}

fn client_fault(fault: ClientFault, config: &Config) -> Rejection {
    match fault {
        ClientFault::Left => Rejection::new(
            Reason::ClientLeft,
            "the client left before its request was complete",
        ),
        ClientFault::TooLarge => Rejection::too_large(config.limits.body_bytes),
    }
}

/// Why there is no answer.
enum Failed {
    NoPod(String),
    /// That is no pod's fault: it is full, or its protocol has no way to say what the client said.
    Refused(Rejection),
    Send(SendError),
}

/// Sends the request; its body is only lent, because a future that is small is cheap to move.
async fn send(
    target: &Target,
    config: &Config,
    head: Outgoing<'_>,
    body: &mut Option<RequestBody>,
    upgrade: Option<&Upgrade>,
    exchange: &mut Exchange,
) -> Result<Response, Failed> {
    // What is rare is boxed, for the same reason.
    let conn = match target.pool.ready(config) {
        Some(conn) => conn,
        None => Box::pin(target.pool.connect(config))
            .await
            .map_err(|error| match error {
                PoolError::Busy(..) => {
                    Failed::Refused(Rejection::new(Reason::CellBusy, error.to_string()))
                }
                _ => Failed::NoPod(error.to_string()),
            })?,
    };
    let Some(body) = body.take() else {
        return Err(Failed::NoPod("the request was sent already".to_owned()));
    };
    exchange.carried_by(Rc::clone(&conn));
    let mut sending = conn.send(head, body, upgrade).map_err(Failed::Refused)?;
    sending.opened().await.map_err(Failed::Send)?;
    exchange.opened();
    sending.await.map_err(Failed::Send)
}

/// None when the deadline passes first.
async fn within<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), future).await.ok(),
        None => Some(future.await),
    }
}

/// The newer epoch, when a service refused because it does not own the key (any more).
fn refused_for(response: &Response, epoch: Epoch) -> Option<Epoch> {
    const FAILED_PRECONDITION: &[u8] = b"9";
    let head = &response.head;
    if head.get(token::GRPC_STATUS)? != FAILED_PRECONDITION {
        return None;
    }
    let newer = Epoch(head::text(head.get(token::X_TITAN_EPOCH)?)?.parse().ok()?);
    (newer > epoch).then_some(newer)
}
