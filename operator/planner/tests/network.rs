//! The NetworkPolicies as a network would enforce them, for every pair of pods and every port, against the flows that
//! follow from the profile. Written from the API's definition, without anything of the code that makes the policies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by them.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Setup, credentials, from_yaml};
use serde_json::Value;
use titan_planner::cell::{PostgresPlan, RedisPlan, ValidatedCell, build};
use titan_planner::object::{Kind, Object};

/// Where a connection may start or end.
#[derive(Clone, Debug)]
struct Endpoint {
    what: String,
    namespace: Option<String>,
    namespace_labels: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    /// For what is no pod.
    address: Option<&'static str>,
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn pod_elsewhere(
    what: &str,
    namespace: &str,
    more: &[(&str, &str)],
    pod: &[(&str, &str)],
) -> Endpoint {
    let mut namespace_labels = labels(&[("kubernetes.io/metadata.name", namespace)]);
    namespace_labels.extend(labels(more));
    Endpoint {
        what: what.to_owned(),
        namespace: Some(namespace.to_owned()),
        namespace_labels,
        labels: labels(pod),
        address: None,
    }
}

fn address(what: &str, address: &'static str) -> Endpoint {
    Endpoint {
        what: what.to_owned(),
        namespace: None,
        namespace_labels: BTreeMap::new(),
        labels: BTreeMap::new(),
        address: Some(address),
    }
}

const NAME: &str = "app.kubernetes.io/name";
const COMPONENT: &str = "app.kubernetes.io/component";

/// Every kind of pod of the cell, with the labels that its template gives it, and everybody it may meet.
fn endpoints(cell: &ValidatedCell, objects: &[Object]) -> Vec<Endpoint> {
    let namespace = objects
        .iter()
        .find(|object| object.kind == Kind::Namespace)
        .unwrap();
    let mut namespace_labels: BTreeMap<String, String> =
        serde_json::from_value(namespace.body()["metadata"]["labels"].clone()).unwrap();
    namespace_labels.insert("kubernetes.io/metadata.name".to_owned(), cell.name.clone());
    let mut endpoints: Vec<Endpoint> = objects
        .iter()
        .filter(|o| matches!(o.kind, Kind::Deployment | Kind::StatefulSet | Kind::Job))
        .map(|object| {
            let labels: BTreeMap<String, String> = serde_json::from_value(
                object.body()["spec"]["template"]["metadata"]["labels"].clone(),
            )
            .unwrap();
            Endpoint {
                what: format!("{} {}", labels[COMPONENT], labels[NAME]),
                namespace: Some(cell.name.clone()),
                namespace_labels: namespace_labels.clone(),
                labels,
                address: None,
            }
        })
        .collect();
    let first_service = &cell.services[0].name;
    endpoints.extend([
        pod_elsewhere("router", "titan-system", &[], &[(NAME, "cell-router")]),
        pod_elsewhere("operator", "titan-system", &[], &[(NAME, "titan-operator")]),
        pod_elsewhere("other system pod", "titan-system", &[], &[(NAME, "other")]),
        pod_elsewhere("dns", "kube-system", &[], &[("k8s-app", "kube-dns")]),
        pod_elsewhere(
            "prometheus",
            "metrics",
            &[("titan.dev/monitoring", "true")],
            &[(NAME, "prometheus")],
        ),
        pod_elsewhere("stranger", "default", &[], &[]),
        pod_elsewhere("false router", "default", &[], &[(NAME, "cell-router")]),
        pod_elsewhere(
            "false operator",
            "default",
            &[],
            &[(NAME, "titan-operator")],
        ),
        pod_elsewhere(
            "service of another cell",
            "cell-777",
            &[
                ("titan.dev/cell", "cell-777"),
                ("app.kubernetes.io/managed-by", "titan-operator"),
            ],
            &[
                (NAME, first_service),
                (COMPONENT, "service"),
                ("titan.dev/cell", "cell-777"),
            ],
        ),
        pod_elsewhere(
            "postgres of another cell",
            "cell-777",
            &[("titan.dev/cell", "cell-777")],
            &[(NAME, "postgres"), (COMPONENT, "postgres")],
        ),
        address("node-local dns", "169.254.20.10"),
        address("somewhere", "203.0.113.7"),
    ]);
    endpoints
}

// --- What the policies allow ---------------------------------------------------------------------------------------

fn selects(selector: &Value, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str());
    let expressions = selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
        .all(|expression| {
            assert_eq!(expression["operator"], "In");
            labels
                .get(expression["key"].as_str().unwrap())
                .is_some_and(|label| {
                    expression["values"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|value| value == label.as_str())
                })
        });
    equal && expressions
}

