//! Each service of a profile with the overrides of the cell.

use std::collections::{BTreeMap, BTreeSet};

use titan_crds::{
    Autoscaling, CleanupPolicy, ResourceList, Resources, ServiceEntry, ServiceOverride, Topic,
};

use super::{invalid, is_label};
use crate::cell::model::{Invalid, KafkaTopic, ValidatedService};
use crate::cell::names::METRICS_PORT;
use crate::cell::quantity::Quantity;

pub(super) struct Input<'a> {
    pub(super) profile_name: &'a str,
    pub(super) entries: &'a [ServiceEntry],
    pub(super) overrides: &'a BTreeMap<String, ServiceOverride>,
    pub(super) release: &'a str,
    pub(super) repository: &'a str,
}

const MAX_SERVICE_NAME: usize = 40;
const MAX_REPLICAS: i32 = 1000;
const MAX_TOPIC_NAME: usize = 249;
/// Names of the cell's stores, and of schemas that PostgreSQL or the operator uses.
const RESERVED: [&str; 6] = [
    // Stores, whose other objects start with their names.
    "postgres",
    "redis",
    // Schemas.
    "titan",
    "public",
    "information-schema",
    // The ServiceAccount of every namespace.
    "default",
];
/// Starts of names that a cell's stores have, and of PostgreSQL's own schemas.
const RESERVED_STARTS: [&str; 3] = ["postgres-", "redis-", "pg-"];
/// More than any node has; what is written larger is a slip of the unit.
const MAX_CPU_MILLI: u128 = 512 * 1000;
const MAX_MEMORY: u128 = 16 << 40;
/// `memory: 512` means 512 bytes, in which no program starts.
const MIN_MEMORY: u128 = 4 << 20;

pub(super) fn resolve(input: &Input<'_>) -> Result<BTreeMap<String, ValidatedService>, Invalid> {
    let Input {
        profile_name,
        entries,
        overrides,
        release,
        repository,
    } = *input;
    unambiguous(profile_name, entries)?;
    if let Some(unknown) = overrides
        .keys()
        .find(|name| entries.iter().all(|entry| entry.name != **name))
    {
        return Err(invalid(
            "UnknownOverride",
            format!(
                "spec.overrides has {unknown}, but profile {profile_name} has no such service; remove the override or \
                 correct its name"
            ),
        ));
    }
    entries
        .iter()
        .map(|entry| {
            let service = one(
                profile_name,
                entry,
                overrides.get(&entry.name),
                release,
                repository,
            )?;
            Ok((entry.name.clone(), service))
        })
        .collect()
}

/// Nothing is there twice: names, schemas, ports.
fn unambiguous(profile: &str, entries: &[ServiceEntry]) -> Result<(), Invalid> {
    let mut names = BTreeSet::new();
    let mut schemas: BTreeMap<String, &str> = BTreeMap::new();
    let mut ports: BTreeMap<i32, &str> = BTreeMap::new();
    for entry in entries {
        let name = entry.name.as_str();
        if !names.insert(name) {
            return Err(invalid(
                "DuplicateService",
                format!("profile {profile} has service {name} twice; remove one"),
            ));
        }
        let schema = name.replace('-', "_");
        if let Some(other) = schemas.insert(schema.clone(), name) {
            return Err(invalid(
                "DuplicateSchema",
                format!(
                    "services {other} and {name} of profile {profile} would share the schema {schema}; rename one of them"
                ),
            ));
        }
        service_name(profile, name)?;
        if entry.port == METRICS_PORT {
            return Err(invalid(
                "ReservedPort",
                format!(
                    "service {name} of profile {profile} has port {METRICS_PORT}, which is for metrics and health; give \
                     it another"
                ),
            ));
        }
        if !(1024..=65535).contains(&entry.port) {
            return Err(invalid(
                "InvalidPort",
                format!(
                    "service {name} of profile {profile} has port {}; use one of 1024 to 65535",
                    entry.port
                ),
            ));
        }
        if let Some(other) = ports.insert(entry.port, name) {
            return Err(invalid(
                "DuplicatePort",
                format!(
                    "services {other} and {name} of profile {profile} both have port {}; give one of them another",
                    entry.port
                ),
            ));
        }
    }
    Ok(())
}

