//! The way of one request: whose key, which cell, may it go there, send, and once more when that is safe.

use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use titan_routing::{AssignmentState, Epoch, Key};

use crate::body::{Recording, RequestBody, ResponseBody};
use crate::config::Protocol;
use crate::exchange::{Described, Exchange, Outcome};
use crate::identity::{Claim, EPOCH, KEY, Peer};
use crate::rejection::{Reason, Rejection};
use crate::upgrade;
use crate::upstream::{SendError, Target};
use crate::worker::{View, Worker};
use crate::{deadline, headers};

/// Answers a request.
pub async fn handle(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let grpc = headers::is_grpc(request.headers());
    let outcome = match Passage::new(worker.clone(), &peer, grpc, request) {
        Ok(passage) => passage.run().await,
        Err(rejection) => Err(rejection),
    };
    outcome.unwrap_or_else(|rejection| {
        worker.metrics.rejected(rejection.reason);
        tracing::debug!(reason = rejection.reason.as_str(), "{}", rejection.message);
        rejection.response(grpc)
    })
}

/// Where a request goes.
struct Route {
    target: Rc<Target>,
    epoch: Epoch,
}

/// One request under way.
struct Passage {
    worker: Rc<Worker>,
    grpc: bool,
    started: Instant,
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
    head: http::request::Parts,
    body: Option<Incoming>,
}

impl Passage {
    fn new(
        worker: Rc<Worker>,
        peer: &Peer,
        grpc: bool,
        request: Request<Incoming>,
    ) -> Result<Self, Rejection> {
        let started = Instant::now();
        let view = worker.view();
        let config = &view.config;
        let (mut head, body) = request.into_parts();
        // The watch over the whole process looks now and then; a thread knows at once what it has.
        let crowded = worker.metrics.in_flight.get() >= config.limits.in_flight as u64;
        if crowded || worker.shared.is_overloaded() {
            return Err(Rejection::new(
                Reason::Overloaded,
                "the router is short of memory or has too many requests under way; try again in a moment",
            ));
        }
        if head.method == Method::CONNECT {
            return Err(Rejection::new(
                Reason::BadRequest,
                "CONNECT is not served: a WebSocket is opened over HTTP/1.1, with `upgrade`",
            ));
        }
        let host = headers::host(&head.headers);
        let service = view.services.find(&head.uri, host).ok_or_else(|| {
            Rejection::new(
                Reason::UnknownService,
                format!(
                    "no service for `{}`: the router knows paths `/titan.<service>.v1...` and hosts `<service>.<anything>` of {} services",
                    head.uri.path(),
                    view.services.len()
                ),
            )
        })?;
        let limit = config.limits.body_bytes;
        if limit > 0 && body.size_hint().lower() > limit {
            return Err(Rejection::new(
                Reason::TooLarge,
                format!("the body is larger than {limit} bytes (`limits.bodyBytes`)"),
            ));
        }
        let claim = worker
            .shared
            .identity
            .claim(config, view.table.mode(), peer, &head.headers)?;
        let of_client = if grpc {
            deadline::of(&head.headers)?
        } else {
            None
        };
        let deadline = deadline::effective(of_client, &config.limits);
        upgrade::remember(&mut head);
        headers::clean_request(&mut head.headers, head.version);
        headers::trace(&mut head.headers);
        Ok(Passage {
            grpc,
            started,
            deadline: deadline.and_then(|limit| started.checked_add(limit)),
            deadline_of_client: of_client.is_some(),
            deadline_cut: of_client > deadline,
            service,
            claim,
            key: None,
            anonymous_hash: headers::hash_ip(peer.ip),
            head,
            body: Some(body),
            worker,
        })
    }

