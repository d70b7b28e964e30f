//! How a cell, its profile and its fleet come together.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by them.

mod common;

use std::collections::BTreeMap;

use common::{Setup, credentials, from_yaml};
use titan_crds::{Databases, RedisTopology};
use titan_planner::Observed;
use titan_planner::cell::{
    ExternalDatabase, NotValid, PostgresPlan, RedisPlan, StoreStorage, ValidatedCell, build,
    external_database, patroni_dynamic_configuration, patroni_reconfiguration,
};
use titan_planner::object::{HOLDS_DATA, Kind, MANAGED_BY, MANAGER, Stage};

fn with_databases(cell: &str, profile: &str) -> ValidatedCell {
    let mut setup = Setup::quickstart();
    setup.cell.spec.databases = from_yaml::<Databases>(cell);
    setup.profile.spec.databases = from_yaml::<Databases>(profile);
    setup.valid()
}

fn postgres(cell: &str, profile: &str) -> PostgresPlan {
    with_databases(
        &format!("{{ postgres: {cell} }}"),
        &format!("{{ postgres: {profile} }}"),
    )
    .postgres
}

#[test]
fn a_cell_overrides_its_profile_field_by_field() {
    let members_of = |plan: PostgresPlan| match plan {
        PostgresPlan::Managed {
            members,
            synchronous,
            storage,
            ..
        } => (members, synchronous, storage),
        PostgresPlan::External { secret_name } => panic!("{secret_name}"),
    };
    let persistent = |size: &str| StoreStorage::Persistent {
        size: size.to_owned(),
        storage_class_name: None,
    };
    let three = "{ members: 3, storage: { persistent: { size: 20Gi } } }";
    assert_eq!(
        members_of(postgres("~", "~")),
        (1, false, persistent("10Gi"))
    );
    assert_eq!(
        members_of(postgres("~", three)),
        (3, true, persistent("20Gi"))
    );
    assert_eq!(
        members_of(postgres("{ synchronous: false }", three)),
        (3, false, persistent("20Gi"))
    );
    assert_eq!(
        members_of(postgres(
            "{ members: 1 }",
            "{ members: 3, synchronous: true }"
        )),
        (1, false, persistent("10Gi"))
    );
    assert_eq!(
        members_of(postgres(
            "{ storage: { ephemeral: { sizeLimit: 1024Mi } } }",
            three
        )),
        (
            3,
            true,
            StoreStorage::Ephemeral {
                size_limit: Some("1Gi".to_owned())
            }
        )
    );
    let external = |name: &str| PostgresPlan::External {
        secret_name: name.to_owned(),
    };
    let server = "{ external: { secretName: shared } }";
    assert_eq!(postgres("~", server), external("shared"));
    assert_eq!(
        postgres("{ external: { secretName: own } }", server),
        external("own")
    );
    assert_eq!(
        postgres("{ external: { secretName: own } }", three),
        external("own")
    );
    assert_eq!(members_of(postgres("{ members: 3 }", server)).0, 3);
}

#[test]
fn what_is_to_be_dropped_is_what_was_made_and_is_never_guessed() {
    let nothing = "~";
    let own = "{ external: { secretName: own } }";
    let shared = "{ external: { secretName: shared } }";
    let managed = "{ members: 1 }";
    for cell in [nothing, own, managed] {
        for profile in [nothing, shared, managed] {
            let mut setup = Setup::quickstart();
            setup.cell.spec.databases = from_yaml(&format!("{{ postgres: {cell} }}"));
            setup.profile.spec.databases = from_yaml(&format!("{{ postgres: {profile} }}"));
            let made = match setup.valid().postgres {
                PostgresPlan::External { secret_name } => Some(ExternalDatabase {
                    secret_name,
                    database: setup.valid().database(),
                }),
                PostgresPlan::Managed { .. } => None,
            };
            let found = external_database(&setup.cell, Observed::Known(&setup.profile));
            assert_eq!(found, Ok(made.clone()), "{cell}, {profile}");
            let unknown = external_database(&setup.cell, Observed::Unknown);
            let absent = external_database(&setup.cell, Observed::Absent);
            if cell == nothing {
                assert!(matches!(unknown, Err(NotValid::Waiting(_))), "{unknown:?}");
                assert!(matches!(absent, Err(NotValid::Invalid(_))), "{absent:?}");
            } else {
                assert_eq!((&unknown, &absent), (&found, &found), "{cell} decides");
            }
        }
    }
}

