//! Load at a fixed rate. It does not wait for answers, and latencies count from the moment a request was meant to be
//! sent, so that a proxy that stalls is charged with every request that had to wait (no coordinated omission).
//!
//! Load and pod share one thread that never sleeps: no scheduler gets between them and what they measure.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::proxies::{PATH, Shape, Table};

const REQUEST: &[u8] = &[0; 105];
/// Requests at once before the clock starts. After a stall of the machine as many may be under way, and the first time that
/// takes memory and connections, above all of the load and the pod.
const BURST: usize = 1_000;

/// A fixed rate.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pace {
    /// Requests a second.
    pub per_second: u64,
    /// For so many seconds.
    pub seconds: u64,
    /// Over so many connections.
    pub connections: usize,
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
    /// Answers that were not OK, or never came.
    pub failed: u64,
    /// All of them.
    pub requests: u64,
}

#[derive(Default)]
struct Results {
    latencies: Vec<u64>,
    failed: u64,
}

impl Results {
    fn add(&mut self, intended: Instant, ok: bool) {
        let took = u64::try_from(intended.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.latencies.push(took);
        self.failed += u64::from(!ok);
    }

    fn count(&self) -> u64 {
        self.latencies.len() as u64
    }
}

enum Client {
    H2(h2::client::SendRequest<Bytes>),
    /// One request at a time; those that come meanwhile wait here.
    H1(mpsc::UnboundedSender<(Instant, u64)>),
}

/// Sends at a fixed rate with keys of the table. Calls `warm` when every cell was asked once, a burst is over, and the clock
/// starts.
pub async fn pace(
    address: SocketAddr,
    shape: Shape,
    pace: Pace,
    table: Table,
    warm: impl FnOnce(),
) -> Result<Latency> {
    let results = Rc::new(RefCell::new(Results::default()));
    let mut clients = Vec::new();
    for _ in 0..pace.connections.max(1) {
        clients.push(connect(address, shape, &results).await?);
    }
    // Connections to pods are not what is measured.
    for (turn, key) in table.one_key_a_cell().enumerate() {
        send(&clients, turn, Instant::now(), key, &results).context("no connection")?;
        wait_for(&results, turn as u64 + 1).await?;
    }
    for turn in 0..BURST {
        let key = table.key(turn as u64);
        send(&clients, turn, Instant::now(), key, &results).context("no connection")?;
    }
    wait_for(&results, (table.asked + BURST) as u64).await?;
    let mut random = SmallRng::seed_from_u64(7);
    *results.borrow_mut() = Results::default();
    warm();
    let total = pace.per_second * pace.seconds;
    let gap = Duration::from_secs(1).div_f64(pace.per_second as f64);
    let start = Instant::now() + Duration::from_millis(10);
    let mut next = 0_u64;
    while next < total {
        let now = Instant::now();
        while next < total {
            let intended = start + gap.mul_f64(next as f64);
            if intended > now {
                break;
            }
            let key = table.key(random.random());
            send(&clients, next as usize, intended, key, &results).context("no connection")?;
            next += 1;
        }
        tokio::task::yield_now().await;
    }
    wait_for(&results, total).await?;
    let mut results = results.take();
    results.latencies.sort_unstable();
    let at = |share: f64| {
        let index = (results.latencies.len() as f64 * share) as usize;
        let last = results.latencies.len().saturating_sub(1);
        results.latencies.get(index.min(last)).copied().unwrap_or(0)
    };
    Ok(Latency {
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        max: at(1.0),
        failed: results.failed,
        requests: total,
    })
}

async fn wait_for(results: &RefCell<Results>, count: u64) -> Result<()> {
    let all = async {
        while results.borrow().count() < count {
            tokio::task::yield_now().await;
        }
    };
    let patience = Duration::from_secs(30);
    tokio::time::timeout(patience, all)
        .await
        .context("answers are missing after half a minute")
}

async fn connect(
    address: SocketAddr,
    shape: Shape,
    results: &Rc<RefCell<Results>>,
) -> Result<Client> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    if shape == Shape::Grpc {
        let (sender, connection) = h2::client::Builder::new()
            .initial_connection_window_size(1 << 20)
            .handshake(stream)
            .await?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        return Ok(Client::H2(sender));
    }
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    let (queue, mut queued) = mpsc::unbounded_channel::<(Instant, u64)>();
    let results = Rc::clone(results);
    tokio::task::spawn_local(async move {
        while let Some((intended, key)) = queued.recv().await {
            let answer = async {
                sender.ready().await?;
                let request = Request::post(PATH)
                    .header("host", "order.bench")
                    .header("x-titan-key", key)
                    .body(Full::new(Bytes::from_static(REQUEST)))?;
                let response = sender.send_request(request).await?;
                let ok = response.status().is_success();
                response.into_body().collect().await?;
                anyhow::Ok(ok)
            };
            let ok = answer.await.unwrap_or(false);
            results.borrow_mut().add(intended, ok);
        }
    });
    Ok(Client::H1(queue))
}

fn send(
    clients: &[Client],
    turn: usize,
    intended: Instant,
    key: u64,
    results: &Rc<RefCell<Results>>,
) -> Option<()> {
    match clients.get(turn % clients.len())? {
        Client::H1(queue) => queue.send((intended, key)).ok(),
        Client::H2(sender) => {
            let sender = sender.clone();
            let results = Rc::clone(results);
            tokio::task::spawn_local(async move {
                let ok = ask(sender, key).await.unwrap_or(false);
                results.borrow_mut().add(intended, ok);
            });
            Some(())
        }
    }
}

async fn ask(sender: h2::client::SendRequest<Bytes>, key: u64) -> Result<bool> {
    let mut request = Request::post(format!("http://order.bench{PATH}")).body(())?;
    let headers = request.headers_mut();
    let grpc = HeaderValue::from_static("application/grpc");
    headers.insert("content-type", grpc);
    headers.insert("te", HeaderValue::from_static("trailers"));
    headers.insert("x-titan-key", HeaderValue::from(key));
    let mut sender = sender.ready().await?;
    let (response, mut stream) = sender.send_request(request, false)?;
    stream.send_data(Bytes::from_static(REQUEST), true)?;
    let response = response.await?;
    let ok = response.status().is_success();
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let _ = body.flow_control().release_capacity(data?.len());
    }
    let trailers = body.trailers().await?;
    let status = trailers
        .as_ref()
        .and_then(|trailers| trailers.get("grpc-status"));
    Ok(ok && status.is_some_and(|status| status == "0"))
}
