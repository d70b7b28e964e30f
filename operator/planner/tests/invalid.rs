//! Every input that is refused, with the answer that a person gets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by them.

mod common;

use std::collections::BTreeSet;

use common::{Setup, credentials, from_yaml};
use titan_crds::{
    Databases, Failover, ResourceList, Resources, ServiceEntry, ServiceOverride, UserRange,
};
use titan_planner::Observed;
use titan_planner::cell::{NotValid, build, validate};
use titan_planner::object::{Kind, Object};

type Break = fn(&mut Setup);

fn entry<'a>(setup: &'a mut Setup, name: &str) -> &'a mut ServiceEntry {
    setup
        .profile
        .spec
        .services
        .iter_mut()
        .find(|entry| entry.name == name)
        .unwrap()
}

fn override_of<'a>(setup: &'a mut Setup, name: &str) -> &'a mut ServiceOverride {
    setup
        .cell
        .spec
        .overrides
        .entry(name.to_owned())
        .or_default()
}

fn databases(setup: &mut Setup, yaml: &str) {
    setup.cell.spec.databases = from_yaml::<Databases>(yaml);
}

fn failover(setup: &mut Setup, yaml: &str) {
    setup.cell.spec.failover = from_yaml::<Failover>(yaml);
}

fn requests(cpu: &str, memory: &str) -> Resources {
    Resources {
        requests: ResourceList {
            cpu: Some(cpu.to_owned()),
            memory: Some(memory.to_owned()),
        },
        limits: ResourceList::default(),
    }
}

