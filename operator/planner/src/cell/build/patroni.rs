//! Patroni's configuration.

use serde_json::{Value, json};

use crate::cell::connections::max_connections;
use crate::cell::model::{PostgresPlan, ValidatedCell};
use crate::cell::names::{NAME_LABEL, PATRONI_PORT, POSTGRES, POSTGRES_PORT};
use crate::cell::quantity::Quantity;
use crate::object::canonical;
use titan_crds::Resources;

/// The label of a pod that says whether it leads; Patroni 3.0 writes `master` and `replica`.
pub(super) const ROLE_LABEL: &str = "role";
pub(super) const LEADER: &str = "master";
/// The label by which Patroni finds the members of its cluster.
pub(super) const SCOPE_LABEL: &str = "cluster-name";
pub(super) const DATA_MOUNT: &str = "/var/lib/postgresql/data";
pub(super) const RUN_MOUNT: &str = "/run/postgresql";
pub(super) const CONFIG_MOUNT: &str = "/etc/patroni";
pub(super) const CONFIG_FILE: &str = "patroni.yml";
/// The ConfigMap in whose annotation `config` Patroni keeps the settings of the whole cluster.
pub const PATRONI_STORE: &str = "postgres-config";
/// Whether a former leader's data is removed where it cannot be brought back in line.
const REMOVE_AFTER_REWIND: &str = "remove_data_directory_on_rewind_failure";
const REMOVE_DIVERGED: &str = "remove_data_directory_on_diverged_timelines";
/// How a new member copies its leader.
const BASE_BACKUP: &str = "basebackup";
/// After how long without an answer from a standby its leader hangs up. While one that is cut off seems to be connected, commits
/// wait for it, and the default is a minute. CloudNativePG has five seconds, and makes an exception for members that are being
/// copied, whose disks may be busy for longer; Patroni has no place for one.
const SENDER_TIMEOUT: &str = "wal_sender_timeout";
/// The role that replicates.
pub(super) const REPLICATION_USER: &str = "replicator";

/// Where Debian puts the server; the major version goes with the image that fleets name.
const BIN_DIRECTORY: &str = "/usr/lib/postgresql/15/bin";

/// A leader that is gone is replaced after at most TTL + LOOP_WAIT, which with the promotion stays under 30 s. 20 is the
/// least that Patroni documents, and its rule is LOOP_WAIT + 2 * RETRY_TIMEOUT <= TTL.
const TTL: u32 = 20;
const LOOP_WAIT: u32 = 5;
const RETRY_TIMEOUT: u32 = 5;

/// The settings that Patroni keeps for the whole cluster in its own store; None where PostgreSQL is external.
///
/// The configuration file hands them over when the cluster is made; see [`reconfiguration`] for later changes.
#[must_use]
pub fn dynamic_configuration(cell: &ValidatedCell) -> Option<Value> {
    let PostgresPlan::Managed {
        members,
        synchronous,
        storage: _,
        resources: _,
    } = &cell.postgres
    else {
        return None;
    };
    Some(json!({
        "ttl": TTL,
        "loop_wait": LOOP_WAIT,
        "retry_timeout": RETRY_TIMEOUT,
        // The leader goes on while it reaches all members, when the apiserver does not answer.
        "failsafe_mode": true,
        // A crashed server with a standby at hand is not waited for until its recovery is through.
        "primary_start_timeout": if *members > 1 { 20 } else { 300 },
        "synchronous_mode": synchronous,
        // Strict, for RPO 0: without it the leader goes on alone when both standbys are gone, and what it then acknowledges
        // is lost with its volume. The price is that writes wait while both standbys are away.
        "synchronous_mode_strict": synchronous,
        "synchronous_node_count": 1,
        "postgresql": {
            "use_pg_rewind": true,
            "use_slots": true,
            // None of these may be less on a standby than on its leader. They need a restart, which each member gets one after
            // the other, since the configuration file with them is another one, too. A standby whose leader has more by then
            // pauses its replay, and Patroni, which sees that, starts it with what is here; one that had more keeps it.
            "parameters": {
                // Logical, so that a range can be moved to another cell.
                "wal_level": "logical",
                "max_connections": max_connections(&cell.services),
                "max_wal_senders": 20,
                "max_replication_slots": 20,
                // A standby that has lost its leader looks for the next one this often; the default is 5 s.
                "wal_retrieve_retry_interval": "500ms",
                SENDER_TIMEOUT: "10s",
                "max_worker_processes": 16,
                "max_locks_per_transaction": 256,
                "wal_log_hints": "on",
                "wal_keep_size": "128MB",
            },
        },
    }))
}