#[test]
fn external_stores_leave_nothing_of_the_managed_ones() {
    let cell = with_databases(
        "{ postgres: { external: { secretName: pg } }, redis: { external: { secretName: redis } } }",
        "{ postgres: { members: 3 }, redis: { topology: Cluster } }",
    );
    assert_eq!(patroni_dynamic_configuration(&cell), None);
    let desired = build(&cell, &credentials(&cell)).unwrap();
    for object in &desired.objects {
        assert!(object.kind != Kind::StatefulSet, "{}", object.name);
        for store in ["postgres", "redis"] {
            assert!(
                !object.name.starts_with(store),
                "{:?} {}",
                object.kind,
                object.name
            );
        }
    }
    let environment = desired
        .objects
        .iter()
        .find(|object| object.name == "cell-environment")
        .unwrap();
    for (variable, value) in [
        ("PGHOST", "pg.example.com"),
        ("PGPORT", "6432"),
        ("PGSSLMODE", "require"),
        ("PGDATABASE", "cell_001"),
        ("TITAN_REDIS_ADDRS", "redis://redis.example.com:6380"),
        ("TITAN_REDIS_CLUSTER", "false"),
    ] {
        assert_eq!(environment.body()["data"][variable], value);
    }
}

#[test]
fn overrides_of_a_service_replace_what_the_profile_says() {
    let mut setup = Setup::quickstart();
    setup.cell.spec.overrides =
        from_yaml("{ order: { release: v9, replicas: 2, resources: { limits: { cpu: '1' } } } }");
    let cell = setup.valid();
    let order = cell.services.iter().find(|s| s.name == "order").unwrap();
    assert_eq!(order.image, "titan/order:v9");
    assert_eq!(order.replicas, Some(2));
    assert_eq!(
        order.resources,
        from_yaml("{ requests: { cpu: '1' }, limits: { cpu: '1' } }")
    );
    let user = cell.services.iter().find(|s| s.name == "user").unwrap();
    assert_eq!(user.image, "titan/user:dev");
    assert_eq!(user.replicas, Some(1));
}

#[test]
fn topics_and_schemas_bear_the_cell() {
    let mut setup = Setup::quickstart();
    setup.fleet.spec.kafka.replication_factor = 3;
    setup.profile.spec.services[2].name = "flash-sale".to_owned();
    setup.profile.spec.services[2].topics = from_yaml(
        "[{ name: b, cleanupPolicy: Compact }, { name: a, partitions: 6, retentionHours: 1 }, \
          { name: c, cleanupPolicy: Compact, retentionHours: 2 }, { name: d }]",
    );
    let cell = setup.valid();
    let topics: Vec<_> = cell
        .topics
        .iter()
        .map(|topic| {
            let config: Vec<_> = topic.config.values().map(String::as_str).collect();
            (
                topic.name.as_str(),
                topic.partitions,
                topic.replication_factor,
                config.join(" "),
            )
        })
        .collect();
    assert_eq!(
        topics,
        [
            ("titan.cell-001.a", 6, 3, "delete 3600000".to_owned()),
            ("titan.cell-001.b", 3, 3, "compact -1".to_owned()),
            (
                "titan.cell-001.c",
                3,
                3,
                "compact,delete 7200000".to_owned()
            ),
            ("titan.cell-001.d", 3, 3, "delete 604800000".to_owned()),
        ]
    );
    let roles: Vec<_> = cell
        .schemas
        .iter()
        .map(|s| (s.schema.as_str(), s.role.as_str()))
        .collect();
    assert_eq!(
        roles,
        [
            ("cart", "cell_001_cart"),
            ("flash_sale", "cell_001_flash_sale"),
            ("user", "cell_001_user")
        ]
    );
    assert_eq!(cell.endpoint(), "cell-001.svc.cluster.local");
}

