//! Scenarios: what users do, and what goes wrong for them, on a real cluster with real pods.
//!
//! Run by `cargo titan test`, which starts the cluster, installs the chart and applies `examples/quickstart` first. Each
//! scenario makes what it needs beyond that and takes it away again.

#![allow(clippy::print_stdout, reason = "a command line speaks to its user")]

mod cables;
mod cluster;
mod deaths;
mod deletion;
mod faults;
mod load;
mod members;
mod orders;
mod refusals;
mod releases;
mod rest;
mod rights;
mod routers;
mod shop;
mod steady;
mod volumes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use futures::future::LocalBoxFuture;
use futures::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};

use cluster::Cluster;

/// Scenarios on a real cluster
#[derive(Debug, Parser)]
struct Arguments {
    /// Only scenarios whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// The repository, for its examples
    #[arg(long, default_value = ".")]
    repository: PathBuf,
    /// Kafka, as this machine reaches it
    #[arg(long)]
    kafka: String,
    /// The apiserver's audit log, if it can be read
    #[arg(long)]
    audit_log: Option<PathBuf>,
    /// Seconds for which cells at rest are watched after a pass over each
    #[arg(long, env = "TITAN_REST_SECONDS", default_value_t = 10)]
    rest_seconds: u64,
    /// Write the results here, as JSON
    #[arg(long)]
    results: Option<PathBuf>,
}

/// One scenario.
struct Scenario {
    name: &'static str,
    shows: &'static str,
    /// Whether it needs the cluster for itself, because it measures or disturbs what others use as well.
    alone: bool,
    run: for<'a> fn(&'a Cluster) -> LocalBoxFuture<'a, Result<Value>>,
}

/// All scenarios, in the order in which they begin: from the gentle to the rough. Neighbours that have cells of their own run side by
/// side: most of their time they wait for a lock to run out or a pod to start.
const ALL: &[Scenario] = &[
    Scenario {
        name: "order-through-the-router",
        shows: "an order is placed once, read back, and told to the world",
        alone: true,
        run: |cluster| orders::order_through_the_router(cluster).boxed_local(),
    },
    Scenario {
        name: "two-cells",
        shows: "keys land in their own cell, and the wrong cell refuses them",
        alone: true,
        run: |cluster| orders::two_cells(cluster).boxed_local(),
    },
    Scenario {
        name: "rights",
        shows: "the operator has no wildcard and no cluster-wide Secrets, and every pod is restricted",
        alone: true,
        run: |cluster| rights::least_rights(cluster).boxed_local(),
    },
    Scenario {
        name: "rest",
        shows: "cells at rest cost no API write",
        alone: true,
        run: |cluster| rest::cells_at_rest(cluster).boxed_local(),
    },
    Scenario {
        name: "refusals",
        shows: "bad input is named, and mending it mends the cell",
        alone: true,
        run: |cluster| refusals::bad_input(cluster).boxed_local(),
    },
    Scenario {
        name: "release-and-back",
        shows: "a cell is upgraded and rolled back under load, and no request fails",
        alone: true,
        run: |cluster| releases::release_and_back(cluster).boxed_local(),
    },
    Scenario {
        name: "operator-leader-dies",
        shows: "the standby takes over in seconds, and traffic does not notice",
        alone: true,
        run: |cluster| faults::operator_leader_dies(cluster).boxed_local(),
    },
    Scenario {
        name: "router-rolls",
        shows: "the router is restarted under load, and no request fails",
        alone: true,
        run: |cluster| routers::router_rolls(cluster).boxed_local(),
    },
    Scenario {
        name: "router-alone",
        shows: "traffic goes on without the control plane and without the table file",
        alone: true,
        run: |cluster| routers::router_alone(cluster).boxed_local(),
    },
    Scenario {
        name: "pod-dies",
        shows: "one of two pods dies, and no request with an idempotency key fails",
        alone: true,
        run: |cluster| deaths::pod_dies(cluster).boxed_local(),
    },
    Scenario {
        name: "cell-dies",
        shows: "all pods of a cell die, the other cell does not notice, and the cell comes back",
        alone: true,
        run: |cluster| deaths::cell_dies(cluster).boxed_local(),
    },
    Scenario {
        name: "volumes-outlive-pods",
        shows: "databases that die find their data on their volumes, and the volumes go with the cell",
        alone: false,
        run: |cluster| volumes::volumes_outlive_pods(cluster).boxed_local(),
    },
    Scenario {
        name: "database-without-volume-dies",
        shows: "a cell whose only data went with a pod says so, and begins anew by itself",
        alone: false,
        run: |cluster| faults::database_without_volume_dies(cluster).boxed_local(),
    },
    Scenario {
        name: "stores-die",
        shows: "no acknowledged write is lost with the leader of PostgreSQL or a Redis node",
        alone: false,
        run: |cluster| faults::stores_die(cluster).boxed_local(),
    },
    Scenario {
        name: "members-come-and-go",
        shows: "a PostgreSQL grows, is replaced member by member and shrinks, and no acknowledged write is lost",
        alone: false,
        run: |cluster| members::come_and_go(cluster).boxed_local(),
    },
    Scenario {
        name: "members-cut-off",
        shows: "the leader of PostgreSQL and its standby are cut off, orders are taken again within 30 s, and none is lost",
        alone: false,
        run: |cluster| cables::members_cut_off(cluster).boxed_local(),
    },
    Scenario {
        name: "deletion",
        shows: "a deleted cell leaves nothing behind under Delete, and its data under Retain",
        alone: true,
        run: |cluster| deletion::delete_and_retain(cluster).boxed_local(),
    },
];

/// How many scenarios run at once.
const SIDE_BY_SIDE: usize = 3;
/// No scenario takes longer, whatever happens.
const LIMIT: Duration = Duration::from_mins(12);

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start threads")
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<bool> {
    let cluster = Cluster::connect(&arguments).await?;
    let mut results = Vec::new();
    let wanted: Vec<_> = ALL
        .iter()
        .filter(|scenario| scenario.name.contains(&arguments.filter))
        .collect();
    for group in wanted.chunk_by(|one, next| !one.alone && !next.alone) {
        let group = stream::iter(group).map(|scenario| play(&cluster, scenario));
        let mut played = group.buffer_unordered(SIDE_BY_SIDE);
        while let Some(result) = played.next().await {
            results.push(result);
            if let Some(path) = &arguments.results {
                std::fs::write(path, serde_json::to_vec_pretty(&results)?)
                    .with_context(|| format!("write {}", path.display()))?;
            }
        }
    }
    let passed = results
        .iter()
        .filter(|result| result["passed"] == true)
        .count();
    let failed = results.len() - passed;
    println!("\nscenarios: {passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// Plays one scenario; its result, for the report.
async fn play(cluster: &Cluster, scenario: &Scenario) -> Value {
    let name = scenario.name;
    println!("scenario {name}: {}", scenario.shows);
    let started = Instant::now();
    let result = tokio::time::timeout(LIMIT, (scenario.run)(cluster))
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("not over after {} s", LIMIT.as_secs())));
    let seconds = started.elapsed().as_secs_f64();
    match result {
        Ok(measured) => {
            println!("scenario {name}: ok in {seconds:.1} s {measured}");
            json!({"name": name, "passed": true, "seconds": seconds, "measured": measured})
        }
        Err(error) => {
            let state = cluster.explain().await;
            println!("scenario {name}: FAILED in {seconds:.1} s: {error:#}\n{state}");
            json!({"name": name, "passed": false, "seconds": seconds, "error": format!("{error:#}")})
        }
    }
}
