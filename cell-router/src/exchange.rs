//! One request and its answer, from the moment a cell was chosen: what is counted when it ends.

use std::rc::Rc;
use std::time::{Duration, Instant};

use http::StatusCode;
use titan_http2::hpack::{Block, token};

use crate::body::request::{ClientFault, Recording};
use crate::head;
use crate::metrics::Class;
use crate::upstream::{Conn, Probe, Target};
use crate::worker::Worker;

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer of the cell.
    Answered,
    /// The connection to the cell broke.
    Broken,
    /// The deadline passed.
    TimedOut,
    /// The client left.
    Cancelled,
    /// The client sent more than it may.
    TooLarge,
    /// The pod took the request for malformed, before it answered. That is about the request, and not about the pod.
    Malformed,
}

/// A cell that is given less than this by a client need not have answered.
const FAIR_TIME: Duration = Duration::from_secs(1);

/// The part of a request that access logs name.
#[derive(Clone, Debug)]
pub struct Described {
    /// The method.
    pub method: String,
    /// The path, without the query, which may hold what is nobody's business.
    pub path: String,
    /// The key, when there is one.
    pub key: Option<u64>,
    /// The trace.
    pub traceparent: Option<String>,
    /// Why the router gave it up, when it did.
    pub error: Option<String>,
}

/// How long a cell takes to begin with its answer, where that matters.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// After this, an answer is late.
    slow_after: Duration,
    /// When the request was sent.
    sent: Option<Instant>,
    /// When the head of the answer came, and how long after the end of the request.
    head: Option<(Instant, Duration)>,
}

/// A request on its way to a cell and the answer on its way back. Ends by [`Exchange::finish`] or when dropped.
pub struct Exchange {
    worker: Rc<Worker>,
    target: Rc<Target>,
    started: Instant,
    grpc: bool,
    grpc_status: Option<u16>,
    http_status: Option<StatusCode>,
    conn: Option<Rc<Conn>>,
    /// Whether the pod took it: until then it waits for the router's own connections.
    opened: bool,
    /// What the client does with its request.
    request: Option<Rc<Recording>>,
    /// When the cell was asked, if that was not at once.
    asked: Option<Instant>,
    probe: Option<Box<Probe>>,
    timing: Option<Box<Timing>>,
    described: Option<Box<Described>>,
    /// Whether the access log takes it however it ends.
    sampled: bool,
    done: bool,
}

impl Exchange {
    /// A request that starts now.
    pub fn start(worker: &Rc<Worker>, target: &Rc<Target>, started: Instant, grpc: bool) -> Self {
        worker.metrics.in_flight.add(1);
        target.metrics.in_flight.add(1);
        target.cell_in_flight.add(1);
        Exchange {
            worker: Rc::clone(worker),
            target: Rc::clone(target),
            started,
            grpc,
            grpc_status: None,
            http_status: None,
            conn: None,
            opened: false,
            request: None,
            asked: None,
            probe: None,
            timing: None,
            described: None,
            sampled: false,
            done: false,
        }
    }

    /// The access log takes it however it ends.
    pub fn sample(&mut self, described: Option<Box<Described>>) {
        self.sampled = described.is_some();
        self.described = described;
    }

    /// Leaves the line in the access log to the one that goes on for it.
    pub fn take_sample(&mut self) -> Option<Box<Described>> {
        std::mem::take(&mut self.sampled)
            .then(|| self.described.take())
            .flatten()
    }

    /// It fails: the access log may take it, and should name it.
    pub fn describe_failure(&mut self, error: Option<&str>, describe: impl FnOnce() -> Described) {
        let described = self.described.get_or_insert_with(|| Box::new(describe()));
        described.error = error.map(str::to_owned);
    }

    /// The body that the client sends, and after which time the answer to it is late, where that matters.
    pub fn sends(&mut self, request: Rc<Recording>, slow_after: Option<Duration>) {
        if let Some(slow_after) = slow_after {
            request.time();
            self.timing = Some(Box::new(Timing {
                slow_after,
                sent: None,
                head: None,
            }));
        }
        self.request = Some(request);
    }

