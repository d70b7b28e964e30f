//! One request and its answer, from the moment a cell was chosen: what is counted when it ends.

use std::rc::Rc;
use std::time::Instant;

use http::{HeaderMap, StatusCode};

use crate::metrics::Class;
use crate::upstream::{Conn, Target};
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
}

/// The part of a request that access logs name.
#[derive(Clone, Debug)]
pub struct Described {
    /// The method.
    pub method: http::Method,
    /// The path, without the query, which may hold what is nobody's business.
    pub path: String,
    /// The key, when there is one.
    pub key: Option<u64>,
    /// The trace.
    pub traceparent: Option<String>,
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
    described: Option<Box<Described>>,
    done: bool,
}

impl Exchange {
    /// A request that starts now.
    pub fn start(worker: &Rc<Worker>, target: &Rc<Target>, started: Instant, grpc: bool) -> Self {
        worker.metrics.in_flight.add(1);
        target.metrics.in_flight.add(1);
        Exchange {
            worker: Rc::clone(worker),
            target: Rc::clone(target),
            started,
            grpc,
            grpc_status: None,
            http_status: None,
            conn: None,
            described: None,
            done: false,
        }
    }

    /// Has the access log name it.
    pub fn describe(&mut self, described: Described) {
        self.described = Some(Box::new(described));
    }

    /// The connection that carries it.
    pub fn carried_by(&mut self, conn: Rc<Conn>) {
        if let Some(before) = self.conn.replace(conn) {
            before.released();
        }
    }

    /// The head of the answer.
    pub fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.http_status = Some(status);
        self.status_from(headers);
    }

    /// Takes the gRPC status from trailers, or from the head of a trailers-only answer.
    pub fn status_from(&mut self, headers: &HeaderMap) {
        if !self.grpc {
            return;
        }
        if let Some(value) = headers.get("grpc-status") {
            self.grpc_status = value.to_str().ok().and_then(|text| text.parse().ok());
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
        let class = match outcome {
            Outcome::Answered => self.class(),
            Outcome::Broken => Class::Transport,
            Outcome::TimedOut => Class::Server,
            Outcome::Cancelled => Class::Cancelled,
        };
        let took = self.started.elapsed();
        self.target.metrics.ended(class, took);
        let faulty = self.faulty(outcome);
        if let Some(conn) = self.conn.take() {
            conn.ended(faulty);
        }
        match faulty {
            Some(true) => self.worker.failed(&self.target, || self.explain(outcome)),
            Some(false) => self.target.succeeded(),
            None => {}
        }
        let failed = matches!(class, Class::Server | Class::Transport);
        if self.worker.logs(failed) {
            self.log(class, took);
        }
    }

    fn explain(&self, outcome: Outcome) -> String {
        format!(
            "{outcome:?}, HTTP status {:?}, gRPC status {:?}",
            self.http_status, self.grpc_status
        )
    }

    /// Whether the end says something about the cell: that it failed, that it works, or nothing.
    fn faulty(&self, outcome: Outcome) -> Option<bool> {
        match outcome {
            Outcome::Broken | Outcome::TimedOut => Some(true),
            Outcome::Cancelled => None,
            Outcome::Answered => Some(match self.grpc_status {
                Some(status) => status == 14,
                None => self
                    .http_status
                    .is_some_and(|status| matches!(status.as_u16(), 502..=504)),
            }),
        }
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

    fn log(&self, class: Class, took: std::time::Duration) {
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
