//! A replica that loses leadership goes on as a candidate, and serves tables all the while.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Config};
use nix::sys::signal::Signal;
use titan_crds::RoutingTable as TableResource;
use titan_operator::run::client;
use titan_operator::run::leadership::{Candidate, LEASE_DURATION, WriteGate};
use titan_planner::fleet::to_resource;
use titan_routing::Epoch;
use titan_routing::client::{RegistryClient, RegistryConfig, RegistryObserver};
use titan_testbed::Apiserver;

use crate::proxy::Proxy;
use crate::replica::{PATIENCE, Replica, prepare, until};
use crate::reports::table;

/// How often a router connected to the registry.
#[derive(Default)]
struct Connections(AtomicUsize);

impl RegistryObserver for Connections {
    fn connected(&self, connected: bool) {
        self.0.fetch_add(usize::from(connected), Ordering::AcqRel);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_ends_the_term_and_not_the_registry() {
    let mut apiserver = Apiserver::start().unwrap();
    let config = prepare(&apiserver).await;
    let tables: Api<TableResource> = Api::all(Client::try_from(config.clone()).unwrap());
    let resource = TableResource::new("shop", to_resource("shop", &table()));
    tables
        .create(&PostParams::default(), &resource)
        .await
        .unwrap();
    let replica = Replica::start(config, "one");
    until("it leads", PATIENCE, async || replica.leads()).await;
    let connections = Arc::new(Connections::default());
    let router = RegistryClient::start(
        RegistryConfig::new("shop", &replica.registry()),
        connections.clone(),
    );
    assert!(router.wait_for(Epoch(1), PATIENCE).await);

    apiserver.server().signal(Signal::SIGSTOP).unwrap();
    let lost = until("it is deposed", LEASE_DURATION + PATIENCE, async || {
        !replica.leads()
    })
    .await;
    assert!(replica.is_running(), "the process goes on");
    assert!(router.status().connected, "the registry goes on");
    apiserver.server().signal(Signal::SIGCONT).unwrap();
    let again = until("it leads again", PATIENCE, async || replica.leads()).await;
    println!("deposed after {lost:?}, leading again after {again:?}");

    assert!(router.status().connected);
    let connections = connections.0.load(Ordering::Acquire);
    assert_eq!(connections, 1, "one stream through it all");
    replica.stop().await;
}

/// The configuration by which a server is reached through a proxy.
fn through(config: &Config, proxy: &Proxy) -> Config {
    let mut config = config.clone();
    let port = proxy.address.port();
    config.cluster_url = format!("https://127.0.0.1:{port}").parse().unwrap();
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_gives_up_connections_that_are_never_answered() {
    let apiserver = Apiserver::start().unwrap();
    let config = prepare(&apiserver).await;
    let proxy = Proxy::to(config.cluster_url.port_u16().unwrap()).await;
    let gate = WriteGate::closed();
    let mut candidate = Candidate::new(
        client::for_lease(through(&config, &proxy)).unwrap(),
        "default",
        "swallowed",
        "one".to_owned(),
        gate.clone(),
    );
    proxy.swallow(true);
    let winning = tokio::spawn(async move {
        candidate.win().await;
        candidate
    });
    until("it tries again", PATIENCE, async || proxy.swallowed() > 1).await;
    assert!(!gate.is_open());
    proxy.swallow(false);
    let mut candidate = tokio::time::timeout(PATIENCE, winning)
        .await
        .expect("it wins once it is answered")
        .unwrap();
    assert!(gate.is_open());
    candidate.release().await;
}

/// An apiserver that is too busy for every write, and counts them.
async fn busy(writes: Arc<AtomicUsize>, gate: WriteGate) -> String {
    use axum::http::StatusCode;
    let app = axum::Router::new().fallback(move || {
        writes.fetch_add(1, Ordering::AcqRel);
        // Leadership ends while the request is under way.
        gate.close();
        std::future::ready((StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")], "{}"))
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_not_sent_again_after_leadership_was_lost() {
    let writes = Arc::new(AtomicUsize::new(0));
    let gate = WriteGate::open();
    let url = busy(writes.clone(), gate.clone()).await;
    let client = client::for_term(Config::new(url.parse().unwrap()), gate).unwrap();
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some("late".to_owned()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    };
    let refused = Api::<ConfigMap>::default_namespaced(client)
        .create(&PostParams::default(), &map)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("not the leader"), "{refused}");
    assert_eq!(writes.load(Ordering::Acquire), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_which_the_apiserver_is_too_busy_is_sent_again() {
    let (asked, url) = {
        use axum::http::StatusCode;
        use axum::response::IntoResponse;
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let app = axum::Router::new().fallback(move || {
            let answer = if count.fetch_add(1, Ordering::AcqRel) < 2 {
                StatusCode::SERVICE_UNAVAILABLE.into_response()
            } else {
                r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"busy"}}"#
                    .into_response()
            };
            std::future::ready(answer)
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (asked, format!("http://{address}"))
    };
    let client = client::for_term(Config::new(url.parse().unwrap()), WriteGate::closed()).unwrap();
    let map = Api::<ConfigMap>::default_namespaced(client)
        .get("busy")
        .await;
    assert_eq!(map.unwrap().metadata.name.as_deref(), Some("busy"));
    assert_eq!(asked.load(Ordering::Acquire), 3);
}