#[test]
fn every_object_says_whose_it_is_and_what_holds_data_says_so() {
    for setup in [Setup::quickstart(), Setup::standard(), Setup::web()] {
        let cell = setup.valid();
        let desired = build(&cell, &credentials(&cell)).unwrap();
        for object in &desired.objects {
            let metadata = &object.body()["metadata"];
            assert_eq!(metadata["labels"][MANAGED_BY], MANAGER);
            assert_eq!(metadata["labels"]["titan.dev/cell"], "cell-001");
            assert_eq!(metadata["labels"]["titan.dev/fleet"], "shop");
            assert!(metadata.get("ownerReferences").is_none());
            let namespace = (object.kind != Kind::Namespace).then_some("cell-001");
            assert_eq!(metadata["namespace"].as_str(), namespace);
            assert_eq!(
                object.holds_data,
                metadata["annotations"].get(HOLDS_DATA).is_some()
            );
        }
        // Of the stores everything: what holds their data, what opens it and what shields it.
        for object in &desired.objects {
            let labels = &object.body()["metadata"]["labels"];
            let store = ["postgres", "redis"]
                .iter()
                .any(|store| labels["app.kubernetes.io/component"] == *store);
            let around = object.stage == Stage::Namespace
                || object.kind == Kind::NetworkPolicy
                    && ["default-deny", "dns"].contains(&object.name.as_str());
            assert_eq!(
                object.holds_data,
                store || around,
                "{:?} {}",
                object.kind,
                object.name
            );
        }
    }
}

#[test]
fn patroni_is_never_told_to_label_its_own_with_ours() {
    // The operator deletes what bears its label and is not desired; Patroni's ConfigMaps are the cluster's memory.
    let cell = Setup::standard().valid();
    let desired = build(&cell, &credentials(&cell)).unwrap();
    let config = desired
        .objects
        .iter()
        .find(|object| object.name == "postgres-patroni")
        .unwrap();
    let config: serde_json::Value =
        serde_json::from_str(config.body()["data"]["patroni.yml"].as_str().unwrap()).unwrap();
    let labels = config["kubernetes"]["labels"].as_object().unwrap();
    assert!(!labels.contains_key(MANAGED_BY));
    // And its members are found by exactly these.
    let members = desired
        .objects
        .iter()
        .find(|object| object.kind == Kind::StatefulSet && object.name == "postgres")
        .unwrap();
    let pod_labels = &members.body()["spec"]["template"]["metadata"]["labels"];
    for (label, value) in labels {
        assert_eq!(pod_labels[label], *value);
    }
    assert_eq!(
        pod_labels[config["kubernetes"]["scope_label"].as_str().unwrap()],
        config["scope"]
    );
    // The rule of Patroni's manual.
    let settings = patroni_dynamic_configuration(&cell).unwrap();
    let seconds = |name: &str| settings[name].as_u64().unwrap();
    assert!(seconds("loop_wait") + 2 * seconds("retry_timeout") <= seconds("ttl"));
    assert!(seconds("ttl") >= 20 && seconds("loop_wait") >= 1 && seconds("retry_timeout") >= 3);
    assert_eq!(config["bootstrap"]["dcs"], settings);
    assert_eq!(settings["synchronous_mode_strict"], true);
}

