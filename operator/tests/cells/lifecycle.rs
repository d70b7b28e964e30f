//! A cell from its creation to its end.

use std::sync::Arc;

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::json;
use titan_crds::{AssignmentState, Cell, CellFleet};
use titan_operator::stores::postgres::{drop_database, ownership};
use titan_planner::object::Kind;

use crate::book::Book;
use crate::harness::{World, condition};

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_becomes_ready_and_then_rests() {
    let world = World::new("rests").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();

    let cell = world.get_cell(1).await.unwrap();
    assert!(
        condition(&cell, "Ready").starts_with("True/"),
        "{}",
        condition(&cell, "Ready")
    );
    let status = cell.status.clone().unwrap();
    assert_eq!(status.services_ready.as_deref(), Some("2/2"));
    assert_eq!(status.release.as_deref(), Some("1.0.0"));
    let table = world.table().await.unwrap();
    assert_eq!(table.spec.assignments.len(), 1);
    assert_eq!(table.spec.assignments[0].state, AssignmentState::Active);
    assert_eq!(status.ranges.len(), 1);
    assert_eq!(status.ranges[0].epoch, table.spec.assignments[0].epoch);
    assert!(status.claim_granted);

    // Every object came by one create: nothing was written twice.
    let writes = book.writes();
    assert!(
        !writes
            .iter()
            .any(|write| write.contains(" apply ") || write.contains("take over")),
        "{writes:#?}"
    );

    let quiet = Arc::new(Book::new());
    for _ in 0..3 {
        world.round(&world.view().await, &quiet).await.unwrap();
    }
    world.restart_operator();
    world.round(&world.view().await, &quiet).await.unwrap();
    assert_eq!(
        quiet.writes(),
        Vec::<String>::new(),
        "a cell at rest is not written to"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_repaired_and_strangers_are_left_alone() {
    let world = World::new("drifts").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let before = world.essence(1).await;
    let namespace = world.cell_name(1);

    use kube::api::{DeleteParams, Patch, PatchParams};
    let deployments = world.api(&namespace, Kind::Deployment);
    deployments
        .patch(
            "order",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"replicas": 7}})),
        )
        .await
        .unwrap();
    world
        .api(&namespace, Kind::ServiceAccount)
        .delete("user", &DeleteParams::default())
        .await
        .unwrap();
    // Fields that are somebody else's, which an apply alone would leave: a gate, a variable, a container.
    let theirs = [
        (
            Kind::NetworkPolicy,
            "default-deny",
            json!({"spec": {"ingress": [{}]}}),
        ),
        (
            Kind::ConfigMap,
            "cell-environment",
            json!({"data": {"EXTRA": "1"}}),
        ),
        (
            Kind::Deployment,
            "user",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "spy", "image": "spy"}]}}}}),
        ),
    ];
    for (kind, name, change) in theirs {
        world
            .api(&namespace, kind)
            .patch(name, &PatchParams::default(), &Patch::Strategic(change))
            .await
            .unwrap();
    }
    let policies = world.api(&namespace, Kind::NetworkPolicy);
    let names: Vec<String> = world
        .objects(&namespace, Kind::NetworkPolicy)
        .await
        .into_iter()
        .filter_map(|policy| policy.metadata.name)
        .collect();
    let last = names.iter().max().unwrap();
    policies
        .delete(last, &DeleteParams::default())
        .await
        .unwrap();
    let stranger = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "somebody-elses"}, "data": {"a": "b"}});
    world
        .api(&namespace, Kind::ConfigMap)
        .create(
            &Default::default(),
            &serde_json::from_value(stranger).unwrap(),
        )
        .await
        .unwrap();

    world.settle(&book).await.unwrap();
    let mut after = world.essence(1).await;
    assert!(
        after.remove("ConfigMap somebody-elses").is_some(),
        "a stranger's object stays"
    );
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_profile_no_longer_says_is_really_removed() {
    let world = World::new("removes").await;
    let mut profile = world.profile();
    profile["spec"]["services"][0]["env"] = json!({"GREETING": "hello"});
    profile["spec"]["services"][1]["autoscaling"] = json!({"minReplicas": 1, "maxReplicas": 3});
    profile["spec"]["services"][1]["resources"] = json!({"requests": {"cpu": "100m"}});
    world
        .patch::<titan_crds::ServiceProfile>(&world.name, json!({"spec": profile["spec"]}))
        .await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let namespace = world.cell_name(1);
    assert_eq!(
        world
            .objects(&namespace, Kind::HorizontalPodAutoscaler)
            .await
            .len(),
        1
    );
    let text = serde_json::to_string(&world.objects(&namespace, Kind::Deployment).await).unwrap();
    assert!(text.contains("GREETING"));

    world
        .patch::<titan_crds::ServiceProfile>(
            &world.name,
            json!({"spec": {"services": world.profile()["spec"]["services"]}}),
        )
        .await;
    world.settle(&book).await.unwrap();
    assert_eq!(
        world
            .objects(&namespace, Kind::HorizontalPodAutoscaler)
            .await
            .len(),
        0
    );
    let text = serde_json::to_string(&world.objects(&namespace, Kind::Deployment).await).unwrap();
    assert!(
        !text.contains("GREETING"),
        "a field that the plan dropped must go: {text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_autoscaler_begins_with_the_pods_that_there_are() {
    let world = World::new("scales").await;
    let mut services = world.profile()["spec"]["services"].clone();
    services[1]["replicas"] = json!(4);
    services[1]["resources"] = json!({"requests": {"cpu": "100m"}});
    let put = async |services: &serde_json::Value| {
        world
            .patch::<titan_crds::ServiceProfile>(
                &world.name,
                json!({"spec": {"services": services}}),
            )
            .await;
    };
    put(&services).await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let deployments = world.api(&world.cell_name(1), Kind::Deployment);
    let replicas = async || {
        let order = deployments.get("order").await.unwrap();
        order.data["spec"]["replicas"].clone()
    };
    assert_eq!(replicas().await, 4);

    services[1].as_object_mut().unwrap().remove("replicas");
    services[1]["autoscaling"] = json!({"minReplicas": 2, "maxReplicas": 9});
    put(&services).await;
    world.settle(&book).await.unwrap();
    assert_eq!(replicas().await, 4, "not a single pod under full load");

    // The autoscaler has its way, and a later change of the plan leaves it.
    let scale = kube::api::Patch::Merge(json!({"spec": {"replicas": 7}}));
    deployments
        .patch("order", &Default::default(), &scale)
        .await
        .unwrap();
    services[1]["env"] = json!({"MODE": "other"});
    put(&services).await;
    world.settle(&book).await.unwrap();
    assert_eq!(replicas().await, 7);
    let quiet = Arc::new(Book::new());
    world.round(&world.view().await, &quiet).await.unwrap();
    assert_eq!(quiet.writes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_hangs_is_told() {
    let world = World::new("hangs").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let namespace = world.cell_name(1);
    let say = async |said: serde_json::Value| {
        let status = json!({"status": {
            "replicas": 2, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
            "conditions": [said],
        }});
        world
            .patch_status(&namespace, Kind::Deployment, "order", status)
            .await;
        world.round(&world.view().await, &book).await.unwrap();
        let cell = world.get_cell(1).await.unwrap();
        assert!(condition(&cell, "Stalled").starts_with("True/"));
        condition(&cell, "Ready")
    };
    let ready = say(json!({
        "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
        "message": "ReplicaSet order-2 has timed out progressing.",
    }))
    .await;
    assert!(ready.starts_with("False/RolloutStuck"), "{ready}");
    assert!(ready.contains("order-2"), "{ready}");
    let ready = say(json!({
        "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
        "message": "exceeded quota: small",
    }))
    .await;
    assert!(ready.starts_with("False/PodsNotCreated"), "{ready}");
    assert!(ready.contains("exceeded quota"), "{ready}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_cell_leaves_nothing_under_delete() {
    let world = World::new("deletes").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    world.delete_cell(1).await;
    world.settle(&book).await.unwrap();

    assert!(world.get_cell(1).await.is_none());
    assert_eq!(world.table().await.unwrap().spec.assignments, vec![]);
    let writes = book.writes();
    let position = |what: &str| {
        writes
            .iter()
            .rposition(|write| write.contains(what))
            .unwrap_or_else(|| panic!("no write `{what}` in {writes:#?}"))
    };
    let (route, topics, namespace) = (
        position("commit RoutingTable"),
        position("kafka"),
        position("delete Namespace"),
    );
    assert!(
        route < topics && topics < namespace,
        "route first, then topics, then the namespace: {writes:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_cell_is_not_written_to() {
    let world = World::new("pauses").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    world
        .patch::<Cell>(
            &world.cell_name(1),
            json!({"spec": {"paused": true, "release": "2.0.0"}}),
        )
        .await;
    let paused = Arc::new(Book::new());
    world.settle(&paused).await.unwrap();
    let cell = world.get_cell(1).await.unwrap();
    assert!(condition(&cell, "Paused").starts_with("True/"));
    let others: Vec<String> = paused
        .writes()
        .into_iter()
        .filter(|write| !write.contains(" status "))
        .collect();
    assert_eq!(others, Vec::<String>::new());

    // Its status goes on telling the truth: of pods that are gone, of a Deployment that is, and of all of them back.
    let namespace = world.cell_name(1);
    let deployments = world.api(&namespace, Kind::Deployment);
    let say = async |ready: i32| {
        let status = json!({"status": {
            "readyReplicas": ready, "availableReplicas": ready, "conditions": null,
        }});
        world
            .patch_status(&namespace, Kind::Deployment, "order", status)
            .await;
    };
    let round = async || {
        world.round(&world.view().await, &paused).await.unwrap();
        let cell = world.get_cell(1).await.unwrap();
        let status = cell.status.clone().unwrap();
        (
            condition(&cell, "Ready"),
            condition(&cell, "ServicesAvailable"),
            status.services_ready.unwrap(),
        )
    };
    say(0).await;
    let (ready, services, count) = round().await;
    assert!(ready.starts_with("False/ServicesStarting"), "{ready}");
    assert!(services.contains("order 0/1"), "{services}");
    assert_eq!(count, "1/2");
    let status = world.get_cell(1).await.unwrap().status.unwrap();
    let order = status.services.iter().find(|it| it.name == "order");
    assert_eq!(order.map(|it| (it.ready, &*it.release)), Some((0, "1.0.0")));

    say(1).await;
    let (ready, _, count) = round().await;
    assert!(ready.starts_with("True/"), "{ready}");
    assert_eq!(count, "2/2");

    deployments
        .delete("user", &Default::default())
        .await
        .unwrap();
    let (ready, services, count) = round().await;
    assert!(ready.starts_with("False/"), "{ready}");
    assert!(services.contains("user 0/1"), "{services}");
    assert_eq!(count, "1/2");
    // The fleet's own status follows.
    round().await;
    let before = paused.len();
    round().await;
    assert_eq!(paused.len(), before, "it says nothing twice");
    let wrote = paused.writes();
    assert!(
        wrote.iter().all(|write| write.contains(" status ")),
        "{wrote:#?}"
    );

    world
        .patch::<Cell>(&world.cell_name(1), json!({"spec": {"paused": false}}))
        .await;
    world.settle(&book).await.unwrap();
    let status = world.get_cell(1).await.unwrap().status.unwrap();
    assert_eq!(status.release.as_deref(), Some("2.0.0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_lost_is_made_anew_when_a_person_gives_it_up() {
    let world = World::new("loses").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let namespace = world.cell_name(1);
    let before = world.objects(&namespace, Kind::Job).await;
    let database = namespace.replace('-', "_");
    drop_database(&world.postgres(), &*database, &Book::new())
        .await
        .unwrap();

    let waiting = Arc::new(Book::new());
    world.settle(&waiting).await.unwrap();
    let cell = world.get_cell(1).await.unwrap();
    let ready = condition(&cell, "Ready");
    assert!(ready.starts_with("False/OtherDatabase"), "{ready}");
    let id = cell.status.unwrap().database_id.unwrap();
    let command =
        format!("kubectl annotate --overwrite cell {namespace} titan.dev/give-up-database='{id}'");
    assert!(ready.contains(&command), "{ready}");
    assert!(
        ownership(&world.postgres(), &database).await.is_err(),
        "no empty database takes its place"
    );
    assert_eq!(
        world.objects(&namespace, Kind::Job).await.len(),
        before.len()
    );

    let given_up = json!({"metadata": {"annotations": {"titan.dev/give-up-database": id}}});
    world.patch::<Cell>(&namespace, given_up).await;
    let again = Arc::new(Book::new());
    world.settle(&again).await.unwrap();
    let cell = world.get_cell(1).await.unwrap();
    assert_ne!(cell.status.as_ref().unwrap().database_id, Some(id));
    assert!(
        condition(&cell, "Ready").starts_with("True/"),
        "{}",
        condition(&cell, "Ready")
    );
    let after = world.objects(&namespace, Kind::Job).await;
    assert_eq!(before.len(), 2);
    let names = |jobs: &[DynamicObject]| -> Vec<String> {
        jobs.iter().map(ResourceExt::name_any).collect()
    };
    assert_eq!(names(&after), names(&before));
    for (old, new) in before.iter().zip(&after) {
        assert_ne!(old.uid(), new.uid(), "{} is another Job", new.name_any());
        let count = |verb: &str| {
            let write = format!("{verb} Job {namespace}/{}", new.name_any());
            let writes = again.writes();
            writes.iter().filter(|line| line.contains(&write)).count()
        };
        assert_eq!((count("delete"), count("create")), (1, 1), "once only");
    }
    let rows = ownership(&world.postgres(), &database).await.unwrap();
    assert_eq!(rows.len(), 1, "the range may be written again: {rows:?}");

    let quiet = Arc::new(Book::new());
    world.round(&world.view().await, &quiet).await.unwrap();
    assert_eq!(quiet.writes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_makes_its_cells_and_deletes_none() {
    let world = World::new("templated").await;
    let template = json!({"spec": {"template": {
        "count": 3, "namePrefix": "templated", "firstKey": 900_000_000, "usersPerCell": 10,
        "spec": {"profile": world.name, "release": "1.0.0", "reclaimPolicy": "Delete"},
    }}});
    world.patch::<CellFleet>(&world.name, template).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let ranges: Vec<(i64, i64)> = world
        .view()
        .await
        .cells
        .iter()
        .map(|cell| {
            (
                cell.spec.user_range.unwrap().first,
                cell.spec.user_range.unwrap().last,
            )
        })
        .collect();
    assert_eq!(
        ranges,
        [
            (900_000_000, 900_000_009),
            (900_000_010, 900_000_019),
            (900_000_020, 900_000_029)
        ]
    );

    world
        .patch::<CellFleet>(&world.name, json!({"spec": {"template": {"count": 1}}}))
        .await;
    world.settle(&book).await.unwrap();
    let view = world.view().await;
    assert_eq!(view.cells.len(), 3, "nothing deletes a cell but a person");
    let message = &view.fleets[0].status.as_ref().unwrap().conditions[0].message;
    assert!(message.contains("beyond the template's count"), "{message}");
}

/// `kube-` begins names that are not for cells: the apiserver refuses those of this template.
#[tokio::test(flavor = "multi_thread")]
async fn a_cell_that_cannot_be_made_holds_no_other_up() {
    let world = World::new("unmakable").await;
    let template = json!({"spec": {"template": {
        "count": 2, "namePrefix": "kube", "firstKey": 910_000_000, "usersPerCell": 10,
        "spec": {"profile": world.name, "release": "1.0.0", "reclaimPolicy": "Delete"},
    }}});
    world.patch::<CellFleet>(&world.name, template).await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let cell = world.get_cell(1).await.unwrap();
    assert!(condition(&cell, "Ready").starts_with("True/"));
    let status = world.get_fleet().await.unwrap().status.unwrap();
    let ready = &status.conditions[0];
    assert_eq!(
        (&*ready.status, &*ready.reason),
        ("False", "CellsNotCreated")
    );
    let why = "kube-001: the apiserver says: ";
    assert!(ready.message.contains(why), "{}", ready.message);
    let why = "this name belongs to a system namespace";
    assert!(ready.message.ends_with(why), "{}", ready.message);
    assert_eq!((status.cells, status.ready_cells), (1, 1));
}
