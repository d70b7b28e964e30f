//! What holds for any profile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by them.

mod common;

use common::{Setup, credentials, from_yaml};
use proptest::collection::vec;
use proptest::prelude::*;
use titan_crds::{Autoscaling, ResourceList, Resources, ServiceEntry, Stores, Topic};
use titan_planner::cell::{build, patroni_dynamic_configuration, render};
use titan_planner::object::{Kind, Object, Stage, canonical, covers};

/// One service, before it has a place among others.
fn service() -> impl Strategy<Value = ServiceEntry> {
    let resources = (
        proptest::option::of(1_u32..4000),
        proptest::option::of(4_u32..4000),
        0_u32..3,
    );
    let stores = (any::<bool>(), any::<bool>(), any::<bool>());
    (0..20_i32, resources, stores, 0..3_usize, any::<bool>()).prop_map(
        |(replicas, (cpu, memory, slack), (postgres, redis, kafka), topics, autoscaled)| {
            let list = |factor: u32| ResourceList {
                cpu: cpu.map(|cpu| format!("{}m", cpu * factor)),
                memory: memory.map(|memory| format!("{}Mi", memory * factor)),
            };
            ServiceEntry {
                name: String::new(),
                port: 0,
                replicas,
                resources: Resources {
                    requests: list(1),
                    limits: if slack == 0 {
                        ResourceList::default()
                    } else {
                        list(slack)
                    },
                },
                depends_on: Vec::new(),
                stores: Stores {
                    postgres,
                    redis,
                    kafka,
                },
                topics: (0..if kafka { topics } else { 0 })
                    .map(|topic| Topic {
                        name: topic.to_string(),
                        partitions: 3,
                        retention_hours: None,
                        cleanup_policy: titan_crds::CleanupPolicy::Delete,
                    })
                    .collect(),
                autoscaling: (autoscaled && cpu.is_some()).then_some(Autoscaling {
                    min_replicas: 1,
                    max_replicas: 3,
                    target_cpu_percent: 70,
                }),
                env: std::collections::BTreeMap::new(),
                termination_grace_period_seconds: 30,
            }
        },
    )
}

/// Names that do not sort like their numbers.
fn name(index: usize) -> String {
    format!("s{}", (index * 7 + 3) % 97)
}

/// A profile without cycles: each service may call those before it in a hidden order.
fn profile() -> impl Strategy<Value = Vec<ServiceEntry>> {
    vec((service(), any::<u64>()), 1..12).prop_map(|services| {
        services
            .into_iter()
            .enumerate()
            .map(|(index, (mut entry, calls))| {
                entry.name = name(index);
                entry.port = 50_000 + i32::try_from(index).unwrap();
                entry.depends_on = (0..index)
                    .filter(|i| calls & (1 << i) != 0)
                    .map(name)
                    .collect();
                for topic in &mut entry.topics {
                    topic.name = format!("{}.{}", entry.name, topic.name);
                }
                entry
            })
            .collect()
    })
}

