//! The way of one request: whose key, which cell, may it go there, send, and once more when that is safe.

mod anonymous;
mod forward;
mod pipe;
mod route;

use std::rc::Rc;
use std::time::{Duration, Instant};

use route::Route;
use titan_http2::hpack::Block;
use titan_routing::Key;

use crate::body::Body as _;
use crate::body::answer::Answer;
use crate::config::Protocol;
use crate::exchange::{Described, Exchange};
use crate::identity::{Claim, Peer};
use crate::inbound::Inbound;
use crate::rejection::{Reason, Rejection};
use crate::upgrade::{self, Upgrade};
use crate::worker::{View, Worker};
use crate::{deadline, head};

/// A request of a client.
pub struct Request {
    /// Its head.
    pub head: Block,
    /// Its body.
    pub body: Inbound,
    /// That the client wants its connection to become something else.
    pub upgrade: Option<Upgrade>,
}

/// Answers a request.
pub async fn handle(worker: Rc<Worker>, peer: Rc<Peer>, request: Request) -> Answer {
    let grpc = head::is_grpc(&request.head);
    let bodiless = head::method(&request.head) == "HEAD";
    let outcome = match Passage::new(worker.clone(), &peer, grpc, request) {
        Ok(mut passage) => passage.run().await,
        Err(rejection) => Err(rejection),
    };
    outcome.unwrap_or_else(|rejection| {
        worker.metrics.rejected(rejection.reason);
        let answer = Answer::of(&rejection, grpc);
        if bodiless {
            answer.without_body()
        } else {
            answer
        }
    })
}

/// Logs what never became an exchange, which logs itself. What is nobody's fault but the client's is sampled only: it must
/// not take the room of failures.
fn log_rejection(worker: &Worker, described: impl FnOnce() -> Described, rejection: &Rejection) {
    let failed = rejection.reason.http_status().is_server_error();
    let takes = if failed {
        worker.logs_failure()
    } else {
        worker.samples(&worker.view().config.access_log)
    };
    if !takes {
        return;
    }
    let described = described();
    tracing::info!(
        target: "access",
        reason = rejection.reason.as_str(),
        method = described.method,
        path = described.path,
        key = described.key,
        traceparent = described.traceparent,
        error = &*rejection.message,
        "rejected"
    );
}

fn describe(head: &Block, key: Option<Key>) -> Described {
    let traceparent = head.get(titan_http2::hpack::token::TRACEPARENT);
    Described {
        method: head::method(head).to_owned(),
        path: head::path(head).to_owned(),
        key: key.map(Key::get),
        traceparent: traceparent.and_then(head::text).map(str::to_owned),
        error: None,
    }
}

/// What the head of a request says about its way.
struct Wish {
    service: usize,
    claim: Claim,
    /// The deadline that the client set.
    of_client: Option<Duration>,
}

impl Wish {
    fn read(
        worker: &Worker,
        view: &View,
        peer: &Peer,
        grpc: bool,
        head: &Block,
        body: &Inbound,
    ) -> Result<Self, Rejection> {
        let config = &view.config;
        // The watch over the whole process looks now and then; a thread knows at once what it has.
        let crowded = worker.metrics.in_flight.get() >= config.limits.in_flight as u64;
        if crowded || worker.shared.is_overloaded() {
            return Err(Rejection::new(
                Reason::Overloaded,
                "the router is short of memory or has too many requests under way; try again in a moment",
            ));
        }
        if !head::is_well_formed(head) {
            return Err(Rejection::new(
                Reason::BadRequest,
                "the method, the scheme, the host, the path or the length is not of the form that HTTP gives it",
            ));
        }
        // What hyper limits is the text, and that loosely. HTTP/2 keeps to it by itself.
        let most = config.limits.header_bytes;
        if matches!(body, Inbound::H1(_)) && head::size(head) > most as usize {
            return Err(Rejection::new(
                Reason::BadRequest,
                format!(
                    "the head is larger than {most} bytes, with 32 for each field (`limits.headerBytes`)"
                ),
            ));
        }
        if head::method(head) == "CONNECT" {
            return Err(Rejection::new(
                Reason::BadRequest,
                "CONNECT is not served: a WebSocket is opened over HTTP/1.1, with `upgrade`",
            ));
        }
        let path = head::path(head);
        let service = view.services.find(path, head::host(head)).ok_or_else(|| {
            Rejection::new(
                Reason::UnknownService,
                format!(
                    "no service for `{}`: the router knows paths `/titan.<service>.v1...` and hosts `<service>.<anything>` of {} services",
                    path,
                    view.services.len()
                ),
            )
        })?;
        let limit = config.limits.body_bytes;
        if limit > 0 && body.length().is_some_and(|length| length > limit) {
            return Err(Rejection::too_large(limit));
        }
        let identity = &worker.shared.identity;
        let claim = identity.claim(config, view.table.mode(), peer, head)?;
        let of_client = if grpc { deadline::of(head)? } else { None };
        Ok(Wish {
            service,
            claim,
            of_client,
        })
    }
}

