//! Redis: one server, or six nodes that the operator joins to a cluster of three masters with a replica each.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, ExecAction, KeyToPath, Probe, SecretVolumeSource, Service, ServiceSpec,
    TCPSocketAction, Volume,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use titan_crds::{RedisTopology, Resources};

use super::Objects;
use super::environment::opaque;
use super::pod::{
    Checksum, Patience, STORE_USER, config_map_volume, container_port, container_security,
    disruption_budget, field_variable, mount, pod_spec, probe, resources, secret_variable,
    service_account, service_port,
};
use super::store::{Replacement, Store};
use crate::cell::model::{Credentials, Invalid, RedisPlan, StoreStorage, ValidatedCell};
use crate::cell::names::{
    Component, REDIS, REDIS_AUTH, REDIS_BUS_PORT, REDIS_CONFIG, REDIS_NODES, REDIS_PORT, meta,
    part_labels, selector_labels,
};
use crate::cell::quantity::Quantity;
use crate::object::{Kind, Stage};

const COMPONENT: Component = Component::Redis;
const CONFIG_MOUNT: &str = "/etc/titan/redis";
const AUTH_MOUNT: &str = "/etc/titan/redis-auth";
const CONFIG_FILE: &str = "redis.conf";
const AUTH_FILE: &str = "auth.conf";

pub(super) fn build(
    cell: &ValidatedCell,
    credentials: &Credentials,
    objects: &mut Objects,
) -> Result<(), Invalid> {
    let RedisPlan::Managed {
        topology,
        storage,
        resources,
    } = &cell.redis
    else {
        return Ok(());
    };
    let labels = || part_labels(cell, REDIS, COMPONENT);
    let password = &credentials.redis.password;
    let auth = auth_file(password);
    let config = configuration(*topology, resources);
    let mut checksum = Checksum::new("redis");
    checksum.add(&config);
    checksum.add(&auth);
    checksum.add(&credentials.salt);

    objects.add_data(
        Kind::ServiceAccount,
        Stage::Foundation,
        &service_account(cell, REDIS, COMPONENT),
    )?;
    objects.add_data(
        Kind::Secret,
        Stage::Foundation,
        &opaque(
            cell,
            REDIS_AUTH,
            REDIS,
            COMPONENT,
            BTreeMap::from([
                ("password".to_owned(), password.clone()),
                (AUTH_FILE.to_owned(), auth),
            ]),
        ),
    )?;
    objects.add_data(
        Kind::ConfigMap,
        Stage::Foundation,
        &ConfigMap {
            metadata: meta(cell, REDIS_CONFIG, labels()),
            data: Some(BTreeMap::from([(CONFIG_FILE.to_owned(), config)])),
            ..ConfigMap::default()
        },
    )?;
    objects.add_data(
        Kind::Service,
        Stage::Foundation,
        &Service {
            metadata: meta(cell, REDIS, labels()),
            spec: Some(ServiceSpec {
                type_: Some("ClusterIP".to_owned()),
                selector: Some(selector_labels(REDIS, COMPONENT)),
                ports: Some(vec![service_port("redis", REDIS_PORT, None)]),
                ..ServiceSpec::default()
            }),
            status: None,
        },
    )?;
    objects.add_data(
        Kind::Service,
        Stage::Foundation,
        &nodes_service(cell, *topology),
    )?;
    objects.add_data(
        Kind::StatefulSet,
        Stage::Stores,
        &StatefulSet {
            metadata: meta(cell, REDIS, labels()),
            spec: Some(stateful_set(
                cell,
                *topology,
                storage,
                resources,
                &checksum.finish(),
            )),
            status: None,
        },
    )?;
    objects.add_data(
        Kind::PodDisruptionBudget,
        Stage::Stores,
        &disruption_budget(cell, REDIS, COMPONENT, false),
    )
}

fn ports(topology: RedisTopology) -> Vec<(&'static str, i32)> {
    match topology {
        RedisTopology::Single => vec![("redis", REDIS_PORT)],
        RedisTopology::Cluster => vec![("redis", REDIS_PORT), ("bus", REDIS_BUS_PORT)],
    }
}

