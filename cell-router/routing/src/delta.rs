//! The difference between two tables.

use std::collections::BTreeMap;

use crate::{
    Assignment, CellEndpoint, Epoch, Key, KeyOverride, KeyspaceMode, RoutingTable, TableError,
};

/// What makes one table out of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The epoch of the table that this applies to.
    pub base: Epoch,
    /// The epoch of the table that this makes.
    pub epoch: Epoch,
    /// How user ids become keys in the new table.
    pub mode: KeyspaceMode,
    /// First keys of the rows that went.
    pub removed_assignments: Vec<Key>,
    /// Rows that are new or changed. A row is known by its first key.
    pub assignments: Vec<Assignment>,
    /// Names of the cells that went.
    pub removed_cells: Vec<String>,
    /// Cells that are new or changed.
    pub cells: Vec<CellEndpoint>,
    /// Pinned keys that are free again.
    pub removed_overrides: Vec<Key>,
    /// Pinned keys that are new or changed.
    pub overrides: Vec<KeyOverride>,
    /// The checksum of the table that this makes.
    pub checksum: u64,
}

impl Delta {
    /// The difference that makes `to` out of `from`.
    #[must_use]
    pub fn between(from: &RoutingTable, to: &RoutingTable) -> Self {
        let (removed_assignments, assignments) =
            compare(from.assignments(), to.assignments(), |row| {
                row.range.first()
            });
        let (removed_cells, cells) = compare(from.cells(), to.cells(), |cell| cell.cell.clone());
        let (removed_overrides, overrides) =
            compare(from.overrides(), to.overrides(), |pin| pin.key);
        Delta {
            base: from.epoch(),
            epoch: to.epoch(),
            mode: to.mode(),
            removed_assignments,
            assignments,
            removed_cells,
            cells,
            removed_overrides,
            overrides,
            checksum: to.checksum(),
        }
    }

    /// How many rows, cells and pins it touches.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.removed_assignments.len()
            + self.assignments.len()
            + self.removed_cells.len()
            + self.cells.len()
            + self.removed_overrides.len()
            + self.overrides.len()
    }

    /// Makes the new table.
    ///
    /// # Errors
    /// When `base` is not the table that this delta was made for, or the result is not a valid table or not the
    /// one that was meant.
    pub fn apply(&self, base: &RoutingTable) -> Result<RoutingTable, DeltaError> {
        if base.epoch() != self.base {
            return Err(DeltaError::OtherBase {
                wants: self.base,
                has: base.epoch(),
            });
        }
        let table = RoutingTable::new(
            self.epoch,
            self.mode,
            merge(
                base.assignments(),
                &self.removed_assignments,
                &self.assignments,
                |row| row.range.first(),
            ),
            merge(base.cells(), &self.removed_cells, &self.cells, |cell| {
                cell.cell.clone()
            }),
            merge(
                base.overrides(),
                &self.removed_overrides,
                &self.overrides,
                |pin| pin.key,
            ),
        )?;
        let checksum = table.checksum();
        if checksum != self.checksum {
            return Err(DeltaError::Checksum {
                announced: self.checksum,
                computed: checksum,
            });
        }
        Ok(table)
    }
}

/// Names of what went, and what is new or changed. Both lists are sorted by name.
fn compare<T: Clone + PartialEq, N: Ord>(
    from: &[T],
    to: &[T],
    name: impl Fn(&T) -> N,
) -> (Vec<N>, Vec<T>) {
    let mut removed = Vec::new();
    let mut changed = Vec::new();
    let mut old = from.iter().peekable();
    for item in to {
        let wanted = name(item);
        while let Some(gone) = old.next_if(|candidate| name(candidate) < wanted) {
            removed.push(name(gone));
        }
        match old.next_if(|candidate| name(candidate) == wanted) {
            Some(same) if same == item => {}
            _ => changed.push(item.clone()),
        }
    }
    removed.extend(old.map(&name));
    (removed, changed)
}

fn merge<T: Clone, N: Ord>(
    base: &[T],
    removed: &[N],
    changed: &[T],
    name: impl Fn(&T) -> N,
) -> Vec<T> {
    let mut items: BTreeMap<N, &T> = base.iter().map(|item| (name(item), item)).collect();
    for gone in removed {
        items.remove(gone);
    }
    items.extend(changed.iter().map(|item| (name(item), item)));
    items.into_values().cloned().collect()
}

/// Why a delta could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// It was made for another table.
    #[error("the delta starts at epoch {wants}, the table here is at epoch {has}")]
    OtherBase {
        /// The epoch that the delta starts at.
        wants: Epoch,
        /// The epoch of the table given.
        has: Epoch,
    },
    /// The result is no valid table.
    #[error("the delta makes an invalid table: {0}")]
    Invalid(#[from] TableError),
    /// The result is valid, but not what the sender has.
    #[error(
        "the delta makes a table with checksum {computed:016x}, {announced:016x} was announced"
    )]
    Checksum {
        /// The checksum that the sender gave.
        announced: u64,
        /// The checksum of the table made.
        computed: u64,
    },
}