    /// It waited before the cell was asked.
    pub fn asked_at(&mut self, asked: Instant) {
        self.asked = Some(asked);
    }

    /// It tries a circuit that is open.
    pub fn probes(&mut self, probe: Option<Box<Probe>>) {
        self.probe = probe;
    }

    /// The connection that carries it.
    pub fn carried_by(&mut self, conn: Rc<Conn>) {
        if let Some(before) = self.conn.replace(conn) {
            before.released();
        }
        self.opened = false;
        if let Some(timing) = &mut self.timing {
            timing.sent = Some(Instant::now());
        }
    }

    /// The pod took it.
    pub fn opened(&mut self) {
        self.opened = true;
    }

    /// The pod that has it failed, and another one is tried.
    pub fn pod_failed(&mut self) {
        if let Some(conn) = self.conn.take() {
            conn.ended(Some(true));
        }
    }

    /// Whether the head of the answer says that the cell failed.
    #[must_use]
    pub fn head_failed(&self) -> bool {
        match self.grpc_status {
            Some(_) => self.class() == Class::Server,
            None => self
                .http_status
                .is_some_and(|status| status.is_server_error()),
        }
    }

    /// The head of the answer.
    pub fn answered(&mut self, head: &Block) {
        self.http_status = Some(head::status(head));
        self.status_from(head);
        if let (Some(timing), Some(request)) = (&mut self.timing, &self.request) {
            let now = Instant::now();
            // An answer that begins before the request ends is a stream.
            let since = timing.sent.and_then(|sent| request.whole_since(sent));
            timing.head = since.map(|since| (now, now.duration_since(since)));
        }
    }

    /// Takes the gRPC status from trailers, or from the head of a trailers-only answer.
    pub fn status_from(&mut self, fields: &Block) {
        if !self.grpc {
            return;
        }
        if let Some(value) = fields.get(token::GRPC_STATUS) {
            self.grpc_status = head::text(value).and_then(|text| text.parse().ok());
        }
    }

    /// The gRPC status, once it is known.
    #[must_use]
    pub fn grpc_status(&self) -> Option<u16> {
        self.grpc_status
    }

    /// Ends it; the first call counts.
    pub fn finish(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        self.worker.metrics.in_flight.sub(1);
        self.target.metrics.in_flight.sub(1);
        self.target.cell_in_flight.sub(1);
        let outcome = self.by_whom(outcome);
        let class = match outcome {
            Outcome::Answered => self.class(),
            Outcome::Broken | Outcome::Malformed => Class::Transport,
            Outcome::TimedOut => Class::Server,
            Outcome::Cancelled => Class::Cancelled,
            Outcome::TooLarge => Class::Client,
        };
        let took = self.started.elapsed();
        self.target.metrics.ended(class, took);
        let faulty = self.faulty(outcome, took);
        let mut counts = true;
        if let Some(conn) = self.conn.take() {
            conn.ended(faulty);
            // A connection that breaks takes many requests along, and is one failure.
            counts = outcome != Outcome::Broken || conn.blamed_first();
        }
        match faulty {
            Some(true) if counts => {
                self.worker.failed(&self.target, || self.explain(outcome));
                if self.late(outcome) == Some(true) {
                    self.worker.late(&self.target, false, self.probe.is_some());
                }
            }
            Some(false) => {
                let probe = self.probe.is_some();
                match self.late(outcome) {
                    Some(late) => self.worker.answered(&self.target, late, probe),
                    None => self.target.succeeded(probe),
                }
            }
            _ => {}
        }
        // Without a verdict, the next one may try.
        self.probe = None;
        let failed = matches!(class, Class::Server | Class::Transport);
        if self.sampled || (failed && self.worker.logs_failure()) {
            self.log(outcome, class, took);
        }
    }