fn nodes_service(cell: &ValidatedCell, topology: RedisTopology) -> Service {
    Service {
        metadata: meta(cell, REDIS_NODES, part_labels(cell, REDIS, COMPONENT)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector_labels(REDIS, COMPONENT)),
            ports: Some(
                ports(topology)
                    .into_iter()
                    .map(|(name, port)| service_port(name, port, None))
                    .collect(),
            ),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// In a file of its own, so that no password stands in an argument or in the configuration.
fn auth_file(password: &str) -> String {
    let mut quoted = String::with_capacity(password.len());
    for byte in password.bytes() {
        if byte.is_ascii_alphanumeric() {
            quoted.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(quoted, "\\x{byte:02x}");
        }
    }
    format!("requirepass \"{quoted}\"\nmasterauth \"{quoted}\"\n")
}

fn configuration(topology: RedisTopology, resources: &Resources) -> String {
    let mut lines = vec![
        format!("port {REDIS_PORT}"),
        "bind * -::*".to_owned(),
        format!("include {AUTH_MOUNT}/{AUTH_FILE}"),
        "dir /data".to_owned(),
        "appendonly yes".to_owned(),
        "appendfsync everysec".to_owned(),
        // A new replica is synced at once: until then its shard has one copy.
        "repl-diskless-sync-delay 0".to_owned(),
        // The append-only file is the one copy on disk; snapshots beside it would only cost memory and I/O.
        "save \"\"".to_owned(),
        // A full Redis refuses writes, and that is seen; evicting would silently lose reservations.
        "maxmemory-policy noeviction".to_owned(),
        "tcp-keepalive 30".to_owned(),
    ];
    if let Some(limit) = resources
        .limits
        .memory
        .as_deref()
        .and_then(|memory| Quantity::bytes(memory).ok())
    {
        // The rest is for buffers, and for pages that change while the append-only file is rewritten.
        lines.push(format!("maxmemory {}", limit.units() / 4 * 3));
    }
    if topology == RedisTopology::Cluster {
        lines.extend(
            [
                "cluster-enabled yes",
                "cluster-config-file nodes.conf",
                "cluster-node-timeout 5000",
                // The slots of the other masters go on being served.
                "cluster-require-full-coverage no",
                "cluster-allow-replica-migration no",
            ]
            .map(str::to_owned),
        );
    }
    lines.push(String::new());
    lines.join("\n")
}

fn stateful_set(
    cell: &ValidatedCell,
    topology: RedisTopology,
    storage: &StoreStorage,
    amounts: &Resources,
    checksum: &str,
) -> StatefulSetSpec {
    let mut pod = pod_spec(
        cell,
        REDIS,
        COMPONENT,
        STORE_USER,
        vec![container(cell, topology, amounts)],
        vec![auth_volume(), config_map_volume("config", REDIS_CONFIG)],
    );
    pod.termination_grace_period_seconds = Some(30);
    let store = Store {
        name: REDIS,
        component: COMPONENT,
        members: topology.count(),
        members_service: REDIS_NODES,
        storage,
        pod_labels: part_labels(cell, REDIS, COMPONENT),
        replacement: Replacement::InOrder,
        checksum,
        pod,
    };
    StatefulSetSpec {
        // Between two nodes a cluster needs time to see the first one back and fail over to it.
        min_ready_seconds: (topology == RedisTopology::Cluster).then_some(10),
        ..store.stateful_set(cell)
    }
}

fn auth_volume() -> Volume {
    Volume {
        name: "auth".to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(REDIS_AUTH.to_owned()),
            items: Some(vec![KeyToPath {
                key: AUTH_FILE.to_owned(),
                path: AUTH_FILE.to_owned(),
                mode: None,
            }]),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn container(cell: &ValidatedCell, topology: RedisTopology, amounts: &Resources) -> Container {
    let mut command = vec![
        "/usr/bin/redis-server".to_owned(),
        format!("{CONFIG_MOUNT}/{CONFIG_FILE}"),
    ];
    if topology == RedisTopology::Cluster {
        // A node that comes back with another address tells the others at once.
        command.extend(["--cluster-announce-ip", "$(POD_IP)"].map(str::to_owned));
    }
    Container {
        name: REDIS.to_owned(),
        image: Some(cell.store_image.clone()),
        image_pull_policy: Some(cell.image_pull_policy.clone()),
        command: Some(command),
        env: Some(vec![
            field_variable("POD_IP", "status.podIP"),
            secret_variable("REDISCLI_AUTH", REDIS_AUTH, "password"),
        ]),
        ports: Some(
            ports(topology)
                .into_iter()
                .map(|(name, port)| container_port(name, port))
                .collect(),
        ),
        startup_probe: Some(Probe {
            tcp_socket: Some(socket()),
            ..probe(&Patience {
                period: 1,
                failures: 60,
                timeout: 1,
            })
        }),
        liveness_probe: Some(Probe {
            tcp_socket: Some(socket()),
            ..probe(&Patience {
                period: 10,
                failures: 3,
                timeout: 2,
            })
        }),
        // Not before the data is loaded: until then the answer is LOADING, an error.
        readiness_probe: Some(Probe {
            exec: Some(ExecAction {
                command: Some(
                    ["/usr/bin/redis-cli", "-e", "ping"]
                        .map(str::to_owned)
                        .to_vec(),
                ),
            }),
            ..probe(&Patience {
                period: 5,
                failures: 3,
                timeout: 3,
            })
        }),
        resources: Some(resources(amounts)),
        security_context: Some(container_security()),
        volume_mounts: Some(vec![
            mount("auth", AUTH_MOUNT, true),
            mount("config", CONFIG_MOUNT, true),
            mount("data", "/data", false),
        ]),
        ..Container::default()
    }
}

fn socket() -> TCPSocketAction {
    TCPSocketAction {
        port: IntOrString::String("redis".to_owned()),
        host: None,
    }
}
