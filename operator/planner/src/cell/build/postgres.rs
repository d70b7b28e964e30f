//! PostgreSQL, run by Patroni.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EmptyDirVolumeSource, EnvVar, Service, ServiceSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use titan_crds::Resources;

use super::Objects;
use super::environment::opaque;
use super::namespace::role_binding;
use super::patroni::{
    CONFIG_FILE, CONFIG_MOUNT, DATA_MOUNT, LEADER, ROLE_LABEL, RUN_MOUNT, SCOPE_LABEL,
    configuration, needs_restart,
};
use super::pod::{
    Checksum, Patience, STORE_USER, config_map_volume, container_port, container_security,
    disruption_budget, empty_dir, field_variable, http_probe, mount, pod_spec, resources,
    secret_variable, service_account, service_port, variable,
};
use super::store::{Replacement, Store};
use crate::cell::model::{
    Credentials, Invalid, PostgresPlan, ServerCredentials, StoreStorage, ValidatedCell,
};
use crate::cell::names::{
    Component, PATRONI_PORT, PATRONI_ROLE, POSTGRES, POSTGRES_ADMIN, POSTGRES_MEMBERS,
    POSTGRES_PATRONI, POSTGRES_PORT, meta, part_labels, selector_labels, strings,
};
use crate::object::{Kind, MANAGER, Stage, canonical};

const COMPONENT: Component = Component::Postgres;

