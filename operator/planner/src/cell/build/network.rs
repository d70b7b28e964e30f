//! NetworkPolicies: everything is closed, then exactly the flows that the profile declares are opened, at both ends.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use titan_crds::Dns;

use super::Objects;
use crate::cell::model::{
    Credentials, Invalid, PostgresPlan, RedisPlan, ValidatedCell, ValidatedService,
};
use crate::cell::names::{
    COMPONENT_LABEL, Component, Labels, METRICS_PORT, MONITORING_LABEL, NAME_LABEL,
    NAMESPACE_NAME_LABEL, PATRONI_PORT, POSTGRES, POSTGRES_PORT, REDIS, REDIS_BUS_PORT, REDIS_PORT,
    REGISTRY_PORT, ROUTER, ROUTER_PORT, SYSTEM_NAMESPACE, cell_labels, meta, part_labels, selector,
    selector_labels, strings,
};
use crate::object::{Kind, MANAGER, Stage};

/// Where the node-local DNS cache of many clusters listens.
const NODE_LOCAL_DNS: &str = "169.254.20.10/32";

pub(super) fn build(
    cell: &ValidatedCell,
    credentials: &Credentials,
    objects: &mut Objects,
) -> Result<(), Invalid> {
    // What shields the stores stays with them under Retain.
    let shields = [default_deny(cell), dns(cell)]
        .into_iter()
        .chain(postgres(cell))
        .chain(redis(cell));
    for policy in shields {
        objects.add_data(Kind::NetworkPolicy, Stage::Foundation, &policy)?;
    }
    let flows = cell
        .services
        .iter()
        .map(|service| service_policy(cell, service, credentials))
        .chain(migrations(cell, credentials));
    for policy in flows {
        objects.add(Kind::NetworkPolicy, Stage::Foundation, &policy)?;
    }
    Ok(())
}

fn policy(
    cell: &ValidatedCell,
    name: impl Into<String>,
    labels: Labels,
    pods: LabelSelector,
    ingress: Option<Vec<NetworkPolicyIngressRule>>,
    egress: Option<Vec<NetworkPolicyEgressRule>>,
) -> NetworkPolicy {
    let types = [
        ingress.as_ref().map(|_| "Ingress"),
        egress.as_ref().map(|_| "Egress"),
    ];
    NetworkPolicy {
        metadata: meta(cell, name, labels),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(pods),
            policy_types: Some(types.into_iter().flatten().map(str::to_owned).collect()),
            // An empty list is said, too: that way an apply takes away what somebody added to it.
            ingress,
            egress,
        }),
    }
}

fn default_deny(cell: &ValidatedCell) -> NetworkPolicy {
    policy(
        cell,
        "default-deny",
        cell_labels(cell),
        LabelSelector::default(),
        Some(Vec::new()),
        Some(Vec::new()),
    )
}

fn dns(cell: &ValidatedCell) -> NetworkPolicy {
    let Dns {
        namespace,
        pod_labels,
        ports,
    } = &cell.network.dns;
    let ports = ports.iter().flat_map(|port| {
        ["UDP", "TCP"].map(|protocol| NetworkPolicyPort {
            port: Some(IntOrString::Int(*port)),
            protocol: Some(protocol.to_owned()),
            end_port: None,
        })
    });
    policy(
        cell,
        "dns",
        cell_labels(cell),
        LabelSelector::default(),
        None,
        Some(vec![NetworkPolicyEgressRule {
            to: Some(vec![
                NetworkPolicyPeer {
                    namespace_selector: Some(selector(strings([(
                        NAMESPACE_NAME_LABEL,
                        namespace.as_str(),
                    )]))),
                    pod_selector: (!pod_labels.is_empty()).then(|| selector(pod_labels.clone())),
                    ip_block: None,
                },
                NetworkPolicyPeer {
                    ip_block: Some(IPBlock {
                        cidr: NODE_LOCAL_DNS.to_owned(),
                        except: None,
                    }),
                    ..NetworkPolicyPeer::default()
                },
            ]),
            ports: Some(ports.collect()),
        }]),
    )
}

