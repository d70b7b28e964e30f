//! Bad input: each is answered by a condition that says what to do, and nothing is half made.

use std::sync::Arc;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use titan_crds::{Cell, CellFleet, RoutingTable, ServiceProfile};
use titan_planner::object::Kind;

use crate::book::Book;
use crate::harness::{World, condition};

/// Applies a cell, lets the operator come to rest, and expects it to be stalled for `reason`, with nothing created.
async fn refused(world: &World, cell: Value, reason: &str, names: &[&str]) {
    let cell: Cell = world.create(cell).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let view = world.view().await;
    let cell = view
        .cells
        .iter()
        .find(|other| other.name_any() == cell.name_any())
        .unwrap();
    let ready = condition(cell, "Ready");
    assert!(ready.starts_with(&format!("False/{reason}: ")), "{ready}");
    assert!(condition(cell, "Stalled").starts_with("True/"));
    assert_eq!(condition(cell, "Reconciling"), "absent");
    for name in names {
        assert!(
            ready.contains(name),
            "the message should name {name}: {ready}"
        );
    }
    nothing_is_made_of(world, &cell.name_any(), &[]).await;
}

/// Expects nothing in the namespace of a cell but of some kinds, and nothing outside of it.
async fn nothing_is_made_of(world: &World, name: &str, but: &[Kind]) {
    for kind in Kind::ALL {
        if kind != Kind::Namespace && !but.contains(&kind) {
            let made = world.objects(name, kind).await;
            assert!(made.is_empty(), "{kind:?}: {made:#?}");
        }
    }
    let outside = world.outside_of(name).await;
    assert_eq!(outside["postgres"], json!([]));
    assert_eq!(outside["topics"], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_of_two_overlapping_cells_keeps_its_range() {
    let world = World::new("overlaps").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();

    let mut second = world.cell(2);
    second["spec"]["userRange"]["first"] = world.cell(1)["spec"]["userRange"]["last"].clone();
    refused(&world, second, "RangeOverlaps", &[&world.cell_name(1)]).await;
    let first = world.get_cell(1).await.unwrap();
    assert!(condition(&first, "Ready").starts_with("True/"));

    // With the older one gone, the younger one gets what it asked for, without anybody touching it.
    world.delete_cell(1).await;
    world.settle(&book).await.unwrap();
    let second = world.get_cell(2).await.unwrap();
    assert!(
        condition(&second, "Ready").starts_with("True/"),
        "{}",
        condition(&second, "Ready")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_profile_is_named() {
    let world = World::new("profileless").await;
    let mut cell = world.cell(1);
    cell["spec"]["profile"] = json!("nowhere");
    refused(&world, cell, "ProfileNotFound", &["nowhere"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_and_a_shared_port_are_named() {
    let world = World::new("cycles").await;
    let mut services = world.profile()["spec"]["services"].clone();
    services[0]["dependsOn"] = json!(["order"]);
    world
        .patch::<ServiceProfile>(&world.name, json!({"spec": {"services": services}}))
        .await;
    refused(&world, world.cell(1), "DependencyCycle", &["user", "order"]).await;

    let mut services = world.profile()["spec"]["services"].clone();
    services[0]["port"] = services[1]["port"].clone();
    world
        .patch::<ServiceProfile>(&world.name, json!({"spec": {"services": services}}))
        .await;
    refused(&world, world.cell(2), "DuplicatePort", &["50001"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_that_serves_says_what_it_serves_when_its_spec_is_refused() {
    let world = World::new("serves-on").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let before = world.get_cell(1).await.unwrap().status.unwrap();
    let mut services = world.profile()["spec"]["services"].clone();
    services[0]["dependsOn"] = json!(["order"]);
    world
        .patch::<ServiceProfile>(&world.name, json!({"spec": {"services": services}}))
        .await;
    world.settle(&book).await.unwrap();
    let cell = world.get_cell(1).await.unwrap();
    let stalled = condition(&cell, "Stalled");
    assert!(stalled.starts_with("True/DependencyCycle"), "{stalled}");
    assert!(condition(&cell, "RangeAssigned").starts_with("True/"));
    let after = cell.status.unwrap();
    assert_eq!(before.ranges.len(), 1);
    assert_eq!(
        (after.ranges, after.claim_granted, after.database_id),
        (before.ranges, before.claim_granted, before.database_id)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_not_ours_is_not_touched() {
    let world = World::new("occupied").await;
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": world.cell_name(1)}});
    world
        .create::<k8s_openapi::api::core::v1::Namespace>(namespace)
        .await;
    refused(
        &world,
        world.cell(1),
        "NamespaceNotOurs",
        &[&world.cell_name(1)],
    )
    .await;

    world.delete_cell(1).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    assert!(world.get_cell(1).await.is_none());
    let namespaces = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(world.client.clone());
    let left = namespaces.get(&world.cell_name(1)).await.unwrap();
    assert!(
        left.metadata.deletion_timestamp.is_none(),
        "somebody else's namespace stays"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_routing_table_is_put_right() {
    let world = World::new("edited").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let good = world.table().await.unwrap();

    for operator_restarts in [false, true] {
        let edited = world.table().await.unwrap().spec.epoch + 10;
        let edit = json!({"spec": {"assignments": [], "epoch": edited}});
        world.patch::<RoutingTable>(&world.name, edit).await;
        if operator_restarts {
            world.restart_operator();
        }
        world.settle(&book).await.unwrap();
        let mended = world.table().await.unwrap();
        assert_eq!(mended.spec.assignments, good.spec.assignments);
        assert!(mended.spec.epoch > edited, "the epoch only grows");
        let cell = world.get_cell(1).await.unwrap();
        assert!(condition(&cell, "Ready").starts_with("True/"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_committed_is_told() {
    let world = World::new("committed").await;
    world.create::<Cell>(world.cell(1)).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let good = world.table().await.unwrap();
    let tables = kube::Api::<RoutingTable>::all(world.client.clone());
    let set = async |epoch: i64| {
        let edit = Patch::Merge(json!({"spec": {"epoch": epoch}}));
        tables
            .patch(&world.name, &PatchParams::default(), &edit)
            .await
    };
    let refused = set(i64::MAX).await.unwrap_err().to_string();
    assert!(refused.contains("spec.epoch"), "{refused}");

    // As large as the schema lets it be: nothing comes after that.
    set(1 << 53).await.unwrap();
    for _ in 0..2 {
        world.round(&world.view().await, &book).await.unwrap();
    }
    let fleet = world.get_fleet().await.unwrap().status.unwrap();
    let ready = &fleet.conditions[0];
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "CommitFailed")
    );
    assert!(ready.message.contains("epoch"), "{}", ready.message);
    assert_eq!(fleet.epoch, Some(good.spec.epoch), "that one is in force");

    tables
        .delete(&world.name, &DeleteParams::default())
        .await
        .unwrap();
    world.settle(&book).await.unwrap();
    let fleet = world.get_fleet().await.unwrap().status.unwrap();
    assert_eq!(fleet.conditions[0].reason, "CellsReady");
    let mended = world.table().await.unwrap();
    assert_eq!(mended.spec.assignments, good.spec.assignments);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_waits_for_kafka_and_goes_on_by_itself() {
    let world = World::new("awaits").await;
    let kafka = world.fleet()["spec"]["kafka"].clone();
    let nowhere = json!({"spec": {"kafka": {"bootstrap": "127.0.0.1:1"}}});
    world.patch::<CellFleet>(&world.name, nowhere).await;
    let (now, later) = now_and_later(&world, world.cell(1), "TopicsReady").await;
    assert!(now.starts_with("Unknown/KafkaUnreachable"), "{now}");
    assert!(later.starts_with("False/KafkaUnreachable"), "{later}");
    assert!(later.contains("more than 5 minutes"), "{later}");
    let book = Arc::new(Book::new());

    world
        .patch::<CellFleet>(&world.name, json!({"spec": {"kafka": kafka}}))
        .await;
    world.settle(&book).await.unwrap();
    let cell = world.get_cell(1).await.unwrap();
    assert!(condition(&cell, "Ready").starts_with("True/"));

    // What Kafka cannot do to a topic is told, and holds nothing up.
    let mut services = world.profile()["spec"]["services"].clone();
    services[1]["topics"][0]["partitions"] = json!(1);
    world
        .patch::<ServiceProfile>(&world.name, json!({"spec": {"services": services}}))
        .await;
    world.settle(&book).await.unwrap();
    let cell = world.get_cell(1).await.unwrap();
    assert!(condition(&cell, "Ready").starts_with("True/"));
    let topics = condition(&cell, "TopicsReady");
    assert!(topics.starts_with("True/"), "{topics}");
    assert!(topics.contains("never taken away"), "{topics}");
}

/// What a cell says now, and once this has not been so for long.
async fn now_and_later(world: &World, cell: Value, what: &str) -> (String, String) {
    world.create::<Cell>(cell).await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let now = world.get_cell(1).await.unwrap();
    let mut conditions = now.status.clone().unwrap().conditions;
    for condition in &mut conditions {
        if condition.type_ == what {
            let long_ago = "2026-01-01T00:00:00Z".parse().unwrap();
            condition.last_transition_time =
                k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(long_ago);
        }
    }
    let patch = Patch::Merge(json!({"status": {"conditions": conditions}}));
    kube::Api::<Cell>::all(world.client.clone())
        .patch_status(&world.cell_name(1), &PatchParams::default(), &patch)
        .await
        .unwrap();
    world.settle(&book).await.unwrap();
    let later = world.get_cell(1).await.unwrap();
    assert_eq!(condition(&now, "Stalled"), "absent");
    assert!(condition(&later, "Stalled").starts_with("True/"));
    let quiet = Arc::new(Book::new());
    world.round(&world.view().await, &quiet).await.unwrap();
    assert_eq!(quiet.writes(), Vec::<String>::new(), "it is said once");
    (condition(&now, "Ready"), condition(&later, "Ready"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_never_becomes_ready_is_told_with_what_to_look_at() {
    let world = World::new("unready").await;
    let mut cell = world.cell(1);
    cell["spec"]["databases"] = json!({"postgres": {"members": 1, "storage": {"ephemeral": {}}}});
    let (now, later) = now_and_later(&world, cell, "DatabasesReady").await;
    assert!(now.starts_with("Unknown/DatabasesStarting"), "{now}");
    assert!(later.starts_with("False/DatabaseNotReady"), "{later}");
    let command = format!("kubectl logs -n {} postgres-0", world.cell_name(1));
    assert!(later.contains(&command), "{later}");
    let namespace = world.cell_name(1);
    for kind in [Kind::Deployment, Kind::Job] {
        assert!(world.objects(&namespace, kind).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_postgres_that_is_away_or_refuses_is_told() {
    let world = World::new("away").await;
    world.set_postgres(json!({"port": "1"})).await;
    let (now, later) = now_and_later(&world, world.cell(1), "DatabasesReady").await;
    assert!(now.starts_with("Unknown/PostgresUnreachable"), "{now}");
    assert!(later.starts_with("False/PostgresUnreachable"), "{later}");
    for said in [&now, &later] {
        assert!(said.contains("127.0.0.1:1"), "where? {said}");
        assert!(said.contains("firewall"), "what to do? {said}");
    }
    let made = [
        Kind::RoleBinding,
        Kind::ServiceAccount,
        Kind::Secret,
        Kind::ConfigMap,
        Kind::NetworkPolicy,
        Kind::Service,
    ];
    let cell = world.cell_name(1);
    let outside = world.outside_of(&cell).await;
    assert_eq!(outside["postgres"], json!([]));
    for kind in Kind::ALL {
        if kind != Kind::Namespace && !made.contains(&kind) {
            assert!(world.objects(&cell, kind).await.is_empty(), "{kind:?}");
        }
    }

    let port = world.postgres().port.to_string();
    world
        .set_postgres(json!({"port": port, "password": "wrong"}))
        .await;
    let book = Arc::new(Book::new());
    world.settle(&book).await.unwrap();
    let ready = condition(&world.get_cell(1).await.unwrap(), "Ready");
    assert!(ready.starts_with("False/PostgresLoginRefused"), "{ready}");
    assert!(ready.contains("Secret"), "what to do? {ready}");

    let password = world.postgres().password;
    world.set_postgres(json!({"password": password})).await;
    world.settle(&book).await.unwrap();
    let ready = condition(&world.get_cell(1).await.unwrap(), "Ready");
    assert!(ready.starts_with("True/"), "{ready}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_the_systems_are_refused_by_the_apiserver() {
    let world = World::new("reserved").await;
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let message = |result: Result<(), kube::Error>| match result {
        Err(kube::Error::Api(status)) if status.code == 422 => status.message,
        other => panic!("{other:?}"),
    };
    let cells = Api::<Cell>::all(world.client.clone());
    for name in [
        "postgres",
        "template1",
        "public",
        "pg-1",
        "kube-1",
        "titan-system",
    ] {
        let mut cell = world.cell(1);
        cell["metadata"]["name"] = json!(name);
        let cell = serde_json::from_value(cell).unwrap();
        let refused = message(cells.create(&dry, &cell).await.map(drop));
        assert!(refused.contains("this name"), "{name}: {refused}");
    }
    let profiles = Api::<ServiceProfile>::all(world.client.clone());
    for name in ["default", "redis-nodes", "postgres-2", "titan", "pg-x"] {
        let mut profile = world.profile();
        profile["metadata"]["name"] = json!("reserved-dry");
        profile["spec"]["services"][0]["name"] = json!(name);
        let profile = serde_json::from_value(profile).unwrap();
        let refused = message(profiles.create(&dry, &profile).await.map(drop));
        assert!(refused.contains("uses this name"), "{name}: {refused}");
    }
}
