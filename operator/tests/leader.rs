//! Leadership: one at a time, handed on in seconds, and nothing written by who lost it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use titan_operator::ledger::{GatedLedger, Interrupted, Ledger, Write};
use titan_operator::run::leadership::{Candidate, GateLayer, LEASE_DURATION, WriteGate};
use titan_operator::stores::kafka::KafkaAdmin;
use titan_operator::stores::postgres;
use titan_planner::cell::{KafkaTopic, ServerCredentials};
use titan_testbed::apiserver;
use tokio::task::JoinHandle;

const NAMESPACE: &str = "default";
/// What a machine that is busy may take on top of what the protocol takes.
const GRACE: Duration = Duration::from_secs(2);
/// How long a test waits for what must come, where it is no matter when.
const PATIENCE: Duration = Duration::from_mins(1);

async fn config() -> Config {
    let kubeconfig = tokio::task::spawn_blocking(|| apiserver().unwrap().kubeconfig().to_owned())
        .await
        .unwrap();
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap()
}

/// A client as the operator has it: behind a gate.
async fn gated() -> (Client, WriteGate) {
    let gate = WriteGate::closed();
    let client = ClientBuilder::try_from(config().await)
        .unwrap()
        .with_layer(&GateLayer(gate.clone()))
        .build();
    (client, gate)
}

/// A replica that would lead, and its gate.
async fn replica(lease: &str, identity: &str) -> (Candidate, WriteGate, Client) {
    let (client, gate) = gated().await;
    let candidate = Candidate::new(
        client.clone(),
        NAMESPACE,
        lease,
        identity.to_owned(),
        gate.clone(),
    );
    (candidate, gate, client)
}

/// Lets a candidate win, and keep what it has won until it is aborted or deposed.
fn lead(mut candidate: Candidate) -> JoinHandle<()> {
    tokio::spawn(async move {
        candidate.win().await;
        candidate.keep().await;
    })
}