/// One request under way.
struct Passage {
    worker: Rc<Worker>,
    grpc: bool,
    started: Instant,
    /// When a cell was found for it, if it had to wait for that.
    asked: Option<Instant>,
    /// Until when the head of the answer must be here.
    deadline: Option<Instant>,
    /// Whether the client set the deadline, so that it also ends the body.
    deadline_of_client: bool,
    /// Whether it is shorter than the one that the client set.
    deadline_cut: bool,
    service: usize,
    claim: Claim,
    key: Option<Key>,
    /// Chooses the cell of an anonymous request.
    anonymous_hash: u64,
    head: Block,
    body: Option<Inbound>,
    upgrade: Option<Upgrade>,
}

impl Passage {
    fn new(
        worker: Rc<Worker>,
        peer: &Peer,
        grpc: bool,
        request: Request,
    ) -> Result<Self, Rejection> {
        let started = Instant::now();
        let view = worker.view();
        let Request {
            mut head,
            body,
            upgrade,
        } = request;
        let wish =
            Wish::read(&worker, &view, peer, grpc, &head, &body).inspect_err(|rejection| {
                log_rejection(&worker, || describe(&head, None), rejection);
            })?;
        let of_client = wish.of_client;
        let deadline = deadline::effective(of_client, &view.config.limits);
        head::clean_request(&mut head);
        head::trace(&mut head);
        Ok(Passage {
            grpc,
            started,
            asked: None,
            deadline: deadline.and_then(|limit| started.checked_add(limit)),
            deadline_of_client: of_client.is_some(),
            deadline_cut: of_client > deadline,
            service: wish.service,
            claim: wish.claim,
            key: None,
            anonymous_hash: anonymous::hash_ip(peer.ip),
            head,
            body: Some(body),
            upgrade,
            worker,
        })
    }

    async fn run(&mut self) -> Result<Answer, Rejection> {
        let mut route = self.find_route().await.inspect_err(|rejection| {
            log_rejection(&self.worker, || self.describe(), rejection);
        })?;
        if matches!(self.body, Some(Inbound::H1(_))) {
            upgrade::strip_token(&mut self.head);
        }
        let mut exchange = self.exchange(&mut route);
        let view = self.worker.view();
        if self.worker.samples(&view.config.access_log) {
            exchange.sample(Some(Box::new(self.describe())));
        }
        if let Some(asked) = self.asked {
            exchange.asked_at(asked);
        }
        let Some(body) = self.body.take() else {
            return Err(Rejection::new(
                Reason::BadRequest,
                "the request has no body",
            ));
        };
        if route.target.pool.protocol() == Protocol::H1
            && let Some(upgrade) = self.upgrade.take()
        {
            return Box::pin(self.upgrade(route, exchange, body, upgrade)).await;
        }
        self.forward(route, exchange, body).await
    }

    async fn find_route(&mut self) -> Result<Route, Rejection> {
        let mut view = self.worker.view();
        self.key = match self.claim {
            Claim::Key(key) => Some(key),
            Claim::Anonymous => None,
            Claim::UnknownKey => {
                let identity = &self.worker.shared.identity;
                let mode = view.table.mode();
                let key = identity.claim_with_newer_keys(&view.config, mode, &self.head);
                let key = Box::pin(key).await?;
                view = self.worker.view();
                self.asked = Some(Instant::now());
                Some(key)
            }
        };
        self.check_key_rate(&view)?;
        if let Some(route) = self.route_now(&view)? {
            return Ok(route);
        }
        let route = Box::pin(self.route(view)).await?;
        // It may have waited; the cell need not hear of what nobody waits for any more.
        if self.is_late() {
            return Err(Rejection::new(
                Reason::Deadline,
                "the deadline passed while the range was being moved",
            ));
        }
        self.asked = Some(Instant::now());
        Ok(route)
    }

    /// What is counted of it, from here on.
    fn exchange(&self, route: &mut Route) -> Exchange {
        let mut exchange = Exchange::start(&self.worker, &route.target, self.started, self.grpc);
        exchange.probes(route.probe.take());
        exchange
    }

    fn check_key_rate(&self, view: &View) -> Result<(), Rejection> {
        let limits = &view.config.limits;
        let Some(key) = self.key.filter(|_| limits.per_key_rate > 0) else {
            return Ok(());
        };
        let shared = &self.worker.shared;
        let now_us = shared.clock.us_at(self.started);
        let allowed = shared
            .keys
            .of(key.get())
            .is_none_or(|rate| rate.allow(now_us, limits.per_key_rate, limits.per_key_burst));
        if allowed {
            return Ok(());
        }
        Err(Rejection::new(
            Reason::KeyRate,
            format!(
                "key {key} sends more than {} requests a second",
                limits.per_key_rate
            ),
        ))
    }

    fn describe(&self) -> Described {
        describe(&self.head, self.key)
    }
}
