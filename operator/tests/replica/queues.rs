//! Stores that do not answer delay nobody but their own cells.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use titan_crds::{Cell, CellFleet, ServiceProfile};
use titan_testbed::{Apiserver, Kafka, Postgres, Redis};
use tokio::task::JoinHandle;

use crate::proxy::Proxy;
use crate::replica::{PATIENCE, Replica, prepare, until};

const SYSTEM: &str = "default";
/// Cells whose PostgreSQL hangs: as many as there once were slots for all cells.
const HANGING: i64 = 6;

/// What the test works with.
struct World {
    client: Client,
}

impl World {
    async fn secret(&self, name: &str, data: Value) {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "annotations": {"titan.dev/for-cells": "*"}},
            "stringData": data,
        });
        let secret: Secret = serde_json::from_value(secret).unwrap();
        Api::<Secret>::namespaced(self.client.clone(), SYSTEM)
            .create(&PostParams::default(), &secret)
            .await
            .unwrap();
    }

    async fn fleet(&self, name: &str, bootstrap: &str) {
        let fleet = json!({
            "apiVersion": "titan.dev/v1alpha1", "kind": "CellFleet", "metadata": {"name": name},
            "spec": {"kafka": {"bootstrap": bootstrap, "replicationFactor": 1}},
        });
        let fleet: CellFleet = serde_json::from_value(fleet).unwrap();
        Api::all(self.client.clone())
            .create(&PostParams::default(), &fleet)
            .await
            .unwrap();
    }

    async fn profile(&self, name: &str, postgres: &str) {
        let profile = json!({
            "apiVersion": "titan.dev/v1alpha1", "kind": "ServiceProfile", "metadata": {"name": name},
            "spec": {
                "databases": {
                    "postgres": {"external": {"secretName": postgres}},
                    "redis": {"external": {"secretName": "redis"}},
                },
                "services": [{
                    "name": "order", "port": 50001, "stores": {"postgres": true, "kafka": true},
                    "topics": [{"name": "order.events", "partitions": 1}],
                }],
            },
        });
        let profile: ServiceProfile = serde_json::from_value(profile).unwrap();
        Api::all(self.client.clone())
            .create(&PostParams::default(), &profile)
            .await
            .unwrap();
    }

    async fn cell(&self, name: &str, fleet: &str, profile: &str, number: i64) {
        let cell = json!({
            "apiVersion": "titan.dev/v1alpha1", "kind": "Cell", "metadata": {"name": name},
            "spec": {
                "fleet": fleet, "profile": profile, "release": "1.0.0",
                "userRange": {"first": number * 1000, "last": number * 1000 + 999},
            },
        });
        let cell: Cell = serde_json::from_value(cell).unwrap();
        Api::all(self.client.clone())
            .create(&PostParams::default(), &cell)
            .await
            .unwrap();
    }

    /// A condition of a cell as `status/reason`.
    async fn condition(&self, cell: &str, name: &str) -> String {
        let cell: Cell = Api::all(self.client.clone()).get(cell).await.unwrap();
        let conditions = cell.status.unwrap_or_default().conditions;
        conditions
            .iter()
            .find(|condition| condition.type_ == name)
            .map_or_else(String::new, |it| format!("{}/{}", it.status, it.reason))
    }

    async fn is_ready(&self, cell: &str) -> bool {
        self.condition(cell, "Ready").await.starts_with("True/")
    }

    fn deployments(&self, cell: &str) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), cell)
    }
}