    async fn run(mut self) -> Result<Response<ResponseBody>, Rejection> {
        let mut view = self.worker.view();
        self.key = match self.claim {
            Claim::Key(key) => Some(key),
            Claim::Anonymous => None,
            Claim::UnknownKey => {
                let identity = &self.worker.shared.identity;
                let mode = view.table.mode();
                let key = identity.claim_with_newer_keys(&view.config, mode, &self.head.headers);
                let key = Box::pin(key).await?;
                view = self.worker.view();
                Some(key)
            }
        };
        self.check_key_rate(&view)?;
        let route = match self.route_now(&view)? {
            Some(route) => route,
            None => Box::pin(self.route(view)).await?,
        };
        let mut exchange = Exchange::start(&self.worker, &route.target, self.started, self.grpc);
        let view = self.worker.view();
        if self.worker.logs_next(&view) {
            exchange.describe(self.describe());
        }
        let Some(body) = self.body.take() else {
            return Err(Rejection::new(
                Reason::BadRequest,
                "the request has no body",
            ));
        };
        if route.target.pool.protocol() == Protocol::H1 && headers::wants_upgrade(&self.head) {
            return Box::pin(self.upgrade(route, exchange, body)).await;
        }
        self.forward(route, exchange, body).await
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
        let text = |name: &str| {
            let value = self.head.headers.get(name)?;
            Some(value.to_str().ok()?.to_owned())
        };
        Described {
            method: self.head.method.clone(),
            path: self.head.uri.path().to_owned(),
            key: self.key.map(Key::get),
            traceparent: text("traceparent"),
        }
    }

    /// Where the request goes, when that can be said at once.
    fn route_now(&self, view: &View) -> Result<Option<Route>, Rejection> {
        let Some(found) = self.key.and_then(|key| view.table.locate(key)) else {
            return Ok(None);
        };
        let row = found.row.and_then(|row| view.table.assignments().get(row));
        if found.pinned || row.is_some_and(|row| row.state == AssignmentState::Active) {
            return self.admit(view, found.cell).map(Some);
        }
        Ok(None)
    }

    /// Where the request goes; waits while its range is being handed over.
    async fn route(&self, mut view: Rc<View>) -> Result<Route, Rejection> {
        let Some(key) = self.key else {
            return self.route_anonymous(&view);
        };
        let mut holding: Option<Held> = None;
        loop {
            if view.table.epoch() == Epoch(0) {
                return Err(Rejection::new(
                    Reason::NoTable,
                    "the router has no routing table yet: the registry did not answer and there is none on disk",
                ));
            }
            let Some(found) = view.table.locate(key) else {
                return Err(Rejection::new(
                    Reason::NoOwner,
                    format!(
                        "no cell serves key {key} (table of epoch {})",
                        view.table.epoch()
                    ),
                ));
            };
            let row = found.row.and_then(|row| view.table.assignments().get(row));
            let state = row
                .filter(|_| !found.pinned)
                .map_or(AssignmentState::Active, |row| row.state);
            let (first, cell) = row.map_or((0, ""), |row| (row.range.first().get(), &*row.cell));
            match state {
                AssignmentState::Active => return self.admit(&view, found.cell),
                AssignmentState::Pending => {
                    return Err(Rejection::new(
                        Reason::Pending,
                        format!("key {key} belongs to {cell}, which does not serve it yet"),
                    ));
                }
                AssignmentState::Moving | AssignmentState::Fenced => {}
            }
            let held = match holding.take() {
                Some(held) => held,
                None => match Held::start(&self.worker, &view, first) {
                    Some(held) => held,
                    None if state == AssignmentState::Moving => {
                        return self.admit(&view, found.cell);
                    }
                    None => {
                        return Err(Rejection::new(
                            Reason::HeldTooMany,
                            format!("key {key} is being moved, and too many requests wait for it"),
                        ));
                    }
                },
            };
            let patience = held.until.saturating_duration_since(Instant::now());
            let patience = self.deadline.map_or(patience, |deadline| {
                patience.min(deadline.saturating_duration_since(Instant::now()))
            });
            if self.worker.next_version(&view, patience).await {
                holding = Some(held);
                view = self.worker.view();
                continue;
            }
            if state == AssignmentState::Moving {
                // The move takes too long: the old cell still has the range, and refuses if it has not.
                return self.admit(&view, found.cell);
            }
            return Err(Rejection::new(
                Reason::Fenced,
                format!("key {key} is being moved away from {cell}; try again in a moment"),
            ));
        }
    }