/// What is done to the valid web cell, the reason that comes of it, and what the message has to name.
const CASES: &[(Break, &str, &[&str])] = &[
    // The cell.
    (
        |s| s.cell.metadata.name = Some("c".repeat(41)),
        "NameTooLong",
        &["41", "at most 40"],
    ),
    (
        |s| s.cell.metadata.name = Some("Cell".to_owned()),
        "InvalidName",
        &["`Cell`"],
    ),
    (
        |s| s.cell.metadata.name = Some("1-cell".to_owned()),
        "InvalidName",
        &["`1-cell`"],
    ),
    (
        |s| s.cell.metadata.name = Some("cell-".to_owned()),
        "InvalidName",
        &["`cell-`"],
    ),
    (|s| s.cell.metadata.name = None, "InvalidName", &["``"]),
    (
        |s| s.cell.metadata.name = Some("kube-system".to_owned()),
        "ReservedName",
        &["kube-system"],
    ),
    (
        |s| s.cell.metadata.name = Some("titan-system".to_owned()),
        "ReservedName",
        &["titan-system"],
    ),
    (
        |s| s.cell.metadata.name = Some("default".to_owned()),
        "ReservedName",
        &["default"],
    ),
    (
        |s| s.cell.spec.user_range = Some(UserRange { first: 2, last: 1 }),
        "InvalidRange",
        &["2", "1", "reversed"],
    ),
    (
        |s| s.cell.spec.user_range = Some(UserRange { first: -1, last: 1 }),
        "InvalidRange",
        &["first", "-1"],
    ),
    (
        |s| s.cell.spec.release = "a b".to_owned(),
        "InvalidRelease",
        &["spec.release", "`a b`"],
    ),
    (
        |s| s.cell.spec.release = String::new(),
        "InvalidRelease",
        &["spec.release"],
    ),
    (
        |s| s.cell.spec.release = "-x".to_owned(),
        "InvalidRelease",
        &["`-x`"],
    ),
    (
        |s| s.cell.spec.placement.zones = vec!["a/b".to_owned()],
        "InvalidPlacement",
        &["zones", "a/b"],
    ),
    (
        |s| s.cell.spec.placement.region = String::new(),
        "InvalidPlacement",
        &["region"],
    ),
    (
        |s| failover(s, "{ mode: Auto }"),
        "FailoverUnavailable",
        &["Auto", "use None"],
    ),
    (
        |s| failover(s, "{ mode: Partner, partner: cell-002 }"),
        "FailoverUnavailable",
        &["Partner"],
    ),
    (
        |s| failover(s, "{ partner: cell-002 }"),
        "FailoverUnavailable",
        &["cell-002"],
    ),
    // Overrides.
    (
        |s| override_of(s, "shop").replicas = Some(1),
        "UnknownOverride",
        &["shop"],
    ),
    (
        |s| {
            entry(s, "user").autoscaling = from_yaml("{ minReplicas: 1, maxReplicas: 2 }");
            entry(s, "user").resources = requests("10m", "32Mi");
            override_of(s, "user").replicas = Some(1);
        },
        "ReplicasWithAutoscaling",
        &["user", "replicas"],
    ),
    (
        |s| override_of(s, "user").release = Some("a:b".to_owned()),
        "InvalidRelease",
        &["spec.overrides.user.release"],
    ),
    (
        |s| override_of(s, "user").replicas = Some(-1),
        "InvalidReplicas",
        &["user", "-1"],
    ),
    (
        |s| override_of(s, "user").resources = Some(requests("0", "32Mi")),
        "InvalidResources",
        &["cpu", "service user", "0"],
    ),
    // Services of the profile.
    (
        |s| entry(s, "user").name = "u".repeat(41),
        "NameTooLong",
        &["41"],
    ),
    (
        |s| entry(s, "user").name = "User".to_owned(),
        "InvalidName",
        &["`User`"],
    ),
    (
        |s| entry(s, "user").name = "postgres".to_owned(),
        "ReservedName",
        &["postgres"],
    ),
    (
        |s| entry(s, "user").name = "default".to_owned(),
        "ReservedName",
        &["default"],
    ),
    (
        |s| entry(s, "user").name = "redis-nodes".to_owned(),
        "ReservedName",
        &["redis-nodes"],
    ),
    (
        |s| entry(s, "user").name = "titan".to_owned(),
        "ReservedName",
        &["titan"],
    ),
    (
        |s| entry(s, "user").name = "pg-user".to_owned(),
        "ReservedName",
        &["pg-user"],
    ),
    (
        |s| {
            s.cell.metadata.name = Some("c".repeat(40));
            entry(s, "feed").name = "f".repeat(30);
            entry(s, &"f".repeat(30)).stores.postgres = true;
        },
        "NameTooLong",
        &["login role", "71"],
    ),
    (
        |s| entry(s, "cart").name = "feed".to_owned(),
        "DuplicateService",
        &["feed", "twice"],
    ),
    (
        |s| {
            entry(s, "cart").name = "a-b".to_owned();
            entry(s, "feed").name = "a_b".to_owned();
        },
        "DuplicateSchema",
        &["a-b", "a_b"],
    ),
    (
        |s| entry(s, "cart").port = 50001,
        "DuplicatePort",
        &["cart", "order", "50001"],
    ),
    (
        |s| entry(s, "cart").port = 9090,
        "ReservedPort",
        &["cart", "9090"],
    ),
    (
        |s| entry(s, "cart").port = 80,
        "InvalidPort",
        &["cart", "80"],
    ),
    (|s| entry(s, "cart").port = 70000, "InvalidPort", &["70000"]),
    (
        |s| entry(s, "cart").depends_on = vec!["nobody".to_owned()],
        "UnknownDependency",
        &["cart", "nobody"],
    ),
    (
        |s| entry(s, "user").depends_on = vec!["checkout".to_owned()],
        "DependencyCycle",
        &["cart -> user -> checkout -> cart"],
    ),
    (
        |s| entry(s, "feed").depends_on = vec!["feed".to_owned()],
        "DependencyCycle",
        &["feed -> feed"],
    ),
    (
        |s| entry(s, "order").stores.kafka = false,
        "TopicWithoutKafka",
        &["order", "stores.kafka"],
    ),
    (
        |s| entry(s, "feed").topics = from_yaml("[{ name: order.events }]"),
        "DuplicateTopic",
        &["order.events", "order", "feed"],
    ),
    (
        |s| entry(s, "feed").topics = from_yaml("[{ name: 'A b' }]"),
        "InvalidTopic",
        &["`A b`", "feed"],
    ),
    (
        |s| entry(s, "feed").topics = from_yaml("[{ name: a, partitions: 0 }]"),
        "InvalidTopic",
        &["feed"],
    ),
    (
        |s| entry(s, "feed").replicas = -1,
        "InvalidReplicas",
        &["feed", "-1"],
    ),
    (
        |s| entry(s, "feed").termination_grace_period_seconds = 0,
        "InvalidGracePeriod",
        &["feed", "0"],
    ),
    (
        |s| entry(s, "feed").env = from_yaml("{ TITAN_CELL: other }"),
        "InvalidEnvironment",
        &["feed", "TITAN_CELL"],
    ),
    (
        |s| entry(s, "feed").env = from_yaml("{ PGHOST: other }"),
        "InvalidEnvironment",
        &["PGHOST"],
    ),
    (
        |s| entry(s, "feed").env = from_yaml("{ REDIS_PASSWORD: x }"),
        "InvalidEnvironment",
        &["REDIS_PASSWORD"],
    ),
    (
        |s| entry(s, "feed").env = from_yaml("{ 'A=B': x }"),
        "InvalidEnvironment",
        &["`A=B`"],
    ),
    // Resources.
    (
        |s| {
            entry(s, "feed").resources =
                from_yaml("{ requests: { cpu: '2' }, limits: { cpu: 1500m } }");
        },
        "InvalidResources",
        &["feed", "2 of cpu", "1500m"],
    ),
    (
        |s| {
            entry(s, "feed").resources =
                from_yaml("{ requests: { memory: 1Gi }, limits: { memory: 1G } }");
        },
        "InvalidResources",
        &["1Gi of memory", "1G"],
    ),
    (
        |s| entry(s, "feed").resources = requests("1", "0"),
        "InvalidResources",
        &["memory", "0"],
    ),
    (
        |s| entry(s, "feed").resources = requests("1", "512"),
        "InvalidResources",
        &["512", "bytes"],
    ),
    (
        |s| entry(s, "feed").resources = requests("1", "900Ti"),
        "InvalidResources",
        &["900Ti"],
    ),
    (
        |s| entry(s, "feed").resources = requests("5000", "1Gi"),
        "InvalidResources",
        &["5k", "512 cores"],
    ),
    (
        |s| entry(s, "feed").resources = requests("much", "1Gi"),
        "InvalidResources",
        &["`much`", "250m"],
    ),
    (
        |s| entry(s, "feed").autoscaling = from_yaml("{ minReplicas: 1, maxReplicas: 2 }"),
        "InvalidAutoscaling",
        &["feed", "requests.cpu"],
    ),
    (
        |s| entry(s, "feed").autoscaling = from_yaml("{ minReplicas: 3, maxReplicas: 2 }"),
        "InvalidAutoscaling",
        &["feed", "3 to 2"],
    ),
    // Stores.
    (
        |s| databases(s, "{ postgres: { members: 2 } }"),
        "InvalidDatabases",
        &["2", "use 1, or 3"],
    ),
    (
        |s| databases(s, "{ postgres: { synchronous: true } }"),
        "InvalidDatabases",
        &["synchronous", "members: 3"],
    ),
    (
        |s| {
            databases(
                s,
                "{ postgres: { members: 3, external: { secretName: x } } }",
            );
        },
        "InvalidDatabases",
        &["spec databases.postgres", "external"],
    ),
    (
        |s| {
            databases(
                s,
                "{ redis: { topology: Cluster, external: { secretName: x } } }",
            );
        },
        "InvalidDatabases",
        &["spec databases.redis"],
    ),
    (
        |s| databases(s, "{ postgres: { storage: {} } }"),
        "InvalidDatabases",
        &["exactly one"],
    ),
    (
        |s| {
            databases(
                s,
                "{ postgres: { resources: { limits: { memory: 1Gi } } } }",
            );
            entry(s, "user").replicas = 300;
        },
        "InvalidDatabases",
        &["6200 connections", "1Gi bears 4096", "2Gi or more"],
    ),
    (
        |s| {
            databases(
                s,
                "{ postgres: { resources: { limits: { memory: 1Ti } } } }",
            );
            for number in 0..20 {
                let mut more = entry(s, "user").clone();
                more.name = format!("more-{number}");
                more.port = 51_000 + number;
                more.replicas = 1000;
                s.profile.spec.services.push(more);
            }
        },
        "InvalidDatabases",
        &["260000 at most", "lower replicas"],
    ),
    (
        |s| databases(s, "{ redis: { storage: { persistent: { size: much } } } }"),
        "InvalidDatabases",
        &["databases.redis.storage.persistent.size", "`much`"],
    ),
    (
        |s| databases(s, "{ redis: { resources: { limits: { memory: 1Mi } } } }"),
        "InvalidResources",
        &["Redis", "1Mi"],
    ),
    // The fleet.
    (
        |s| s.fleet.spec.kafka.bootstrap = "kafka".to_owned(),
        "InvalidKafka",
        &["`kafka`", "host:port"],
    ),
    (
        |s| s.fleet.spec.kafka.bootstrap = "kafka:9092,".to_owned(),
        "InvalidKafka",
        &["`kafka:9092,`"],
    ),
];