/// Completes Jobs and readies Deployments, as kubelets would.
fn play_kubelet(client: Client) -> JoinHandle<()> {
    tokio::spawn(async move {
        let (all, how) = (ListParams::default(), PatchParams::default());
        loop {
            for job in Api::<Job>::all(client.clone()).list(&all).await.unwrap() {
                if job.status.as_ref().and_then(|it| it.succeeded).is_some() {
                    continue;
                }
                let now = "2026-01-01T00:00:00Z";
                let done = json!({
                    "succeeded": 1, "startTime": now, "completionTime": now,
                    "conditions": [
                        {"type": "SuccessCriteriaMet", "status": "True"},
                        {"type": "Complete", "status": "True"},
                    ],
                });
                let patch = Patch::Merge(json!({"status": done}));
                let jobs: Api<Job> = Api::namespaced(client.clone(), &job.namespace().unwrap());
                let _ = jobs.patch_status(&job.name_any(), &how, &patch).await;
            }
            for it in Api::<Deployment>::all(client.clone())
                .list(&all)
                .await
                .unwrap()
            {
                let generation = it.metadata.generation;
                if it.status.as_ref().and_then(|it| it.observed_generation) == generation {
                    continue;
                }
                let wanted = it.spec.as_ref().and_then(|it| it.replicas).unwrap_or(1);
                let ready = json!({
                    "observedGeneration": generation, "replicas": wanted,
                    "updatedReplicas": wanted, "readyReplicas": wanted, "availableReplicas": wanted,
                });
                let patch = Patch::Merge(json!({"status": ready}));
                let namespace = it.namespace().unwrap();
                let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
                let _ = deployments.patch_status(&it.name_any(), &how, &patch).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_do_not_answer_delay_nobody_else() {
    let (apiserver, postgres, redis, kafka) = tokio::task::block_in_place(|| {
        (
            Apiserver::start().unwrap(),
            Postgres::start().unwrap(),
            Redis::start().unwrap(),
            Kafka::start().unwrap(),
        )
    });
    let config = prepare(&apiserver).await;
    let world = World {
        client: Client::try_from(config.clone()).unwrap(),
    };
    let server = postgres.maintenance();
    let secret = |port: u16| {
        json!({
            "host": "127.0.0.1", "port": port.to_string(), "username": server.user,
            "password": server.password, "sslmode": "disable",
        })
    };
    world.secret("postgres", secret(server.port)).await;
    let redis = json!({
        "host": redis.host(), "port": redis.port().to_string(), "password": Redis::PASSWORD,
        "sslmode": "disable",
    });
    world.secret("redis", redis).await;
    world.profile("healthy", "postgres").await;
    world.fleet("healthy", kafka.bootstrap()).await;
    // A PostgreSQL for each that takes connections and never answers, and a Kafka that is away.
    let mut proxies = Vec::new();
    for number in 0..HANGING {
        let proxy = Proxy::to(server.port).await;
        proxy.swallow(true);
        let name = format!("hanging-{number}");
        world.secret(&name, secret(proxy.address.port())).await;
        world.profile(&name, &name).await;
        proxies.push(proxy);
    }
    world.fleet("hanging", "127.0.0.1:1").await;

    let kubelet = play_kubelet(world.client.clone());
    let replica = Replica::start(config, "one");
    world.cell("healthy-1", "healthy", "healthy", 1).await;
    until("the healthy cell is Ready", 2 * PATIENCE, async || {
        world.is_ready("healthy-1").await
    })
    .await;
    for number in 0..HANGING {
        let name = format!("hanging-{number}");
        world.cell(&name, "hanging", &name, 10 + number).await;
    }
    until("all others are looked at", PATIENCE, async || {
        for number in 0..HANGING {
            let name = format!("hanging-{number}");
            let databases = world.condition(&name, "DatabasesReady").await;
            if databases != "Unknown/PostgresUnreachable" {
                return false;
            }
        }
        true
    })
    .await;

    for _ in 0..3 {
        let deployments = world.deployments("healthy-1");
        let gone = deployments.get("order").await.unwrap().metadata.uid;
        deployments
            .delete("order", &DeleteParams::default())
            .await
            .unwrap();
        let took = until(
            "the Deployment is back",
            Duration::from_secs(2),
            async || {
                let found = deployments.get_opt("order").await.unwrap();
                found.is_some_and(|found| found.metadata.uid != gone)
            },
        )
        .await;
        println!("a deleted Deployment was back after {took:?}");
    }
    world.cell("healthy-2", "healthy", "healthy", 2).await;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let took = until("a new cell starts", Duration::from_secs(5), async || {
        namespaces.get_opt("healthy-2").await.unwrap().is_some()
            && world
                .deployments("healthy-2")
                .get_opt("order")
                .await
                .unwrap()
                .is_some()
    })
    .await;
    println!("a new cell had its services after {took:?}");

    // The databases answer again, and nobody has to say so.
    for proxy in &proxies {
        proxy.swallow(false);
    }
    let took = until("the databases are looked at", PATIENCE, async || {
        for number in 0..HANGING {
            let databases = world
                .condition(&format!("hanging-{number}"), "DatabasesReady")
                .await;
            if databases != "True/Done" {
                return false;
            }
        }
        true
    })
    .await;
    println!("the stores were looked at again after {took:?}");
    let topics = world.condition("hanging-0", "TopicsReady").await;
    assert_eq!(topics, "Unknown/KafkaUnreachable");
    kubelet.abort();
    replica.stop().await;
}