fn setup(services: Vec<ServiceEntry>) -> Setup {
    let mut setup = Setup::quickstart();
    setup.profile.spec.services = services;
    // Bears what any of these profiles may open.
    setup.cell.spec.databases =
        from_yaml("{ postgres: { resources: { limits: { memory: 4Gi } } } }");
    setup
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn building_twice_gives_the_same_and_order_in_the_profile_means_nothing(
        services in profile().prop_flat_map(|services| {
            (Just(services.clone()), Just(services).prop_shuffle())
        })
    ) {
        let (given, shuffled) = services;
        let cell = setup(given.clone()).valid();
        let credentials = credentials(&cell);
        let built = build(&cell, &credentials).unwrap();
        prop_assert_eq!(&built, &build(&cell, &credentials).unwrap());
        prop_assert_eq!(render(&cell, &credentials).unwrap(), render(&cell, &credentials).unwrap());

        let mut shuffled = shuffled;
        for entry in &mut shuffled {
            entry.depends_on.reverse();
            entry.topics.reverse();
        }
        let other = setup(shuffled).valid();
        prop_assert_eq!(&cell, &other);
        prop_assert_eq!(&built, &build(&other, &credentials).unwrap());
    }

    #[test]
    fn each_service_comes_after_those_it_calls(services in profile()) {
        let cell = setup(services).valid();
        for (index, service) in cell.services.iter().enumerate() {
            for dependency in &service.depends_on {
                prop_assert!(cell.services[..index].iter().any(|earlier| earlier.name == *dependency));
            }
        }
        let desired = build(&cell, &credentials(&cell)).unwrap();
        let mut stages = desired.objects.iter().map(|object| match &object.stage {
            Stage::Namespace => 0,
            Stage::Foundation => 1,
            Stage::Stores => 2,
            Stage::Migration(_) => 3,
            Stage::Service(_) => 4,
        });
        prop_assert!(stages.by_ref().is_sorted());
    }

    #[test]
    fn objects_are_canonical_named_once_and_cover_themselves(services in profile()) {
        let cell = setup(services).valid();
        let desired = build(&cell, &credentials(&cell)).unwrap();
        let mut names = std::collections::BTreeSet::new();
        for object in &desired.objects {
            prop_assert!(names.insert((object.kind, object.name.clone())));
            prop_assert!(object.name.len() <= 63, "{}", object.name);
            let again = canonical(object.body());
            prop_assert_eq!(object.body().to_string(), again.to_string());
            prop_assert!(covers(&object.body(), &object.body()));
            let annotations = &object.body()["metadata"]["annotations"];
            prop_assert_eq!(annotations["titan.dev/desired-hash"].as_str(), Some(object.hash.as_str()));
        }
    }

    #[test]
    fn postgres_takes_all_pods_of_a_rollout_of_everything(services in profile()) {
        let cell = setup(services).valid();
        let desired = build(&cell, &credentials(&cell)).unwrap();
        let of_kind = |kind: Kind| desired.objects.iter().filter(move |object| object.kind == kind).map(Object::body);
        let environment = of_kind(Kind::ConfigMap).find(|map| map["metadata"]["name"] == "cell-environment").unwrap();
        let pool: u64 = environment["data"]["TITAN_DB_POOL"].as_str().unwrap().parse().unwrap();
        let mut needed = 0;
        for deployment in of_kind(Kind::Deployment) {
            let container = &deployment["spec"]["template"]["spec"]["containers"][0];
            if !container["env"].as_array().unwrap().iter().any(|variable| variable["name"] == "PGUSER") {
                continue;
            }
            let autoscaler = of_kind(Kind::HorizontalPodAutoscaler)
                .find(|autoscaler| autoscaler["metadata"]["name"] == deployment["metadata"]["name"]);
            let pods = match &autoscaler {
                Some(autoscaler) => &autoscaler["spec"]["maxReplicas"],
                None => &deployment["spec"]["replicas"],
            };
            let surge = deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"].as_u64().unwrap();
            let pods = pods.as_u64().unwrap();
            // Each with its pool, its watcher and its publisher. All old ones may still drain when all new ones are there.
            let most = if pods == 0 { 0 } else { (pods + surge).max(2 * pods) };
            needed += most * (pool + 2);
        }
        let settings = patroni_dynamic_configuration(&cell).unwrap();
        let connections = settings["postgresql"]["parameters"]["max_connections"].as_u64().unwrap();
        prop_assert!(connections >= needed + 50, "{} for {} and the rest", connections, needed);
        prop_assert_eq!(connections % 100, 0, "a pod more is no other value");
    }

    #[test]
    fn a_cycle_is_always_found_and_is_one(services in profile(), from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
        let mut setup = setup(services);
        let entries = &mut setup.profile.spec.services;
        let (from, to) = (from.index(entries.len()), to.index(entries.len()));
        let target = entries[to.max(from)].name.clone();
        let source = &mut entries[to.min(from)];
        source.depends_on.push(target);
        let calls: std::collections::BTreeMap<String, Vec<String>> = entries
            .iter()
            .map(|entry| (entry.name.clone(), entry.depends_on.clone()))
            .collect();
        match setup.validate() {
            Ok(cell) => {
                // Then the sorted list is the proof that there is none.
                for (index, service) in cell.services.iter().enumerate() {
                    for dependency in &service.depends_on {
                        prop_assert!(cell.services[..index].iter().any(|earlier| earlier.name == *dependency));
                    }
                }
            }
            Err(titan_planner::cell::NotValid::Invalid(invalid)) => {
                prop_assert_eq!(invalid.reason, "DependencyCycle");
                let path = invalid.message.split("first: ").nth(1).unwrap().split(';').next().unwrap();
                let path: Vec<&str> = path.split(" -> ").collect();
                prop_assert_eq!(path.first(), path.last());
                for pair in path.windows(2) {
                    prop_assert!(calls[pair[0]].iter().any(|called| called == pair[1]), "{}", invalid.message);
                }
            }
            Err(other) => prop_assert!(false, "{other:?}"),
        }
    }
}
