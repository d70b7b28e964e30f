//! The servers around the operator: an apiserver with the chart's rights, stores, and a cluster of nodes that kwok
//! pretends to run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use titan_testbed::process::{self, Server, Spec};
use titan_testbed::{Apiserver, Kafka, Postgres, Redis, cache};

use super::catalog;
use super::process::{counts, family_cpu};
use crate::{paths, shell};

const SYSTEM: &str = "titan-system";
const NODES: usize = 6;

/// Where the operator works.
pub struct World {
    // Fields drop in this order.
    /// The apiserver.
    pub apiserver: Apiserver,
    /// The profile.
    pub profile: PathBuf,
    folder: PathBuf,
    redis: Redis,
    kafka: Kafka,
    _postgres: Postgres,
    /// The servers by name, with their process ids.
    parts: Vec<(&'static str, u32)>,
}

/// A running operator.
pub struct Operator {
    /// The process.
    pub server: Server,
    metrics: String,
}

impl World {
    /// Starts everything but nodes and controllers.
    pub fn start(databases: usize) -> Result<Self> {
        let (mut postgres, mut redis, mut kafka) =
            (Postgres::start()?, Redis::start()?, Kafka::start()?);
        let apiserver = Apiserver::start()?;
        let folder = process::data_dir("bench", None)?;
        let [api, etcd] = apiserver.pids();
        let maintenance = postgres.maintenance();
        let parts = vec![
            ("apiserver", api),
            ("etcd", etcd),
            ("postgres", postgres.server().pid()),
            ("kafka", kafka.server().pid()),
            ("redis", redis.server().pid()),
        ];
        let world = World {
            apiserver,
            profile: folder.join("profile.json"),
            folder,
            redis,
            kafka,
            _postgres: postgres,
            parts,
        };
        world
            .apiserver
            .apply(&paths::repository().join("crds/manifests"))?;
        world.apiserver.kubectl(&["create", "namespace", SYSTEM])?;
        world.apply("rights", &rights()?)?;
        world.secret(
            catalog::POSTGRES_SECRET,
            &json!({
                "host": maintenance.host, "port": maintenance.port.to_string(),
                "username": maintenance.user, "password": maintenance.password, "sslmode": "disable",
            }),
        )?;
        world.secret(
            catalog::REDIS_SECRET,
            &json!({
                "host": world.redis.host(), "port": world.redis.port().to_string(),
                "password": Redis::PASSWORD, "sslmode": "disable",
            }),
        )?;
        let profile = serde_json::to_string(&catalog::profile(databases))?;
        fs::write(&world.profile, &profile)?;
        world.apply("profile", &profile)?;
        Ok(world)
    }

