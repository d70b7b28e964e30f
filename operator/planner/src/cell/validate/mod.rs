//! From a Cell's spec, its profile and its fleet to a cell in which every default and override is resolved.
//!
//! Rules that the schema of the CRD states as well are checked here again: profiles and templates get here by other
//! ways than through the apiserver, and a rule that was added later was never asked of what is stored already.

mod order;
mod services;
mod stores;

use titan_crds::{
    Cell, CellFleet, CellFleetSpec, CellSpec, Failover, FailoverMode, Images, Kafka, Placement,
    Postgres, PullPolicy, ServiceProfile, ServiceProfileSpec, UserRange,
};
use titan_routing::{Key, KeyRange};

use super::connections::bearable;
use super::model::{Invalid, ServiceSchema, ValidatedCell, database_name};
use crate::Observed;

/// Why there is no validated cell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotValid {
    /// A person has to change something.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Something could not be looked at yet: try again, change nothing.
    #[error(transparent)]
    Waiting(Invalid),
}

pub(super) fn invalid(reason: &'static str, message: impl Into<String>) -> Invalid {
    Invalid {
        reason,
        message: message.into(),
    }
}

/// PostgreSQL cuts longer identifiers off without a word.
const MAX_IDENTIFIER: usize = 63;
const MAX_CELL_NAME: usize = 40;

/// Checks a Cell against its profile and its fleet.
///
/// # Errors
/// [`NotValid::Waiting`] while the profile or the fleet could not be looked at, [`NotValid::Invalid`] when what was
/// found cannot become a cell.
pub fn validate(
    cell: &Cell,
    profile: Observed<&ServiceProfile>,
    fleet: Observed<&CellFleet>,
) -> Result<ValidatedCell, NotValid> {
    let CellSpec {
        fleet: fleet_name,
        user_range,
        profile: profile_name,
        release,
        overrides,
        placement,
        databases,
        failover,
        // Whether anything is done at all is decided before this, and by what is applied after it.
        paused: _,
        reclaim_policy,
    } = &cell.spec;
    let name = cell_name(cell)?;
    let claim = user_range.map(key_range).transpose()?;
    failover_available(failover)?;
    services::image_tag("spec.release", release)?;
    let (region, zones) = placed(placement)?;

    let fleet = match fleet {
        Observed::Known(fleet) => &fleet.spec,
        Observed::Unknown => {
            return Err(NotValid::Waiting(invalid(
                "FleetUnknown",
                format!("the CellFleet {fleet_name} could not be read; it is tried again"),
            )));
        }
        Observed::Absent => {
            return Err(invalid(
                "FleetNotFound",
                format!("there is no CellFleet {fleet_name}, which spec.fleet names; create it"),
            )
            .into());
        }
    };
    let profile = known_profile(profile_name, profile)?;
    let CellFleetSpec {
        // How ids become keys concerns routers and the routing table, not the objects of a cell.
        keyspace: _,
        kafka:
            Kafka {
                bootstrap,
                replication_factor,
                listener_ports,
            },
        images:
            Images {
                repository,
                postgres_tag,
                pull_policy,
                pull_secrets,
            },
        pods,
        network,
        cluster_domain,
        // The template makes Cells; this is one.
        template: _,
    } = fleet;
    let ServiceProfileSpec {
        databases: profile_databases,
        services: entries,
    } = profile;

    brokers(bootstrap)?;
    let repository = repository.trim_end_matches('/');
    let resolved = services::resolve(&services::Input {
        profile_name,
        entries,
        overrides,
        release,
        repository,
    })?;
    let services = order::topological(profile_name, resolved)?;
    let database = database_name(&name);
    let schemas = schemas(&database, &services)?;
    let topics = services::topics(&name, profile_name, entries, *replication_factor)?;

    let valid = ValidatedCell {
        uid: cell.metadata.uid.clone().unwrap_or_default(),
        fleet: fleet_name.clone(),
        claim,
        region,
        zones,
        postgres: stores::postgres(
            databases.postgres.as_ref(),
            profile_databases.postgres.as_ref(),
        )?,
        redis: stores::redis(databases.redis.as_ref(), profile_databases.redis.as_ref())?,
        services,
        kafka_bootstrap: bootstrap.clone(),
        kafka_listener_ports: listener_ports.clone(),
        pull_secrets: pull_secrets.clone(),
        pods: pods.clone(),
        network: network.clone(),
        image_repository: repository.to_owned(),
        store_image: format!("{repository}/postgres:{postgres_tag}"),
        image_pull_policy: match pull_policy {
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Always => "Always",
            PullPolicy::Never => "Never",
        }
        .to_owned(),
        cluster_domain: cluster_domain.clone(),
        reclaim_policy: *reclaim_policy,
        schemas,
        topics,
        name,
    };
    bearable(&valid)?;
    Ok(valid)
}

