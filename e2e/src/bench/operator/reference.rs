//! What the operator is measured against.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use titan_testbed::Apiserver;

use super::process::{Process, ended_children_cpu, number, round};
use super::world::World;
use crate::shell;

/// The fleet of the reference, and the start of the names of its cells.
const REFERENCE: &str = "reference";

/// So many objects in so much time.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    /// How many.
    pub objects: usize,
    /// How long it took.
    pub seconds: f64,
    /// CPU seconds of the apiserver and its etcd.
    pub apiserver: f64,
    /// CPU seconds of who asked it.
    pub client: f64,
}

impl Rate {
    /// Objects a second.
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 {
            number(self.objects) / self.seconds
        } else {
            0.0
        }
    }

    /// CPU milliseconds an object, of the apiserver, its etcd and who asked it.
    pub fn cpu(&self) -> f64 {
        (self.apiserver + self.client) * 1000.0 / number(self.objects.max(1))
    }

    /// Both together.
    pub fn and(&self, other: &Rate) -> Rate {
        Rate {
            objects: self.objects + other.objects,
            seconds: self.seconds + other.seconds,
            apiserver: self.apiserver + other.apiserver,
            client: self.client + other.client,
        }
    }

    /// As it is written into the report.
    pub fn report(&self) -> Value {
        let objects = number(self.objects.max(1));
        json!({
            "objects": self.objects, "seconds": round(self.seconds), "objectsPerSecond": round(self.rate()),
            "apiserverCpuMsPerObject": round(self.apiserver * 1000.0 / objects),
            "cpuMsPerObject": round(self.cpu()),
        })
    }
}

/// What the operator is measured against, on its own apiserver: kubectl and a bare loop, which are given the objects of
/// other cells than the operator's.
pub struct Reference<'a> {
    program: PathBuf,
    world: &'a World,
    fleet: PathBuf,
}

impl<'a> Reference<'a> {
    /// The program in this folder, with so many cells to be made.
    pub fn new(binaries: &Path, world: &'a World, cells: usize) -> Result<Self> {
        Ok(Reference {
            program: binaries.join("examples/reference"),
            world,
            fleet: world.fleet(REFERENCE, cells)?,
        })
    }

    fn run(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.program);
        command
            .arg("--fleet")
            .arg(&self.fleet)
            .arg("--profile")
            .arg(&self.world.profile)
            .args(args);
        Ok(serde_json::from_str(&shell::output(&mut command)?)?)
    }

    /// How many objects a cell has, and how many of them come before its migrations.
    pub fn per_cell(&self) -> Result<(usize, usize)> {
        let all = self.run(&["--cells", "1", "count"])?;
        let early = self.run(&["--cells", "1", "--before-migrations", "count"])?;
        Ok((objects(&all)?, objects(&early)?))
    }

    /// Has kubectl apply the first cells.
    pub fn kubectl(&self, cells: usize) -> Result<Rate> {
        let file = self.fleet.with_file_name("objects.yaml");
        let file = file.display().to_string();
        let written = self.run(&[
            "--cells",
            &cells.to_string(),
            "--before-migrations",
            "write",
            &file,
        ])?;
        let apiserver = &self.world.apiserver;
        let (cpu, began) = (server_cpu(apiserver)?, Instant::now());
        let ended = ended_children_cpu()?;
        apiserver.kubectl(&["apply", "--server-side", "-f", &file])?;
        Ok(Rate {
            objects: objects(&written)?,
            seconds: began.elapsed().as_secs_f64(),
            apiserver: server_cpu(apiserver)? - cpu,
            client: ended_children_cpu()? - ended,
        })
    }

    /// Has the loop create so many cells.
    pub fn bare(&self, from: usize, cells: usize) -> Result<Rate> {
        let apiserver = &self.world.apiserver;
        let cpu = server_cpu(apiserver)?;
        let config = apiserver.kubeconfig().display().to_string();
        let done = self.run(&[
            "--from",
            &from.to_string(),
            "--cells",
            &cells.to_string(),
            "--before-migrations",
            "create",
            "--kubeconfig",
            &config,
        ])?;
        Ok(Rate {
            objects: objects(&done)?,
            seconds: done["seconds"].as_f64().unwrap_or_default(),
            apiserver: server_cpu(apiserver)? - cpu,
            client: done["cpuSeconds"].as_f64().unwrap_or_default(),
        })
    }

    /// Removes what controllers would begin to work on.
    pub fn remove_workloads(&self) -> Result<()> {
        self.world.apiserver.kubectl(&[
            "delete",
            "jobs,deployments",
            "--all-namespaces",
            "--selector=app.kubernetes.io/managed-by=reference",
            "--wait=false",
        ])?;
        Ok(())
    }
}

fn objects(answer: &Value) -> Result<usize> {
    let objects = answer["objects"].as_u64().context("no count of objects")?;
    Ok(usize::try_from(objects)?)
}

/// The CPU seconds of an apiserver and its etcd.
pub fn server_cpu(apiserver: &Apiserver) -> Result<f64> {
    let [api, etcd] = apiserver.pids();
    Ok(Process(api).usage()?.cpu + Process(etcd).usage()?.cpu)
}
