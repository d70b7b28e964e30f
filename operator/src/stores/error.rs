//! Why a store could not be brought to where it should be.

use crate::ledger::{Interrupted, System};

/// The result of everything that talks to a store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What was found in the way of something that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// A database.
    Database,
    /// A role.
    Role,
    /// A schema in a database that was prepared for the cell.
    Schema,
}

/// Why a store could not be brought to where it should be.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No answer, or an answer that says: not now. Trying again later can help.
    #[error(
        "{} at {address} does not serve now: {detail}. It is tried again; check that it runs and that a \
         NetworkPolicy or firewall lets the operator in", product(*.system)
    )]
    Unreachable {
        /// The kind of store.
        system: System,
        /// Host and port.
        address: String,
        /// What the client library said.
        detail: String,
    },
    /// The login was refused.
    #[error("{} at {address} refuses the login: {detail}. Check user and password in the Secret that names this server", product(*.system))]
    Auth {
        /// The kind of store.
        system: System,
        /// Host and port.
        address: String,
        /// What the server said.
        detail: String,
    },
    /// The server understood and said no.
    #[error("{} at {address} refused to {doing}: {detail}", product(*.system))]
    Refused {
        /// The kind of store.
        system: System,
        /// Host and port.
        address: String,
        /// What was asked for: `create database cell_001`.
        doing: String,
        /// What the server said.
        detail: String,
    },
    /// The database that is there, or its absence, is not what holds the data. Nothing was written.
    #[error(
        "PostgreSQL at {address} has {}, and the data are in one with the id {known}",
        found.as_ref().map_or_else(
            || format!("no database {database}, or one of which it is not known where it comes from"),
            |id| format!("a database {database} with the id {id}"),
        )
    )]
    OtherDatabase {
        /// Host and port.
        address: String,
        /// The name that both have.
        database: String,
        /// The id of the one that is there, if it has one.
        found: Option<String>,
        /// The id of the one with the data.
        known: String,
    },
    /// Something of the name that is wanted is there already, and no operator made it. Nothing was written.
    #[error(
        "PostgreSQL at {address} has {what}, and no operator of Titan Cells made it. Nothing was written, and it is left as it is. {remedy}"
    )]
    NotOurs {
        /// Host and port.
        address: String,
        /// What kind of thing it is.
        foreign: Foreign,
        /// It, by name.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The database that is there is for a cell of another cluster. Nothing was written.
    #[error(
        "database {database} of PostgreSQL at {address} is for a cell of another cluster, by the claim {claim}; this is cluster {cluster}"
    )]
    OtherCluster {
        /// Host and port.
        address: String,
        /// Its name.
        database: String,
        /// The claim of the other one.
        claim: String,
        /// Who asked.
        cluster: String,
    },
    /// What is asked for cannot be had here; a person has to change the spec or the server.
    #[error("{message}")]
    Invalid {
        /// The kind of store.
        system: System,
        /// What is wrong, where, and what to do.
        message: String,
    },
    /// The ledger ended the reconcile.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl StoreError {
    /// The label value in metrics.
    #[must_use]
    pub const fn category(&self) -> &'static str {
        match self {
            StoreError::Unreachable { .. } => "unreachable",
            StoreError::Auth { .. } => "auth",
            StoreError::Refused { .. } => "refused",
            StoreError::OtherDatabase { .. } => "other-database",
            StoreError::OtherCluster { .. } => "other-cluster",
            StoreError::NotOurs { .. } => "not-ours",
            StoreError::Invalid { .. } => "invalid",
            StoreError::Interrupted(_) => "interrupted",
        }
    }

    /// The system that it happened in; None for an interruption.
    #[must_use]
    pub const fn system(&self) -> Option<System> {
        match self {
            StoreError::Unreachable { system, .. }
            | StoreError::Auth { system, .. }
            | StoreError::Refused { system, .. }
            | StoreError::Invalid { system, .. } => Some(*system),
            StoreError::OtherDatabase { .. }
            | StoreError::OtherCluster { .. }
            | StoreError::NotOurs { .. } => Some(System::Postgres),
            StoreError::Interrupted(_) => None,
        }
    }

    /// Whether waiting can help: the store may only be starting.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, StoreError::Unreachable { .. })
    }
}

/// The name that people know the system by.
const fn product(system: System) -> &'static str {
    match system {
        System::Kubernetes => "Kubernetes",
        System::Postgres => "PostgreSQL",
        System::Kafka => "Kafka",
        System::Redis => "Redis",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong_where_and_what_to_do() {
        let error = StoreError::Unreachable {
            system: System::Kafka,
            address: "kafka.example:9092".to_owned(),
            detail: "no broker answered within 5 s".to_owned(),
        };
        assert_eq!(
            error.to_string(),
            "Kafka at kafka.example:9092 does not serve now: no broker answered within 5 s. It is tried again; check \
             that it runs and that a NetworkPolicy or firewall lets the operator in"
        );
        assert_eq!(error.category(), "unreachable");
        assert_eq!(StoreError::from(Interrupted).category(), "interrupted");
    }
}
