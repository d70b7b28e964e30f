//! Measures cell-router next to HAProxy, nginx, Envoy and Pingora: one command, one machine, one run, loopback only.
//!
//! Prints a JSON report on stdout and what it does on stderr. `cargo titan bench router` runs it.

#![allow(clippy::print_stdout, reason = "the report")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of requests, far below 2^52"
)]

mod cores;
mod load;
mod pace;
mod pod;
mod proxies;
mod tables;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;
use serde_json::json;

use cores::Place;
use load::{Push, Pushed};
use pace::{Latency, Pace};
use pod::Pod;
use proxies::{Memory, Proxy, Running, Setup, Shape, Table};

#[derive(Parser)]
struct Arguments {
    /// The proxies; all that are here when none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    proxies: Vec<Proxy>,
    /// Requests of each run at full speed.
    #[arg(long, default_value_t = 100_000)]
    requests: u64,
    /// How often everything is measured; proxies take turns, and tables show the median.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each run at a fixed rate.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Only CPU per request and maximum rate of gRPC with one thread.
    #[arg(long)]
    quick: bool,
    /// Writes the tables of the docs there.
    #[arg(long)]
    markdown: Option<PathBuf>,
}

/// A run at full speed.
#[derive(Debug, Serialize)]
struct Speed {
    proxy: &'static str,
    shape: Shape,
    threads: usize,
    cells: usize,
    pushed: Pushed,
    cpu_us_per_request: f64,
    memory: Memory,
}

/// A run at a fixed rate.
#[derive(Debug, Serialize)]
struct Paced {
    proxy: &'static str,
    shape: Shape,
    /// Cells in the table, and those that are asked.
    cells: usize,
    asked: usize,
    pace: Pace,
    latency: Latency,
    cpu_us_per_request: f64,
    memory: Memory,
}

/// Cells in the table, where it is not their number that is looked at.
const CELLS: usize = 500;
/// Fixed rates, below what the slowest proxy can do.
const RATES: [u64; 2] = [1_000, 4_000];
/// Where the search for the highest rate begins.
const FIRST: u64 = 8_000;
/// A rate that is kept up with answers half of its requests within so many microseconds: those beyond have a queue that grows.
const KEPT_UP: u64 = 1_000;

struct Bench {
    proxies: Vec<Proxy>,
    push: Push,
    seconds: u64,
    /// Half of the highest rate, once it was looked for.
    half: Option<u64>,
    /// Whether proxies go before everything else while latencies are measured.
    first: bool,
    speeds: Vec<Speed>,
    paces: Vec<Paced>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut proxies = arguments.proxies.clone();
    if proxies.is_empty() {
        proxies = vec![
            Proxy::CellRouter,
            Proxy::Haproxy,
            Proxy::HaproxyCells,
            Proxy::Nginx,
            Proxy::Envoy,
            Proxy::Pingora,
        ];
    }
    proxies.retain(|proxy| {
        let here = proxy.program().is_some();
        if !here {
            eprintln!("{} is not here: left out", proxy.name());
        }
        here
    });
    let awake = cores::awake();
    let mut bench = Bench {
        proxies,
        push: Push {
            requests: arguments.requests,
            connections: 8,
            streams: 16,
        },
        seconds: arguments.seconds,
        half: None,
        first: cores::may_go_first(),
        speeds: Vec::new(),
        paces: Vec::new(),
    };
    let mut at_full_speed = Vec::new();
    for place in [Place::Proxy, Place::All] {
        for shape in [Shape::Grpc, Shape::Http1] {
            let pod = Pod::bind(shape)?.start(place.of_load())?;
            at_full_speed.push((shape, place, pod));
        }
    }
    if arguments.quick {
        at_full_speed.truncate(1);
    }
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        for (shape, place, pod) in &at_full_speed {
            bench.full_speed(*shape, *place, *pod)?;
        }
        if !arguments.quick {
            bench.flat_cost()?;
            bench.latency()?;
        }
    }
    let versions: Vec<_> = bench
        .proxies
        .iter()
        .map(|proxy| json!({ "proxy": proxy.name(), "version": proxy.version() }))
        .collect();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    if let Some(path) = &arguments.markdown {
        std::fs::write(path, tables::markdown(&bench.speeds, &bench.paces))?;
    }
    println!(
        "{}",
        serde_json::to_string_pretty(&json!({
            "versions": versions,
            "load_average_at_the_end": load.trim(),
            "cores_kept_awake": awake.is_some(),
            "proxies_go_first": bench.first,
            "speed": bench.speeds,
            "paced": bench.paces,
        }))?
    );
    Ok(())
}

impl Bench {
    /// As fast as answers come: with one thread that has its core for itself, or with one for each core, where pod and load
    /// take from the same cores.
    fn full_speed(&mut self, shape: Shape, place: Place, pod: SocketAddr) -> Result<()> {
        let push = match shape {
            Shape::Grpc => self.push,
            Shape::Http1 => Push {
                connections: 64,
                streams: 1,
                ..self.push
            },
        };
        let threads = match place {
            Place::All => cores::count(),
            Place::Proxy | Place::Load => 1,
        };
        for proxy in self.proxies.clone() {
            let setup = Setup {
                shape,
                threads,
                cells: CELLS,
                place,
                first: false,
            };
            self.speed(proxy, pod, setup, push)?;
        }
        Ok(())
    }

