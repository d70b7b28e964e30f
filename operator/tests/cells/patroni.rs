//! What the operator does for a PostgreSQL that Patroni runs, by Patroni's own objects. Patroni itself, and its pods, are
//! the business of the scenarios in `e2e`.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use titan_crds::Cell;
use titan_operator::stores::patroni::{Replaced, replace};
use titan_planner::object::Kind;

use crate::book::Book;
use crate::harness::{World, condition};

/// A world whose one cell has a PostgreSQL of its own, of one member without a volume.
async fn world(name: &str) -> (World, Api<ConfigMap>, Api<Pod>) {
    world_of(name, 1).await
}

async fn world_of(name: &str, members: i32) -> (World, Api<ConfigMap>, Api<Pod>) {
    let world = World::new(name).await;
    let mut cell = world.cell(1);
    let storage = json!({"ephemeral": {}});
    cell["spec"]["databases"] = json!({"postgres": {"members": members, "storage": storage}});
    world.create::<Cell>(cell).await;
    world.settle(&Arc::new(Book::new())).await.unwrap();
    let namespace = world.cell_name(1);
    let maps = Api::namespaced(world.client.clone(), &namespace);
    let pods = Api::namespaced(world.client.clone(), &namespace);
    (world, maps, pods)
}

/// A ConfigMap as Patroni makes it.
async fn remember(maps: &Api<ConfigMap>, name: &str, annotations: Value) {
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            annotations: serde_json::from_value(annotations).unwrap(),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    };
    maps.create(&PostParams::default(), &map).await.unwrap();
}

