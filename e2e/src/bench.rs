//! `cargo titan bench`: measurements next to a reference on the same machine in the same run.

use anyhow::{Result, bail};
use serde_json::Value;

use crate::report;

/// One benchmark.
pub struct Bench {
    /// Its name: that of its report.
    pub name: &'static str,
    /// What it measures, in a sentence.
    pub measures: &'static str,
    /// Runs it; what it returns is its report.
    pub run: fn() -> Result<Value>,
}

/// All benchmarks.
pub const ALL: &[Bench] = &[];

/// Runs the benchmark of that name, or lists all.
pub fn run(name: Option<&str>) -> Result<()> {
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
    let result = (bench.run)()?;
    println!("{}", serde_json::to_string_pretty(&result)?);
    println!(
        "report: {}",
        report::write(&format!("bench-{name}"), &result)?.display()
    );
    Ok(())
}
