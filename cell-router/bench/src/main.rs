//! Measures cell-router next to HAProxy, nginx and Envoy: one command, one machine, one run, loopback only.
//!
//! Prints a JSON report on stdout and what it does on stderr. `cargo titan bench router` runs it.

#![allow(clippy::print_stdout, reason = "the report")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of requests, far below 2^52"
)]

mod load;
mod pod;
mod proxies;

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;
use serde_json::json;

use load::{Latency, Pace, Push, Pushed};
use proxies::{Proxy, Running, Setup, Shape};

#[derive(Parser)]
struct Arguments {
    /// The proxies; all that are here when none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    proxies: Vec<Proxy>,
    /// Requests of each run at full speed.
    #[arg(long, default_value_t = 100_000)]
    requests: u64,
    /// How often everything is measured; proxies take turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each run at a fixed rate.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Only CPU per request and maximum rate of gRPC with one thread.
    #[arg(long)]
    quick: bool,
    /// Prints the table of the docs on stderr.
    #[arg(long)]
    markdown: bool,
}

#[derive(Debug, Serialize)]
struct Speed {
    proxy: &'static str,
    shape: String,
    threads: usize,
    cells: usize,
    pushed: Pushed,
    cpu_us_per_request: f64,
    resident_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Paced {
    proxy: &'static str,
    threads: usize,
    pace: Pace,
    latency: Latency,
    cpu_us_per_request: f64,
}

const ONE_CORE: Option<&str> = Some("0");
const OTHER_CORE: Option<&str> = Some("1");

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut proxies = arguments.proxies.clone();
    if proxies.is_empty() {
        proxies = vec![
            Proxy::CellRouter,
            Proxy::Haproxy,
            Proxy::Nginx,
            Proxy::Envoy,
        ];
    }
    proxies.retain(|proxy| {
        let here = proxy.program().is_some();
        if !here {
            eprintln!("{} is not here: left out", proxy.name());
        }
        here
    });
    let pod = pod::start()?;
    let mut speeds = Vec::new();
    let mut paces = Vec::new();
    let one = Setup {
        shape: Shape::Grpc,
        threads: 1,
        cells: 500,
        cores: ONE_CORE,
    };
    let push = Push {
        requests: arguments.requests,
        connections: 8,
        streams: 16,
    };
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        for proxy in &proxies {
            speeds.push(speed(*proxy, pod, one, push, OTHER_CORE)?);
        }
        if arguments.quick {
            continue;
        }
        let setup = Setup {
            shape: Shape::Http1,
            ..one
        };
        let h1 = Push {
            connections: 64,
            streams: 1,
            ..push
        };
        for proxy in &proxies {
            speeds.push(speed(*proxy, pod, setup, h1, OTHER_CORE)?);
        }
        let all = std::thread::available_parallelism()?.get();
        let setup = Setup {
            threads: all,
            cores: None,
            ..one
        };
        for proxy in &proxies {
            speeds.push(speed(*proxy, pod, setup, push, None)?);
        }
        for cells in [1, 50, 500, 10_000] {
            let setup = Setup { cells, ..one };
            speeds.push(speed(Proxy::CellRouter, pod, setup, push, OTHER_CORE)?);
        }
        for per_second in [1_000, 4_000] {
            let pace = Pace {
                per_second,
                seconds: arguments.seconds,
                connections: 8,
                cells: 1,
            };
            for proxy in [Proxy::Direct].iter().chain(&proxies) {
                paces.push(paced(*proxy, pod, one, pace)?);
            }
        }
    }
    let versions: Vec<_> = proxies
        .iter()
        .map(|proxy| json!({ "proxy": proxy.name(), "version": proxy.version() }))
        .collect();
    if arguments.markdown {
        eprintln!("{}", markdown(&speeds, &paces));
    }
    println!(
        "{}",
        serde_json::to_string_pretty(&json!({
            "versions": versions,
            "speed": speeds,
            "paced": paces,
        }))?
    );
    Ok(())
}

