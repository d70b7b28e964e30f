//! PostgreSQL and Redis: what the cell says, and what its profile says where the cell is silent.

use titan_crds::{
    EphemeralStorage, ExternalServer, PersistentStorage, Postgres, Redis, RedisTopology,
    ResourceList, Resources, Storage,
};

use super::invalid;
use super::services::canonical_resources;
use crate::cell::model::{Invalid, PostgresPlan, RedisPlan, StoreStorage};
use crate::cell::quantity::Quantity;

/// The apiserver takes larger quantities for the largest that it knows.
const MAX_STORAGE: u128 = 1 << 60;

pub(super) fn postgres(
    cell: Option<&Postgres>,
    profile: Option<&Postgres>,
) -> Result<PostgresPlan, Invalid> {
    let nothing = Postgres::default();
    let cell = cell.unwrap_or(&nothing);
    let profile = profile.unwrap_or(&nothing);
    for (whose, postgres) in [("spec", cell), ("the profile's", profile)] {
        let Postgres {
            members,
            synchronous,
            storage,
            resources,
            external,
        } = postgres;
        let managed =
            members.is_some() || synchronous.is_some() || storage.is_some() || resources.is_some();
        exclusive(whose, "postgres", managed, external.as_ref())?;
    }
    let managed_here = *cell != nothing && cell.external.is_none();
    let external = cell
        .external
        .as_ref()
        .or_else(|| profile.external.as_ref().filter(|_| !managed_here));
    if let Some(ExternalServer { secret_name }) = external {
        return Ok(PostgresPlan::External {
            secret_name: secret_name.clone(),
        });
    }
    let members = cell.members.or(profile.members).unwrap_or(1);
    if members != 1 && members != 3 {
        return Err(invalid(
            "InvalidDatabases",
            format!("databases.postgres.members is {members}; use 1, or 3 for automatic failover"),
        ));
    }
    let synchronous = cell
        .synchronous
        // A cell that takes one member where its profile has three takes it without standbys to wait for.
        .or_else(|| profile.synchronous.filter(|_| cell.members != Some(1)))
        .unwrap_or(members == 3);
    if synchronous && members == 1 {
        return Err(invalid(
            "InvalidDatabases",
            "databases.postgres.synchronous needs a second member to wait for; set members: 3 or remove synchronous",
        ));
    }
    Ok(PostgresPlan::Managed {
        members,
        synchronous,
        storage: storage(
            "databases.postgres.storage",
            cell.storage.as_ref().or(profile.storage.as_ref()),
            "10Gi",
        )?,
        resources: resources(
            "PostgreSQL",
            cell.resources.as_ref().or(profile.resources.as_ref()),
            ("100m", "256Mi", "1Gi"),
        )?,
    })
}

pub(super) fn redis(cell: Option<&Redis>, profile: Option<&Redis>) -> Result<RedisPlan, Invalid> {
    let nothing = Redis::default();
    let cell = cell.unwrap_or(&nothing);
    let profile = profile.unwrap_or(&nothing);
    for (whose, redis) in [("spec", cell), ("the profile's", profile)] {
        let Redis {
            topology,
            storage,
            resources,
            external,
        } = redis;
        let managed = topology.is_some() || storage.is_some() || resources.is_some();
        exclusive(whose, "redis", managed, external.as_ref())?;
    }
    let managed_here = *cell != nothing && cell.external.is_none();
    let external = cell
        .external
        .as_ref()
        .or_else(|| profile.external.as_ref().filter(|_| !managed_here));
    if let Some(ExternalServer { secret_name }) = external {
        return Ok(RedisPlan::External {
            secret_name: secret_name.clone(),
        });
    }
    Ok(RedisPlan::Managed {
        topology: cell
            .topology
            .or(profile.topology)
            .unwrap_or(RedisTopology::Single),
        storage: storage(
            "databases.redis.storage",
            cell.storage.as_ref().or(profile.storage.as_ref()),
            "1Gi",
        )?,
        resources: resources(
            "Redis",
            cell.resources.as_ref().or(profile.resources.as_ref()),
            ("50m", "64Mi", "256Mi"),
        )?,
    })
}

fn exclusive(
    whose: &str,
    store: &str,
    managed: bool,
    external: Option<&ExternalServer>,
) -> Result<(), Invalid> {
    if managed && external.is_some() {
        return Err(invalid(
            "InvalidDatabases",
            format!(
                "{whose} databases.{store} names an external server and describes one to run as well; keep one of the two"
            ),
        ));
    }
    Ok(())
}

/// Persistent where nothing is said: losing data takes a word.
fn storage(field: &str, storage: Option<&Storage>, size: &str) -> Result<StoreStorage, Invalid> {
    let Some(Storage {
        ephemeral,
        persistent,
    }) = storage
    else {
        return Ok(StoreStorage::Persistent {
            size: size.to_owned(),
            storage_class_name: None,
        });
    };
    let amount = |what: &str, text: &str| match Quantity::bytes(text) {
        Ok(amount) if (1..=MAX_STORAGE).contains(&amount.units()) => Ok(amount.to_string()),
        _ => Err(invalid(
            "InvalidDatabases",
            format!("{field}.{what} is `{text}`; write a size of at most 1Ei, for example 20Gi"),
        )),
    };
    match (ephemeral, persistent) {
        (Some(EphemeralStorage { size_limit }), None) => Ok(StoreStorage::Ephemeral {
            size_limit: size_limit
                .as_deref()
                .map(|text| amount("ephemeral.sizeLimit", text))
                .transpose()?,
        }),
        (
            None,
            Some(PersistentStorage {
                size,
                storage_class_name,
            }),
        ) => Ok(StoreStorage::Persistent {
            size: amount("persistent.size", size)?,
            storage_class_name: storage_class_name.clone(),
        }),
        _ => Err(invalid(
            "InvalidDatabases",
            format!("{field} must have exactly one of ephemeral and persistent"),
        )),
    }
}

fn resources(
    who: &str,
    given: Option<&Resources>,
    (cpu, request, limit): (&str, &str, &str),
) -> Result<Resources, Invalid> {
    let default = || Resources {
        requests: ResourceList {
            cpu: Some(cpu.to_owned()),
            memory: Some(request.to_owned()),
        },
        limits: ResourceList {
            cpu: None,
            memory: Some(limit.to_owned()),
        },
    };
    canonical_resources(who, &given.cloned().unwrap_or_else(default))
}