fn service_name(profile: &str, name: &str) -> Result<(), Invalid> {
    if name.len() > MAX_SERVICE_NAME {
        return Err(invalid(
            "NameTooLong",
            format!(
                "service {name} of profile {profile} has a name of {} characters; use at most {MAX_SERVICE_NAME}",
                name.len()
            ),
        ));
    }
    if !is_label(name) {
        return Err(invalid(
            "InvalidName",
            format!(
                "profile {profile} has a service `{name}`, which cannot be a Service: use a to z, 0 to 9 and -, \
                 starting with a letter and ending with a letter or digit"
            ),
        ));
    }
    let starts = RESERVED_STARTS.iter().any(|start| name.starts_with(start));
    if starts || RESERVED.contains(&name) {
        return Err(invalid(
            "ReservedName",
            format!(
                "profile {profile} has a service {name}, a name that every cell uses for something else: a store, a \
                 schema or an account; rename the service"
            ),
        ));
    }
    Ok(())
}

fn one(
    profile: &str,
    entry: &ServiceEntry,
    overridden: Option<&ServiceOverride>,
    release: &str,
    repository: &str,
) -> Result<ValidatedService, Invalid> {
    let ServiceEntry {
        name,
        port,
        replicas,
        resources,
        depends_on,
        stores,
        topics,
        autoscaling,
        env,
        termination_grace_period_seconds,
    } = entry;
    let nothing = ServiceOverride::default();
    let ServiceOverride {
        release: other_release,
        replicas: other_replicas,
        resources: other_resources,
    } = overridden.unwrap_or(&nothing);

    if !topics.is_empty() && !stores.kafka {
        return Err(invalid(
            "TopicWithoutKafka",
            format!(
                "service {name} of profile {profile} has topics but not stores.kafka; set stores.kafka: true or remove \
                 the topics"
            ),
        ));
    }
    if other_replicas.is_some() && autoscaling.is_some() {
        return Err(invalid(
            "ReplicasWithAutoscaling",
            format!(
                "spec.overrides.{name}.replicas says how many pods, but profile {profile} lets an autoscaler decide; \
                 remove the override, or the autoscaling of {name}"
            ),
        ));
    }
    if let Some(tag) = other_release {
        image_tag(&format!("spec.overrides.{name}.release"), tag)?;
    }
    let replicas = other_replicas.unwrap_or(*replicas);
    if !(0..=MAX_REPLICAS).contains(&replicas) {
        return Err(invalid(
            "InvalidReplicas",
            format!("service {name} asks for {replicas} pods; use 0 to {MAX_REPLICAS}"),
        ));
    }
    if *termination_grace_period_seconds < 1 {
        return Err(invalid(
            "InvalidGracePeriod",
            format!(
                "service {name} of profile {profile} has terminationGracePeriodSeconds \
                 {termination_grace_period_seconds}; use 1 or more, so that requests can be finished"
            ),
        ));
    }
    environment(profile, name, env)?;
    let resources = canonical_resources(
        &format!("service {name}"),
        other_resources.as_ref().unwrap_or(resources),
    )?;
    if let Some(autoscaling) = autoscaling {
        autoscaled(profile, name, autoscaling, &resources)?;
    }
    let mut depends_on = depends_on.clone();
    depends_on.sort();
    depends_on.dedup();
    let release = other_release.as_deref().unwrap_or(release);
    Ok(ValidatedService {
        image: format!("{repository}/{name}:{release}"),
        name: name.clone(),
        release: release.to_owned(),
        port: *port,
        replicas: autoscaling.is_none().then_some(replicas),
        resources,
        depends_on,
        stores: *stores,
        autoscaling: autoscaling.clone(),
        env: env.clone(),
        termination_grace_period_seconds: *termination_grace_period_seconds,
    })
}