fn speed(
    proxy: Proxy,
    pod: std::net::SocketAddr,
    setup: Setup,
    push: Push,
    cores: Option<&str>,
) -> Result<Speed> {
    let running = Running::start(proxy, pod, setup)?;
    let warm = Push {
        requests: push.requests / 10,
        ..push
    };
    load::push(running.address, setup.shape, warm, cores)?;
    let before = running.cpu();
    let pushed = load::push(running.address, setup.shape, push, cores)?;
    let used = running.cpu().saturating_sub(before);
    let speed = Speed {
        proxy: proxy.name(),
        shape: format!("{:?}", setup.shape).to_lowercase(),
        threads: setup.threads,
        cells: setup.cells,
        pushed,
        cpu_us_per_request: micros_each(used, pushed.ok),
        resident_bytes: running.resident(),
    };
    eprintln!(
        "  {:<12} {:<6} {} thread(s), {:>5} cells: {:>7.0} requests/s, {:>6.2} us CPU each, {:>5.1} MiB, {} failed",
        speed.proxy,
        speed.shape,
        speed.threads,
        speed.cells,
        pushed.per_second,
        speed.cpu_us_per_request,
        speed.resident_bytes as f64 / 1_048_576.0,
        pushed.failed,
    );
    Ok(speed)
}

fn paced(proxy: Proxy, pod: std::net::SocketAddr, setup: Setup, pace: Pace) -> Result<Paced> {
    let running = Running::start(proxy, pod, setup)?;
    let before = running.cpu();
    let latency = load::pace(running.address, pace)?;
    let used = running.cpu().saturating_sub(before);
    let paced = Paced {
        proxy: proxy.name(),
        threads: setup.threads,
        pace,
        latency,
        cpu_us_per_request: micros_each(used, latency.requests),
    };
    eprintln!(
        "  {:<12} {:>6} requests/s: p50 {:>5} us, p99 {:>6} us, p99.9 {:>6} us, {:>6.2} us CPU each, {} failed",
        paced.proxy,
        pace.per_second,
        latency.p50,
        latency.p99,
        latency.p999,
        paced.cpu_us_per_request,
        latency.failed,
    );
    Ok(paced)
}

fn micros_each(time: Duration, requests: u64) -> f64 {
    time.as_secs_f64() * 1e6 / requests.max(1) as f64
}

/// The median over the rounds, one row a proxy and kind of run.
fn markdown(speeds: &[Speed], paces: &[Paced]) -> String {
    use std::collections::BTreeMap;
    use std::fmt::Write as _;
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let mut text = String::from(
        "| traffic | threads | cells | proxy | CPU us/request | requests/s | memory MiB |\n|---|---|---|---|---|---|---|\n",
    );
    let mut groups: BTreeMap<_, Vec<&Speed>> = BTreeMap::new();
    for speed in speeds {
        let key = (&speed.shape, speed.threads, speed.cells, speed.proxy);
        groups.entry(key).or_default().push(speed);
    }
    for ((shape, threads, cells, proxy), runs) in groups {
        let of = |read: fn(&Speed) -> f64| median(runs.iter().map(|run| read(run)).collect());
        let _ = writeln!(
            text,
            "| {shape} | {threads} | {cells} | {proxy} | {:.1} | {:.0} | {:.1} |",
            of(|run| run.cpu_us_per_request),
            of(|run| run.pushed.per_second),
            of(|run| run.resident_bytes as f64 / 1_048_576.0),
        );
    }
    text.push_str("\n| requests/s | proxy | p50 us | p99 us | p99.9 us | CPU us/request |\n|---|---|---|---|---|---|\n");
    let mut groups: BTreeMap<_, Vec<&Paced>> = BTreeMap::new();
    for pace in paces {
        groups
            .entry((pace.pace.per_second, pace.proxy))
            .or_default()
            .push(pace);
    }
    for ((rate, proxy), runs) in groups {
        let of = |read: fn(&Paced) -> f64| median(runs.iter().map(|run| read(run)).collect());
        let _ = writeln!(
            text,
            "| {rate} | {proxy} | {:.0} | {:.0} | {:.0} | {:.1} |",
            of(|run| run.latency.p50 as f64),
            of(|run| run.latency.p99 as f64),
            of(|run| run.latency.p999 as f64),
            of(|run| run.cpu_us_per_request),
        );
    }
    text
}
