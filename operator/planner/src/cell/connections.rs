//! How many connections the PostgreSQL of a cell has to take, and whether its memory bears them.

use titan_crds::Autoscaling;

use super::model::{Invalid, PostgresPlan, ValidatedCell, ValidatedService};
use super::quantity::Quantity;

/// Connections of the pool of each pod.
pub(super) const POOL: u32 = 8;
/// What a pod has open beside its pool: the session that watches the leader, and the one that publishes the outbox.
const BESIDE_POOL: u32 = 2;
/// A rollout has every pod there twice at most: a Deployment's surge is of pods that serve, and those that it has replaced
/// keep their connections until they have drained. All services may roll at once.
const IN_A_ROLLOUT: u32 = 2;
/// Of the migration of a service.
const MIGRATION: u32 = 1;
/// The operator, Patroni on each member, metrics, people, and what PostgreSQL reserves for superusers. Replication has
/// `max_wal_senders` to itself.
const OTHERS: u32 = 60;

/// Another value restarts every member, so it is one for many sizes: a pod more is no other value, and small cells, of
/// which most are made, have what they had before it was counted. A place that nobody takes costs little; see
/// [`PLACE_BYTES`].
const STEP: u32 = 100;
const LEAST: u32 = 1000;
/// Shared memory of a place: 120 kB in PostgreSQL 15 with 256 locks a transaction, most of it for these.
const PLACE_BYTES: u128 = 128 << 10;
/// PostgreSQL knows 262,143 backends, its workers and WAL senders among them.
const MOST: u32 = 260_000;

/// PostgreSQL's `max_connections`: enough for all pods of the services with a schema, at the most that an autoscaler may make
/// of them and in a rollout of all of them.
pub(super) fn max_connections(services: &[ValidatedService]) -> u32 {
    let needed = services
        .iter()
        .filter(|service| service.stores.postgres)
        .map(|service| {
            let pods = most_pods(service).saturating_mul(IN_A_ROLLOUT);
            pods.saturating_mul(POOL + BESIDE_POOL)
                .saturating_add(MIGRATION)
        })
        .fold(OTHERS, u32::saturating_add);
    needed.div_ceil(STEP).saturating_mul(STEP).max(LEAST)
}

fn most_pods(service: &ValidatedService) -> u32 {
    let replicas = match &service.autoscaling {
        Some(Autoscaling { max_replicas, .. }) => *max_replicas,
        None => service.replicas.unwrap_or(1),
    };
    u32::try_from(replicas).unwrap_or(0)
}

/// Refuses more connections than the cell's own PostgreSQL could start with: half of its memory may be for their places, as
/// a quarter of it is for buffers, and what backends take comes on top.
pub(super) fn bearable(cell: &ValidatedCell) -> Result<(), Invalid> {
    let PostgresPlan::Managed { resources, .. } = &cell.postgres else {
        return Ok(());
    };
    let connections = max_connections(&cell.services);
    let limit = resources.limits.memory.as_deref();
    let places = limit
        .and_then(|limit| Quantity::bytes(limit).ok())
        .map_or(u128::MAX, |limit| limit.units() / 2 / PLACE_BYTES);
    // What every cell has is not refused, however small its PostgreSQL is.
    if connections == LEAST || u128::from(connections) <= places.min(MOST.into()) {
        return Ok(());
    }
    let remedy = if connections > MOST {
        format!("PostgreSQL takes {MOST} at most")
    } else {
        let needed = (u128::from(connections) * PLACE_BYTES * 2).div_ceil(1 << 30);
        format!(
            "its memory limit of {} bears {places}: set databases.postgres.resources.limits.memory to {needed}Gi or more",
            limit.unwrap_or_default()
        )
    };
    Err(Invalid {
        reason: "InvalidDatabases",
        message: format!(
            "the services may open {connections} connections to PostgreSQL, with as many pods as replicas and maxReplicas allow and twice that in a rollout, and {remedy}, or lower replicas and maxReplicas"
        ),
    })
}
