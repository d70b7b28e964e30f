//! `cargo titan test`: every check, in an order that fails early.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use titan_testbed::cache;

use crate::progress::{Progress, together};
use crate::up::Up;
use crate::{paths, preflight, scenarios, shell, suite, tools, up};

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
    /// The long forms: random seeds, ten minutes of fences under load and for each fuzz target, five minutes of rest
    #[arg(long)]
    pub soak: bool,
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

/// What `--soak` sets for the tests and scenarios, unless it is set already.
const SOAK: [(&str, &str); 3] = [
    ("TITAN_SOAK_SECONDS", "600"),
    ("TITAN_FUZZ_SECONDS", "600"),
    ("TITAN_REST_SECONDS", "300"),
];

/// How long all checks may take: with the tools in the cache, and from an empty cache. More is said at the end, since what
/// becomes slow a little at a time is noticed by nobody.
const BUDGET_WARM: Duration = Duration::from_mins(20);
const BUDGET_COLD: Duration = Duration::from_mins(65);
/// How many of the slowest parts are named at the end.
const SLOWEST: usize = 10;

/// How long `up` may take when there is nothing to build.
const WARM: Duration = Duration::from_secs(90);

/// The outcome of the checks so far.
struct Tally {
    began: Instant,
    budget: Option<Duration>,
    keep_going: bool,
    passed: usize,
    failed: Vec<String>,
    /// How long each part took.
    seconds: BTreeMap<String, f64>,
}

impl Tally {
    fn new(options: &Test) -> Self {
        let cold = !cache::executable("kube-apiserver").exists();
        let budget = if cold { BUDGET_COLD } else { BUDGET_WARM };
        Tally {
            began: Instant::now(),
            budget: (!options.soak).then_some(budget),
            keep_going: options.keep_going,
            passed: 0,
            failed: Vec::new(),
            seconds: BTreeMap::new(),
        }
    }

    /// Runs a check; an error ends the run unless it is to go on.
    fn check(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.check_parts(name, |seconds, name| {
            let began = Instant::now();
            let result = work();
            seconds.insert(name.to_owned(), began.elapsed().as_secs_f64());
            result
        })
    }

    /// The same for a check that says itself how long its parts took.
    fn check_parts(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut BTreeMap<String, f64>, &str) -> Result<()>,
    ) -> Result<()> {
        println!("\n== {name}");
        let began = Instant::now();
        let result = work(&mut self.seconds, name);
        let seconds = began.elapsed().as_secs_f64();
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
        let took = self.began.elapsed();
        println!("\nThe slowest parts of {:.0} s:", took.as_secs_f64());
        for (name, seconds) in slowest(&self.seconds) {
            println!("{seconds:8.1} s  {name}");
        }
        if let Some(budget) = self.budget.filter(|budget| took > *budget) {
            println!(
                "\nOVER BUDGET: the checks took {:.1} min and may take {:.0} min. Make one of the slowest parts faster, or move its \
                 long form behind --soak.",
                took.as_secs_f64() / 60.0,
                budget.as_secs_f64() / 60.0
            );
        }
        println!("\n{} passed, {} failed", self.passed, self.failed.len());
        if self.failed.is_empty() {
            return Ok(());
        }
        bail!("failed: {}", self.failed.join(", "));
    }
}

/// The slowest parts, the slowest first.
fn slowest(seconds: &BTreeMap<String, f64>) -> Vec<(&str, f64)> {
    let mut parts: Vec<_> = seconds
        .iter()
        .map(|(name, took)| (name.as_str(), *took))
        .collect();
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    parts.truncate(SLOWEST);
    parts
}

/// Runs them.
pub fn run(progress: &Progress, options: &Test) -> Result<()> {
    // Said at once, not after half an hour.
    if options.fast {
        preflight::for_tools()
    } else {
        preflight::for_cluster()
    }?;
    let mut tally = Tally::new(options);
    let soak: &[(&str, &str)] = if options.soak { &SOAK } else { &[] };
    if options.scenario.is_none() {
        let (format, arguments) = CARGO[0];
        tally.check(format, || cargo(arguments))?;
        // The compiler and the linker leave a processor idle now and then, and so do the builds in Go.
        let (clippy, arguments) = CARGO[1];
        let tools = if options.fast {
            tools::ensure
        } else {
            up::prepare
        };
        tally.check(&format!("tools, {clippy}"), || {
            together(vec![
                Box::new(move || tools(progress)),
                Box::new(move || cargo(arguments)),
            ])
        })?;
        tally.check_parts("tests", |seconds, _| suite::run(seconds, soak))?;
        tally.check("examples in documentation", || {
            cargo(&["test", "--workspace", "--locked", "--doc", "--quiet"])
        })?;
        for (name, args) in &CARGO[2..] {
            tally.check(name, || cargo(args))?;
        }
        tally.check("helm lint", helm_lint)?;
    }
    if !options.fast {
        tally.check("cluster", || up::run(progress, &Up::after_tests()))?;
        tally.check("cluster, once more", || up_again(progress))?;
        let filter = options.scenario.as_deref().unwrap_or_default();
        let scenarios = scenarios::run(filter, soak)?;
        tally.passed += scenarios.passed;
        tally.seconds.extend(scenarios.seconds);
        let failed = scenarios.failed;
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
    up::run(progress, &Up::after_tests())?;
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
    let which = "{range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name} {.metadata.uid} {.metadata.generation} {.metadata.deletionTimestamp};{end}";
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
    Ok(staying(
        &(shell::output(&mut workloads)? + &shell::output(&mut pods)?),
    ))
}

/// Without the objects that are being deleted: a pod that an earlier `up` replaced may drain for a while.
fn staying(objects: &str) -> String {
    let is_deleted = |object: &&str| object.split_whitespace().count() > 4;
    let objects: Vec<&str> = objects
        .split_terminator(';')
        .filter(|object| !is_deleted(object))
        .map(str::trim)
        .collect();
    objects.join("; ")
}

fn cargo(args: &[&str]) -> Result<()> {
    shell::shown(&mut shell::cargo(args))
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

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_pod_that_drains_does_not_count_as_running() {
        let objects = "Pod a/new 1f 1 ;Pod a/old 2f 2 2026-01-01T00:00:00Z;Deployment a/b 3f 5 ;";
        assert_eq!(staying(objects), "Pod a/new 1f 1; Deployment a/b 3f 5");
    }

    #[test]
    fn the_slowest_parts_are_named_and_no_more_than_ten() {
        let seconds = (0..20)
            .map(|part| (format!("part {part}"), f64::from(part)))
            .collect();
        let named = slowest(&seconds);
        assert_eq!(named.len(), SLOWEST);
        assert_eq!(named[0], ("part 19", 19.0));
    }
}