    fn secret(&self, name: &str, data: &Value) -> Result<()> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": name, "namespace": SYSTEM, "annotations": { "titan.dev/for-cells": "*" } },
            "stringData": data,
        });
        self.apply(name, &secret.to_string())
    }

    fn apply(&self, name: &str, manifest: &str) -> Result<()> {
        let file = self.folder.join(format!("{name}.yaml"));
        fs::write(&file, manifest)?;
        let file = file.display().to_string();
        self.apiserver.kubectl(&["apply", "-f", &file])?;
        Ok(())
    }

    /// Writes a fleet of so many cells to a file. Their names begin with that of the fleet.
    pub fn fleet(&self, name: &str, cells: usize) -> Result<PathBuf> {
        let file = self.folder.join(format!("fleet-{name}.json"));
        let fleet = catalog::fleet(name, cells, self.kafka.bootstrap());
        fs::write(&file, fleet.to_string())?;
        Ok(file)
    }

    /// Has so many cells made.
    pub fn apply_fleet(&self, cells: usize) -> Result<()> {
        let file = self.fleet(catalog::NAME, cells)?.display().to_string();
        self.apiserver.kubectl(&["apply", "-f", &file])?;
        Ok(())
    }

    /// The CPU seconds that each server has used so far.
    pub fn cpu(&self) -> Result<BTreeMap<&'static str, f64>> {
        self.parts
            .iter()
            .map(|(name, pid)| Ok((*name, family_cpu(*pid)?)))
            .collect()
    }

    /// The requests that the apiserver has answered so far, by verb, whoever asked.
    pub fn requests(&self) -> Result<BTreeMap<String, u64>> {
        let metrics = self.apiserver.kubectl(&["get", "--raw=/metrics"])?;
        Ok(counts(&metrics, "apiserver_request_total", "", "verb"))
    }

    /// How many cells are Ready.
    pub fn ready(&self) -> Result<usize> {
        let ready = self.apiserver.kubectl(&[
            "get",
            "cellfleet",
            catalog::NAME,
            "-o",
            "jsonpath={.status.readyCells}",
        ])?;
        Ok(ready.trim().parse().unwrap_or(0))
    }

    /// A kubeconfig of the operator's ServiceAccount, which has the rights that the chart gives it and no more.
    fn operator_kubeconfig(&self) -> Result<PathBuf> {
        let token = self.apiserver.kubectl(&[
            "create",
            "token",
            "titan-operator",
            "--namespace",
            SYSTEM,
            "--duration=12h",
        ])?;
        let authority = self.apiserver.kubectl(&[
            "config",
            "view",
            "--flatten",
            "--raw",
            "-o",
            "jsonpath={.clusters[0].cluster.certificate-authority-data}",
        ])?;
        let cluster = json!({
            "server": self.apiserver.url(), "certificate-authority-data": authority.trim(),
        });
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "operator",
            "clusters": [{ "name": "cluster", "cluster": cluster }],
            "users": [{ "name": "operator", "user": { "token": token.trim() } }],
            "contexts": [{ "name": "operator", "context": { "cluster": "cluster", "user": "operator" } }],
        });
        let file = self.folder.join("operator.kubeconfig");
        fs::write(&file, config.to_string())?;
        Ok(file)
    }

    /// Starts the operator and waits until it leads.
    pub fn start_operator(&self, program: &Path) -> Result<Operator> {
        let registry = format!("127.0.0.1:{}", process::free_port()?);
        let metrics = format!("127.0.0.1:{}", process::free_port()?);
        let kubeconfig = self.operator_kubeconfig()?;
        let server = Server::start(Spec {
            name: "titan-operator",
            program,
            args: [
                "run",
                "--identity",
                "bench",
                "--registry-listen",
                &registry,
                "--metrics-listen",
                &metrics,
            ]
            .map(str::to_owned)
            .to_vec(),
            env: vec![("KUBECONFIG".to_owned(), kubeconfig.display().to_string())],
            log: self.folder.join("operator.log"),
            stop: Signal::SIGTERM,
            user: None,
        })?;
        let mut operator = Operator { server, metrics };
        let metrics = operator.metrics.clone();
        operator.server.wait_ready(Duration::from_secs(30), || {
            http_get(&metrics, "/metrics").is_ok_and(|text| text.contains("titan_leading 1"))
        })?;
        Ok(operator)
    }

    /// Where the operator's log is.
    pub fn operator_log(&self) -> PathBuf {
        self.folder.join("operator.log")
    }

    /// Starts what a cluster has besides an apiserver: controllers, a scheduler, and nodes whose pods kwok pretends to run. They
    /// stop when what is returned is dropped.
    pub fn start_nodes(&self) -> Result<Vec<Server>> {
        let nodes: Vec<String> = (0..NODES)
            .map(|number| catalog::node(number).to_string())
            .collect();
        self.apply("nodes", &nodes.join("\n---\n"))?;
        let config = self.apiserver.kubeconfig().display().to_string();
        let controllers = [
            "namespace-controller",
            "garbage-collector-controller",
            "node-lifecycle-controller",
            "deployment-controller",
            "replicaset-controller",
            "job-controller",
            "endpointslice-controller",
            "disruption-controller",
        ];
        let common = |port: u16| {
            vec![
                format!("--kubeconfig={config}"),
                format!("--authentication-kubeconfig={config}"),
                format!("--authorization-kubeconfig={config}"),
                "--leader-elect=false".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={port}"),
                // Their own limits are for clusters that have other things to do.
                "--kube-api-qps=5000".to_owned(),
                "--kube-api-burst=10000".to_owned(),
            ]
        };
        let mut manager = common(process::free_port()?);
        manager.push(format!("--controllers={}", controllers.join(",")));
        manager.extend(
            [
                "--concurrent-deployment-syncs=8",
                "--concurrent-replicaset-syncs=8",
                "--concurrent-job-syncs=8",
                // kwok's nodes tell of themselves less often than kubelets do, and all of their pods are taken for lost
                // when they have not for 50 seconds.
                "--node-monitor-grace-period=24h",
            ]
            .map(str::to_owned),
        );
        let manager = self.spawn("kube-controller-manager", manager)?;
        let scheduler = common(process::free_port()?);
        let scheduler = self.spawn("kube-scheduler", scheduler)?;
        let kwok = self.spawn(
            "kwok",
            vec![
                format!("--kubeconfig={config}"),
                "--manage-all-nodes=true".to_owned(),
                "--server-address=127.0.0.1:0".to_owned(),
            ],
        )?;
        Ok(vec![kwok, scheduler, manager])
    }

    fn spawn(&self, name: &str, args: Vec<String>) -> Result<Server> {
        Ok(Server::start(Spec {
            name,
            program: &cache::find(name)?,
            args,
            env: Vec::new(),
            log: self.folder.join(format!("{name}.log")),
            stop: Signal::SIGKILL,
            user: None,
        })?)
    }
}

impl Operator {
    /// Fails when it has ended, as it does when it loses its Lease.
    pub fn check_alive(&mut self) -> Result<()> {
        self.server
            .wait_ready(Duration::ZERO, || true)
            .context("the operator ended; one that cannot renew its Lease in time does so")
    }

    /// Its metrics, as Prometheus would read them.
    pub fn metrics(&self) -> Result<String> {
        http_get(&self.metrics, "/metrics")
    }
}

fn http_get(address: &str, path: &str) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The operator's ServiceAccount and its rights, as the chart has them.
fn rights() -> Result<String> {
    let mut helm = Command::new(cache::find("helm")?);
    helm.args(["template", "titan"])
        .arg(paths::repository().join("charts/titan"))
        .args(["--namespace", SYSTEM, "--kube-version", cache::KUBERNETES])
        .args(["--show-only", "templates/rbac.yaml"]);
    let rights = shell::output(&mut helm).context("render the chart's rights")?;
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": "titan-operator", "namespace": SYSTEM },
    });
    Ok(format!("{account}\n---\n{rights}"))
}
