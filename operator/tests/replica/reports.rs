//! What a router reports of a failing cell, and where people see it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use titan_crds::{Cell, RoutingTable as TableResource};
use titan_planner::fleet::to_resource;
use titan_routing::client::{RegistryClient, RegistryConfig};
use titan_routing::proto::FailureReport;
use titan_routing::{
    Assignment, AssignmentState, CellEndpoint, Epoch, Key, KeyRange, KeyspaceMode, RoutingTable,
};
use titan_testbed::apiserver;

use crate::replica::{PATIENCE, Replica, prepare};

const CELL: &str = "cell-001";

/// A table with one row.
pub fn table() -> RoutingTable {
    let range = KeyRange::new(Key::new(0).unwrap(), Key::new(9999).unwrap()).unwrap();
    let row = Assignment {
        range,
        cell: CELL.to_owned(),
        home: CELL.to_owned(),
        state: AssignmentState::Active,
        epoch: Epoch(1),
    };
    let endpoint = CellEndpoint {
        cell: CELL.to_owned(),
        region: "sg".to_owned(),
        endpoint: "cell-001.svc.cluster.local".to_owned(),
    };
    let mode = KeyspaceMode::UserId;
    RoutingTable::new(Epoch(1), mode, vec![row], vec![endpoint], vec![]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_routers_report_is_counted_and_told_by_an_event() {
    let config = prepare(apiserver().unwrap()).await;
    let client = Client::try_from(config.clone()).unwrap();
    let cell = json!({
        "apiVersion": "titan.dev/v1alpha1", "kind": "Cell",
        "metadata": {"name": CELL},
        "spec": {
            "fleet": "shop", "profile": "standard", "release": "1.0.0",
            "userRange": {"first": 0, "last": 9999},
        },
    });
    let cell: Cell = serde_json::from_value(cell).unwrap();
    let cells: Api<Cell> = Api::all(client.clone());
    let how = PostParams::default();
    cells.create(&how, &cell).await.unwrap();
    let resource = TableResource::new("shop", to_resource("shop", &table()));
    let tables: Api<TableResource> = Api::all(client.clone());
    tables.create(&how, &resource).await.unwrap();

    let replica = Replica::start(config, "test");
    let metrics = replica.metrics.clone();
    let mut config = RegistryConfig::new("shop", &replica.registry());
    config.client = "router-1".to_owned();
    let router = RegistryClient::start(config, Arc::new(()));
    assert!(router.wait_for(Epoch(1), PATIENCE).await);

    let events: Api<Event> = Api::all(client);
    let began = Instant::now();
    let told = loop {
        assert!(began.elapsed() < PATIENCE, "no Event: {}", metrics.render());
        // As a router does, again and again: the operator may lead only in a moment.
        router.report(FailureReport {
            cell: CELL.to_owned(),
            service: "order".to_owned(),
            consecutive_failures: 50,
            failures: 3,
            detail: "Broken".to_owned(),
            circuit_open: true,
            ..FailureReport::default()
        });
        let events = events.list(&ListParams::default()).await.unwrap();
        let told = events
            .into_iter()
            .find(|event| event.reason.as_deref() == Some("RoutersFail"));
        match told {
            Some(told) => break told,
            None => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    };
    let about = told.regarding.unwrap();
    assert_eq!(
        (about.kind.as_deref(), about.name.as_deref()),
        (Some("Cell"), Some(CELL))
    );
    assert_eq!(told.type_.as_deref(), Some("Warning"));
    assert_eq!(
        told.note.as_deref(),
        Some("1 router(s) have an open circuit to order: Broken")
    );
    let page = metrics.render();
    let counted = page
        .lines()
        .find_map(|line| {
            line.strip_prefix("titan_reported_failures_total{cell=\"cell-001\",fleet=\"shop\",service=\"order\"} ")
        })
        .unwrap();
    assert!(counted.parse::<u64>().unwrap() >= 3, "{page}");
    assert!(
        page.contains("titan_reported_open_circuits{cell=\"cell-001\",fleet=\"shop\"} 1\n"),
        "{page}"
    );
    replica.stop().await;
}
