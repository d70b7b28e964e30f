//! `cargo titan bench`: measurements next to a reference on the same machine in the same run.

mod operator;
mod router;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::progress::Progress;
use crate::{preflight, report, tools};

/// One benchmark.
pub struct Bench {
    /// Its name: that of its report.
    pub name: &'static str,
    /// What it measures, in a sentence.
    pub measures: &'static str,
    /// Runs it with its own arguments; what it returns is its report.
    pub run: fn(&[String]) -> Result<Value>,
}

/// All benchmarks.
pub const ALL: &[Bench] = &[
    Bench {
        name: "operator",
        measures: "the operator at 100 cells: objects a second, writes, memory, and rest",
        run: operator::run,
    },
    Bench {
        name: "router",
        measures: "cell-router next to HAProxy, nginx, Envoy and Pingora: CPU a request, rates, latency, memory",
        run: router::run,
    },
];

/// Runs the benchmark of that name, or lists all.
pub fn run(progress: &Progress, name: Option<&str>, arguments: &[String]) -> Result<()> {
    let Some(name) = name else {
        for bench in ALL {
            println!("{:<12} {}", bench.name, bench.measures);
        }
        return Ok(());
    };
    let Some(bench) = ALL.iter().find(|bench| bench.name == name) else {
        let names: Vec<_> = ALL.iter().map(|bench| bench.name).collect();
        bail!("no benchmark `{name}`; there are: {}", names.join(", "));
    };
    preflight::for_tools()?;
    tools::ensure_for_benchmarks(progress)?;
    let result = (bench.run)(arguments)?;
    println!("{}", serde_json::to_string_pretty(&result)?);
    println!(
        "report: {}",
        report::write(&format!("bench-{name}"), &result)?.display()
    );
    Ok(())
}
