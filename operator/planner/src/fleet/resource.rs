//! The routing table as a Kubernetes resource, and back.

use titan_crds::{
    AssignmentRow, AssignmentState, CellRow, KeyspaceMode, OverrideRow, RoutingTableSpec,
};
use titan_routing::{
    Assignment, CellEndpoint, Epoch, Key, KeyOverride, KeyRange, KeyRangeError, RoutingTable,
    TableError,
};
use xxhash_rust::xxh3::xxh3_64;

/// Why the content of a RoutingTable resource cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableResourceError {
    /// The content is not what the operator wrote.
    #[error("the content does not match its checksum: it was edited by hand")]
    Edited,
    /// A range in it is no range.
    #[error(transparent)]
    Range(#[from] KeyRangeError),
    /// The rows do not make a table.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// The resource's spec for a table, checksum included.
#[must_use]
pub fn to_resource(fleet: &str, table: &RoutingTable) -> RoutingTableSpec {
    let mut spec = RoutingTableSpec {
        fleet: fleet.to_owned(),
        epoch: table.epoch().0,
        mode: mode_to_resource(table.mode()),
        assignments: table
            .assignments()
            .iter()
            .map(|row| AssignmentRow {
                first: row.range.first().as_i64(),
                last: row.range.last().as_i64(),
                cell: row.cell.clone(),
                home: row.home.clone(),
                state: state_to_resource(row.state),
                epoch: row.epoch.0,
            })
            .collect(),
        cells: table
            .cells()
            .iter()
            .map(|cell| CellRow {
                name: cell.cell.clone(),
                region: cell.region.clone(),
                endpoint: cell.endpoint.clone(),
            })
            .collect(),
        overrides: table
            .overrides()
            .iter()
            .map(|pin| OverrideRow {
                key: pin.key.as_i64(),
                cell: pin.cell.clone(),
            })
            .collect(),
        checksum: String::new(),
    };
    spec.checksum = checksum(&spec);
    spec
}

/// The table that a resource's spec holds.
///
/// # Errors
/// When somebody else than the operator wrote it, or it is not a valid table.
pub fn from_resource(spec: &RoutingTableSpec) -> Result<RoutingTable, TableResourceError> {
    if spec.checksum != checksum(spec) {
        return Err(TableResourceError::Edited);
    }
    let key = |value: i64| Key::new(value.cast_unsigned());
    let assignments = spec
        .assignments
        .iter()
        .map(|row| {
            Ok(Assignment {
                range: KeyRange::new(key(row.first)?, key(row.last)?)?,
                cell: row.cell.clone(),
                home: row.home.clone(),
                state: state_from_resource(row.state),
                epoch: Epoch(row.epoch),
            })
        })
        .collect::<Result<_, KeyRangeError>>()?;
    let overrides = spec
        .overrides
        .iter()
        .map(|pin| {
            Ok(KeyOverride {
                key: key(pin.key)?,
                cell: pin.cell.clone(),
            })
        })
        .collect::<Result<_, KeyRangeError>>()?;
    let cells = spec
        .cells
        .iter()
        .map(|cell| CellEndpoint {
            cell: cell.name.clone(),
            region: cell.region.clone(),
            endpoint: cell.endpoint.clone(),
        })
        .collect();
    Ok(RoutingTable::new(
        Epoch(spec.epoch),
        mode_from_resource(spec.mode),
        assignments,
        cells,
        overrides,
    )?)
}

/// A hash over everything but the checksum. It tells an edit by hand from the operator's own writing; it is no defence
/// against somebody who can write the resource and computes it.
fn checksum(spec: &RoutingTableSpec) -> String {
    let content = RoutingTableSpec {
        checksum: String::new(),
        ..spec.clone()
    };
    // Serialising a plain struct of strings and numbers cannot fail; were it to, the empty text matches nothing.
    let text = serde_json::to_vec(&content).unwrap_or_default();
    format!("{:016x}", xxh3_64(&text))
}

/// The keyspace mode as routing knows it.
#[must_use]
pub fn mode_from_resource(mode: KeyspaceMode) -> titan_routing::KeyspaceMode {
    match mode {
        KeyspaceMode::UserId => titan_routing::KeyspaceMode::UserId,
        KeyspaceMode::Hash => titan_routing::KeyspaceMode::Hash,
    }
}

fn mode_to_resource(mode: titan_routing::KeyspaceMode) -> KeyspaceMode {
    match mode {
        titan_routing::KeyspaceMode::UserId => KeyspaceMode::UserId,
        titan_routing::KeyspaceMode::Hash => KeyspaceMode::Hash,
    }
}

/// The state of a row as a resource has it.
#[must_use]
pub fn state_to_resource(state: titan_routing::AssignmentState) -> AssignmentState {
    match state {
        titan_routing::AssignmentState::Pending => AssignmentState::Pending,
        titan_routing::AssignmentState::Active => AssignmentState::Active,
        titan_routing::AssignmentState::Moving => AssignmentState::Moving,
        titan_routing::AssignmentState::Fenced => AssignmentState::Fenced,
    }
}

pub(crate) fn state_from_resource(state: AssignmentState) -> titan_routing::AssignmentState {
    match state {
        AssignmentState::Pending => titan_routing::AssignmentState::Pending,
        AssignmentState::Active => titan_routing::AssignmentState::Active,
        AssignmentState::Moving => titan_routing::AssignmentState::Moving,
        AssignmentState::Fenced => titan_routing::AssignmentState::Fenced,
    }
}