/// What Patroni's store should hold instead of `current`, the JSON in the annotation `config` of its ConfigMap
/// [`PATRONI_STORE`]; None where it holds the cell's settings already, or PostgreSQL is external.
///
/// The configuration file sets them only when the cluster is made. Settings that are not the operator's are kept, as
/// Patroni's own `PATCH /config` does; text that is no JSON is replaced.
#[must_use]
pub fn reconfiguration(cell: &ValidatedCell, current: &str) -> Option<String> {
    let desired = dynamic_configuration(cell)?;
    let current: Value = serde_json::from_str(current).unwrap_or(Value::Null);
    let mut merged = current.clone();
    merge(&mut merged, desired);
    (merged != current).then(|| canonical(merged).to_string())
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// What of the configuration file a member has to be started anew for: of the settings that Patroni keeps for the whole cluster
/// those of PostgreSQL alone, without one that servers take up as they run, and not how a member is made.
///
/// One member instead of three that replicate synchronously must not restart any: one that goes may be the last to know what
/// one that is restarted without a volume forgets. So one that is alone counts as having their settings.
pub(super) fn needs_restart(mut configuration: Value, alone: bool) -> Value {
    if let Some(Value::Object(settings)) = configuration.pointer_mut("/bootstrap/dcs") {
        settings.retain(|name, _| name == "postgresql");
    }
    if let Some(Value::Object(parameters)) =
        configuration.pointer_mut("/bootstrap/dcs/postgresql/parameters")
    {
        parameters.remove(SENDER_TIMEOUT);
    }
    if let Some(Value::Object(settings)) = configuration.get_mut("postgresql") {
        settings.remove(BASE_BACKUP);
        if alone {
            settings.insert(REMOVE_AFTER_REWIND.to_owned(), true.into());
            settings.insert(REMOVE_DIVERGED.to_owned(), true.into());
        }
    }
    configuration
}

/// The configuration file of each member, without passwords and without what differs between members.
pub(super) fn configuration(
    cell: &ValidatedCell,
    synchronous: bool,
    resources: &Resources,
) -> Value {
    json!({
        "scope": POSTGRES,
        "kubernetes": {
            // These go on what Patroni itself makes. The operator's managed-by label must not be among them: it deletes what
            // bears its name and is not desired, and Patroni's ConfigMaps are the cluster's memory.
            "labels": { NAME_LABEL: POSTGRES },
            "scope_label": SCOPE_LABEL,
            "role_label": ROLE_LABEL,
            // ConfigMaps rather than Endpoints: nothing else writes them.
            "use_endpoints": false,
        },
        "restapi": { "listen": format!("0.0.0.0:{PATRONI_PORT}") },
        "watchdog": { "mode": "off" },
        "bootstrap": {
            "dcs": dynamic_configuration(cell),
            "initdb": [
                { "encoding": "UTF8" },
                { "locale": "C.UTF-8" },
                "data-checksums",
                { "auth-host": "scram-sha-256" },
                { "auth-local": "scram-sha-256" },
            ],
        },
        "postgresql": {
            "listen": format!("0.0.0.0:{POSTGRES_PORT}"),
            "bin_dir": BIN_DIRECTORY,
            "data_dir": format!("{DATA_MOUNT}/pgdata"),
            "pgpass": "/tmp/pgpass",
            // A new member copies its leader after a checkpoint, which PostgreSQL would spread over minutes where it has work.
            BASE_BACKUP: [{ "checkpoint": "fast" }],
            "use_unix_socket": true,
            "authentication": {
                "superuser": { "username": POSTGRES },
                "replication": { "username": REPLICATION_USER },
            },
            // A former leader that cannot be rewound starts anew from the leader. In synchronous mode it holds nothing that
            // was acknowledged and is not on the leader; otherwise it may, and a person decides.
            REMOVE_AFTER_REWIND: synchronous,
            REMOVE_DIVERGED: synchronous,
            "pg_hba": [
                "local all all scram-sha-256",
                format!("host replication {REPLICATION_USER} all scram-sha-256"),
                "host all all all scram-sha-256",
            ],
            "parameters": {
                "unix_socket_directories": RUN_MOUNT,
                "password_encryption": "scram-sha-256",
                // Inside the namespace, behind its NetworkPolicies.
                "ssl": "off",
                "shared_buffers": shared_buffers(resources),
                // A client that is gone gives back its locks, the one on its range above all.
                "idle_in_transaction_session_timeout": "30s",
                "tcp_keepalives_idle": 10,
                "tcp_keepalives_interval": 5,
                "tcp_keepalives_count": 3,
                "log_min_duration_statement": "1s",
                "log_line_prefix": "%m [%p] %q%u@%d ",
                "logging_collector": "off",
                "jit": "off",
            },
        },
    })
}

/// A quarter of the memory limit, as PostgreSQL's manual advises.
fn shared_buffers(resources: &Resources) -> String {
    let limit = resources
        .limits
        .memory
        .as_deref()
        .and_then(|memory| Quantity::bytes(memory).ok())
        .map_or(512, |limit| limit.units() >> 20);
    format!("{}MB", (limit / 4).max(16))
}