    /// What looks like the cell's end of it may be the client's.
    fn by_whom(&self, outcome: Outcome) -> Outcome {
        match self.request.as_ref().and_then(|request| request.fault()) {
            Some(ClientFault::Left) if outcome == Outcome::Broken => Outcome::Cancelled,
            Some(ClientFault::TooLarge) if outcome == Outcome::Broken => Outcome::TooLarge,
            _ => outcome,
        }
    }

    fn explain(&self, outcome: Outcome) -> String {
        format!(
            "{outcome:?}, HTTP status {:?}, gRPC status {:?}",
            self.http_status, self.grpc_status
        )
    }

    /// Whether the end says something about the cell: that it failed, that it works, or nothing.
    fn faulty(&self, outcome: Outcome, took: Duration) -> Option<bool> {
        match outcome {
            Outcome::Broken => Some(true),
            Outcome::TimedOut => self.had_time(took).then_some(true),
            Outcome::Cancelled | Outcome::TooLarge | Outcome::Malformed => None,
            Outcome::Answered => Some(match self.grpc_status {
                Some(status) => status == 14,
                None => self
                    .http_status
                    .is_some_and(|status| matches!(status.as_u16(), 502..=504)),
            }),
        }
    }

    /// Whether the answer was late. None where that says nothing: where it does not matter, and where the answer goes on for
    /// so long after its head that it is a stream, or the client does not take it.
    fn late(&self, outcome: Outcome) -> Option<bool> {
        let timing = self.timing.as_deref()?;
        match (outcome, timing.head) {
            (Outcome::Answered, Some((head, took))) => {
                (head.elapsed() <= timing.slow_after).then_some(took > timing.slow_after)
            }
            // It was given time enough, or it would not be blamed.
            (Outcome::TimedOut, None) => {
                let since = self.request.as_ref()?.whole_since(timing.sent?)?;
                (since.elapsed() > timing.slow_after).then_some(true)
            }
            _ => None,
        }
    }

    /// Whether the cell had the whole request, and time enough to answer it.
    fn had_time(&self, took: Duration) -> bool {
        let awaits_client = self
            .request
            .as_ref()
            .is_some_and(|request| request.awaits_client());
        let waits = self.conn.is_some() && !self.opened;
        if awaits_client || waits || self.http_status.is_some() {
            return false;
        }
        let given = self.asked.map_or(took, |asked| asked.elapsed());
        let default = self.worker.shared.config.load().limits.default_deadline.0;
        let fair = if default.is_zero() {
            FAIR_TIME
        } else {
            FAIR_TIME.min(default)
        };
        given >= fair
    }

    fn class(&self) -> Class {
        if self.grpc {
            return match self.grpc_status {
                Some(0) => Class::Ok,
                Some(2 | 4 | 13 | 14 | 15) => Class::Server,
                Some(_) => Class::Client,
                // An answer that ended without a status: the cell broke off.
                None => Class::Transport,
            };
        }
        match self.http_status {
            Some(status) if status.is_server_error() => Class::Server,
            Some(status) if status.is_client_error() => Class::Client,
            _ => Class::Ok,
        }
    }

    fn log(&self, outcome: Outcome, class: Class, took: Duration) {
        let described = self.described.as_deref();
        tracing::info!(
            target: "access",
            cell = &*self.target.cell.name,
            service = &*self.target.service,
            method = described.map(|d| d.method.as_str()),
            path = described.map(|d| d.path.as_str()),
            key = described.and_then(|d| d.key),
            traceparent = described.and_then(|d| d.traceparent.as_deref()),
            http_status = self.http_status.map(|status| status.as_u16()),
            grpc_status = self.grpc_status,
            class = class.as_str(),
            outcome = ?outcome,
            error = described.and_then(|d| d.error.as_deref()),
            micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            "request"
        );
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.finish(Outcome::Cancelled);
    }
}