#[test]
fn every_bad_input_is_refused_with_an_answer_to_act_on() {
    for (index, (broken, reason, named)) in CASES.iter().enumerate() {
        let mut setup = Setup::web();
        assert!(setup.validate().is_ok());
        broken(&mut setup);
        let invalid = setup.refusal();
        assert_eq!(invalid.reason, *reason, "case {index}: {invalid}");
        for part in *named {
            assert!(
                invalid.message.contains(part),
                "case {index}: {invalid} does not name {part}"
            );
        }
        // A sentence: not empty, no debug output, and short enough for a condition.
        assert!(
            invalid.message.len() > 30 && invalid.message.len() < 400,
            "{invalid}"
        );
        assert!(invalid.reason.chars().all(|c| c.is_ascii_alphanumeric()));
    }
}

#[test]
fn what_is_absent_is_refused_and_what_is_unknown_is_waited_for() {
    let Setup {
        cell,
        profile,
        fleet,
    } = Setup::quickstart();
    let reason = |result| match result {
        Err(NotValid::Invalid(invalid)) => ("invalid", invalid.reason),
        Err(NotValid::Waiting(invalid)) => ("waiting", invalid.reason),
        Ok(_) => ("valid", ""),
    };
    let (profile, fleet) = (Observed::Known(&profile), Observed::Known(&fleet));
    for (profile, fleet, expected) in [
        (profile, fleet, ("valid", "")),
        (Observed::Absent, fleet, ("invalid", "ProfileNotFound")),
        (Observed::Unknown, fleet, ("waiting", "ProfileUnknown")),
        (profile, Observed::Absent, ("invalid", "FleetNotFound")),
        (profile, Observed::Unknown, ("waiting", "FleetUnknown")),
    ] {
        assert_eq!(reason(validate(&cell, profile, fleet)), expected);
    }
    // What can be said without them is said at once.
    let mut reversed = cell.clone();
    reversed.spec.user_range = Some(UserRange { first: 2, last: 1 });
    assert_eq!(
        reason(validate(&reversed, Observed::Unknown, Observed::Unknown)),
        ("invalid", "InvalidRange")
    );
}

