//! Scenarios: what users do, and what goes wrong for them, on the local cluster with real pods.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};

use crate::report;

/// One scenario.
pub struct Scenario {
    /// Its name: that of its report.
    pub name: &'static str,
    /// What it shows, in a sentence.
    pub shows: &'static str,
    /// Runs it; what it returns goes into its report.
    pub run: fn() -> Result<Value>,
}

/// All scenarios, in the order in which they run.
pub const ALL: &[Scenario] = &[];

/// Runs the scenarios whose name contains `filter`, writes their reports, and counts those that passed and failed.
pub fn run(filter: &str) -> Result<(usize, usize)> {
    let (mut passed, mut failed) = (0, 0);
    for scenario in ALL.iter().filter(|scenario| scenario.name.contains(filter)) {
        println!("scenario {}: {}", scenario.name, scenario.shows);
        let started = Instant::now();
        let result = (scenario.run)();
        let seconds = started.elapsed().as_secs_f64();
        let content = match &result {
            Ok(measured) => json!({ "passed": true, "seconds": seconds, "measured": measured }),
            Err(error) => {
                json!({ "passed": false, "seconds": seconds, "error": format!("{error:#}") })
            }
        };
        report::write(&format!("scenario-{}", scenario.name), &content)?;
        match result {
            Ok(measured) => {
                passed += 1;
                println!(
                    "scenario {}: ok in {seconds:.1} s {measured}",
                    scenario.name
                );
            }
            Err(error) => {
                failed += 1;
                println!(
                    "scenario {}: FAILED in {seconds:.1} s: {error:#}",
                    scenario.name
                );
            }
        }
    }
    Ok((passed, failed))
}