#[test]
fn patronis_store_follows_the_cell_and_keeps_what_is_not_ours() {
    let cell = Setup::standard().valid();
    let settings = patroni_dynamic_configuration(&cell).unwrap();
    assert_eq!(patroni_reconfiguration(&cell, &settings.to_string()), None);

    let mut other = Setup::standard();
    other.cell.spec.databases = from_yaml("{ postgres: { synchronous: false } }");
    let other = other.valid();
    let mut current = settings.clone();
    current["pause"] = true.into();
    current["postgresql"]["parameters"]["work_mem"] = "64MB".into();
    let changed = patroni_reconfiguration(&other, &current.to_string()).unwrap();
    let value: serde_json::Value = serde_json::from_str(&changed).unwrap();
    assert_eq!(value["synchronous_mode"], false);
    assert_eq!(value["pause"], true);
    assert_eq!(value["postgresql"]["parameters"]["work_mem"], "64MB");
    assert_eq!(
        patroni_reconfiguration(&other, &changed),
        None,
        "and then rests"
    );

    assert!(patroni_reconfiguration(&cell, "{ broken").is_some());
    let mut external = Setup::quickstart();
    external.cell.spec.databases = from_yaml("{ postgres: { external: { secretName: pg } } }");
    assert_eq!(patroni_reconfiguration(&external.valid(), "{}"), None);
}

#[test]
fn max_connections_follows_the_size_of_a_cell_in_large_steps() {
    let connections = |services: usize, replicas: i32| {
        let mut setup = Setup::standard();
        let mut one = setup.profile.spec.services.remove(0);
        one.autoscaling = None;
        one.replicas = replicas;
        one.depends_on.clear();
        setup.profile.spec.services = (0..services)
            .map(|number| {
                let mut one = one.clone();
                one.name = format!("service-{number}");
                one.port = 50_000 + i32::try_from(number).unwrap();
                one
            })
            .collect();
        let settings = patroni_dynamic_configuration(&setup.valid()).unwrap();
        settings["postgresql"]["parameters"]["max_connections"].clone()
    };
    for (services, replicas, expected) in [
        // What cells had before it was counted: they are not restarted.
        (1, 1, 1000),
        (35, 1, 1000),
        // 35 * 3 pods, as many again that drain, ten connections each, 35 migrations, and the rest.
        (35, 3, 2200),
        (34, 3, 2200),
        (36, 3, 2300),
    ] {
        assert_eq!(
            connections(services, replicas),
            expected,
            "{services} of {replicas}"
        );
    }
}

#[test]
fn another_max_connections_reaches_the_members_and_patronis_store() {
    let cell = Setup::standard().valid();
    let before = patroni_dynamic_configuration(&cell).unwrap();
    let mut larger = Setup::standard();
    larger.profile.spec.services[2].replicas = 60;
    let larger = larger.valid();
    let store = patroni_reconfiguration(&larger, &before.to_string()).unwrap();
    let store: serde_json::Value = serde_json::from_str(&store).unwrap();
    let after = &store["postgresql"]["parameters"]["max_connections"];
    assert_ne!(
        *after,
        before["postgresql"]["parameters"]["max_connections"]
    );
    // Patroni does not restart PostgreSQL for it: the members are rolled.
    let members = |cell: &ValidatedCell| {
        let desired = build(cell, &credentials(cell)).unwrap();
        let set = desired
            .objects
            .iter()
            .find(|object| object.kind == Kind::StatefulSet && object.name == "postgres");
        set.unwrap().body()["spec"]["template"].clone()
    };
    assert_ne!(members(&cell), members(&larger));
}

#[test]
fn passwords_that_are_missing_are_named() {
    let cell = Setup::quickstart().valid();
    let whole = credentials(&cell);
    let refused = |change: fn(&mut titan_planner::cell::Credentials)| {
        let mut credentials = whole.clone();
        change(&mut credentials);
        build(&cell, &credentials).unwrap_err()
    };
    for (change, named) in [
        (
            (|c| c.postgres.password.clear()) as fn(&mut titan_planner::cell::Credentials),
            "administrator",
        ),
        (|c| c.replication_password.clear(), "replication"),
        (|c| c.redis.password.clear(), "Redis"),
        (|c| c.services = BTreeMap::new(), "service cart"),
    ] {
        let invalid = refused(change);
        assert_eq!(invalid.reason, "CredentialsMissing");
        assert!(invalid.message.contains(named), "{invalid}");
    }
}

