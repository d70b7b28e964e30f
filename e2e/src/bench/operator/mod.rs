//! The operator at 100 cells: how fast it makes them, what it costs, and that it then leaves the apiserver alone.
//!
//! On one apiserver on loopback, kubectl, a bare loop and the operator make the same objects, for cells of different names. At
//! first it has neither nodes nor controllers, so that what is measured is the creation of objects and nothing else. Then
//! it gets nodes whose pods kwok pretends to run: migrations end, the services follow, and the operator's cells become Ready. At
//! the end nothing changes any more, and the operator must not write either. The bare loop runs once more after all that.

mod audit;
mod catalog;
mod process;
mod reference;
mod table;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use serde_json::{Value, json};

use self::audit::Audit;
use self::process::{Process, Usage, counts, number, quantile, round};
use self::reference::{Rate, Reference, server_cpu};
use self::table::table;
use self::world::{Operator, World};
use crate::images::binaries;
use crate::{paths, shell};

/// What can be chosen.
#[derive(Debug, Parser)]
#[command(name = "cargo titan bench operator")]
struct Options {
    /// How many cells the operator makes.
    #[arg(long, default_value_t = 100)]
    cells: usize,
    /// How many of the 35 services have a database, and with it a migration.
    #[arg(long, default_value_t = catalog::DATABASES)]
    databases: usize,
    /// How many cells the bare loop makes, half of them before and half of them after the operator.
    #[arg(long, default_value_t = 40)]
    bare_cells: usize,
    /// How many cells kubectl makes.
    #[arg(long, default_value_t = 3)]
    kubectl_cells: usize,
    /// Seconds to watch the operator do nothing.
    #[arg(long, default_value_t = 60)]
    steady: u64,
    /// Minutes after which a phase has failed.
    #[arg(long, default_value_t = 30)]
    limit: u64,
    /// End after the creation of objects, without nodes.
    #[arg(long)]
    no_nodes: bool,
    /// A folder with `titan-operator` and `examples/reference` to use instead of compiling them.
    #[arg(long)]
    binaries: Option<PathBuf>,
}

/// Runs it.
pub fn run(arguments: &[String]) -> Result<Value> {
    let name = std::iter::once("operator".to_owned());
    let options = Options::parse_from(name.chain(arguments.iter().cloned()));
    let binaries = match &options.binaries {
        Some(folder) => folder.clone(),
        None => compile()?,
    };
    say("starting servers");
    let world = World::start(options.databases)?;
    let reference_cells = options.kubectl_cells + options.bare_cells;
    let reference = Reference::new(&binaries, &world, reference_cells)?;
    let (per_cell, early) = reference.per_cell()?;
    say(&format!(
        "{per_cell} objects a cell, {early} of them before its migrations"
    ));

    let kubectl = reference.kubectl(options.kubectl_cells)?;
    say(&format!("kubectl: {:.0} objects/s", kubectl.rate()));
    let half = options.bare_cells / 2;
    let before = reference.bare(options.kubectl_cells, half)?;
    say(&format!("bare loop: {:.0} objects/s", before.rate()));

    let mut run = Run {
        audit: Audit::new(world.apiserver.audit_log()),
        limit: Duration::from_secs(options.limit * 60),
        cells: options.cells,
        operator: world.start_operator(&binaries.join("titan-operator"))?,
        world: &world,
    };
    let created = run.create(early * options.cells)?;
    let nodes = if options.no_nodes {
        Value::Null
    } else {
        reference.remove_workloads()?;
        run.with_nodes(
            per_cell * options.cells,
            Duration::from_secs(options.steady),
        )?
    };
    let summary = run.audit.summary();
    drop(run);
    let after = reference.bare(options.kubectl_cells + half, options.bare_cells - half)?;
    say(&format!("bare loop: {:.0} objects/s", after.rate()));

    let bare = before.and(&after);
    let ratio = |rate: f64| round(created.rate() / rate);
    let result = json!({
        "options": {
            "cells": options.cells, "services": 35, "databases": options.databases,
            "objectsPerCell": per_cell, "objectsPerCellBeforeMigrations": early,
        },
        "loadAverage": load_average(),
        "create": {
            "operator": created.report(), "bare": bare.report(), "kubectl": kubectl.report(),
            "bareBefore": before.report(), "bareAfter": after.report(),
            "operatorToBare": ratio(bare.rate()), "operatorToKubectl": ratio(kubectl.rate()),
            "operatorToBareByCpu": round(bare.cpu() / created.rate.cpu()),
        },
        "nodes": nodes,
        "writes": summary,
    });
    table(&result);
    Ok(result)
}

