//! The operator at 100 cells: how fast it makes them, what it costs, and that it then leaves the apiserver alone.
//!
//! Two apiservers of the same kind run on loopback. One is for the reference: kubectl and a bare loop are given the objects
//! of the same cells. The other is the operator's. At first neither has nodes or controllers, so that what is measured is
//! the creation of objects and nothing else; the references run before and after the operator. Then the operator's gets
//! nodes whose pods kwok pretends to run: migrations end, the services follow, and the cells become Ready. At the
//! end nothing changes any more, and the operator must not write either.

mod audit;
mod catalog;
mod process;
mod world;

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::{Value, json};
use titan_testbed::Apiserver;

use self::audit::Audit;
use self::process::{Process, Usage, quantile, round};
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
    let total = options
        .cells
        .max(options.kubectl_cells + options.bare_cells);
    let binaries = match &options.binaries {
        Some(folder) => folder.clone(),
        None => compile()?,
    };
    say("starting servers");
    let world = World::start(options.databases)?;
    let reference = Reference {
        program: binaries.join("examples/reference"),
        apiserver: Apiserver::start()?,
        fleet: world.fleet("reference", total)?,
        profile: world.profile.clone(),
    };
    let per_cell = reference.count(&["--cells", "1"])?;
    let early = reference.count(&["--cells", "1", "--before-migrations"])?;
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
        world,
    };
    let created = run.create(early * options.cells)?;
    let nodes = if options.no_nodes {
        Value::Null
    } else {
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

#[allow(clippy::cast_precision_loss, reason = "counts are small")]
fn number(count: usize) -> f64 {
    count as f64
}

fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Compiles what is measured, as it is compiled for its image.
fn compile() -> Result<PathBuf> {
    say("compiling the operator");
    let target = paths::target().join("images");
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(paths::repository())
        .args(["build", "--locked", "--profile=image"])
        .args(["--target", binaries::TARGET])
        .args(["--config", binaries::STATIC])
        .arg("--target-dir")
        .arg(&target);
    cargo.args(["--package", "titan-operator"]).args([
        "--bin",
        "titan-operator",
        "--example",
        "reference",
    ]);
    shell::logged(&mut cargo, &paths::build_log("bench"))?;
    Ok(target.join(binaries::TARGET).join("image"))
}

/// So many objects in so much time.
#[derive(Clone, Debug, Default)]
struct Rate {
    objects: usize,
    seconds: f64,
    /// CPU seconds of the apiserver and its etcd.
    apiserver: f64,
}

impl Rate {
    fn rate(&self) -> f64 {
        if self.seconds > 0.0 {
            number(self.objects) / self.seconds
        } else {
            0.0
        }
    }

    fn and(&self, other: &Rate) -> Rate {
        Rate {
            objects: self.objects + other.objects,
            seconds: self.seconds + other.seconds,
            apiserver: self.apiserver + other.apiserver,
        }
    }

    fn report(&self) -> Value {
        let objects = number(self.objects.max(1));
        json!({
            "objects": self.objects, "seconds": round(self.seconds), "objectsPerSecond": round(self.rate()),
            "apiserverCpuMsPerObject": round(self.apiserver * 1000.0 / objects),
        })
    }
}

/// What the operator is measured against.
struct Reference {
    program: PathBuf,
    apiserver: Apiserver,
    fleet: PathBuf,
    profile: PathBuf,
}

impl Reference {
    fn run(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.program);
        command
            .arg("--fleet")
            .arg(&self.fleet)
            .arg("--profile")
            .arg(&self.profile)
            .args(args);
        Ok(serde_json::from_str(&shell::output(&mut command)?)?)
    }

    fn count(&self, args: &[&str]) -> Result<usize> {
        let all: Vec<&str> = args.iter().copied().chain(["count"]).collect();
        objects(&self.run(&all)?)
    }

    fn cpu(&self) -> Result<f64> {
        server_cpu(&self.apiserver)
    }

    fn kubectl(&self, cells: usize) -> Result<Rate> {
        let file = self.fleet.with_file_name("objects.yaml");
        let file = file.display().to_string();
        let written = self.run(&[
            "--cells",
            &cells.to_string(),
            "--before-migrations",
            "write",
            &file,
        ])?;
        let (cpu, began) = (self.cpu()?, Instant::now());
        self.apiserver
            .kubectl(&["apply", "--server-side", "-f", &file])?;
        Ok(Rate {
            objects: objects(&written)?,
            seconds: began.elapsed().as_secs_f64(),
            apiserver: self.cpu()? - cpu,
        })
    }

    fn bare(&self, from: usize, cells: usize) -> Result<Rate> {
        let cpu = self.cpu()?;
        let config = self.apiserver.kubeconfig().display().to_string();
        let done = self.run(&[
            "--from",
            &from.to_string(),
            "--cells",
            &cells.to_string(),
            "--before-migrations",
            "create",
            "--kubeconfig",
            &config,
        ])?;
        Ok(Rate {
            objects: objects(&done)?,
            seconds: done["seconds"].as_f64().unwrap_or_default(),
            apiserver: self.cpu()? - cpu,
        })
    }
}

