//! Topics on a real Kafka.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use titan_operator::stores::StoreError;
use titan_operator::stores::kafka::KafkaAdmin;
use titan_planner::cell::KafkaTopic;
use titan_testbed::{Kafka, kafka};

use crate::book::Book;

fn topic(name: &str, partitions: i32) -> KafkaTopic {
    KafkaTopic {
        name: name.to_owned(),
        partitions,
        replication_factor: 1,
        config: BTreeMap::from([
            ("cleanup.policy".to_owned(), "delete".to_owned()),
            ("retention.ms".to_owned(), "3600000".to_owned()),
        ]),
    }
}

fn admin() -> KafkaAdmin {
    KafkaAdmin::new(&bootstrap()).unwrap()
}

fn bootstrap() -> String {
    kafka().unwrap().bootstrap().to_owned()
}

/// A client that owes the operator nothing.
fn outsider() -> AdminClient<DefaultClientContext> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap())
        .create()
        .unwrap()
}

/// Partitions and the keys that were set of a topic, as Kafka sees them.
async fn state(name: &str) -> (usize, BTreeMap<String, String>) {
    let client = outsider();
    let metadata = client
        .inner()
        .fetch_metadata(None, Duration::from_secs(5))
        .unwrap();
    let found = metadata.topics().iter().find(|topic| topic.name() == name);
    let partitions = found.map_or(0, |topic| topic.partitions().len());
    let wanted = [ResourceSpecifier::Topic(name)];
    let described = client
        .describe_configs(&wanted, &AdminOptions::new())
        .await
        .unwrap();
    let entries = described
        .into_iter()
        .flatten()
        .flat_map(|resource| resource.entries);
    let set = entries
        .filter(|entry| entry.source == rdkafka::admin::ConfigSource::DynamicTopic)
        .filter_map(|entry| Some((entry.name, entry.value?)))
        .collect();
    (partitions, set)
}

