//! `cargo titan`: a real cluster on this machine, the tests that need one, and benchmarks.

#![allow(clippy::print_stdout, reason = "a command line speaks to its user")]

mod bench;
mod checks;
mod cluster;
mod failures;
mod images;
mod install;
mod paths;
mod preflight;
mod progress;
mod report;
mod scenarios;
mod shell;
mod status;
mod suite;
mod tools;
mod up;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use progress::Progress;

/// Titan Cells on this machine
#[derive(Debug, Parser)]
#[command(name = "cargo titan", bin_name = "cargo titan", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the local cluster, install Titan Cells, and wait until the example's cell is Ready
    Up(up::Up),
    /// Stop the local cluster and remove everything of it but the cache
    Down,
    /// Show what runs
    Status,
    /// Print the path of the local cluster's kubeconfig
    Kubeconfig,
    /// Install and build the tools that the cluster and the tests use, and nothing else
    Tools,
    /// Run every check
    Test(checks::Test),
    /// Run a benchmark, or list them
    Bench {
        /// Which one
        name: Option<String>,
        /// Its own arguments; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let progress = Progress::new();
    match command {
        Command::Up(options) => up::run(&progress, &options)?,
        Command::Down => down(&progress)?,
        Command::Status => {
            if !status::run() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Kubeconfig => println!("{}", paths::kubeconfig().display()),
        Command::Tools => {
            preflight::for_tools()?;
            tools::ensure(&progress)?;
            println!(
                "all tools are in {}",
                titan_testbed::cache::root().join("tools").display()
            );
        }
        Command::Test(options) => checks::run(&progress, &options)?,
        Command::Bench { name, arguments } => bench::run(&progress, name.as_deref(), &arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn down(progress: &Progress) -> Result<()> {
    let left = cluster::teardown::down(progress)?;
    if !left.is_empty() {
        bail!("still there:\n  - {}", left.join("\n  - "));
    }
    println!(
        "Nothing of the cluster is left; built tools and images stay in {}",
        titan_testbed::cache::root().display()
    );
    Ok(())
}