fn is_peer(peer: &Value, other: &Endpoint, own_namespace: &str) -> bool {
    if let Some(block) = peer.get("ipBlock") {
        let cidr = block["cidr"].as_str().unwrap();
        let single = cidr
            .strip_suffix("/32")
            .expect("the test knows single addresses alone");
        return other.address == Some(single);
    }
    let Some(namespace) = &other.namespace else {
        return false;
    };
    let in_namespace = match peer.get("namespaceSelector") {
        Some(selector) => selects(selector, &other.namespace_labels),
        None => namespace == own_namespace,
    };
    in_namespace
        && peer
            .get("podSelector")
            .is_none_or(|selector| selects(selector, &other.labels))
}

fn rule_allows(
    rule: &Value,
    side: &str,
    other: &Endpoint,
    own: &str,
    (protocol, port): (&str, i32),
) -> bool {
    let peers = rule.get(side).and_then(Value::as_array);
    let by_peer = peers
        .is_none_or(|peers| peers.is_empty() || peers.iter().any(|peer| is_peer(peer, other, own)));
    let ports = rule.get("ports").and_then(Value::as_array);
    let by_port = ports.is_none_or(|ports| {
        ports.is_empty()
            || ports
                .iter()
                .any(|p| p["protocol"] == protocol && p["port"] == port)
    });
    by_peer && by_port
}

fn allowed(
    policies: &[&Value],
    cell: &str,
    from: &Endpoint,
    to: &Endpoint,
    port: (&str, i32),
) -> bool {
    [
        ("Egress", "egress", "to", from, to),
        ("Ingress", "ingress", "from", to, from),
    ]
    .into_iter()
    .all(|(direction, rules, side, here, there)| {
        if here.namespace.as_deref() != Some(cell) {
            return true; // Not under these policies.
        }
        let mut applying = policies
            .iter()
            .filter(|policy| {
                let types = policy["spec"]["policyTypes"].as_array().unwrap();
                types.iter().any(|t| t == direction)
                    && selects(&policy["spec"]["podSelector"], &here.labels)
            })
            .peekable();
        applying.peek().is_none()
            || applying.any(|policy| {
                policy["spec"][rules]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|rule| rule_allows(rule, side, there, cell, port))
            })
    })
}

// --- What the profile declares -------------------------------------------------------------------------------------

fn declared(
    cell: &ValidatedCell,
    from: &str,
    to: &Endpoint,
    (protocol, port): (&str, i32),
) -> bool {
    let inside = to.namespace.as_deref() == Some(&cell.name);
    let target = to.what.as_str();
    let from_inside = ["service ", "migration ", "postgres ", "redis "]
        .iter()
        .any(|c| from.starts_with(c));
    let dns = port == 53 && (target == "dns" || target == "node-local dns");
    if from_inside && dns {
        return true;
    }
    if protocol != "TCP" {
        return false;
    }
    let service = |what: &str| {
        let name = what.strip_prefix("service ")?;
        cell.services.iter().find(|service| service.name == name)
    };
    if let Some(callee) = service(target).filter(|_| inside) {
        let called = service(from).is_some_and(|caller| caller.depends_on.contains(&callee.name));
        return port == callee.port && (called || from == "router")
            || port == 9090 && from == "prometheus";
    }
    let managed_postgres = matches!(cell.postgres, PostgresPlan::Managed { .. });
    let managed_redis = matches!(cell.redis, RedisPlan::Managed { .. });
    let cluster =
        matches!(&cell.redis, RedisPlan::Managed { topology, .. } if topology.count() > 1);
    let uses_postgres = from.starts_with("migration ")
        || service(from).is_some_and(|service| service.stores.postgres);
    let uses_redis = service(from).is_some_and(|service| service.stores.redis);
    if inside {
        return match target {
            "postgres postgres" => match port {
                5432 => uses_postgres || from == "operator" || from == "postgres postgres",
                8008 => from == "postgres postgres",
                _ => false,
            },
            "redis redis" => match port {
                6379 => uses_redis || from == "operator" || cluster && from == "redis redis",
                16379 => cluster && from == "redis redis",
                _ => false,
            },
            _ => false, // Migrations are called by nobody.
        };
    }
    // What lies outside the cell: named peers, and ports of servers that no selector can name.
    if from == "postgres postgres" {
        return cell.network.apiserver_ports.contains(&port);
    }
    let tracing = service(from)
        .is_some_and(|service| service.env.contains_key("OTEL_EXPORTER_OTLP_ENDPOINT"));
    service(from).is_some()
        && (target == "router" && port == 8080 || target == "operator" && port == 50100)
        || service(from).is_some_and(|service| service.stores.kafka)
            && (port == 9092 || cell.kafka_listener_ports.contains(&port))
        || tracing && port == 4317
        || !managed_postgres && uses_postgres && port == 6432
        || !managed_redis && uses_redis && port == 6380
}

fn policies(objects: &[Object]) -> Vec<Value> {
    objects
        .iter()
        .filter(|object| object.kind == Kind::NetworkPolicy)
        .map(Object::body)
        .collect()
}