/// Looks until a condition holds: a broker learns of its own controller's decisions a moment later.
async fn eventually<T: std::fmt::Debug>(
    look: impl AsyncFn() -> T,
    holds: impl Fn(&T) -> bool,
) -> T {
    let started = Instant::now();
    loop {
        let seen = look().await;
        if holds(&seen) {
            return seen;
        }
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "still {seen:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn topics_are_made_once_and_found_by_their_cell() {
    let admin = admin();
    let topics = [
        topic("titan.made-1.order.events", 3),
        topic("titan.made-1.user.events", 1),
        topic("titan.made-10.user.events", 1),
    ];
    let book = Book::new();
    let report = admin.ensure(&topics, &book).await.unwrap();
    assert_eq!((report.created.len(), book.len(), report.writes), (3, 1, 1));
    let state = eventually(
        async || state("titan.made-1.order.events").await,
        |s| s.0 == 3,
    )
    .await;
    assert_eq!(state.1, topics[0].config);

    let own = ["titan.made-1.order.events", "titan.made-1.user.events"];
    eventually(
        async || admin.existing("made-1").await.unwrap(),
        |seen| seen == &own,
    )
    .await;
    let idle = Book::new();
    let report = admin.ensure(&topics, &idle).await.unwrap();
    assert_eq!((idle.writes(), report.warnings), (Vec::new(), Vec::new()));

    // A look makes nothing, even where the broker would.
    assert_eq!(
        admin.existing("made-2").await.unwrap(),
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn partitions_grow_and_never_shrink() {
    let admin = admin();
    let name = "titan.grown.order.events";
    admin.ensure(&[topic(name, 2)], &Book::new()).await.unwrap();
    eventually(async || state(name).await.0, |count| *count == 2).await;

    let book = Book::new();
    admin.ensure(&[topic(name, 5)], &book).await.unwrap();
    assert_eq!(book.writes(), [format!("kafka grow topics {name}")]);
    eventually(async || state(name).await.0, |count| *count == 5).await;

    let idle = Book::new();
    let report = admin.ensure(&[topic(name, 2)], &idle).await.unwrap();
    assert_eq!(idle.len(), 0);
    assert!(
        report.warnings[0].contains("has 5 partitions and should have 2"),
        "{report:?}"
    );
}

#[tokio::test]
async fn configuration_is_put_right_and_foreign_keys_stay() {
    let admin = admin();
    let wanted = [topic("titan.drifted.order.events", 1)];
    let name = wanted[0].name.as_str();
    admin.ensure(&wanted, &Book::new()).await.unwrap();
    eventually(async || state(name).await.0, |count| *count == 1).await;

    let by_hand = AlterConfig::new(ResourceSpecifier::Topic(name))
        .set("retention.ms", "5000")
        .set("max.message.bytes", "777777");
    outsider()
        .alter_configs(&[by_hand], &AdminOptions::new())
        .await
        .unwrap();
    let drifted = |set: &BTreeMap<String, String>| set["retention.ms"] == "5000";
    eventually(async || state(name).await.1, drifted).await;

    let book = Book::new();
    admin.ensure(&wanted, &book).await.unwrap();
    assert_eq!(book.writes(), [format!("kafka configure topics {name}")]);
    let mut right = wanted[0].config.clone();
    right.insert("max.message.bytes".to_owned(), "777777".to_owned());
    eventually(async || state(name).await.1, |set| *set == right).await;
    let idle = Book::new();
    admin.ensure(&wanted, &idle).await.unwrap();
    assert_eq!(idle.len(), 0);
}

#[tokio::test]
async fn a_crash_after_any_write_leaves_no_trace() {
    let admin = admin();
    for crash in 1..=3 {
        let names = ["new", "small", "odd"].map(|name| format!("titan.crash-{crash}.{name}"));
        let small = NewTopic::new(&names[1], 1, TopicReplication::Fixed(1))
            .set("cleanup.policy", "delete")
            .set("retention.ms", "3600000");
        let odd = NewTopic::new(&names[2], 2, TopicReplication::Fixed(1)).set("retention.ms", "1");
        outsider()
            .create_topics(&[small, odd], &AdminOptions::new())
            .await
            .unwrap();
        eventually(async || state(&names[2]).await.0, |count| *count == 2).await;

        let wanted = names.clone().map(|name| topic(&name, 2));
        let crashed = Book::crashing_after(crash);
        let interrupted = admin.ensure(&wanted, &crashed).await;
        assert!(
            matches!(interrupted, Err(StoreError::Interrupted(_))),
            "{interrupted:?}"
        );
        for name in names.iter().take(if crash == 1 { 1 } else { 2 }) {
            eventually(async || state(name).await.0, |count| *count == 2).await;
        }
        let rest = Book::new();
        admin.ensure(&wanted, &rest).await.unwrap();
        let all = [crashed.writes(), rest.writes()].concat();
        let each = ["create", "grow", "configure"];
        let clean = each.iter().zip(&names);
        let clean: Vec<_> = clean
            .map(|(verb, name)| format!("kafka {verb} topics {name}"))
            .collect();
        assert_eq!(all, clean, "crash after write {crash}");
        for topic in &wanted {
            let right = (2, topic.config.clone());
            eventually(async || state(&topic.name).await, |seen| *seen == right).await;
        }
    }
}

#[tokio::test]
async fn deleted_topics_are_gone_and_only_they() {
    let admin = admin();
    let topics = [topic("titan.gone-1.a", 1), topic("titan.gone-10.a", 1)];
    admin.ensure(&topics, &Book::new()).await.unwrap();
    let seen = eventually(
        async || admin.existing("gone-1").await.unwrap(),
        |s| s.len() == 1,
    )
    .await;
    let book = Book::new();
    assert_eq!(
        admin.delete(&seen, &book).await.unwrap(),
        ["titan.gone-1.a"]
    );
    eventually(
        async || admin.existing("gone-1").await.unwrap(),
        Vec::is_empty,
    )
    .await;
    assert_eq!(
        admin.delete(&seen, &book).await.unwrap(),
        Vec::<String>::new()
    );
    assert_eq!(book.writes(), ["kafka delete topics titan.gone-1.a"]);
    assert_eq!(
        admin.existing("gone-10").await.unwrap(),
        ["titan.gone-10.a"]
    );
}

#[tokio::test]
async fn what_kafka_cannot_do_is_said_before_anything_is_written() {
    let admin = admin();
    let mut tripled = topic("titan.tripled.b", 1);
    tripled.replication_factor = 3;
    let topics = [topic("titan.tripled.a", 1), tripled];
    let book = Book::new();
    let error = admin.ensure(&topics, &book).await.unwrap_err();
    assert_eq!((error.category(), book.len()), ("invalid", 0));
    let message = error.to_string();
    assert!(
        message.contains("titan.tripled.b is to have 3 copies"),
        "{message}"
    );
    assert!(message.contains("1 brokers"), "{message}");

    let mut odd = topic("titan.odd.a", 1);
    odd.config
        .insert("cleanup.policy".to_owned(), "shred".to_owned());
    let error = admin.ensure(&[odd], &book).await.unwrap_err();
    assert_eq!((error.category(), book.len()), ("refused", 0), "{error}");
    assert!(
        error.to_string().contains("create topic titan.odd.a"),
        "{error}"
    );
}

#[tokio::test]
async fn a_kafka_that_is_away_is_said_to_be_and_blocks_nobody() {
    let port = titan_testbed::process::free_port().unwrap();
    let nobody = KafkaAdmin::new(&format!("127.0.0.1:{port}")).unwrap();
    let nowhere = KafkaAdmin::new("kafka.titan.invalid:9092").unwrap();
    let mut own = Kafka::start().unwrap();
    let frozen = KafkaAdmin::new(own.bootstrap()).unwrap();
    frozen
        .ensure(&[topic("titan.frozen.a", 1)], &Book::new())
        .await
        .unwrap();
    own.server().signal(Signal::SIGSTOP).unwrap();

    let started = Instant::now();
    let attempt = async |admin: &KafkaAdmin| {
        let topics = [topic("titan.away.a", 1), topic("titan.away.b", 1)];
        let error = admin.ensure(&topics, &Book::new()).await.unwrap_err();
        assert_eq!(error.category(), "unreachable", "{error}");
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{error}: {:?}",
            started.elapsed()
        );
        started.elapsed()
    };
    // The runtime of this test has one thread: it must stay free meanwhile.
    let beats = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        started.elapsed()
    };
    let (_, _, gave_up, beaten) =
        tokio::join!(attempt(&nobody), attempt(&nowhere), attempt(&frozen), beats);
    assert!(
        beaten < gave_up,
        "the thread was blocked: {beaten:?}, {gave_up:?}"
    );
    assert!(nobody.existing("away").await.is_err());

    // And it is found again at once when it is back.
    own.server().signal(Signal::SIGCONT).unwrap();
    let back = eventually(async || frozen.existing("frozen").await, Result::is_ok).await;
    assert_eq!(back.unwrap(), ["titan.frozen.a"]);
}