fn known_profile<'a>(
    name: &str,
    profile: Observed<&'a ServiceProfile>,
) -> Result<&'a ServiceProfileSpec, NotValid> {
    match profile {
        Observed::Known(profile) => Ok(&profile.spec),
        Observed::Unknown => Err(NotValid::Waiting(invalid(
            "ProfileUnknown",
            format!("the ServiceProfile {name} could not be read; it is tried again"),
        ))),
        Observed::Absent => Err(invalid(
            "ProfileNotFound",
            format!(
                "there is no ServiceProfile {name}, which spec.profile names; create it, or name one that \
                 `kubectl get serviceprofiles` lists"
            ),
        )
        .into()),
    }
}

/// A cell's database on a server that is not the cell's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalDatabase {
    /// The Secret that names the server.
    pub secret_name: String,
    /// The database.
    pub database: String,
}

/// The database that a cell has on an external server, whatever else of the cell is not valid: it has to be found to be
/// dropped.
///
/// # Errors
/// When that is up to the profile, and the profile could not be looked at or is not there.
pub fn external_database(
    cell: &Cell,
    profile: Observed<&ServiceProfile>,
) -> Result<Option<ExternalDatabase>, NotValid> {
    let own = cell.spec.databases.postgres.as_ref();
    let decided = match own.filter(|own| **own != Postgres::default()) {
        Some(own) => Some(own),
        None => known_profile(&cell.spec.profile, profile)?
            .databases
            .postgres
            .as_ref(),
    };
    let server = decided.and_then(|postgres| postgres.external.as_ref());
    Ok(server.map(|server| ExternalDatabase {
        secret_name: server.secret_name.clone(),
        database: database_name(cell.metadata.name.as_deref().unwrap_or_default()),
    }))
}

fn cell_name(cell: &Cell) -> Result<String, Invalid> {
    let name = cell.metadata.name.clone().unwrap_or_default();
    if name.len() > MAX_CELL_NAME {
        return Err(invalid(
            "NameTooLong",
            format!(
                "the cell's name {name} has {} characters; it becomes a namespace, a database and a topic prefix, so \
                 use at most {MAX_CELL_NAME}",
                name.len()
            ),
        ));
    }
    if !is_label(&name) {
        return Err(invalid(
            "InvalidName",
            format!(
                "the cell's name `{name}` cannot be a namespace and a database: use a to z, 0 to 9 and -, starting \
                 with a letter and ending with a letter or digit"
            ),
        ));
    }
    if let Some(what) = reserved_by(&name) {
        return Err(invalid(
            "ReservedName",
            format!(
                "a cell cannot be called {name}: {what}, and a cell's name becomes a namespace and a database; give the \
                 cell another name"
            ),
        ));
    }
    Ok(name)
}

/// Databases that a server of PostgreSQL has of its own, also under the products that run it as a service, and words that
/// stand for more than one database in its access rules or that a pooler answers itself.
const SYSTEM_DATABASES: [&str; 15] = [
    "postgres",
    "template0",
    "template1",
    "public",
    "all",
    "replication",
    "sameuser",
    "samerole",
    "samegroup",
    "pgbouncer",
    "rdsadmin",
    "cloudsqladmin",
    "azure-maintenance",
    "azure-sys",
    "defaultdb",
];