    fn route_anonymous(&self, view: &View) -> Result<Route, Rejection> {
        let cells = view.active_cells();
        let now_ms = self.worker.shared.clock.ms_at(self.started);
        let mut seed = self.anonymous_hash;
        for _ in 0..8 {
            let Some(cell) = headers::jump_hash(seed, cells.len()).and_then(|at| cells.get(at))
            else {
                break;
            };
            let target = self.worker.target(view, *cell, self.service);
            if target.is_some_and(|target| target.allows(now_ms)) {
                return self.admit(view, *cell);
            }
            seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        }
        Err(Rejection::new(
            Reason::NoOwner,
            "no healthy cell for a request without a key",
        ))
    }

    /// Whether the cell may be asked now.
    fn admit(&self, view: &View, cell: usize) -> Result<Route, Rejection> {
        let worker = &self.worker;
        let target = worker.target(view, cell, self.service).ok_or_else(|| {
            Rejection::new(Reason::UnknownService, "the service was just removed")
        })?;
        let limits = &view.config.limits;
        let name = &target.cell.name;
        let now_ms = worker.shared.clock.ms_at(self.started);
        if !target.allows(now_ms) {
            return Err(Rejection::new(
                Reason::CircuitOpen,
                format!(
                    "{} of {name} failed {} times in a row and is given a moment",
                    target.service,
                    target.health.consecutive_failures()
                ),
            ));
        }
        let now_us = worker.shared.clock.us_at(self.started);
        if !target
            .cell
            .rate
            .allow(now_us, limits.per_cell_rate, limits.per_cell_burst)
        {
            return Err(Rejection::new(
                Reason::CellRate,
                format!(
                    "{name} gets more than {} requests a second",
                    limits.per_cell_rate
                ),
            ));
        }
        Ok(Route {
            epoch: view.table.epoch(),
            target,
        })
    }

    /// Sends it, once more when that is safe, and passes the answer on.
    async fn forward(
        self,
        mut route: Route,
        mut exchange: Exchange,
        client_body: Incoming,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let view = self.worker.view();
        let config = &*view.config;
        self.worker.budget.request(&config.retry);
        let recording = Recording::new(config.retry.body_bytes);
        let mut body = Some(RequestBody::new(
            client_body,
            Some(Rc::clone(&recording)),
            config.limits.body_bytes,
        ));
        let mut attempt = 0_u32;
        loop {
            attempt += 1;
            let Some(request_body) = body.take().or_else(|| recording.replay()) else {
                exchange.finish(Outcome::Broken);
                return Err(Rejection::new(
                    Reason::Broken,
                    "the request broke off and cannot be replayed",
                ));
            };
            let head = Head {
                parts: &self.head,
                key: self.key,
                epoch: route.epoch,
                protocol: route.target.pool.protocol(),
            };
            let request = head.request(request_body, self.remaining(attempt))?;
            let sent = within(
                self.deadline,
                send(&route.target, config, request, &mut exchange),
            )
            .await;
            let response = match sent {
                Some(Ok(response)) => response,
                None => {
                    exchange.finish(Outcome::TimedOut);
                    return Err(Rejection::new(
                        Reason::Deadline,
                        format!(
                            "{} of {} did not answer in time",
                            route.target.service, route.target.cell.name
                        ),
                    ));
                }
                Some(Err(Failed::NoPod(message))) => {
                    exchange.finish(Outcome::Broken);
                    return Err(Rejection::new(Reason::Unreachable, message));
                }
                Some(Err(Failed::Send(mut failure))) => {
                    if let Some(unsent) = failure.unsent.take() {
                        body = Some(unsent.into_body());
                    }
                    let safe = failure.not_processed() || body.is_some() || self.is_repeatable();
                    let possible = body.is_some() || recording.replay().is_some();
                    if attempt < 4
                        && safe
                        && possible
                        && self.may_retry(&route.target, config, body.is_some())
                    {
                        continue;
                    }
                    exchange.finish(Outcome::Broken);
                    return Err(Rejection::new(
                        Reason::Broken,
                        format!(
                            "the connection to {} of {} broke: {}",
                            route.target.service, route.target.cell.name, failure.error
                        ),
                    ));
                }
            };
            exchange.answered(response.status(), response.headers());
            if attempt == 1
                && let Some(newer) = refused_for(&response, route.epoch)
                && recording.replay().is_some()
                && self.may_retry(&route.target, config, false)
                && Box::pin(self.wait_for(newer, config.retry.table_wait.0)).await
                && let Some(next) = self.reroute()
            {
                drop(response);
                if !Rc::ptr_eq(&next.target, &route.target) {
                    exchange.finish(Outcome::Answered);
                    exchange = Exchange::start(&self.worker, &next.target, self.started, self.grpc);
                }
                route = next;
                continue;
            }
            let until = self.deadline.filter(|_| self.deadline_of_client);
            return Ok(head_back(response, self.head.version, |body| {
                ResponseBody::cell(body, exchange, until)
            }));
        }
    }

