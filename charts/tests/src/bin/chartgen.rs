//! Copies the CRDs into the chart and writes their reference, or with `--check` says which of it is out of date.

use std::process::ExitCode;

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "--check");
    match titan_chart_tests::generate(check) {
        Ok(stale) if stale.is_empty() || !check => ExitCode::SUCCESS,
        Ok(stale) => {
            eprintln!(
                "out of date: {}. Run `cargo run -p titan-chart-tests --bin chartgen` and \
                 commit what it writes.",
                stale.join(", ")
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("chartgen: {error}");
            ExitCode::FAILURE
        }
    }
}
