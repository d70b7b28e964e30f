//! What the committed table says of one cell.

use titan_routing::{Assignment, KeyRange, RoutingTable};

/// What the committed table says of a cell and of its claim. The cell's own data home comes first: what became of the rows
/// whose data it holds decides before what it claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim<'a> {
    /// The cell serves at least one row.
    Serves,
    /// The cell serves nothing. Another cell serves rows whose data is in this cell's databases; this is the first of them.
    ServedElsewhere(&'a Assignment),
    /// The cell has no row and claims keys of this row, whose data is in another cell.
    Overlaps(&'a Assignment),
    /// The cell has no row, and nobody is in the way of its claim: the fleet has not been planned with it yet.
    NotYet,
    /// The cell has no row and claims none: it is empty capacity, for a split or a move.
    Empty,
}

/// Reads what the committed table says of a cell. `claim` is `None` where the cell claims nothing, or was granted its claim
/// before.
#[must_use]
pub fn claim<'a>(table: &'a RoutingTable, cell: &str, claim: Option<KeyRange>) -> Claim<'a> {
    let rows = table.assignments();
    if rows.iter().any(|row| row.cell == cell) {
        return Claim::Serves;
    }
    if let Some(row) = rows.iter().find(|row| row.home == cell) {
        return Claim::ServedElsewhere(row);
    }
    let Some(range) = claim else {
        return Claim::Empty;
    };
    rows.iter()
        .find(|row| row.range.overlaps(range))
        .map_or(Claim::NotYet, Claim::Overlaps)
}

/// The rows that a cell serves or holds, in the order of their keys.
#[must_use]
pub fn rows_of(table: &RoutingTable, cell: &str) -> Vec<Assignment> {
    table
        .assignments()
        .iter()
        .filter(|row| row.cell == cell || row.home == cell)
        .cloned()
        .collect()
}
