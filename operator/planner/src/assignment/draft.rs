//! The rows of the table that is being planned, by their first key.

use std::collections::{BTreeMap, BTreeSet};

use titan_routing::{Assignment, Key, KeyRange};

/// Rows that do not overlap. Looking for what overlaps a range, and for the rows of a home, takes logarithmic time: a fleet
/// of thousands of cells is planned whenever one of them changes.
#[derive(Default)]
pub(super) struct Draft {
    by_first: BTreeMap<Key, Assignment>,
    homes: BTreeSet<String>,
}

impl Draft {
    /// The first row that shares a key with the range.
    pub(super) fn overlapping(&self, range: KeyRange) -> Option<&Assignment> {
        // Rows do not overlap each other, so of those that begin before the range only the last can reach into it.
        let before = self.by_first.range(..range.first()).next_back();
        let within = self.by_first.range(range.first()..=range.last()).next();
        let reaches = |row: &&Assignment| row.range.overlaps(range);
        before
            .map(|(_, row)| row)
            .filter(reaches)
            .or(within.map(|(_, row)| row))
    }

    /// Whether a cell's databases hold any row.
    pub(super) fn has_home(&self, cell: &str) -> bool {
        self.homes.contains(cell)
    }

    /// Takes a row in, which must not overlap another.
    pub(super) fn insert(&mut self, row: Assignment) {
        self.homes.insert(row.home.clone());
        self.by_first.insert(row.range.first(), row);
    }

    /// The parts of a range that no row has.
    pub(super) fn free_parts(&self, range: KeyRange) -> Vec<KeyRange> {
        let mut free = Vec::new();
        let mut next = Some(range.first());
        while let Some(first) = next {
            let Ok(rest) = KeyRange::new(first, range.last()) else {
                break;
            };
            let Some(taken) = self.overlapping(rest) else {
                free.push(rest);
                break;
            };
            let before = taken.range.first().get().checked_sub(1).map(Key::new);
            if let Some(Ok(last)) = before
                && let Ok(part) = KeyRange::new(first, last)
            {
                free.push(part);
            }
            next = Key::new(taken.range.last().get() + 1).ok();
        }
        free
    }

    /// The rows, sorted.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Assignment> {
        self.by_first.values()
    }

    pub(super) fn into_rows(self) -> Vec<Assignment> {
        self.by_first.into_values().collect()
    }
}
