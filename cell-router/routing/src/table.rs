//! The routing table: every assignment of the fleet, sorted, validated, under one epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Key, KeyRange, KeyspaceMode};

/// The version of a routing table. It only grows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What may be done with a range at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AssignmentState {
    /// Claimed by a cell that does not serve it yet.
    Pending,
    /// Served by its cell.
    Active,
    /// Being handed to another home; new requests are held for a short while.
    Moving,
    /// Refused everywhere until an operation ends.
    Fenced,
}

/// One row of the routing table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The keys.
    pub range: KeyRange,
    /// The cell whose compute serves the range.
    pub cell: String,
    /// The cell whose databases hold the range.
    pub home: String,
    /// Whether it is served.
    pub state: AssignmentState,
    /// The epoch of the table in which this row last changed.
    pub epoch: Epoch,
}

/// How to reach a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellEndpoint {
    /// The name of the cell.
    pub cell: String,
    /// The region it runs in.
    pub region: String,
    /// The DNS suffix under which its services are found: `order` is at `order.<endpoint>`.
    pub endpoint: String,
}

/// A key pinned to a cell, whatever its range says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyOverride {
    /// The key.
    pub key: Key,
    /// The cell that serves it.
    pub cell: String,
}

/// The answer to "who serves this key".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup<'a> {
    /// The row that holds the key. None for a key that is pinned to a cell but lies in no range.
    pub assignment: Option<&'a Assignment>,
    /// The cell to send the request to.
    pub cell: &'a CellEndpoint,
    /// Whether an override decided.
    pub pinned: bool,
}

/// Where the answer to "who serves this key" stands in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The position of the cell.
    pub cell: usize,
    /// The position of the row that holds the key.
    pub row: Option<usize>,
    /// Whether an override decided.
    pub pinned: bool,
}

/// Every assignment of a fleet under one epoch: sorted, free of overlaps, every cell in it known.
///
/// Keys that no row covers are legal (a fleet need not fill the keyspace) and looked up as `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawTable", into = "RawTable")]
pub struct RoutingTable {
    epoch: Epoch,
    mode: KeyspaceMode,
    assignments: Vec<Assignment>,
    cells: Vec<CellEndpoint>,
    overrides: Vec<KeyOverride>,
    // Derived: first keys and the index of each row's cell, side by side, so that a lookup
    // touches little memory.
    starts: Vec<u64>,
    cell_of_row: Vec<u32>,
    cell_of_override: Vec<u32>,
}

#[derive(Clone, Serialize, Deserialize)]
struct RawTable {
    epoch: Epoch,
    #[serde(default)]
    mode: KeyspaceMode,
    #[serde(default)]
    assignments: Vec<Assignment>,
    #[serde(default)]
    cells: Vec<CellEndpoint>,
    #[serde(default)]
    overrides: Vec<KeyOverride>,
}

impl TryFrom<RawTable> for RoutingTable {
    type Error = TableError;

    fn try_from(raw: RawTable) -> Result<Self, Self::Error> {
        RoutingTable::new(
            raw.epoch,
            raw.mode,
            raw.assignments,
            raw.cells,
            raw.overrides,
        )
    }
}

impl From<RoutingTable> for RawTable {
    fn from(table: RoutingTable) -> Self {
        RawTable {
            epoch: table.epoch,
            mode: table.mode,
            assignments: table.assignments,
            cells: table.cells,
            overrides: table.overrides,
        }
    }
}

impl RoutingTable {
    /// A table with nothing in it, at epoch 0.
    #[must_use]
    pub fn empty(mode: KeyspaceMode) -> Self {
        RoutingTable {
            epoch: Epoch(0),
            mode,
            assignments: Vec::new(),
            cells: Vec::new(),
            overrides: Vec::new(),
            starts: Vec::new(),
            cell_of_row: Vec::new(),
            cell_of_override: Vec::new(),
        }
    }

    /// Builds a table from its parts, in any order.
    ///
    /// # Errors
    /// When two rows overlap, a row or an override names a cell that is not listed, or a cell or an
    /// overridden key is listed twice.
    pub fn new(
        epoch: Epoch,
        mode: KeyspaceMode,
        mut assignments: Vec<Assignment>,
        mut cells: Vec<CellEndpoint>,
        mut overrides: Vec<KeyOverride>,
    ) -> Result<Self, TableError> {
        cells.sort_by(|a, b| a.cell.cmp(&b.cell));
        if let Some([_, twin]) = cells.array_windows().find(|[a, b]| a.cell == b.cell) {
            return Err(TableError::DuplicateCell(twin.cell.clone()));
        }
        let index: BTreeMap<&str, u32> = cells
            .iter()
            .map(|cell| cell.cell.as_str())
            .zip(0..)
            .collect();
        let find = |cell: &str| {
            index
                .get(cell)
                .copied()
                .ok_or_else(|| TableError::UnknownCell(cell.to_owned()))
        };

        assignments.sort_by_key(|row| row.range);
        if let Some([a, b]) = assignments
            .array_windows()
            .find(|[a, b]| a.range.overlaps(b.range))
        {
            return Err(TableError::Overlap {
                first: a.range,
                first_cell: a.cell.clone(),
                second: b.range,
                second_cell: b.cell.clone(),
            });
        }
        for row in &assignments {
            find(&row.home)?;
        }
        overrides.sort_by_key(|pin| pin.key);
        if let Some([_, twin]) = overrides.array_windows().find(|[a, b]| a.key == b.key) {
            return Err(TableError::DuplicateOverride(twin.key));
        }

        let starts = assignments
            .iter()
            .map(|row| row.range.first().get())
            .collect();
        let cell_of_row = assignments
            .iter()
            .map(|row| find(&row.cell))
            .collect::<Result<_, _>>()?;
        let cell_of_override = overrides
            .iter()
            .map(|pin| find(&pin.cell))
            .collect::<Result<_, _>>()?;
        Ok(RoutingTable {
            epoch,
            mode,
            assignments,
            cells,
            overrides,
            starts,
            cell_of_row,
            cell_of_override,
        })
    }