/// A member's pod, with what Patroni says of it.
fn member(name: &str, status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "labels": {
                "app.kubernetes.io/name": "postgres", "app.kubernetes.io/component": "postgres",
            },
            "annotations": {"status": status.to_string()},
        },
        "spec": {
            "containers": [{
                "name": "postgres", "image": "none",
                "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                },
            }],
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        },
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_reach_a_cluster_that_was_made_before() {
    let (world, maps, _) = world("settings").await;
    let old = json!({"ttl": 99, "loop_wait": 1, "a-persons-own": true});
    remember(&maps, "postgres-config", json!({"config": old.to_string()})).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let kept = maps.get("postgres-config").await.unwrap();
    let config: Value = serde_json::from_str(&kept.annotations()["config"]).unwrap();
    assert_eq!(config["ttl"], 20, "{config}");
    assert_eq!(config["a-persons-own"], true, "what is not ours stays");
    let writes = book.writes();
    let ours = writes.iter().filter(|write| write.contains("reconfigure"));
    assert_eq!(ours.count(), 1, "once: {writes:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_data_is_forgotten_only_when_every_member_says_that_it_has_none() {
    let (world, maps, pods) = world("forgets").await;
    remember(
        &maps,
        "postgres-config",
        json!({"initialize": "7123456789"}),
    )
    .await;
    remember(&maps, "postgres-leader", json!({"leader": "postgres-0"})).await;
    let made = async || {
        let config = maps.get("postgres-config").await.unwrap();
        config.annotations().contains_key("initialize")
    };
    let pod = member(
        "postgres-0",
        &json!({"role": "replica", "state": "running"}),
    );
    let settle = async || world.settle(&Arc::new(Book::new())).await.unwrap();

    pods.create(&PostParams::default(), &pod).await.unwrap();
    settle().await;
    assert!(made().await, "the member has data");

    let empty = json!({"metadata": {"annotations": {
        "status": r#"{"role":"uninitialized","state":"stopped"}"#,
    }}});
    let merge = |patch: Value| (PatchParams::default(), Patch::Merge(patch));
    let (parameters, patch) = merge(empty);
    pods.patch("postgres-0", &parameters, &patch).await.unwrap();
    settle().await;
    assert!(made().await, "somebody still leads");

    let (parameters, patch) = merge(json!({"metadata": {"annotations": {"leader": null}}}));
    maps.patch("postgres-leader", &parameters, &patch)
        .await
        .unwrap();
    let book = Arc::new(Book::new());
    world.round(&world.view().await, &book).await.unwrap();
    assert!(!made().await, "nobody leads, and nobody has data");
    let ready = condition(&world.get_cell(1).await.unwrap(), "Ready");
    assert!(ready.contains("DataLost"), "{ready}");
}

/// Three members that run, and what the test says of them in the place of Patroni and of Kubernetes' controllers.
struct Three {
    world: World,
    maps: Api<ConfigMap>,
    pods: Api<Pod>,
    sets: Api<StatefulSet>,
}

impl Three {
    async fn new(name: &str) -> Self {
        let (world, maps, pods) = world_of(name, 3).await;
        let config = json!({"synchronous_mode": true, "synchronous_mode_strict": true});
        remember(
            &maps,
            "postgres-config",
            json!({"config": config.to_string()}),
        )
        .await;
        remember(&maps, "postgres-leader", json!({"leader": "postgres-2"})).await;
        remember(&maps, "postgres-sync", json!({"leader": "postgres-2"})).await;
        let sets = Api::namespaced(world.client.clone(), &world.cell_name(1));
        let three = Three {
            world,
            maps,
            pods,
            sets,
        };
        for number in 0..3 {
            three.starts(&format!("postgres-{number}"), "a").await;
        }
        three
    }

    /// A member's pod is there and ready, made from this revision.
    async fn starts(&self, name: &str, revision: &str) {
        let mut pod = member(name, &json!({"role": "replica", "state": "running"}));
        pod.labels_mut()
            .insert("controller-revision-hash".to_owned(), revision.to_owned());
        self.pods
            .create(&PostParams::default(), &pod)
            .await
            .unwrap();
        let ready = json!({"status": {
            "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
        }});
        self.pods
            .patch_status(name, &PatchParams::default(), &Patch::Merge(ready))
            .await
            .unwrap();
    }

    /// The controller of StatefulSets says that so many pods are there, and so many made from this revision, the last one.
    async fn has(&self, pods: i32, updated: i32, revision: &str) {
        let generation = self.set().await.metadata.generation;
        let status = json!({"status": {
            "observedGeneration": generation,
            "replicas": pods, "readyReplicas": pods, "updatedReplicas": updated,
            "currentRevision": "a", "updateRevision": revision,
        }});
        let parameters = PatchParams::default();
        self.sets
            .patch_status("postgres", &parameters, &Patch::Merge(status))
            .await
            .unwrap();
    }

    /// Patroni says that this one leads, and that this one has all of its data.
    async fn knows(&self, leader: &str, standby: &str) {
        for (map, annotations) in [
            (
                "postgres-leader",
                json!({"leader": leader, "renewTime": chrono::Utc::now().to_rfc3339()}),
            ),
            (
                "postgres-sync",
                json!({"leader": leader, "sync_standby": standby}),
            ),
        ] {
            let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
            self.maps
                .patch(map, &PatchParams::default(), &patch)
                .await
                .unwrap();
        }
    }

    /// Of the members, only these live, whatever anybody else says.
    fn live(&self, members: &[&str]) {
        let members = members.iter().map(|&name| name.to_owned()).collect();
        *self.world.living.0.lock().unwrap() = members;
    }

    async fn change(&self, postgres: Value) {
        let patch = json!({"spec": {"databases": {"postgres": postgres}}});
        self.world
            .patch::<Cell>(&self.world.cell_name(1), patch)
            .await;
    }

    async fn settle(&self) -> Vec<String> {
        let book = Arc::new(Book::new());
        self.world.settle(&book).await.unwrap();
        book.writes()
    }

    async fn set(&self) -> StatefulSet {
        self.sets.get("postgres").await.unwrap()
    }
}

/// Three members become one: none goes before somebody who stays has all of its data, and their replication stays
/// synchronous until the last of them is gone.
#[tokio::test(flavor = "multi_thread")]
async fn members_go_one_by_one() {
    let three = Three::new("members").await;
    let replicas = async || {
        three.settle().await;
        three.set().await.spec.unwrap().replicas.unwrap()
    };
    let has = async |pods: i32| three.has(pods, pods, "a").await;
    let is_synchronous = async || {
        let config = three.maps.get("postgres-config").await.unwrap();
        config.annotations()["config"].contains(r#""synchronous_mode":true"#)
    };
    let template = async || three.set().await.spec.unwrap().template;
    let before = template().await;
    has(3).await;
    three.knows("postgres-2", "").await;
    three.change(json!({"members": 1})).await;
    assert_eq!(replicas().await, 3, "only postgres-2 has all of the data");
    three.knows("postgres-2", "postgres-0").await;
    assert_eq!(replicas().await, 2);
    has(3).await;
    assert_eq!(replicas().await, 2, "postgres-2 is not gone yet");
    has(2).await;
    three.knows("postgres-1", "").await;
    assert_eq!(replicas().await, 2, "only postgres-1 has all of the data");
    three.knows("postgres-1", "postgres-0").await;
    three.live(&["postgres-1"]);
    assert_eq!(replicas().await, 2, "postgres-0 is dead");
    three.live(&["postgres-0", "postgres-1"]);
    assert_eq!(replicas().await, 1);
    has(2).await;
    replicas().await;
    assert!(is_synchronous().await, "postgres-1 still leads");
    has(1).await;
    assert_eq!(replicas().await, 1);
    assert!(!is_synchronous().await, "postgres-0 would wait for ever");
    assert_eq!(template().await, before, "no member is started anew");
}

/// Three members are made anew: the standbys first, and none before the one before is back, a standby has all of the data, and
/// the disruption budget allows it.
#[tokio::test(flavor = "multi_thread")]
async fn members_are_replaced_one_by_one() {
    let three = Three::new("replaced").await;
    three.has(3, 3, "a").await;
    three.knows("postgres-2", "postgres-1").await;
    three.settle().await;
    three
        .change(json!({"resources": {"requests": {"memory": "200Mi"}}}))
        .await;
    let budget = async |allowed: i32| {
        let budgets = Api::<PodDisruptionBudget>::namespaced(
            three.world.client.clone(),
            &three.world.cell_name(1),
        );
        let status = json!({"status": {
            "observedGeneration": 1, "disruptionsAllowed": allowed,
            "currentHealthy": 3, "desiredHealthy": 2, "expectedPods": 3,
        }});
        let parameters = PatchParams::default();
        budgets
            .patch_status("postgres", &parameters, &Patch::Merge(status))
            .await
            .unwrap();
    };
    let goes = async || {
        let writes = three.settle().await;
        let gone = writes.iter().filter_map(|write| write.split_once(" Pod "));
        let gone: Vec<_> = gone
            .map(|(verb, pod)| format!("{verb} {}", pod.rsplit('/').next().unwrap()))
            .collect();
        assert!(gone.len() < 2, "{gone:?}");
        gone.into_iter().next()
    };
    assert_eq!(goes().await, None, "nobody has seen the new template");
    three.has(3, 0, "b").await;
    budget(0).await;
    assert_eq!(goes().await, None, "a node is being drained");
    budget(1).await;
    let another = Replaced {
        member: "postgres-0".to_owned(),
        uid: Some("another".to_owned()),
        version: None,
        serves: true,
    };
    let (client, namespace) = (&three.world.client, three.world.cell_name(1));
    let refused = replace(client, &namespace, &another, &Book::new()).await;
    assert!(refused.unwrap().is_some(), "one that was looked at before");
    // The apiserver takes it off the budget before it looks at the uid.
    budget(1).await;
    three.live(&["postgres-0", "postgres-2"]);
    three.knows("postgres-2", "postgres-1").await;
    assert_eq!(goes().await, None, "postgres-1 is dead");
    three.live(&["postgres-1", "postgres-2"]);
    three.knows("postgres-2", "postgres-1").await;
    assert_eq!(goes().await.unwrap(), "kubernetes evict postgres-0");
    budget(1).await;
    assert_eq!(goes().await, None, "postgres-0 is away");
    three.starts("postgres-0", "b").await;
    three.has(3, 1, "b").await;
    three.live(&["postgres-0", "postgres-1", "postgres-2"]);
    three.knows("postgres-2", "").await;
    assert_eq!(goes().await, None, "only postgres-2 has all of the data");
    three.knows("postgres-2", "postgres-1").await;
    assert_eq!(goes().await.unwrap(), "kubernetes evict postgres-1");
    three.starts("postgres-1", "b").await;
    three.has(3, 2, "b").await;
    three.knows("postgres-2", "postgres-1").await;
    budget(1).await;
    three.live(&["postgres-0", "postgres-2"]);
    assert_eq!(goes().await, None, "postgres-0 may be behind");
    three.live(&["postgres-1", "postgres-2"]);
    three.knows("postgres-2", "postgres-1").await;
    assert_eq!(goes().await.unwrap(), "kubernetes evict postgres-2");
    three.starts("postgres-2", "b").await;
    three.has(3, 3, "b").await;
    three.knows("postgres-1", "postgres-0").await;
    assert_eq!(goes().await, None);
}

/// Earlier operators left it to the controller of StatefulSets to replace members.
#[tokio::test(flavor = "multi_thread")]
async fn a_statefulset_that_rolls_by_itself_no_longer_does() {
    let three = Three::new("strategy").await;
    let earlier = json!({"spec": {"updateStrategy": {
        "type": "RollingUpdate", "rollingUpdate": {"partition": 0},
    }}});
    let parameters = PatchParams::default();
    three
        .sets
        .patch("postgres", &parameters, &Patch::Merge(earlier))
        .await
        .unwrap();
    three.settle().await;
    let strategy = three.set().await.spec.unwrap().update_strategy.unwrap();
    assert_eq!(strategy.type_.as_deref(), Some("OnDelete"));
    assert_eq!(strategy.rolling_update, None);
    assert!(three.settle().await.is_empty(), "and that is all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_was_lost_is_not_made_anew() {
    let (world, _, _) = world("password").await;
    let namespace = world.cell_name(1);
    let secrets = Api::<Secret>::namespaced(world.client.clone(), &namespace);
    let mut kept = secrets.get("postgres-admin").await.unwrap();
    secrets
        .delete("postgres-admin", &DeleteParams::default())
        .await
        .unwrap();
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let ready = condition(&world.get_cell(1).await.unwrap(), "Ready");
    assert!(ready.starts_with("False/PasswordLost"), "{ready}");
    assert!(ready.contains("PATRONI_SUPERUSER_PASSWORD"), "{ready}");
    assert!(secrets.get_opt("postgres-admin").await.unwrap().is_none());
    let sets = world.api(&namespace, Kind::StatefulSet);
    let generation = sets.get("postgres").await.unwrap().metadata.generation;
    assert_eq!(generation, Some(1), "no member is rolled");

    kept.metadata = ObjectMeta {
        name: kept.metadata.name,
        labels: kept.metadata.labels,
        ..ObjectMeta::default()
    };
    let password = kept.data.clone().unwrap()["password"].clone();
    secrets.create(&PostParams::default(), &kept).await.unwrap();
    world.settle(&Arc::new(Book::new())).await.unwrap();
    let ready = condition(&world.get_cell(1).await.unwrap(), "Ready");
    assert!(!ready.contains("PasswordLost"), "{ready}");
    let after = secrets.get("postgres-admin").await.unwrap();
    assert_eq!(after.data.unwrap()["password"], password);
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_keep_a_password_that_is_lost_with_the_statefulset() {
    let world = World::new("volumes").await;
    let mut cell = world.cell(1);
    let persistent = json!({"persistent": {"size": "1Gi"}});
    cell["spec"]["databases"] = json!({"postgres": {"members": 1, "storage": persistent}});
    world.create::<Cell>(cell).await;
    world.settle(&Arc::new(Book::new())).await.unwrap();
    let namespace = world.cell_name(1);
    let secrets = Api::<Secret>::namespaced(world.client.clone(), &namespace);
    let sets = world.api(&namespace, Kind::StatefulSet);
    let lose_both = async || {
        let gone = DeleteParams::default();
        secrets.delete("postgres-admin", &gone).await.unwrap();
        sets.delete("postgres", &gone).await.unwrap();
        world.settle(&Arc::new(Book::new())).await.unwrap();
        condition(&world.get_cell(1).await.unwrap(), "Ready")
    };
    // There was no database yet: another password is as good.
    let ready = lose_both().await;
    assert!(!ready.contains("PasswordLost"), "{ready}");
    assert!(sets.get_opt("postgres").await.unwrap().is_some());

    let maps = Api::namespaced(world.client.clone(), &namespace);
    let made = json!({"initialize": "7123456789"});
    remember(&maps, "postgres-config", made).await;
    let ready = lose_both().await;
    assert!(ready.starts_with("False/PasswordLost"), "{ready}");
    assert!(secrets.get_opt("postgres-admin").await.unwrap().is_none());
    assert!(sets.get_opt("postgres").await.unwrap().is_none());
}
