//! Load: as fast as possible by `h2load`, or at a fixed rate by a generator that does not wait for answers.

use std::net::SocketAddr;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::proxies::{KEYS_PER_CELL, Shape};

const PATH: &str = "/titan.order.v1.Orders/Get";

/// How hard `h2load` pushes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Push {
    /// Requests.
    pub requests: u64,
    /// Connections.
    pub connections: u64,
    /// Requests at once on each connection.
    pub streams: u64,
}

/// What `h2load` saw.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pushed {
    /// Requests answered with 2xx.
    pub ok: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Requests a second.
    pub per_second: f64,
}

/// Sends as fast as answers come.
pub fn push(address: SocketAddr, shape: Shape, push: Push, cores: Option<&str>) -> Result<Pushed> {
    let body = tempfile::NamedTempFile::new()?;
    std::fs::write(body.path(), [0; 105])?;
    let mut command = Command::new(if cores.is_some() { "taskset" } else { "h2load" });
    if let Some(cores) = cores {
        command.args(["-c", cores, "h2load"]);
    }
    command
        .args(["-t", "1"])
        .args(["-n", &push.requests.to_string()])
        .args(["-c", &push.connections.to_string()])
        .arg("-d")
        .arg(body.path())
        .args(["-H", "x-titan-key: 4242"]);
    match shape {
        Shape::Grpc => command
            .args(["-m", &push.streams.to_string()])
            .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
            .arg(format!("http://{address}{PATH}")),
        Shape::Http1 => command
            .arg("--h1")
            .args(["-m", "1"])
            .arg(format!("http://{address}{PATH}")),
    };
    let output = command
        .output()
        .context("h2load (package nghttp2-client)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = |line: &str, before: &str| -> Option<f64> {
        let head = line.split(before).next()?;
        head.split([' ', ','])
            .rfind(|word| !word.is_empty())?
            .parse()
            .ok()
    };
    let line = |start: &str| {
        text.lines()
            .find(|line| line.starts_with(start))
            .unwrap_or("")
    };
    let ok = number(line("status codes:"), " 2xx").unwrap_or(0.0);
    let per_second = number(line("finished in"), " req/s").unwrap_or(0.0);
    if ok == 0.0 {
        bail!(
            "h2load got no answer: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count"
    )]
    let ok = ok as u64;
    Ok(Pushed {
        ok,
        failed: push.requests.saturating_sub(ok),
        per_second,
    })
}

/// A fixed rate.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pace {
    /// Requests a second.
    pub per_second: u64,
    /// For so many seconds.
    pub seconds: u64,
    /// Over so many connections.
    pub connections: usize,
    /// Keys of so many cells, in turn.
    pub cells: u64,
}

/// Latencies from the moment a request was meant to be sent, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Half of them were faster.
    pub p50: u64,
    /// 99% were faster.
    pub p99: u64,
    /// 99.9% were faster.
    pub p999: u64,
    /// The slowest.
    pub max: u64,
    /// Answers that were not gRPC OK.
    pub failed: u64,
    /// All of them.
    pub requests: u64,
}

/// Sends at a fixed rate, on this thread.
pub fn pace(address: SocketAddr, pace: Pace) -> Result<Latency> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, paced(address, pace))
}

async fn paced(address: SocketAddr, pace: Pace) -> Result<Latency> {
    let mut senders = Vec::new();
    for _ in 0..pace.connections.max(1) {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await?;
        tokio::spawn(connection);
        senders.push(sender);
    }
    // One request a cell first: connections to pods are not what is measured.
    for cell in 0..pace.cells {
        one(
            senders.first().context("no connection")?.clone(),
            address,
            cell * KEYS_PER_CELL,
        )
        .await?;
    }
    let total = pace.per_second * pace.seconds;
    let gap = Duration::from_secs(1).div_f64(pace.per_second as f64);
    let results = Rc::new(std::cell::RefCell::new((
        Vec::with_capacity(total as usize),
        0_u64,
    )));
    let start = Instant::now() + Duration::from_millis(50);
    let mut tasks = Vec::with_capacity(total as usize);
    let mut next = 0_u64;
    while next < total {
        let now = Instant::now();
        while next < total {
            let intended = start + gap.mul_f64(next as f64);
            if intended > now {
                break;
            }
            let sender = senders[next as usize % senders.len()].clone();
            let key = (next % pace.cells.max(1)) * KEYS_PER_CELL + next % KEYS_PER_CELL;
            let results = Rc::clone(&results);
            tasks.push(tokio::task::spawn_local(async move {
                let ok = one(sender, address, key).await.unwrap_or(false);
                let took = u64::try_from(intended.elapsed().as_micros()).unwrap_or(u64::MAX);
                let mut results = results.borrow_mut();
                results.0.push(took);
                results.1 += u64::from(!ok);
            }));
            next += 1;
        }
        // tokio's timer has 1 ms; yielding keeps the pace finer at the price of this core.
        tokio::task::yield_now().await;
    }
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(30), task).await??;
    }
    let (mut latencies, failed) = Rc::try_unwrap(results)
        .map_err(|_| anyhow::anyhow!("requests are still under way"))?
        .into_inner();
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies
            .get(index.min(latencies.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0)
    };
    Ok(Latency {
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        max: at(1.0),
        failed,
        requests: total,
    })
}

async fn one(mut sender: SendRequest<Full<Bytes>>, address: SocketAddr, key: u64) -> Result<bool> {
    let request = Request::post(format!("http://{address}{PATH}"))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-titan-key", key)
        .body(Full::new(Bytes::from_static(&[0; 105])))?;
    let response = sender.send_request(request).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await?;
    let status = body
        .trailers()
        .and_then(|trailers| trailers.get("grpc-status"));
    Ok(head.status.is_success() && status.is_some_and(|status| status == "0"))
}