/// Compares, and returns how many flows are open.
fn compare(setup: &Setup) -> usize {
    let cell = setup.valid();
    let desired = build(&cell, &credentials(&cell)).unwrap();
    let policies = policies(&desired.objects);
    let policies: Vec<&Value> = policies.iter().collect();
    let endpoints = endpoints(&cell, &desired.objects);
    let mut ports: BTreeSet<(&str, i32)> = [
        22, 53, 80, 443, 4317, 5432, 6379, 6380, 6432, 6443, 8008, 8080, 8443, 9090, 9092, 16379,
        32001, 50100,
    ]
    .into_iter()
    .chain(cell.services.iter().map(|service| service.port))
    .map(|port| ("TCP", port))
    .collect();
    ports.extend([("UDP", 53), ("UDP", 5432), ("UDP", 9090)]);
    let (mut wrong, mut open) = (Vec::new(), 0);
    for from in &endpoints {
        for to in &endpoints {
            let inside = |endpoint: &Endpoint| endpoint.namespace.as_deref() == Some(&cell.name);
            if !inside(from) && !inside(to) {
                continue;
            }
            for port in &ports {
                let is = allowed(&policies, &cell.name, from, to, *port);
                let should = declared(&cell, &from.what, to, *port);
                open += usize::from(is);
                if is != should {
                    let verdict = if is { "open" } else { "closed" };
                    wrong.push(format!(
                        "{} -> {} {port:?} is {verdict}",
                        from.what, to.what
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    open
}

#[test]
fn the_policies_open_what_the_profile_declares_and_nothing_else() {
    let mut external = Setup::web();
    external.cell.spec.databases = from_yaml(
        "{ postgres: { external: { secretName: pg } }, redis: { external: { secretName: redis } } }",
    );
    for setup in [
        Setup::quickstart(),
        Setup::standard(),
        Setup::web(),
        external,
    ] {
        assert!(compare(&setup) > 20);
    }
}

#[test]
fn ports_that_differ_between_clusters_are_the_fleets() {
    let mut setup = Setup::web();
    setup.fleet.spec.kafka.listener_ports = vec![32001];
    setup.fleet.spec.network.apiserver_ports = vec![8443];
    assert!(compare(&setup) > 20);

    setup.fleet.spec.network = from_yaml(
        "{ dns: { namespace: openshift-dns, podLabels: { dns: default }, ports: [5353] } }",
    );
    let cell = setup.valid();
    let desired = build(&cell, &credentials(&cell)).unwrap();
    let policies = policies(&desired.objects);
    let policies: Vec<&Value> = policies.iter().collect();
    let endpoints = endpoints(&cell, &desired.objects);
    let from = endpoints
        .iter()
        .find(|it| it.what == "service order")
        .unwrap();
    let dns =
        |namespace: &str, label: &str| pod_elsewhere("dns", namespace, &[], &[("dns", label)]);
    for (to, port, open) in [
        (dns("openshift-dns", "default"), ("UDP", 5353), true),
        (dns("openshift-dns", "default"), ("TCP", 5353), true),
        (dns("openshift-dns", "default"), ("UDP", 53), false),
        (dns("openshift-dns", "other"), ("UDP", 5353), false),
        (dns("kube-system", "default"), ("UDP", 5353), false),
    ] {
        assert_eq!(
            allowed(&policies, &cell.name, from, &to, port),
            open,
            "{to:?} {port:?}"
        );
    }
}

#[test]
fn an_undeclared_dependency_stays_closed_and_a_new_one_opens() {
    let mut setup = Setup::web();
    let before = compare(&setup);
    setup.profile.spec.services[5].depends_on = vec!["user".to_owned()];
    assert_eq!(compare(&setup), before + 1);
}

#[test]
fn the_evaluation_sees_a_missing_and_a_superfluous_rule() {
    let cell = Setup::web().valid();
    let desired = build(&cell, &credentials(&cell)).unwrap();
    let all = endpoints(&cell, &desired.objects);
    let find = |what: &str| all.iter().find(|endpoint| endpoint.what == what).unwrap();
    let policies = policies(&desired.objects);
    let policies: Vec<&Value> = policies.iter().collect();
    let (order, user) = (find("service order"), find("service user"));
    let port = ("TCP", 50020);
    assert!(allowed(&policies, &cell.name, order, user, port));
    let without: Vec<&Value> = policies
        .iter()
        .copied()
        .filter(|policy| policy["metadata"]["name"] != "service-user")
        .collect();
    assert!(
        !allowed(&without, &cell.name, order, user, port),
        "default deny holds"
    );
    let deny: Vec<&Value> = policies
        .iter()
        .copied()
        .filter(|policy| policy["metadata"]["name"] == "default-deny")
        .collect();
    let router = find("router");
    for (from, to) in [(router, user), (user, router), (order, user)] {
        assert!(
            !allowed(&deny, &cell.name, from, to, port),
            "it closes both directions by itself"
        );
    }
    assert!(
        allowed(&[], &cell.name, order, user, port),
        "without policies all is open"
    );
}