    /// What is left of the deadline, when the cell has to be told another one than the client gave.
    fn remaining(&self, attempt: u32) -> Option<Duration> {
        let deadline = self.deadline.filter(|_| self.deadline_of_client)?;
        let waited = self.started.elapsed() > Duration::from_millis(2);
        (waited || attempt > 1 || self.deadline_cut)
            .then(|| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether doing it twice is the same as doing it once.
    fn is_repeatable(&self) -> bool {
        matches!(
            self.head.method,
            Method::GET | Method::HEAD | Method::OPTIONS
        ) || self.head.headers.contains_key("idempotency-key")
    }

    fn may_retry(&self, target: &Target, config: &crate::config::Config, unsent: bool) -> bool {
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

    fn reroute(&self) -> Option<Route> {
        let view = self.worker.view();
        let found = view.table.locate(self.key?)?;
        let row = found.row.and_then(|row| view.table.assignments().get(row));
        let serves = found.pinned || row.is_some_and(|row| row.state == AssignmentState::Active);
        serves.then(|| self.admit(&view, found.cell).ok()).flatten()
    }

    /// A WebSocket, or anything else that takes the connection over.
    async fn upgrade(
        self,
        route: Route,
        mut exchange: Exchange,
        client_body: Incoming,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let view = self.worker.view();
        let config = &*view.config;
        let head = Head {
            parts: &self.head,
            key: self.key,
            epoch: route.epoch,
            protocol: Protocol::H1,
        };
        let client = upgrade::on_client(&self.head);
        let mut request = head.request(RequestBody::new(client_body, None, 0), None)?;
        upgrade::keep_headers(&self.head, request.headers_mut());
        let sent = within(
            self.deadline,
            send(&route.target, config, request, &mut exchange),
        )
        .await;
        let response = match sent {
            Some(Ok(response)) => response,
            Some(Err(Failed::NoPod(message))) => {
                exchange.finish(Outcome::Broken);
                return Err(Rejection::new(Reason::Unreachable, message));
            }
            Some(Err(Failed::Send(failure))) => {
                exchange.finish(Outcome::Broken);
                return Err(Rejection::new(Reason::Broken, failure.error.to_string()));
            }
            None => {
                exchange.finish(Outcome::TimedOut);
                return Err(Rejection::new(
                    Reason::Deadline,
                    "the cell did not answer in time",
                ));
            }
        };
        exchange.answered(response.status(), response.headers());
        Ok(upgrade::join(response, client, exchange))
    }
}

/// A request that waits for a range.
struct Held {
    worker: Rc<Worker>,
    first: u64,
    until: Instant,
}

impl Held {
    fn start(worker: &Rc<Worker>, view: &View, first: u64) -> Option<Self> {
        let hold = &view.config.hold;
        let mut held = worker.held.borrow_mut();
        // What is taken in of a body while it waits is at most a window of 64 KiB.
        let bytes: usize = held.values().sum::<usize>() * crate::listener::STREAM_WINDOW;
        let count = held.entry(first).or_default();
        if *count >= hold.max_requests || bytes >= hold.max_bytes {
            return None;
        }
        *count += 1;
        worker.metrics.held.add(1);
        worker.metrics.held_total.add(1);
        Some(Held {
            worker: Rc::clone(worker),
            first,
            until: Instant::now() + hold.max_wait.0,
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.worker.metrics.held.sub(1);
        let mut held = self.worker.held.borrow_mut();
        if let Some(count) = held.get_mut(&self.first) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.first);
            }
        }
    }
}

/// Why there is no answer.
enum Failed {
    NoPod(String),
    Send(SendError),
}

async fn send(
    target: &Target,
    config: &crate::config::Config,
    request: Request<RequestBody>,
    exchange: &mut Exchange,
) -> Result<Response<Incoming>, Failed> {
    // What is rare is boxed, here and below: the future of a request is moved around, so it has to be small.
    let conn = match target.pool.ready(config) {
        Some(conn) => conn,
        None => Box::pin(target.pool.connect(config))
            .await
            .map_err(|error| Failed::NoPod(error.to_string()))?,
    };
    exchange.carried_by(Rc::clone(&conn));
    conn.send(request).await.map_err(Failed::Send)
}

/// None when the deadline passes first.
async fn within<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), future).await.ok(),
        None => Some(future.await),
    }
}