pub(super) fn build(
    cell: &ValidatedCell,
    credentials: &Credentials,
    objects: &mut Objects,
) -> Result<(), Invalid> {
    let PostgresPlan::Managed {
        members,
        synchronous,
        storage,
        resources,
    } = &cell.postgres
    else {
        return Ok(());
    };
    let secret = admin_secret(cell, credentials);
    // As JSON, which YAML is a superset of: Patroni's YAML would read a bare `on` as true.
    let configuration = canonical(configuration(cell, *synchronous, resources));
    let patroni = serde_json::to_string_pretty(&configuration).map_err(|error| Invalid {
        reason: "BuildFailed",
        message: format!(
            "Patroni's configuration cannot be written: {error}; this is a defect of the operator"
        ),
    })?;
    let mut checksum = Checksum::new("postgres");
    checksum.add(&needs_restart(configuration, *members == 1).to_string());
    for (key, value) in &secret {
        checksum.add(key);
        checksum.add(value);
    }

    let mut account = service_account(cell, POSTGRES, COMPONENT);
    // Patroni keeps the leader's lock in the apiserver: the one account of a cell whose token is mounted.
    account.automount_service_account_token = Some(true);
    objects.add_data(Kind::ServiceAccount, Stage::Foundation, &account)?;
    objects.add_data(
        Kind::RoleBinding,
        Stage::Foundation,
        &role_binding(
            cell,
            POSTGRES,
            part_labels(cell, POSTGRES, COMPONENT),
            PATRONI_ROLE,
            (&cell.name, POSTGRES),
        ),
    )?;
    objects.add_data(
        Kind::Secret,
        Stage::Foundation,
        &opaque(cell, POSTGRES_ADMIN, POSTGRES, COMPONENT, secret),
    )?;
    objects.add_data(
        Kind::ConfigMap,
        Stage::Foundation,
        &ConfigMap {
            metadata: meta(
                cell,
                POSTGRES_PATRONI,
                part_labels(cell, POSTGRES, COMPONENT),
            ),
            data: Some(BTreeMap::from([(CONFIG_FILE.to_owned(), patroni)])),
            ..ConfigMap::default()
        },
    )?;
    objects.add_data(Kind::Service, Stage::Foundation, &leader_service(cell))?;
    objects.add_data(Kind::Service, Stage::Foundation, &members_service(cell))?;
    objects.add_data(
        Kind::StatefulSet,
        Stage::Stores,
        &StatefulSet {
            metadata: meta(cell, POSTGRES, part_labels(cell, POSTGRES, COMPONENT)),
            spec: Some(stateful_set(
                cell,
                *members,
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
        // A member that is not well may be the next leader once it has caught up: it counts.
        &disruption_budget(cell, POSTGRES, COMPONENT, false),
    )
}

/// How the administrator logs in, and the passwords that Patroni works with.
fn admin_secret(cell: &ValidatedCell, credentials: &Credentials) -> BTreeMap<String, String> {
    let Credentials {
        postgres:
            ServerCredentials {
                // Where Patroni's leader is follows from the cell.
                host: _,
                port: _,
                username: _,
                password,
                sslmode: _,
                ca: _,
            },
        redis: _,
        replication_password,
        rest_password,
        services: _,
        salt: _,
        pull_secrets: _,
    } = credentials;
    [
        ("host", format!("{POSTGRES}.{}", cell.endpoint())),
        ("port", POSTGRES_PORT.to_string()),
        ("username", POSTGRES.to_owned()),
        ("password", password.clone()),
        ("database-admin", POSTGRES.to_owned()),
        ("replication-password", replication_password.clone()),
        ("rest-password", rest_password.clone()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// The leader, by the label that Patroni keeps on its pod.
fn leader_service(cell: &ValidatedCell) -> Service {
    let mut leader = selector_labels(POSTGRES, COMPONENT);
    leader.extend(strings([(ROLE_LABEL, LEADER)]));
    Service {
        metadata: meta(cell, POSTGRES, part_labels(cell, POSTGRES, COMPONENT)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(leader),
            ports: Some(vec![service_port("postgres", POSTGRES_PORT, None)]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn members_service(cell: &ValidatedCell) -> Service {
    Service {
        metadata: meta(
            cell,
            POSTGRES_MEMBERS,
            part_labels(cell, POSTGRES, COMPONENT),
        ),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            // Members find each other before they are ready.
            publish_not_ready_addresses: Some(true),
            selector: Some(selector_labels(POSTGRES, COMPONENT)),
            ports: Some(vec![
                service_port("postgres", POSTGRES_PORT, None),
                service_port("patroni", PATRONI_PORT, None),
            ]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn stateful_set(
    cell: &ValidatedCell,
    members: i32,
    storage: &StoreStorage,
    amounts: &Resources,
    checksum: &str,
) -> StatefulSetSpec {
    let mut labels = part_labels(cell, POSTGRES, COMPONENT);
    labels.extend(strings([(SCOPE_LABEL, POSTGRES)]));
    let mut pod = pod_spec(
        cell,
        POSTGRES,
        COMPONENT,
        STORE_USER,
        vec![container(cell, amounts)],
        vec![
            config_map_volume("patroni", POSTGRES_PATRONI),
            empty_dir("run", Some("16Mi")),
            shared_memory(),
            empty_dir("tmp", Some("256Mi")),
        ],
    );
    pod.automount_service_account_token = Some(true);
    // A fast shutdown ends with a checkpoint, and hands the lead over before that.
    pod.termination_grace_period_seconds = Some(60);
    Store {
        name: POSTGRES,
        component: COMPONENT,
        members,
        members_service: POSTGRES_MEMBERS,
        storage,
        pod_labels: labels,
        replacement: Replacement::ByTheOperator,
        checksum,
        pod,
    }
    .stateful_set(cell)
}

fn container(cell: &ValidatedCell, amounts: &Resources) -> Container {
    Container {
        name: POSTGRES.to_owned(),
        image: Some(cell.store_image.clone()),
        image_pull_policy: Some(cell.image_pull_policy.clone()),
        command: Some(vec![
            "/usr/bin/patroni".to_owned(),
            format!("{CONFIG_MOUNT}/{CONFIG_FILE}"),
        ]),
        env: Some(variables()),
        ports: Some(vec![
            container_port("postgres", POSTGRES_PORT),
            container_port("patroni", PATRONI_PORT),
        ]),
        startup_probe: Some(http_probe(
            "/liveness",
            "patroni",
            &Patience {
                period: 2,
                failures: 60,
                timeout: 2,
            },
        )),
        // Says whether Patroni's loop turns, not whether PostgreSQL answers: that is Patroni's to repair.
        liveness_probe: Some(http_probe(
            "/liveness",
            "patroni",
            &Patience {
                period: 10,
                failures: 3,
                timeout: 5,
            },
        )),
        readiness_probe: Some(http_probe(
            "/readiness",
            "patroni",
            &Patience {
                period: 3,
                failures: 3,
                timeout: 3,
            },
        )),
        resources: Some(resources(amounts)),
        security_context: Some(container_security()),
        volume_mounts: Some(vec![
            mount("data", DATA_MOUNT, false),
            mount("patroni", CONFIG_MOUNT, true),
            mount("run", RUN_MOUNT, false),
            mount("shm", "/dev/shm", false),
            mount("tmp", "/tmp", false),
        ]),
        ..Container::default()
    }
}

/// What differs between members, and the passwords.
fn variables() -> Vec<EnvVar> {
    // A reference to another variable works only after it, so the address comes first.
    let mut variables = vec![
        field_variable("PATRONI_KUBERNETES_POD_IP", "status.podIP"),
        field_variable("PATRONI_KUBERNETES_NAMESPACE", "metadata.namespace"),
        field_variable("PATRONI_NAME", "metadata.name"),
        variable(
            "PATRONI_POSTGRESQL_CONNECT_ADDRESS",
            format!("$(PATRONI_KUBERNETES_POD_IP):{POSTGRES_PORT}"),
        ),
        variable(
            "PATRONI_RESTAPI_CONNECT_ADDRESS",
            format!("$(PATRONI_KUBERNETES_POD_IP):{PATRONI_PORT}"),
        ),
        // Whoever may change the cluster's configuration may run programs in it, so that takes a password, too.
        variable("PATRONI_RESTAPI_USERNAME", MANAGER),
    ];
    variables.extend([
        secret_variable("PATRONI_RESTAPI_PASSWORD", POSTGRES_ADMIN, "rest-password"),
        secret_variable("PATRONI_SUPERUSER_PASSWORD", POSTGRES_ADMIN, "password"),
        secret_variable(
            "PATRONI_REPLICATION_PASSWORD",
            POSTGRES_ADMIN,
            "replication-password",
        ),
        variable("HOME", "/tmp"),
        variable("LC_ALL", "C.UTF-8"),
        variable("PYTHONDONTWRITEBYTECODE", "1"),
    ]);
    variables
}

/// Parallel queries exchange rows through it, and the runtime's default of 64 MiB is soon used up.
fn shared_memory() -> Volume {
    Volume {
        name: "shm".to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(Quantity("256Mi".to_owned())),
        }),
        ..Volume::default()
    }
}
