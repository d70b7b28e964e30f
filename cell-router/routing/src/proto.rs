//! `titan.registry.v1`: the generated messages, and their conversions to and from the types of this crate.

mod generated {
    #![allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction)]
    tonic::include_proto!("titan.registry.v1");
}

pub use generated::*;

use crate::{
    Assignment as Row, AssignmentState as State, CellEndpoint, Delta as TableDelta, DeltaError,
    Epoch, Key, KeyOverride, KeyRange, KeyRangeError, KeyspaceMode as Mode, RoutingTable,
    TableError,
};

/// Why a message of the registry was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A key or a range cannot be.
    #[error("the registry sent a bad key: {0}")]
    Key(#[from] KeyRangeError),
    /// The rows do not make a table.
    #[error("the registry sent an invalid table: {0}")]
    Table(#[from] TableError),
    /// The delta does not fit.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// A field that must be there is missing or has an unknown value.
    #[error("the registry sent a message without a usable `{0}`")]
    Missing(&'static str),
    /// The content is not what its checksum says.
    #[error(
        "the registry announced checksum {announced:016x} for a table with checksum {computed:016x}"
    )]
    Checksum {
        /// The checksum in the message.
        announced: u64,
        /// The checksum of the content.
        computed: u64,
    },
}

impl From<&RoutingTable> for Table {
    fn from(table: &RoutingTable) -> Self {
        Table {
            epoch: table.epoch().0,
            mode: mode_out(table.mode()),
            assignments: table.assignments().iter().map(row_out).collect(),
            cells: table.cells().iter().map(cell_out).collect(),
            overrides: table.overrides().iter().map(pin_out).collect(),
        }
    }
}

impl TryFrom<Table> for RoutingTable {
    type Error = WireError;

    fn try_from(table: Table) -> Result<Self, WireError> {
        Ok(RoutingTable::new(
            Epoch(table.epoch),
            mode_in(table.mode)?,
            every(table.assignments, row_in)?,
            table.cells.into_iter().map(cell_in).collect(),
            every(table.overrides, pin_in)?,
        )?)
    }
}

impl From<&RoutingTable> for Snapshot {
    fn from(table: &RoutingTable) -> Self {
        Snapshot {
            table: Some(table.into()),
            checksum: table.checksum(),
        }
    }
}

impl TryFrom<Snapshot> for RoutingTable {
    type Error = WireError;

    fn try_from(snapshot: Snapshot) -> Result<Self, WireError> {
        let table: RoutingTable = snapshot
            .table
            .ok_or(WireError::Missing("table"))?
            .try_into()?;
        let computed = table.checksum();
        if computed != snapshot.checksum {
            return Err(WireError::Checksum {
                announced: snapshot.checksum,
                computed,
            });
        }
        Ok(table)
    }
}

impl From<&TableDelta> for Delta {
    fn from(delta: &TableDelta) -> Self {
        let TableDelta {
            base,
            epoch,
            mode,
            removed_assignments,
            assignments,
            removed_cells,
            cells,
            removed_overrides,
            overrides,
            checksum,
        } = delta;
        Delta {
            base_epoch: base.0,
            epoch: epoch.0,
            mode: mode_out(*mode),
            removed_assignments: removed_assignments.iter().map(|key| key.get()).collect(),
            assignments: assignments.iter().map(row_out).collect(),
            removed_cells: removed_cells.clone(),
            cells: cells.iter().map(cell_out).collect(),
            removed_overrides: removed_overrides.iter().map(|key| key.get()).collect(),
            overrides: overrides.iter().map(pin_out).collect(),
            checksum: *checksum,
        }
    }
}

impl TryFrom<Delta> for TableDelta {
    type Error = WireError;

    fn try_from(delta: Delta) -> Result<Self, WireError> {
        Ok(TableDelta {
            base: Epoch(delta.base_epoch),
            epoch: Epoch(delta.epoch),
            mode: mode_in(delta.mode)?,
            removed_assignments: every(delta.removed_assignments, key_in)?,
            assignments: every(delta.assignments, row_in)?,
            removed_cells: delta.removed_cells,
            cells: delta.cells.into_iter().map(cell_in).collect(),
            removed_overrides: every(delta.removed_overrides, key_in)?,
            overrides: every(delta.overrides, pin_in)?,
            checksum: delta.checksum,
        })
    }
}

fn every<A, B>(
    items: Vec<A>,
    convert: impl Fn(A) -> Result<B, WireError>,
) -> Result<Vec<B>, WireError> {
    items.into_iter().map(convert).collect()
}

fn key_in(key: u64) -> Result<Key, WireError> {
    Ok(Key::new(key)?)
}

fn row_out(row: &Row) -> Assignment {
    Assignment {
        first: row.range.first().get(),
        last: row.range.last().get(),
        cell: row.cell.clone(),
        home: row.home.clone(),
        state: match row.state {
            State::Pending => AssignmentState::Pending,
            State::Active => AssignmentState::Active,
            State::Moving => AssignmentState::Moving,
            State::Fenced => AssignmentState::Fenced,
        }
        .into(),
        epoch: row.epoch.0,
    }
}

fn row_in(row: Assignment) -> Result<Row, WireError> {
    let state = match row.state() {
        AssignmentState::Unspecified => return Err(WireError::Missing("assignment.state")),
        AssignmentState::Pending => State::Pending,
        AssignmentState::Active => State::Active,
        AssignmentState::Moving => State::Moving,
        AssignmentState::Fenced => State::Fenced,
    };
    Ok(Row {
        range: KeyRange::new(key_in(row.first)?, key_in(row.last)?)?,
        cell: row.cell,
        home: row.home,
        state,
        epoch: Epoch(row.epoch),
    })
}

fn cell_out(cell: &CellEndpoint) -> Cell {
    Cell {
        cell: cell.cell.clone(),
        region: cell.region.clone(),
        endpoint: cell.endpoint.clone(),
    }
}

fn cell_in(cell: Cell) -> CellEndpoint {
    CellEndpoint {
        cell: cell.cell,
        region: cell.region,
        endpoint: cell.endpoint,
    }
}

fn pin_out(pin: &KeyOverride) -> Override {
    Override {
        key: pin.key.get(),
        cell: pin.cell.clone(),
    }
}

fn pin_in(pin: Override) -> Result<KeyOverride, WireError> {
    Ok(KeyOverride {
        key: key_in(pin.key)?,
        cell: pin.cell,
    })
}

fn mode_out(mode: Mode) -> i32 {
    match mode {
        Mode::UserId => KeyspaceMode::UserId,
        Mode::Hash => KeyspaceMode::Hash,
    }
    .into()
}

fn mode_in(mode: i32) -> Result<Mode, WireError> {
    match KeyspaceMode::try_from(mode) {
        Ok(KeyspaceMode::UserId) => Ok(Mode::UserId),
        Ok(KeyspaceMode::Hash) => Ok(Mode::Hash),
        Ok(KeyspaceMode::Unspecified) | Err(_) => Err(WireError::Missing("mode")),
    }
}