/// The newer epoch, when a service refused because it does not own the key (any more).
fn refused_for(response: &Response<Incoming>, epoch: Epoch) -> Option<Epoch> {
    const FAILED_PRECONDITION: &[u8] = b"9";
    let headers = response.headers();
    if headers.get("grpc-status")?.as_bytes() != FAILED_PRECONDITION {
        return None;
    }
    let newer = Epoch(headers.get(EPOCH)?.to_str().ok()?.parse().ok()?);
    (newer > epoch).then_some(newer)
}

/// The head of a request as a cell gets it.
struct Head<'a> {
    parts: &'a http::request::Parts,
    key: Option<Key>,
    epoch: Epoch,
    protocol: Protocol,
}

impl Head<'_> {
    fn request(
        &self,
        body: RequestBody,
        remaining: Option<Duration>,
    ) -> Result<Request<RequestBody>, Rejection> {
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        let host = headers::host(&self.parts.headers);
        let map = request.headers_mut();
        map.clone_from(&self.parts.headers);
        if let Some(key) = self.key {
            map.insert(HeaderName::from_static(KEY), HeaderValue::from(key.get()));
        }
        map.insert(
            HeaderName::from_static(EPOCH),
            HeaderValue::from(self.epoch.0),
        );
        if let Some(remaining) = remaining {
            map.insert("grpc-timeout", deadline::header(remaining));
        }
        let bad = |error: http::Error| Rejection::new(Reason::BadRequest, error.to_string());
        match self.protocol {
            Protocol::H2 => {
                *request.version_mut() = Version::HTTP_2;
                *request.uri_mut() = if self.parts.uri.authority().is_some() {
                    self.parts.uri.clone()
                } else {
                    request.headers_mut().remove(header::HOST);
                    let path = self
                        .parts
                        .uri
                        .path_and_query()
                        .map_or("/", |path| path.as_str());
                    Uri::builder()
                        .scheme("http")
                        .authority(host.unwrap_or("cell"))
                        .path_and_query(path)
                        .build()
                        .map_err(bad)?
                };
            }
            Protocol::H1 => {
                *request.version_mut() = Version::HTTP_11;
                if let Some(authority) = self.parts.uri.authority()
                    && let Ok(value) = HeaderValue::from_str(authority.as_str())
                {
                    request.headers_mut().insert(header::HOST, value);
                }
                let path = self
                    .parts
                    .uri
                    .path_and_query()
                    .map_or("/", |path| path.as_str());
                *request.uri_mut() = path
                    .parse()
                    .map_err(|error: http::uri::InvalidUri| bad(error.into()))?;
            }
        }
        Ok(request)
    }
}

/// The answer as the client gets it.
fn head_back(
    response: Response<Incoming>,
    version: Version,
    body: impl FnOnce(Incoming) -> ResponseBody,
) -> Response<ResponseBody> {
    let (mut head, incoming) = response.into_parts();
    if head.version < Version::HTTP_2 {
        headers::strip_hop_by_hop(&mut head.headers);
    }
    head.version = version;
    head.extensions.clear();
    Response::from_parts(head, body(incoming))
}