/// Whose a name is that no cell can have; None of any other.
fn reserved_by(name: &str) -> Option<&'static str> {
    if name.starts_with("kube-") || matches!(name, "default" | "titan-system") {
        return Some("the namespace belongs to the system");
    }
    if SYSTEM_DATABASES.contains(&name) {
        return Some("PostgreSQL uses the name itself");
    }
    // Its roles would start with pg_.
    name.starts_with("pg-")
        .then_some("names that start with pg_ are PostgreSQL's")
}

/// Whether a name starts with a letter and goes on with a to z, 0 to 9 and -, as a DNS label that can be a Service.
fn is_label(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// The keys of a range of users.
///
/// # Errors
/// When an end is negative, or the range is reversed.
pub fn key_range(range: UserRange) -> Result<KeyRange, Invalid> {
    let UserRange { first, last } = range;
    let key = |field: &str, value: i64| {
        u64::try_from(value)
            .ok()
            .and_then(|value| Key::new(value).ok())
            .ok_or_else(|| {
                invalid(
                    "InvalidRange",
                    format!("userRange.{field} is {value}; a key is 0 or more"),
                )
            })
    };
    KeyRange::new(key("first", first)?, key("last", last)?).map_err(|_| {
        invalid(
            "InvalidRange",
            format!("userRange is reversed: first {first} is larger than last {last}; swap them"),
        )
    })
}

fn failover_available(failover: &Failover) -> Result<(), Invalid> {
    let Failover { mode, partner } = failover;
    match (mode, partner) {
        (FailoverMode::None, None) => Ok(()),
        (FailoverMode::None, Some(partner)) => Err(invalid(
            "FailoverUnavailable",
            format!("failover.partner names {partner} but failover.mode is None; remove partner"),
        )),
        (FailoverMode::Auto | FailoverMode::Partner, _) => Err(invalid(
            "FailoverUnavailable",
            format!(
                "failover.mode {mode:?} is not available in this release, and pretending otherwise would be worse; \
                 use None"
            ),
        )),
    }
}

fn brokers(bootstrap: &str) -> Result<(), Invalid> {
    let well_formed = |broker: &str| {
        broker.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
    };
    if bootstrap.split(',').all(well_formed) {
        return Ok(());
    }
    Err(invalid(
        "InvalidKafka",
        format!(
            "kafka.bootstrap of the fleet is `{bootstrap}`; write host:port, several separated by commas"
        ),
    ))
}

fn placed(placement: &Placement) -> Result<(String, Vec<String>), Invalid> {
    let Placement { region, zones } = placement;
    for (field, value) in
        std::iter::once(("region", region)).chain(zones.iter().map(|zone| ("zones", zone)))
    {
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let outer = |c: char| c.is_ascii_alphanumeric();
        if value.len() > MAX_IDENTIFIER
            || !value.starts_with(outer)
            || !value.ends_with(outer)
            || !value.chars().all(inner)
        {
            return Err(invalid(
                "InvalidPlacement",
                format!(
                    "placement.{field} has `{value}`, which no label of a node can be: use at most 63 letters, digits, \
                     -, _ and ., starting and ending with a letter or digit"
                ),
            ));
        }
    }
    let mut zones = zones.clone();
    zones.sort();
    zones.dedup();
    Ok((region.clone(), zones))
}

fn schemas(
    database: &str,
    services: &[super::model::ValidatedService],
) -> Result<Vec<ServiceSchema>, Invalid> {
    let mut schemas: Vec<ServiceSchema> = services
        .iter()
        .filter(|service| service.stores.postgres)
        .map(|service| {
            let schema = service.schema();
            ServiceSchema {
                role: format!("{database}_{schema}"),
                service: service.name.clone(),
                schema,
            }
        })
        .collect();
    schemas.sort_by(|a, b| a.service.cmp(&b.service));
    for ServiceSchema {
        service,
        schema: _,
        role,
    } in &schemas
    {
        if role.len() > MAX_IDENTIFIER {
            return Err(invalid(
                "NameTooLong",
                format!(
                    "the login role {role} of service {service} would have {} characters, and PostgreSQL cuts names at \
                     {MAX_IDENTIFIER}; shorten the cell's name or the service's",
                    role.len()
                ),
            ));
        }
    }
    Ok(schemas)
}