fn objects(answer: &Value) -> Result<usize> {
    let objects = answer["objects"].as_u64().context("no count of objects")?;
    Ok(usize::try_from(objects)?)
}

fn server_cpu(apiserver: &Apiserver) -> Result<f64> {
    let [api, etcd] = apiserver.pids();
    Ok(Process(api).usage()?.cpu + Process(etcd).usage()?.cpu)
}

/// The operator at work.
struct Run {
    operator: Operator,
    world: World,
    audit: Audit,
    cells: usize,
    limit: Duration,
}

/// What creating came to.
struct Created {
    rate: Rate,
    usage: Usage,
}

impl Created {
    fn rate(&self) -> f64 {
        self.rate.rate()
    }

    fn report(&self) -> Value {
        let mut report = self.rate.report();
        report["process"] = self.usage.report();
        report
    }
}

impl Run {
    fn usage(&self) -> Result<Usage> {
        Process(self.operator.server.pid()).usage()
    }

    /// Waits until so many objects of cells have been created.
    fn wait_for_objects(&mut self, expected: usize) -> Result<()> {
        let began = Instant::now();
        loop {
            self.audit.follow()?;
            let created = self.audit.created().count();
            if created >= expected {
                return Ok(());
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
        let cpu = server_cpu(&self.world.apiserver)?;
        self.world.apply_fleet(self.cells)?;
        self.wait_for_objects(expected)?;
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
            },
            usage: self.usage()?,
        };
        say(&format!(
            "operator: {expected} objects, {:.0} a second; {:.0} MiB, {:.1} CPU s",
            created.rate(),
            created.usage.peak,
            created.usage.cpu
        ));
        Ok(created)
    }

    /// Lets the cells run, and then rest.
    fn with_nodes(&mut self, expected: usize, steady: Duration) -> Result<Value> {
        let began = Instant::now();
        self.world.start_nodes()?;
        self.wait_for_objects(expected)?;
        let accepted = began.elapsed();
        say(&format!(
            "all {expected} objects accepted after {:.0} s with nodes",
            accepted.as_secs_f64()
        ));
        while self.world.ready()? < self.cells {
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
        let busy = self.usage()?;
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

fn table(result: &Value) {
    let create = &result["create"];
    println!(
        "\n{:<26} {:>9} {:>12} {:>22}",
        "creating objects", "objects", "objects/s", "apiserver CPU/object"
    );
    for (name, key) in [
        ("operator", "operator"),
        ("bare create loop", "bare"),
        ("kubectl apply", "kubectl"),
    ] {
        let row = &create[key];
        println!(
            "{name:<26} {:>9} {:>12} {:>19} ms",
            row["objects"], row["objectsPerSecond"], row["apiserverCpuMsPerObject"]
        );
    }
    let mut facts = vec![
        (
            "operator / bare loop",
            create["operatorToBare"].clone(),
            "aim: at least 0.8",
        ),
        (
            "operator / kubectl",
            create["operatorToKubectl"].clone(),
            "aim: above 10",
        ),
    ];
    let nodes = &result["nodes"];
    if !nodes.is_null() {
        facts.extend([
            (
                "all objects, with nodes, s",
                nodes["acceptedSeconds"].clone(),
                "",
            ),
            ("all cells Ready, s", nodes["readySeconds"].clone(), ""),
            ("API writes a cell", nodes["writesPerCell"].clone(), ""),
            (
                "status writes a cell",
                nodes["statusWritesPerCell"].clone(),
                "aim: one a change",
            ),
            (
                "reconcile p99, s",
                nodes["reconcileSeconds"]["p99"].clone(),
                "",
            ),
            (
                "peak RSS, MiB",
                nodes["process"]["peakRssMiB"].clone(),
                "aim: below 60",
            ),
            (
                "RSS at rest, MiB",
                nodes["steady"]["process"]["rssMiB"].clone(),
                "aim: below 60",
            ),
            (
                "RSS per 1,000 objects, MiB",
                nodes["rssMiBPerThousandObjects"].clone(),
                "aim: 3",
            ),
            (
                "CPU seconds until Ready",
                nodes["process"]["cpuSeconds"].clone(),
                "",
            ),
            (
                "writes at rest",
                nodes["steady"]["writes"].clone(),
                "aim: 0",
            ),
            (
                "CPU seconds at rest",
                nodes["steady"]["cpuSeconds"].clone(),
                "",
            ),
        ]);
    }
    println!();
    for (name, value, aim) in facts {
        println!("{name:<26} {:>9}   {aim}", value.to_string());
    }
    println!();
}