fn service_policy(
    cell: &ValidatedCell,
    service: &ValidatedService,
    credentials: &Credentials,
) -> NetworkPolicy {
    let callers: Vec<String> = cell
        .services
        .iter()
        .filter(|other| other.depends_on.contains(&service.name))
        .map(|other| other.name.clone())
        .collect();
    let mut clients = vec![system(ROUTER)];
    clients.extend(services(callers));
    let ingress = vec![
        from(clients, &[service.port]),
        from(vec![monitoring()], &[METRICS_PORT]),
    ];

    let mut egress: Vec<NetworkPolicyEgressRule> = service
        .depends_on
        .iter()
        .filter_map(|dependency| cell.services.iter().find(|other| other.name == *dependency))
        .map(|dependency| {
            to(
                pods(&dependency.name, Component::Service),
                &[dependency.port],
            )
        })
        .collect();
    // Other owners' data is reached through the router, whichever cell it lives in.
    egress.push(to(system(ROUTER), &[ROUTER_PORT]));
    egress.push(to(system(MANAGER), &[REGISTRY_PORT]));
    if service.stores.postgres {
        egress.push(to_postgres(cell, credentials));
    }
    if service.stores.redis {
        egress.push(to_redis(cell, credentials));
    }
    if service.stores.kafka {
        // Brokers live outside the cell, and name themselves to clients: no selector can tell them, the port does.
        egress.push(to_anywhere(&kafka_ports(cell)));
    }
    if let Some(port) = service
        .env
        .get("OTEL_EXPORTER_OTLP_ENDPOINT")
        .and_then(|endpoint| port_of(endpoint))
    {
        egress.push(to_anywhere(&[port]));
    }
    policy(
        cell,
        format!("service-{}", service.name),
        part_labels(cell, &service.name, Component::Service),
        selector(selector_labels(&service.name, Component::Service)),
        Some(ingress),
        Some(egress),
    )
}

/// Migrations reach the database and nothing else; nobody reaches them.
fn migrations(cell: &ValidatedCell, credentials: &Credentials) -> Option<NetworkPolicy> {
    if cell.schemas.is_empty() {
        return None;
    }
    let mut labels = cell_labels(cell);
    let component = strings([(COMPONENT_LABEL, Component::Migration.as_str())]);
    labels.extend(component.clone());
    Some(policy(
        cell,
        "migrations",
        labels,
        selector(component),
        None,
        Some(vec![to_postgres(cell, credentials)]),
    ))
}

fn postgres(cell: &ValidatedCell) -> Option<NetworkPolicy> {
    if !matches!(cell.postgres, PostgresPlan::Managed { .. }) {
        return None;
    }
    let members = || pods(POSTGRES, Component::Postgres);
    let users = using(cell, |service| service.stores.postgres);
    let mut clients = vec![members(), system(MANAGER)];
    if !users.is_empty() {
        clients.extend(services(users));
        clients.push(NetworkPolicyPeer {
            pod_selector: Some(selector(strings([(
                COMPONENT_LABEL,
                Component::Migration.as_str(),
            )]))),
            ..NetworkPolicyPeer::default()
        });
    }
    Some(policy(
        cell,
        POSTGRES,
        part_labels(cell, POSTGRES, Component::Postgres),
        selector(selector_labels(POSTGRES, Component::Postgres)),
        Some(vec![
            from(clients, &[POSTGRES_PORT]),
            from(vec![members()], &[PATRONI_PORT]),
        ]),
        Some(vec![
            to(members(), &[POSTGRES_PORT, PATRONI_PORT]),
            // The apiserver, in which Patroni keeps the leader's lock. It is no pod, and its address differs between clusters.
            to_anywhere(&cell.network.apiserver_ports),
        ]),
    ))
}

fn redis(cell: &ValidatedCell) -> Option<NetworkPolicy> {
    let RedisPlan::Managed { topology, .. } = &cell.redis else {
        return None;
    };
    let nodes = || pods(REDIS, Component::Redis);
    let mut clients = vec![system(MANAGER)];
    clients.extend(services(using(cell, |service| service.stores.redis)));
    let mut ingress = Vec::new();
    let mut egress = Vec::new();
    if topology.count() > 1 {
        ingress.push(from(vec![nodes()], &[REDIS_PORT, REDIS_BUS_PORT]));
        egress.push(to(nodes(), &[REDIS_PORT, REDIS_BUS_PORT]));
    }
    ingress.push(from(clients, &[REDIS_PORT]));
    Some(policy(
        cell,
        REDIS,
        part_labels(cell, REDIS, Component::Redis),
        selector(selector_labels(REDIS, Component::Redis)),
        Some(ingress),
        Some(egress),
    ))
}

fn using(cell: &ValidatedCell, uses: impl Fn(&ValidatedService) -> bool) -> Vec<String> {
    cell.services
        .iter()
        .filter(|service| uses(service))
        .map(|service| service.name.clone())
        .collect()
}