#[test]
fn a_redis_cluster_has_six_nodes() {
    let cell = Setup::standard().valid();
    let RedisPlan::Managed { topology, .. } = &cell.redis else {
        panic!("{:?}", cell.redis)
    };
    assert_eq!((*topology, topology.count()), (RedisTopology::Cluster, 6));
}

/// What of a cell changes when one thing in it does.
mod rolling {
    use super::*;
    use titan_planner::cell::Credentials;
    use titan_planner::object::Object;

    fn objects(setup: &Setup, change: fn(&mut Credentials)) -> BTreeMap<String, Object> {
        let cell = setup.valid();
        let mut credentials = credentials(&cell);
        change(&mut credentials);
        build(&cell, &credentials)
            .unwrap()
            .objects
            .into_iter()
            .map(|object| (format!("{:?}/{}", object.kind, object.name), object))
            .collect()
    }

    fn changed(before: &BTreeMap<String, Object>, after: &BTreeMap<String, Object>) -> Vec<String> {
        after
            .iter()
            .filter(|(name, object)| before.get(*name) != Some(object))
            .map(|(name, _)| name.clone())
            .collect()
    }

    #[test]
    fn a_new_password_replaces_the_pods_that_read_it_and_no_others() {
        let setup = Setup::quickstart();
        let before = objects(&setup, |_| {});
        let after = objects(&setup, |c| {
            c.services.insert("cart".to_owned(), "new".to_owned());
        });
        assert_eq!(
            changed(&before, &after),
            ["Deployment/cart", "Secret/cart-credentials"]
        );
        let after = objects(&setup, |c| c.redis.password = "new".to_owned());
        assert_eq!(
            changed(&before, &after),
            [
                "Deployment/cart",
                "Secret/cart-credentials",
                "Secret/redis-auth",
                "StatefulSet/redis"
            ]
        );
    }

    #[test]
    fn other_brokers_replace_the_pods_but_migrate_nothing() {
        let mut setup = Setup::quickstart();
        let before = objects(&setup, |_| {});
        setup.fleet.spec.kafka.bootstrap = "other:9092".to_owned();
        let after = objects(&setup, |_| {});
        assert_eq!(
            changed(&before, &after),
            [
                "ConfigMap/cell-environment",
                "Deployment/cart",
                "Deployment/order",
                "Deployment/user"
            ]
        );
    }

    #[test]
    fn a_release_or_another_database_is_migrated_to() {
        let jobs = |objects: &BTreeMap<String, Object>| -> Vec<String> {
            let mut jobs: Vec<_> = objects
                .keys()
                .filter(|name| name.starts_with("Job/"))
                .cloned()
                .collect();
            jobs.sort();
            jobs
        };
        let mut setup = Setup::quickstart();
        let before = jobs(&objects(&setup, |_| {}));
        assert_eq!(before.len(), 3);
        setup.cell.spec.overrides = from_yaml("{ order: { release: next } }");
        let after = jobs(&objects(&setup, |_| {}));
        assert_eq!(after.iter().filter(|job| !before.contains(job)).count(), 1);
        let mut setup = Setup::quickstart();
        setup.cell.spec.databases = from_yaml("{ postgres: { external: { secretName: pg } } }");
        let after = jobs(&objects(&setup, |_| {}));
        assert_eq!(after.iter().filter(|job| !before.contains(job)).count(), 3);
        let other = jobs(&objects(&setup, |c| {
            c.postgres.host = "elsewhere".to_owned();
        }));
        assert_eq!(other.iter().filter(|job| !after.contains(job)).count(), 3);
    }
}
