//! What the operator is measured against by `cargo titan bench operator`: the objects of the same cells, written to files
//! for kubectl, or sent by a loop that does nothing else.
//!
//! It is a program of its own because a reference has to be compiled with the same optimisations as the operator.

#![allow(clippy::print_stdout, reason = "its result is what it prints")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use futures::{StreamExt, TryStreamExt, stream};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rand::distr::{Alphanumeric, SampleString};
use serde_json::json;
use titan_crds::{Cell, CellFleet, ServiceProfile};
use titan_operator::execute::apply::ObjectClient;
use titan_operator::ledger::{Interrupted, Ledger, Write};
use titan_planner::Observed;
use titan_planner::cell::{Credentials, ServerCredentials, build, validate};
use titan_planner::fleet::missing_cells;
use titan_planner::object::{Json, Kind, Object, Stage};

/// As the operator: cells at once, and requests at once for each.
const CELLS_AT_ONCE: usize = 16;
const REQUESTS_AT_ONCE: usize = 16;

#[derive(Parser)]
struct Arguments {
    /// A CellFleet with a template, as JSON.
    #[arg(long)]
    fleet: PathBuf,
    /// The ServiceProfile that the template names, as JSON.
    #[arg(long)]
    profile: PathBuf,
    /// The first cell of the template, counted from 0.
    #[arg(long, default_value_t = 0)]
    from: usize,
    /// How many cells.
    #[arg(long, default_value_t = 1)]
    cells: usize,
    /// Leave out what has to wait until a migration has run.
    #[arg(long)]
    before_migrations: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print how many objects there are.
    Count,
    /// Write the objects to a file that kubectl can apply.
    Write {
        /// The file.
        file: PathBuf,
    },
    /// Create the objects, and print how long that took.
    Create {
        /// Where the apiserver is and who asks.
        #[arg(long)]
        kubeconfig: PathBuf,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let cells = objects(&arguments)?;
    let count: usize = cells.values().map(Vec::len).sum();
    match &arguments.command {
        Command::Count => println!("{}", json!({ "objects": count })),
        Command::Write { file } => {
            let text: Vec<String> = cells
                .values()
                .flatten()
                .map(|object| object.json.text().to_owned())
                .collect();
            std::fs::write(file, text.join("\n---\n"))
                .with_context(|| format!("write {}", file.display()))?;
            println!("{}", json!({ "objects": count }));
        }
        Command::Create { kubeconfig } => {
            let client = client(kubeconfig).await?;
            let (began, cpu) = (Instant::now(), cpu_seconds()?);
            create(&client, &cells).await?;
            let seconds = began.elapsed().as_secs_f64();
            let cpu = cpu_seconds()? - cpu;
            println!(
                "{}",
                json!({ "objects": count, "seconds": seconds, "cpuSeconds": cpu })
            );
        }
    }
    Ok(())
}

/// User and system time of this process so far.
fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let spent = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(u64::try_from(spent.num_microseconds())?).as_secs_f64())
}

/// The objects of each cell.
fn objects(arguments: &Arguments) -> Result<BTreeMap<String, Vec<Object>>> {
    let fleet: CellFleet = read(&arguments.fleet)?;
    let profile: ServiceProfile = read(&arguments.profile)?;
    let name = fleet.metadata.name.clone().unwrap_or_default();
    let cells = missing_cells(&name, &fleet.spec, [])?.missing;
    if cells.len() < arguments.from + arguments.cells {
        bail!("the fleet's template has only {} cells", cells.len());
    }
    cells
        .iter()
        .skip(arguments.from)
        .take(arguments.cells)
        .map(|cell| of_cell(cell, &profile, &fleet, arguments.before_migrations))
        .collect()
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T> {
    let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {}", file.display()))
}

fn of_cell(
    cell: &Cell,
    profile: &ServiceProfile,
    fleet: &CellFleet,
    before_migrations: bool,
) -> Result<(String, Vec<Object>)> {
    let valid = validate(cell, Observed::Known(profile), Observed::Known(fleet))?;
    let password = || Alphanumeric.sample_string(&mut rand::rng(), 32);
    let server = |port| ServerCredentials {
        host: "127.0.0.1".to_owned(),
        port,
        username: "administrator".to_owned(),
        password: password(),
        sslmode: "disable".to_owned(),
        ca: String::new(),
    };
    let credentials = Credentials {
        postgres: server(5432),
        redis: server(6379),
        replication_password: password(),
        salt: password(),
        rest_password: password(),
        pull_secrets: Default::default(),
        services: valid
            .schemas
            .iter()
            .map(|schema| (schema.service.clone(), password()))
            .collect(),
    };
    let mut objects = build(&valid, &credentials)?.objects;
    if before_migrations {
        objects.retain(|object| match &object.stage {
            Stage::Service(service) => !valid
                .services
                .iter()
                .any(|candidate| candidate.name == *service && candidate.stores.postgres),
            _ => true,
        });
    }
    for object in &mut objects {
        // Or an operator on the same apiserver would take them for its own.
        let mut body = object.body();
        if let Some(manager) = body.pointer_mut("/metadata/labels/app.kubernetes.io~1managed-by") {
            *manager = json!("reference");
        }
        object.json = Json::from(&body);
    }
    Ok((valid.name, objects))
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.headers.push((
        http::header::USER_AGENT,
        http::HeaderValue::from_static("reference"),
    ));
    Ok(Client::try_from(config)?)
}

async fn create(client: &Client, cells: &BTreeMap<String, Vec<Object>>) -> Result<()> {
    let cells: Vec<_> = cells
        .iter()
        .map(|(name, objects)| create_cell(client, name, objects))
        .collect();
    stream::iter(cells)
        .buffer_unordered(CELLS_AT_ONCE)
        .try_collect()
        .await
}

async fn create_cell(client: &Client, name: &str, objects: &[Object]) -> Result<()> {
    let client = ObjectClient::new(client, &NoLedger, name);
    let (namespace, rest): (Vec<&Object>, Vec<&Object>) = objects
        .iter()
        .partition(|object| object.kind == Kind::Namespace);
    for stage in [namespace, rest] {
        let creations: Vec<_> = stage
            .into_iter()
            .map(|object| client.create(object))
            .collect();
        stream::iter(creations)
            .buffer_unordered(REQUESTS_AT_ONCE)
            .try_collect::<()>()
            .await?;
    }
    Ok(())
}

struct NoLedger;

impl Ledger for NoLedger {
    fn may_write(&self) -> Result<(), Interrupted> {
        Ok(())
    }

    fn record(&self, _: Write) -> Result<(), Interrupted> {
        Ok(())
    }
}