fn environment(profile: &str, name: &str, env: &BTreeMap<String, String>) -> Result<(), Invalid> {
    for variable in env.keys() {
        let well_formed = variable.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && variable
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_');
        let ours = variable.starts_with("TITAN_")
            || variable.starts_with("PG")
            || variable == "REDIS_PASSWORD";
        if !well_formed || ours {
            return Err(invalid(
                "InvalidEnvironment",
                format!(
                    "service {name} of profile {profile} sets the variable `{variable}`; names are letters, digits and \
                     _, and REDIS_PASSWORD and names that start with TITAN_ or PG are the operator's"
                ),
            ));
        }
    }
    Ok(())
}

fn autoscaled(
    profile: &str,
    name: &str,
    autoscaling: &Autoscaling,
    resources: &Resources,
) -> Result<(), Invalid> {
    let Autoscaling {
        min_replicas,
        max_replicas,
        target_cpu_percent,
    } = autoscaling;
    if *min_replicas < 1 || min_replicas > max_replicas || *max_replicas > MAX_REPLICAS {
        return Err(invalid(
            "InvalidAutoscaling",
            format!(
                "autoscaling of service {name} of profile {profile} goes from {min_replicas} to {max_replicas} pods; use \
                 1 <= minReplicas <= maxReplicas <= {MAX_REPLICAS}"
            ),
        ));
    }
    if *target_cpu_percent < 1 {
        return Err(invalid(
            "InvalidAutoscaling",
            format!(
                "autoscaling of service {name} of profile {profile} aims for {target_cpu_percent} percent of CPU; use 1 \
                 or more"
            ),
        ));
    }
    if resources.requests.cpu.is_none() && resources.limits.cpu.is_none() {
        return Err(invalid(
            "InvalidAutoscaling",
            format!(
                "autoscaling of service {name} of profile {profile} measures CPU against the request, and there is none; \
                 set resources.requests.cpu"
            ),
        ));
    }
    Ok(())
}

pub(super) fn image_tag(field: &str, tag: &str) -> Result<(), Invalid> {
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if tag.len() > 128
        || !tag.starts_with(first)
        || !tag.chars().all(|c| first(c) || matches!(c, '.' | '-'))
    {
        return Err(invalid(
            "InvalidRelease",
            format!(
                "{field} is `{tag}`, which cannot be an image tag: use at most 128 letters, digits, _, . and -, not \
                 starting with . or -"
            ),
        ));
    }
    Ok(())
}

