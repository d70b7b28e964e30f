//! `cargo titan test`: every check, in an order that fails early.

use std::io::{self, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use titan_testbed::cache;

use crate::failures::Failures;
use crate::progress::Progress;
use crate::up::Up;
use crate::{paths, preflight, scenarios, shell, tools, up};

/// Options of `test`.
#[derive(Debug, Clone, Args)]
pub struct Test {
    /// Leave out what needs pods
    #[arg(long)]
    pub fast: bool,
    /// Only scenarios whose name contains this, and no other checks
    #[arg(long, value_name = "NAME", conflicts_with = "fast")]
    pub scenario: Option<String>,
    /// Go on after a failed check
    #[arg(long)]
    pub keep_going: bool,
}

/// The checks of cargo alone: a name and the arguments.
const CARGO: [(&str, &[&str]); 4] = [
    ("format", &["fmt", "--all", "--check"]),
    (
        "clippy",
        &[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "--deny",
            "warnings",
        ],
    ),
    (
        "CRD drift",
        &[
            "run",
            "--quiet",
            "--package",
            "titan-crds",
            "--bin",
            "crdgen",
            "--",
            "--check",
        ],
    ),
    (
        "chart drift",
        &[
            "run",
            "--quiet",
            "--package",
            "titan-chart-tests",
            "--bin",
            "chartgen",
            "--",
            "--check",
        ],
    ),
];

/// How long `up` may take when there is nothing to build.
const WARM: Duration = Duration::from_secs(90);

/// The outcome of the checks so far.
struct Tally {
    keep_going: bool,
    passed: usize,
    failed: Vec<String>,
}

impl Tally {
    /// Runs a check; an error ends the run unless it is to go on.
    fn check(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("\n== {name}");
        let started = Instant::now();
        let result = work();
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                println!("== {name}: ok in {seconds:.1} s");
                self.passed += 1;
            }
            Err(error) => {
                println!("== {name}: FAILED in {seconds:.1} s: {error:#}");
                self.failed.push(name.to_owned());
                if !self.keep_going {
                    self.finish()?;
                }
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        println!("\n{} passed, {} failed", self.passed, self.failed.len());
        if self.failed.is_empty() {
            return Ok(());
        }
        bail!("failed: {}", self.failed.join(", "));
    }
}

/// Runs them.
pub fn run(progress: &Progress, options: &Test) -> Result<()> {
    // Said at once, not after half an hour.
    if options.fast {
        preflight::for_tools()
    } else {
        preflight::for_cluster()
    }?;
    let mut tally = Tally {
        keep_going: options.keep_going,
        passed: 0,
        failed: Vec::new(),
    };
    if options.scenario.is_none() {
        for (name, args) in &CARGO[..2] {
            tally.check(name, || cargo(args))?;
        }
        tally.check("tools", || {
            if options.fast {
                tools::ensure(progress)
            } else {
                up::prepare(progress)
            }
        })?;
        tally.check("tests", tests)?;
        for (name, args) in &CARGO[2..] {
            tally.check(name, || cargo(args))?;
        }
        tally.check("helm lint", helm_lint)?;
    }
    if !options.fast {
        tally.check("cluster", || up::run(progress, &Up::local()))?;
        tally.check("cluster, once more", || up_again(progress))?;
        let (passed, failed) = scenarios::run(options.scenario.as_deref().unwrap_or_default())?;
        tally.passed += passed;
        tally
            .failed
            .extend((failed > 0).then(|| format!("{failed} scenarios")));
    }
    tally.finish()
}

/// Runs `up` over a cluster that is up: it is quick, and replaces nothing.
fn up_again(progress: &Progress) -> Result<()> {
    let before = running()?;
    let started = Instant::now();
    up::run(progress, &Up::local())?;
    let took = started.elapsed();
    if took > WARM {
        bail!(
            "`up` over a cluster that is up took {} s, and may take {} s",
            took.as_secs(),
            WARM.as_secs()
        );
    }
    let after = running()?;
    if after != before {
        bail!("`up` over a cluster that is up replaced something: {before} became {after}");
    }
    Ok(())
}

/// What runs on the local cluster, and which version of it.
fn running() -> Result<String> {
    let which = "{range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name} {.metadata.uid} {.metadata.generation}; {end}";
    let output = format!("jsonpath={which}");
    let mut workloads = shell::kubectl(&["get", "deployments,statefulsets", "-A", "-o", &output]);
    let mut pods = shell::kubectl(&[
        "get",
        "pods",
        "-A",
        "--field-selector=status.phase=Running",
        "-o",
        &output,
    ]);
    Ok(shell::output(&mut workloads)? + &shell::output(&mut pods)?)
}

fn cargo(args: &[&str]) -> Result<()> {
    shell::shown(&mut shell::cargo(args))
}

/// Where random tests begin. The same each time, for a run has to be about what was changed; other seeds are for whoever
/// looks for faults. The fuzz targets take no part: they are random after the first input, whatever their seed is.
const SEED: (&str, &str) = ("PROPTEST_RNG_SEED", "1");

/// Runs the tests of all crates, and then says again what failed.
fn tests() -> Result<()> {
    let mut command = shell::cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
    if std::env::var_os(SEED.0).is_none() {
        command.env(SEED.0, SEED.1);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("run cargo")?;
    let output = child.stdout.take().context("no output of cargo")?;
    let failures = Failures::read(BufReader::new(output), io::stdout())?;
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    for line in &failures.lines {
        println!("{line}");
    }
    bail!("`{}` failed ({status})", shell::line(&command))
}

fn helm_lint() -> Result<()> {
    let mut helm = Command::new(cache::executable("helm"));
    shell::shown(helm.current_dir(paths::repository()).args([
        "lint",
        "--strict",
        "--namespace",
        "titan-system",
        "charts/titan",
    ]))
}