/// Waits until a gate is as wanted; how long that took.
async fn until(gate: &WriteGate, open: bool, within: Duration) -> Duration {
    let began = Instant::now();
    while gate.is_open() != open {
        assert!(
            began.elapsed() < within,
            "the gate was not {} within {within:?}",
            if open { "opened" } else { "shut" }
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}

async fn holder(client: &Client, lease: &str) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    leases.get(lease).await.unwrap().spec?.holder_identity
}

/// Watches two gates until the future ends: at no moment may both be open.
async fn never_both<T>(a: &WriteGate, b: &WriteGate, during: impl Future<Output = T>) -> T {
    let watch = async {
        loop {
            assert!(!(a.is_open() && b.is_open()), "two replicas may write");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = watch => unreachable!("it watches for ever"),
        result = during => result,
    }
}

fn config_map(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_leads_and_a_standby_takes_over_from_a_leader_that_died() {
    let (first, first_gate, client) = replica("died", "first").await;
    let (second, second_gate, _) = replica("died", "second").await;
    let leader = lead(first);
    until(&first_gate, true, Duration::from_secs(10)).await;
    let standby = lead(second);

    let took = never_both(&first_gate, &second_gate, async {
        // Renewals keep it: for longer than one Lease, the standby gets nothing.
        let began = Instant::now();
        while began.elapsed() < LEASE_DURATION + GRACE {
            assert!(first_gate.is_open(), "the leader renews in time");
            assert!(!second_gate.is_open());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(holder(&client, "died").await.as_deref(), Some("first"));

        leader.abort();
        until(&second_gate, true, PATIENCE).await
    })
    .await;
    println!("after the leader's death the standby led in {took:?}");
    assert!(!first_gate.is_open());
    assert_eq!(holder(&client, "died").await.as_deref(), Some("second"));
    let leases: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let lease = leases.get("died").await.unwrap().spec.unwrap();
    assert_eq!(lease.lease_transitions, Some(1));
    standby.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_leaves_hands_over_at_once() {
    let (mut first, first_gate, client) = replica("left", "first").await;
    let (second, second_gate, _) = replica("left", "second").await;
    first.win().await;
    assert!(first_gate.is_open());
    // Nobody may take it for run out before the test ends: what the standby gets, it was given.
    let forever = Patch::Merge(json!({"spec": {"leaseDurationSeconds": 3600}}));
    Api::<Lease>::namespaced(client.clone(), NAMESPACE)
        .patch("left", &PatchParams::default(), &forever)
        .await
        .unwrap();
    let standby = lead(second);

    let took = never_both(&first_gate, &second_gate, async {
        // The standby has seen that somebody leads.
        assert_eq!(holder(&client, "left").await.as_deref(), Some("first"));
        first.release().await;
        assert!(!first_gate.is_open(), "shut before the Lease is given back");
        until(&second_gate, true, PATIENCE).await
    })
    .await;
    println!("after a release the standby led in {took:?}");
    standby.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_suspended_can_read_and_cannot_write() {
    let (mut first, first_gate, client) = replica("suspended", "first").await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let refused = maps
        .create(&PostParams::default(), &config_map("too-early"))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("not the leader"), "{refused}");

    first.win().await;
    maps.create(&PostParams::default(), &config_map("in-time"))
        .await
        .unwrap();

    // It is not scheduled any more: nothing renews, and nothing tells it. Its own deadline passes before anybody else may lead.
    let (second, second_gate, other) = replica("suspended", "second").await;
    let standby = lead(second);
    never_both(&first_gate, &second_gate, async {
        until(&first_gate, false, LEASE_DURATION).await;
        assert!(!second_gate.is_open(), "a gap, and no overlap");
        until(&second_gate, true, PATIENCE).await
    })
    .await;

    // It wakes up and goes on with what it was about to do.
    let patch = Patch::Merge(json!({"data": {"by": "first"}}));
    let late = [
        maps.create(&PostParams::default(), &config_map("too-late"))
            .await
            .map(drop),
        maps.patch("in-time", &PatchParams::default(), &patch)
            .await
            .map(drop),
        maps.delete("in-time", &DeleteParams::default())
            .await
            .map(drop),
    ];
    for write in late {
        let refused = write.unwrap_err();
        assert!(refused.to_string().contains("not the leader"), "{refused}");
    }
    let names: Vec<_> = maps
        .list(&ListParams::default())
        .await
        .unwrap()
        .into_iter()
        .filter_map(|map| map.metadata.name)
        .filter(|name| name.starts_with("too-") || name == "in-time")
        .collect();
    assert_eq!(names, ["in-time"], "reads pass, and no write went through");
    assert_eq!(maps.get("in-time").await.unwrap().data, None);

    // It learns of it as soon as it looks, and the new leader writes.
    let told = tokio::time::timeout(LEASE_DURATION, first.keep()).await;
    assert!(told.is_ok(), "a deposed leader ends its term");
    assert!(!first_gate.is_open());
    assert_eq!(
        holder(&client, "suspended").await.as_deref(),
        Some("second")
    );
    Api::<ConfigMap>::namespaced(other, NAMESPACE)
        .delete("in-time", &DeleteParams::default())
        .await
        .unwrap();
    standby.abort();
}

struct Uncounted;

impl Ledger for Uncounted {
    fn may_write(&self) -> Result<(), Interrupted> {
        Ok(())
    }

    fn record(&self, _: Write) -> Result<(), Interrupted> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_suspended_writes_to_no_store() {
    let (database, kafka) = tokio::task::spawn_blocking(|| {
        (
            titan_testbed::postgres().unwrap(),
            titan_testbed::kafka().unwrap(),
        )
    })
    .await
    .unwrap();
    let server = ServerCredentials {
        host: database.host,
        port: database.port,
        username: database.user,
        password: database.password,
        sslmode: "disable".to_owned(),
        ca: String::new(),
    };
    let kafka = KafkaAdmin::new(kafka.bootstrap()).unwrap();
    let topic = |name: &str| KafkaTopic {
        name: format!("titan.suspended.{name}"),
        partitions: 1,
        replication_factor: 1,
        config: BTreeMap::new(),
    };
    let (mut first, gate, _) = replica("suspended-stores", "first").await;
    let ledger = GatedLedger::new(Arc::new(Uncounted), gate.clone());
    let no_passwords = BTreeMap::new();
    let make = async |name: &str| {
        let made = postgres::ensure(&server, name, &[], &no_passwords, &ledger).await;
        let topics = kafka.ensure(&[topic(name)], &ledger).await;
        (made.map(drop), topics.map(drop))
    };

    first.win().await;
    // Making them may take longer than a term.
    let renewals = tokio::spawn(async move { first.keep().await });
    let (database, topics) = make("in_time").await;
    database.unwrap();
    topics.unwrap();

    // Nothing renews any more: its own deadline passes.
    renewals.abort();
    assert!(renewals.await.is_err(), "it led to the end");
    until(&gate, false, LEASE_DURATION).await;
    let (database, topics) = make("too_late").await;
    for refused in [
        database,
        topics,
        kafka
            .delete(&[topic("in_time").name], &ledger)
            .await
            .map(drop),
        postgres::drop_database(&server, "in_time", &ledger)
            .await
            .map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.category(), "interrupted", "{refused}");
    }
    postgres::ownership(&server, "in_time").await.unwrap();
    postgres::ownership(&server, "too_late").await.unwrap_err();
    let topics = kafka.existing("suspended").await.unwrap();
    assert_eq!(topics, [topic("in_time").name]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_candidates_for_a_free_lease_one_wins() {
    let mut gates = Vec::new();
    let mut tasks = Vec::new();
    let mut client = None;
    for number in 0..6 {
        let (candidate, gate, own) = replica("contended", &format!("replica-{number}")).await;
        client = Some(own);
        gates.push(gate);
        tasks.push(candidate);
    }
    let tasks: Vec<_> = tasks.into_iter().map(lead).collect();
    let client = client.unwrap();
    let open = || gates.iter().filter(|gate| gate.is_open()).count();
    let began = Instant::now();
    while open() == 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "nobody leads");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let won = Instant::now();
    let leader = holder(&client, "contended").await;
    while won.elapsed() < GRACE {
        assert_eq!(open(), 1, "exactly one leads");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(holder(&client, "contended").await, leader);
    tasks.iter().for_each(JoinHandle::abort);
}