fn say(what: &str) {
    eprintln!("  {what}");
}

fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Compiles what is measured, as it is compiled for a release, but for fat LTO.
fn compile() -> Result<PathBuf> {
    say("compiling the operator");
    let mut cargo = shell::cargo(&["build", "--locked", "--profile=measured"]);
    cargo.args(["--package", "titan-operator"]).args([
        "--bin",
        "titan-operator",
        "--example",
        "reference",
    ]);
    shell::logged(&mut cargo, &paths::build_log("bench"))?;
    Ok(binaries::built("measured"))
}

/// The operator at work.
struct Run<'a> {
    operator: Operator,
    world: &'a World,
    audit: Audit,
    cells: usize,
    limit: Duration,
}

/// What creating came to.
struct Created {
    rate: Rate,
    usage: Usage,
    spent: Spent,
}

/// What has been used up by everybody since a moment.
struct Spent {
    cpu: BTreeMap<&'static str, f64>,
    requests: BTreeMap<String, u64>,
    passes: u64,
}

impl Spent {
    fn since(&self, before: &Spent) -> Spent {
        Spent {
            cpu: self
                .cpu
                .iter()
                .map(|(part, cpu)| (*part, cpu - before.cpu.get(part).unwrap_or(&0.0)))
                .collect(),
            requests: self
                .requests
                .iter()
                .map(|(verb, count)| {
                    let before = before.requests.get(verb).unwrap_or(&0);
                    (verb.clone(), count - before)
                })
                .filter(|(_, count)| *count > 0)
                .collect(),
            passes: self.passes - before.passes,
        }
    }

    fn report(&self) -> Value {
        let cpu: BTreeMap<_, _> = self
            .cpu
            .iter()
            .map(|(part, cpu)| (*part, round(*cpu)))
            .collect();
        json!({ "cpuSeconds": cpu, "apiRequests": self.requests, "passesOverCells": self.passes })
    }
}

impl Created {
    fn rate(&self) -> f64 {
        self.rate.rate()
    }

    fn report(&self) -> Value {
        let mut report = self.rate.report();
        report["process"] = self.usage.report();
        report["spent"] = self.spent.report();
        report
    }
}