#[test]
fn a_name_that_something_else_has_is_reserved() {
    let cells = [
        "postgres",
        "template0",
        "template1",
        "public",
        "replication",
        "pg-1",
        "rdsadmin",
        "kube-1",
    ];
    for name in cells {
        let mut setup = Setup::web();
        setup.cell.metadata.name = Some(name.to_owned());
        let invalid = setup.refusal();
        assert_eq!(invalid.reason, "ReservedName", "{invalid}");
        assert!(invalid.message.contains(name), "{invalid}");
    }

    // Every object of a cell that is not a service's, of a kind that services have, too.
    let web = Setup::web();
    let valid = web.validate().unwrap();
    let desired = build(&valid, &credentials(&valid)).unwrap();
    let named = |object: &Object, name: &str| object.name == name;
    let of_services: BTreeSet<Kind> = desired
        .objects
        .iter()
        .filter(|object| named(object, "checkout"))
        .map(|object| object.kind)
        .collect();
    let is_service = |name: &str| valid.services.iter().any(|service| service.name == name);
    let taken = desired
        .objects
        .iter()
        .filter(|object| of_services.contains(&object.kind) && !is_service(&object.name));
    let taken: BTreeSet<&str> = taken.map(|object| object.name.as_str()).collect();
    for known in ["postgres", "postgres-members", "redis", "redis-nodes"] {
        assert!(taken.contains(known), "{taken:?}");
    }
    for name in taken.into_iter().chain(["default", "titan", "public"]) {
        let mut setup = Setup::web();
        entry(&mut setup, "feed").name = name.to_owned();
        let invalid = setup.refusal();
        assert_eq!(invalid.reason, "ReservedName", "{invalid}");
        assert!(invalid.message.contains(name), "{invalid}");
    }
}
