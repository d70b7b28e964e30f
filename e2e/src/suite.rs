//! The tests of all crates, several test binaries at a time. Most of them wait for servers more than they compute, so that one
//! after the other they leave the processors idle.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::failures::Failures;
use crate::{paths, shell};

/// Where random tests begin. The same each time, for a run has to be about what was changed; other seeds are for whoever
/// looks for faults. The fuzz targets take no part: they are random after the first input, whatever their seed is.
const SEED: (&str, &str) = ("PROPTEST_RNG_SEED", "1");

/// One executable of tests.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Binary {
    /// `package/target`, for people.
    name: String,
    /// The executable.
    program: PathBuf,
    /// The folder of its package, which is where cargo would run it.
    folder: PathBuf,
}

/// How one of them went.
struct Outcome {
    passed: bool,
    took: Duration,
}

/// Compiles and runs the tests of all crates, with these variables set where they are not set already, and notes how long each
/// binary took.
pub fn run(seconds: &mut BTreeMap<String, f64>, soak: &[(&str, &str)]) -> Result<()> {
    let mut variables = soak.to_vec();
    if soak.is_empty() {
        variables.push(SEED);
    }
    variables.retain(|(name, _)| std::env::var_os(name).is_none());
    let began = Instant::now();
    let binaries = compile()?;
    seconds.insert("compile tests".to_owned(), began.elapsed().as_secs_f64());
    let known = Durations::load();
    let queue = Mutex::new(longest_first(binaries, &known.0));
    let failures = Mutex::new(Vec::new());
    let done = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..at_once() {
            scope.spawn(|| {
                while let Some(binary) = next(&queue) {
                    let (outcome, lines) = match execute(&binary, &variables) {
                        Ok(found) => found,
                        Err(error) => (
                            Outcome {
                                passed: false,
                                took: Duration::ZERO,
                            },
                            vec![format!("{}: {error:#}", binary.name)],
                        ),
                    };
                    if !outcome.passed {
                        lock(&failures).push((binary.name.clone(), lines));
                    }
                    lock(&done).insert(binary.name, outcome.took.as_secs_f64());
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_default();
    Durations(done.clone()).save();
    seconds.extend(done);
    let failures = failures.into_inner().unwrap_or_default();
    if failures.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = failures.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(", ");
    for (name, lines) in &failures {
        println!("\n-- {name}");
        lines.iter().for_each(|line| println!("{line}"));
    }
    bail!("tests failed in {names}")
}

/// Half as many again as there are processors: some of the binaries wait at any time.
fn at_once() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    processors + processors.div_ceil(2)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn next(queue: &Mutex<VecDeque<Binary>>) -> Option<Binary> {
    lock(queue).pop_front()
}

/// The longest first, so that no long binary is left for the end; one that was never run counts as long.
fn longest_first(mut binaries: Vec<Binary>, known: &BTreeMap<String, f64>) -> VecDeque<Binary> {
    let seconds = |binary: &Binary| known.get(&binary.name).copied().unwrap_or(f64::MAX);
    binaries.sort_by(|a, b| {
        seconds(b)
            .total_cmp(&seconds(a))
            .then_with(|| a.name.cmp(&b.name))
    });
    binaries.into()
}

fn compile() -> Result<Vec<Binary>> {
    let mut cargo = shell::cargo(&[
        "test",
        "--workspace",
        "--locked",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    if !output.status.success() {
        bail!("`{}` failed ({})", shell::line(&cargo), output.status);
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// The executables of tests among the messages of cargo.
fn executables(messages: &str) -> Vec<Binary> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut binaries = Vec::new();
    for message in messages {
        let (Some(program), Some(manifest)) = (
            message["executable"].as_str(),
            message["manifest_path"].as_str(),
        ) else {
            continue;
        };
        if message["profile"]["test"] != true {
            continue;
        }
        let folder = Path::new(manifest).parent().unwrap_or(Path::new("/"));
        let package = folder.strip_prefix(paths::repository()).unwrap_or(folder);
        let target = message["target"]["name"].as_str().unwrap_or_default();
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        let target = if kind == "lib" { kind } else { target };
        binaries.push(Binary {
            name: format!("{}/{target}", package.display()),
            program: program.into(),
            folder: folder.to_owned(),
        });
    }
    binaries
}

/// Runs one binary as cargo would. What it prints is shown when it has ended, so that the lines of two do not mix.
fn execute(binary: &Binary, variables: &[(&str, &str)]) -> Result<(Outcome, Vec<String>)> {
    let began = Instant::now();
    let log = log_of(&binary.name)?;
    let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut command = Command::new(&binary.program);
    command
        .current_dir(&binary.folder)
        .env("CARGO_MANIFEST_DIR", &binary.folder)
        .stdin(Stdio::null())
        .stderr(output.try_clone()?)
        .stdout(output);
    command.envs(variables.iter().copied());
    let status = command
        .status()
        .with_context(|| format!("run {}", binary.program.display()))?;
    let took = began.elapsed();
    let shown = io::stdout().lock();
    println!(
        "\n     Running {} ({:.1} s)",
        binary.name,
        took.as_secs_f64()
    );
    let failures = Failures::read(BufReader::new(File::open(&log)?), shown)?;
    let mut lines = failures.lines;
    if !status.success() && lines.is_empty() {
        lines.push(format!("ended with {status}"));
    }
    Ok((
        Outcome {
            passed: status.success(),
            took,
        },
        lines,
    ))
}

/// What a binary prints stays here until it runs again.
fn log_of(name: &str) -> Result<PathBuf> {
    let folder = paths::target().join("test-logs");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder.join(format!("{}.log", name.replace('/', "-"))))
}

/// How long each binary took the last time.
#[derive(Default)]
struct Durations(BTreeMap<String, f64>);

impl Durations {
    fn file() -> PathBuf {
        titan_testbed::cache::root().join("test-seconds.json")
    }

    fn load() -> Self {
        let known = fs::read(Self::file()).ok();
        Durations(
            known
                .and_then(|text| serde_json::from_slice(&text).ok())
                .unwrap_or_default(),
        )
    }

    /// It only saves time; a folder that cannot be written to is no failure of a test.
    fn save(&self) {
        if let Ok(text) = serde_json::to_vec_pretty(&self.0) {
            let _ = fs::write(Self::file(), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(name: &str) -> Binary {
        Binary {
            name: name.to_owned(),
            program: PathBuf::new(),
            folder: PathBuf::new(),
        }
    }

    #[test]
    fn binaries_of_tests_are_found_among_the_messages_of_cargo() {
        let root = paths::repository();
        let message = |kind: &str, name: &str, test: bool| {
            serde_json::json!({
                "reason": "compiler-artifact", "executable": format!("/t/{name}"),
                "manifest_path": root.join("operator/Cargo.toml"), "profile": {"test": test},
                "target": {"name": name, "kind": [kind]},
            })
            .to_string()
        };
        let messages = [
            message("test", "cells", true),
            message("lib", "titan_operator", true),
            message("bin", "titan-operator", false),
            r#"{"reason": "build-finished", "success": true}"#.to_owned(),
        ];
        let names: Vec<_> = executables(&messages.join("\n"))
            .into_iter()
            .map(|binary| binary.name)
            .collect();
        assert_eq!(names, ["operator/cells", "operator/lib"]);
    }

    #[test]
    fn the_longest_runs_first_and_an_unknown_one_before_it() {
        let known = BTreeMap::from([("short".to_owned(), 1.0), ("long".to_owned(), 9.0)]);
        let order = longest_first(vec![binary("short"), binary("new"), binary("long")], &known);
        let names: Vec<_> = order.into_iter().map(|binary| binary.name).collect();
        assert_eq!(names, ["new", "long", "short"]);
    }

    #[test]
    fn a_binary_that_fails_says_with_which_lines() {
        let failing = Binary {
            program: "/bin/false".into(),
            folder: "/".into(),
            ..binary("false")
        };
        let (outcome, lines) = execute(&failing, &[]).unwrap();
        assert!(!outcome.passed);
        assert_eq!(lines, ["ended with exit status: 1"]);
    }
}