/// The pods of one part of the cell.
fn pods(name: &str, component: Component) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        pod_selector: Some(selector(selector_labels(name, component))),
        ..NetworkPolicyPeer::default()
    }
}

/// The pods of several services; None where there are none, as a selector of no names would select all.
fn services(mut names: Vec<String>) -> Option<NetworkPolicyPeer> {
    names.sort();
    (!names.is_empty()).then(|| NetworkPolicyPeer {
        pod_selector: Some(LabelSelector {
            match_labels: Some(strings([(COMPONENT_LABEL, Component::Service.as_str())])),
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: NAME_LABEL.to_owned(),
                operator: "In".to_owned(),
                values: Some(names),
            }]),
        }),
        ..NetworkPolicyPeer::default()
    })
}

/// Pods of the system namespace.
fn system(name: &str) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: Some(selector(strings([(
            NAMESPACE_NAME_LABEL,
            SYSTEM_NAMESPACE,
        )]))),
        pod_selector: Some(selector(strings([(NAME_LABEL, name)]))),
        ip_block: None,
    }
}

fn monitoring() -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: Some(selector(strings([(MONITORING_LABEL, "true")]))),
        ..NetworkPolicyPeer::default()
    }
}

fn from(peers: Vec<NetworkPolicyPeer>, ports: &[i32]) -> NetworkPolicyIngressRule {
    NetworkPolicyIngressRule {
        from: Some(peers),
        ports: Some(tcp(ports)),
    }
}

fn to(peer: NetworkPolicyPeer, ports: &[i32]) -> NetworkPolicyEgressRule {
    NetworkPolicyEgressRule {
        to: Some(vec![peer]),
        ports: Some(tcp(ports)),
    }
}

fn to_anywhere(ports: &[i32]) -> NetworkPolicyEgressRule {
    NetworkPolicyEgressRule {
        to: None,
        ports: Some(tcp(ports)),
    }
}

fn to_postgres(cell: &ValidatedCell, credentials: &Credentials) -> NetworkPolicyEgressRule {
    match &cell.postgres {
        PostgresPlan::Managed { .. } => to(pods(POSTGRES, Component::Postgres), &[POSTGRES_PORT]),
        PostgresPlan::External { .. } => to_anywhere(&[i32::from(credentials.postgres.port)]),
    }
}

fn to_redis(cell: &ValidatedCell, credentials: &Credentials) -> NetworkPolicyEgressRule {
    match &cell.redis {
        RedisPlan::Managed { .. } => to(pods(REDIS, Component::Redis), &[REDIS_PORT]),
        RedisPlan::External { .. } => to_anywhere(&[i32::from(credentials.redis.port)]),
    }
}

fn tcp(ports: &[i32]) -> Vec<NetworkPolicyPort> {
    ports
        .iter()
        .map(|port| NetworkPolicyPort {
            port: Some(IntOrString::Int(*port)),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        })
        .collect()
}

/// The ports of the brokers: those of `host:port,host:port`, and those that they advertise.
fn kafka_ports(cell: &ValidatedCell) -> Vec<i32> {
    let ports: BTreeSet<i32> = cell
        .kafka_bootstrap
        .split(',')
        .filter_map(|broker| broker.rsplit_once(':'))
        .filter_map(|(_, port)| port.trim().parse().ok())
        .chain(cell.kafka_listener_ports.iter().copied())
        .collect();
    ports.into_iter().collect()
}

/// The port of a URL such as `http://collector.monitoring:4317`; that of its scheme where it names none.
fn port_of(endpoint: &str) -> Option<i32> {
    let (scheme, rest) = endpoint.trim().split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host_and_port = authority.rsplit('@').next()?;
    // The colons of an IPv6 address stand in brackets.
    let after_address = host_and_port.rsplit(']').next()?;
    match after_address.rsplit_once(':') {
        Some((_, port)) => port.parse().ok(),
        None if scheme.eq_ignore_ascii_case("https") => Some(443),
        None => Some(80),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_port_has_that_of_its_scheme() {
        for (endpoint, port) in [
            ("http://collector.monitoring:4317", Some(4317)),
            ("http://collector.monitoring", Some(80)),
            ("https://collector.monitoring/v1", Some(443)),
            ("HTTPS://collector.monitoring", Some(443)),
            ("https://user:secret@collector:4318/", Some(4318)),
            ("http://[fd00::1]:4317", Some(4317)),
            ("http://[fd00::1]", Some(80)),
            ("collector:4317", None),
        ] {
            assert_eq!(port_of(endpoint), port, "{endpoint}");
        }
    }
}