    /// The version of this table.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How user ids become keys.
    #[must_use]
    pub fn mode(&self) -> KeyspaceMode {
        self.mode
    }

    /// The rows, sorted by range.
    #[must_use]
    pub fn assignments(&self) -> &[Assignment] {
        &self.assignments
    }

    /// The cells, sorted by name.
    #[must_use]
    pub fn cells(&self) -> &[CellEndpoint] {
        &self.cells
    }

    /// The pinned keys, sorted.
    #[must_use]
    pub fn overrides(&self) -> &[KeyOverride] {
        &self.overrides
    }

    /// Who serves the key; `None` when nobody does.
    #[must_use]
    pub fn lookup(&self, key: Key) -> Option<Lookup<'_>> {
        let found = self.locate(key)?;
        Some(Lookup {
            assignment: found.row.and_then(|row| self.assignments.get(row)),
            cell: self.cells.get(found.cell)?,
            pinned: found.pinned,
        })
    }

    /// The same as [`RoutingTable::lookup`] by position: of the cell in [`RoutingTable::cells`], and of the row in
    /// [`RoutingTable::assignments`]. For callers that keep something beside each cell.
    #[must_use]
    pub fn locate(&self, key: Key) -> Option<Location> {
        let row = self.row_of(key);
        if !self.overrides.is_empty()
            && let Ok(pin) = self.overrides.binary_search_by_key(&key, |pin| pin.key)
        {
            return Some(Location {
                cell: *self.cell_of_override.get(pin)? as usize,
                row,
                pinned: true,
            });
        }
        Some(Location {
            cell: *self.cell_of_row.get(row?)? as usize,
            row,
            pinned: false,
        })
    }

    /// How to reach a cell.
    #[must_use]
    pub fn cell(&self, name: &str) -> Option<&CellEndpoint> {
        self.cells
            .binary_search_by(|cell| cell.cell.as_str().cmp(name))
            .ok()
            .and_then(|index| self.cells.get(index))
    }

    /// The rows whose range a cell serves.
    pub fn served_by<'a>(&'a self, cell: &'a str) -> impl Iterator<Item = &'a Assignment> {
        self.assignments.iter().filter(move |row| row.cell == cell)
    }

    /// The keys between the first and the last row that no row covers.
    #[must_use]
    pub fn gaps(&self) -> Vec<KeyRange> {
        self.assignments
            .array_windows()
            .filter_map(|[a, b]| {
                let first = Key::new(a.range.last().get() + 1).ok()?;
                let last = Key::new(b.range.first().get().checked_sub(1)?).ok()?;
                KeyRange::new(first, last).ok()
            })
            .collect()
    }

    /// The names of all cells that rows mention, as compute or as home.
    #[must_use]
    pub fn cells_in_use(&self) -> BTreeSet<&str> {
        self.assignments
            .iter()
            .flat_map(|row| [row.cell.as_str(), row.home.as_str()])
            .collect()
    }

    fn row_of(&self, key: Key) -> Option<usize> {
        let after = self.starts.partition_point(|first| *first <= key.get());
        let row = after.checked_sub(1)?;
        self.assignments
            .get(row)?
            .range
            .contains(key)
            .then_some(row)
    }
}

/// Why a table was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Two rows claim the same keys.
    #[error("ranges overlap: {first} of {first_cell} and {second} of {second_cell}")]
    Overlap {
        /// The lower row's range.
        first: KeyRange,
        /// The lower row's cell.
        first_cell: String,
        /// The upper row's range.
        second: KeyRange,
        /// The upper row's cell.
        second_cell: String,
    },
    /// A row or an override names a cell that the table does not list.
    #[error("cell {0} is named by the table but not listed in it")]
    UnknownCell(String),
    /// A cell is listed twice.
    #[error("cell {0} is listed twice")]
    DuplicateCell(String),
    /// A key is pinned twice.
    #[error("key {0} is pinned to a cell twice")]
    DuplicateOverride(Key),
}
