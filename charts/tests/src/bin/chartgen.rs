//! Copies the generated CRD manifests into the chart, or with `--check` says which copies are out of date.

use std::process::ExitCode;

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "--check");
    match titan_chart_tests::copy_definitions(check) {
        Ok(stale) if stale.is_empty() || !check => ExitCode::SUCCESS,
        Ok(stale) => {
            eprintln!(
                "out of date in charts/titan/files/crds: {}. Run `cargo run -p titan-chart-tests --bin chartgen` and \
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