    /// What more cells in the table cost: asked for keys of all, but of no more than 500 cells, because each has
    /// connections of its own.
    fn flat_cost(&mut self) -> Result<()> {
        for cells in [1, 50, 500, 10_000] {
            let mut asked = vec![1, cells.min(CELLS)];
            asked.dedup();
            for asked in asked {
                let table = Table { cells, asked };
                self.pace(Proxy::CellRouter, Shape::Grpc, RATES[1], table)?;
            }
        }
        Ok(())
    }

    /// What each adds to latency, next to no proxy at all.
    fn latency(&mut self) -> Result<()> {
        let table = Table {
            cells: CELLS,
            asked: 1,
        };
        if self.half.is_none() && self.proxies.contains(&Proxy::CellRouter) {
            self.half = Some(self.highest_rate(table)? / 2);
        }
        let half = self.half.filter(|half| *half > RATES[1]);
        let all = [vec![Proxy::Direct, Proxy::Across], self.proxies.clone()].concat();
        let grpc = RATES.into_iter().chain(half);
        let runs = grpc.map(|rate| (Shape::Grpc, rate));
        for (shape, rate) in runs.chain([(Shape::Http1, RATES[1])]) {
            for proxy in &all {
                self.pace(*proxy, shape, rate, table)?;
            }
        }
        Ok(())
    }

    /// The highest rate that router, load and pod together keep up with. Full speed is no measure of it: there, they take
    /// many requests at once, and each costs less.
    fn highest_rate(&self, table: Table) -> Result<u64> {
        let mut highest = 0;
        let mut rate = FIRST;
        loop {
            let paced = self.paced(Proxy::CellRouter, Shape::Grpc, rate, table)?;
            if paced.latency.p50 > KEPT_UP || paced.latency.failed > 0 {
                return Ok(highest);
            }
            highest = rate;
            rate += rate / 4;
        }
    }

    fn speed(&mut self, proxy: Proxy, pod: SocketAddr, setup: Setup, push: Push) -> Result<()> {
        let place = setup.place.of_load();
        let running = Running::start(proxy, pod, setup)?;
        let warm = Push {
            requests: push.requests / 10,
            ..push
        };
        load::push(running.address, setup.shape, warm, place)?;
        let before = running.cpu();
        let pushed = load::push(running.address, setup.shape, push, place)?;
        let used = running.cpu().saturating_sub(before);
        let speed = Speed {
            proxy: proxy.name(),
            shape: setup.shape,
            threads: setup.threads,
            cells: setup.cells,
            pushed,
            cpu_us_per_request: micros_each(used, pushed.ok),
            memory: running.memory(),
        };
        eprintln!(
            "  {:<12} {:<6} {} thread(s), {:>5} cells: {:>7.0} requests/s, {:>6.2} us CPU each, {:>5.1} MiB, {} failed",
            speed.proxy,
            speed.shape.name(),
            speed.threads,
            speed.cells,
            pushed.per_second,
            speed.cpu_us_per_request,
            tables::mebibytes(speed.memory.resident),
            pushed.failed,
        );
        self.speeds.push(speed);
        Ok(())
    }

    fn pace(&mut self, proxy: Proxy, shape: Shape, per_second: u64, table: Table) -> Result<()> {
        let paced = self.paced(proxy, shape, per_second, table)?;
        self.paces.push(paced);
        Ok(())
    }

    fn paced(&self, proxy: Proxy, shape: Shape, per_second: u64, table: Table) -> Result<Paced> {
        let setup = Setup {
            shape,
            threads: 1,
            cells: table.cells,
            place: Place::Proxy,
            first: self.first,
        };
        let pace = Pace {
            per_second,
            seconds: self.seconds,
            connections: if shape == Shape::Grpc { 8 } else { 64 },
        };
        let pod = Pod::bind(shape)?;
        let running = Running::start(proxy, pod.address()?, setup)?;
        let beside_load = if proxy == Proxy::Across {
            pod.start(Place::Proxy)?;
            None
        } else {
            Some(pod)
        };
        // On a thread of its own, so that what is started later is not held to its core.
        let (latency, used) = std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                cores::run_on(Place::Load, async {
                    if let Some(pod) = beside_load {
                        tokio::task::spawn_local(pod.serve());
                    }
                    let mut before = Duration::ZERO;
                    let latency = pace::pace(running.address, shape, pace, table, || {
                        before = running.cpu();
                    })
                    .await?;
                    Ok((latency, running.cpu().saturating_sub(before)))
                })
            });
            load.join()
                .map_err(|_| anyhow::anyhow!("the load panicked"))?
        })?;
        let paced = Paced {
            proxy: proxy.name(),
            shape,
            cells: table.cells,
            asked: table.asked,
            pace,
            latency,
            cpu_us_per_request: micros_each(used, latency.requests),
            memory: running.memory(),
        };
        eprintln!(
            "  {:<17} {:<6} {:>6} requests/s, {:>5} cells, {:>3} asked: p50 {:>5} us, p99 {:>6} us, p99.9 {:>6} us, {:>6.2} us CPU each, {} failed",
            paced.proxy,
            shape.name(),
            per_second,
            table.cells,
            table.asked,
            latency.p50,
            latency.p99,
            latency.p999,
            paced.cpu_us_per_request,
            latency.failed,
        );
        Ok(paced)
    }
}

fn micros_each(time: Duration, requests: u64) -> f64 {
    time.as_secs_f64() * 1e6 / requests.max(1) as f64
}