impl Run<'_> {
    fn usage(&self) -> Result<Usage> {
        Process(self.operator.server.pid()).usage()
    }

    fn spent(&self) -> Result<Spent> {
        let mut cpu = self.world.cpu()?;
        cpu.insert("operator", self.usage()?.cpu);
        let passes = counts(
            &self.operator.metrics()?,
            "titan_reconcile_seconds_count",
            "controller=\"cell\"",
            "controller",
        );
        Ok(Spent {
            cpu,
            requests: self.world.requests()?,
            passes: passes.values().sum(),
        })
    }

    /// Waits until so many objects of cells have been created.
    fn wait_for_objects(&mut self, expected: usize) -> Result<()> {
        let began = Instant::now();
        loop {
            self.operator.check_alive()?;
            let created = self.audit.glance()?;
            if created >= expected {
                return self.audit.follow();
            }
            if began.elapsed() > self.limit {
                bail!(
                    "{created} of {expected} objects after {} s; the operator's log is {}",
                    began.elapsed().as_secs(),
                    self.world.operator_log().display()
                );
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// From the fleet to the last object that can be created before a migration has run.
    fn create(&mut self, expected: usize) -> Result<Created> {
        let (cpu, before) = (server_cpu(&self.world.apiserver)?, self.spent()?);
        self.world.apply_fleet(self.cells)?;
        self.wait_for_objects(expected)?;
        let (usage, spent) = (self.usage()?, self.spent()?.since(&before));
        let created = Created {
            rate: Rate {
                objects: expected,
                // From the first Cell of the template on, which the operator creates, too.
                seconds: Audit::span(
                    self.audit
                        .writes()
                        .filter(|write| write.verb == "create" && write.resource != "events"),
                ),
                apiserver: server_cpu(&self.world.apiserver)? - cpu,
                client: spent.cpu.get("operator").copied().unwrap_or_default(),
            },
            usage,
            spent,
        };
        say(&format!("spent: {}", created.spent.report()));
        say(&format!(
            "operator: {expected} objects, {:.0} a second; {:.0} MiB, {:.0} of them its own, {:.1} CPU s",
            created.rate(),
            created.usage.peak,
            created.usage.own,
            created.usage.cpu
        ));
        Ok(created)
    }

    /// Lets the cells run, and then rest.
    fn with_nodes(&mut self, expected: usize, steady: Duration) -> Result<Value> {
        let (began, before) = (Instant::now(), self.spent()?);
        let _nodes = self.world.start_nodes()?;
        self.wait_for_objects(expected)?;
        let accepted = began.elapsed();
        say(&format!(
            "all {expected} objects accepted after {:.0} s with nodes",
            accepted.as_secs_f64()
        ));
        while self.world.ready()? < self.cells {
            self.operator.check_alive()?;
            if began.elapsed() > self.limit {
                bail!(
                    "only {} of {} cells are Ready after {} s",
                    self.world.ready()?,
                    self.cells,
                    began.elapsed().as_secs()
                );
            }
            thread::sleep(Duration::from_secs(1));
        }
        let ready = began.elapsed();
        say(&format!(
            "all cells Ready after {:.0} s",
            ready.as_secs_f64()
        ));
        let settled = self.settle()?;
        let (busy, spent) = (self.usage()?, self.spent()?.since(&before));
        let metrics = self.operator.metrics()?;
        let writes = self.audit.writes().count();
        let status = self.status_writes();

        thread::sleep(steady);
        self.audit.follow()?;
        let idle = self.usage()?;
        let per_cell = |count: usize| round(number(count) / number(self.cells));
        let p = |q| {
            quantile(
                &metrics,
                "titan_reconcile_seconds",
                "controller=\"cell\"",
                q,
            )
        };
        Ok(json!({
            "acceptedSeconds": round(accepted.as_secs_f64()),
            "readySeconds": round(ready.as_secs_f64()),
            "settledSeconds": round(settled.as_secs_f64()),
            "writesPerCell": per_cell(writes),
            "statusWritesPerCell": per_cell(status),
            "reconcileSeconds": { "p50": p(0.5).map(round), "p99": p(0.99).map(round) },
            "process": busy.report(),
            "spent": spent.report(),
            "steady": {
                "seconds": steady.as_secs(),
                "writes": self.audit.writes().count() - writes,
                "cpuSeconds": round(idle.cpu - busy.cpu),
                "process": idle.report(),
            },
            "rssMiBPerThousandObjects": round(idle.rss * 1000.0 / number(expected)),
        }))
    }

    fn status_writes(&self) -> usize {
        self.audit
            .writes()
            .filter(|write| write.resource == "cells/status")
            .count()
    }

    /// Waits until the operator has not written for ten seconds: the last pods are counted after the first time that a
    /// cell is Ready.
    fn settle(&mut self) -> Result<Duration> {
        const QUIET: Duration = Duration::from_secs(10);
        let began = Instant::now();
        let (mut count, mut since) = (0, Instant::now());
        while since.elapsed() < QUIET {
            if began.elapsed() > self.limit {
                bail!("the operator goes on writing");
            }
            self.operator.check_alive()?;
            self.audit.follow()?;
            let now = self.audit.writes().count();
            if now != count {
                (count, since) = (now, Instant::now());
            }
            thread::sleep(Duration::from_millis(500));
        }
        Ok(began.elapsed() - QUIET)
    }
}