/// The resources as the apiserver gives them back, once they make sense.
pub(super) fn canonical_resources(who: &str, resources: &Resources) -> Result<Resources, Invalid> {
    let Resources { requests, limits } = resources;
    let list = |field: &str, list: &ResourceList| -> Result<_, Invalid> {
        let ResourceList { cpu, memory } = list;
        let parse = |what: &str, text: &Option<String>, read: fn(&str) -> Result<Quantity, _>| {
            text.as_deref().map(read).transpose().map_err(
                |error: crate::cell::quantity::NotAQuantity| {
                    invalid(
                        "InvalidResources",
                        format!("resources.{field}.{what} of {who}: {error}"),
                    )
                },
            )
        };
        let cpu = parse("cpu", cpu, Quantity::cpu)?;
        let memory = parse("memory", memory, Quantity::bytes)?;
        let range =
            |what: &str, amount: Option<Quantity>, ok: fn(Quantity) -> bool, bounds: &str| {
                match amount {
                    Some(amount) if !ok(amount) => Err(invalid(
                        "InvalidResources",
                        format!("resources.{field}.{what} of {who} is {amount}; use {bounds}"),
                    )),
                    _ => Ok(()),
                }
            };
        range(
            "cpu",
            cpu,
            |amount| (1..=MAX_CPU_MILLI).contains(&amount.milli()),
            "1m to 512 cores",
        )?;
        range(
            "memory",
            memory,
            |amount| (MIN_MEMORY..=MAX_MEMORY).contains(&amount.units()),
            "4Mi to 16Ti (a number without suffix is bytes)",
        )?;
        Ok((cpu, memory))
    };
    let (request_cpu, request_memory) = list("requests", requests)?;
    let (limit_cpu, limit_memory) = list("limits", limits)?;
    for (what, request, limit) in [
        ("cpu", request_cpu, limit_cpu),
        ("memory", request_memory, limit_memory),
    ] {
        if let (Some(request), Some(limit)) = (request, limit)
            && request.milli() > limit.milli()
        {
            return Err(invalid(
                "InvalidResources",
                format!(
                    "{who} requests {request} of {what} but is limited to {limit}; raise the limit or lower the request"
                ),
            ));
        }
    }
    let text = |amount: Option<Quantity>| amount.map(|amount| amount.to_string());
    // A limit without a request is a request, too: the apiserver fills it in, and so do we.
    Ok(Resources {
        requests: ResourceList {
            cpu: text(request_cpu.or(limit_cpu)),
            memory: text(request_memory.or(limit_memory)),
        },
        limits: ResourceList {
            cpu: text(limit_cpu),
            memory: text(limit_memory),
        },
    })
}

/// The topics of a cell, sorted by name.
pub(super) fn topics(
    cell: &str,
    profile: &str,
    entries: &[ServiceEntry],
    replication_factor: i32,
) -> Result<Vec<KafkaTopic>, Invalid> {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    let mut topics = Vec::new();
    for entry in entries {
        for topic in &entry.topics {
            if let Some(other) = owners.insert(&topic.name, &entry.name) {
                return Err(invalid(
                    "DuplicateTopic",
                    format!(
                        "topic {} is in profile {profile} twice, with services {other} and {}; a topic has one writer: \
                         rename or remove one",
                        topic.name, entry.name
                    ),
                ));
            }
            topics.push(one_topic(cell, &entry.name, topic, replication_factor)?);
        }
    }
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(topics)
}

fn one_topic(
    cell: &str,
    service: &str,
    topic: &Topic,
    replication_factor: i32,
) -> Result<KafkaTopic, Invalid> {
    let Topic {
        name,
        partitions,
        retention_hours,
        cleanup_policy,
    } = topic;
    let full = format!("titan.{cell}.{name}");
    let allowed =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    if full.len() > MAX_TOPIC_NAME || name.is_empty() || !name.chars().all(allowed) {
        return Err(invalid(
            "InvalidTopic",
            format!(
                "topic `{name}` of service {service} would be `{full}`; use a to z, 0 to 9, ., _ and -, and at most \
                 {MAX_TOPIC_NAME} characters in all"
            ),
        ));
    }
    if *partitions < 1 || retention_hours.is_some_and(|hours| !(1..=87_600).contains(&hours)) {
        return Err(invalid(
            "InvalidTopic",
            format!(
                "topic {name} of service {service} needs 1 partition or more and a retention of 1 to 87600 hours"
            ),
        ));
    }
    let milliseconds = |hours: i64| (hours * 3_600_000).to_string();
    let (policy, retention) = match (cleanup_policy, retention_hours) {
        (CleanupPolicy::Delete, hours) => ("delete", milliseconds(hours.unwrap_or(168))),
        (CleanupPolicy::Compact, None) => ("compact", "-1".to_owned()),
        (CleanupPolicy::Compact, Some(hours)) => ("compact,delete", milliseconds(*hours)),
    };
    Ok(KafkaTopic {
        name: full,
        partitions: *partitions,
        replication_factor,
        config: BTreeMap::from([
            ("cleanup.policy".to_owned(), policy.to_owned()),
            ("retention.ms".to_owned(), retention),
        ]),
    })
}
