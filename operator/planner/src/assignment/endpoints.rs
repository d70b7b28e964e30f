//! How to reach the cells that the table names.

use std::collections::{BTreeMap, BTreeSet};

use titan_routing::{CellEndpoint, RoutingTable};

use super::CellView;
use super::draft::Draft;

/// The endpoints of all cells that the rows name: as declared where the cell is seen, as committed where it is not.
pub(super) fn endpoints(
    draft: &Draft,
    current: &RoutingTable,
    cells: &[CellView],
) -> Vec<CellEndpoint> {
    let mut known: BTreeMap<&str, CellEndpoint> = current
        .cells()
        .iter()
        .map(|cell| (cell.cell.as_str(), cell.clone()))
        .collect();
    for view in cells {
        known.insert(
            &view.name,
            CellEndpoint {
                cell: view.name.clone(),
                region: view.region.clone(),
                endpoint: view.endpoint.clone(),
            },
        );
    }
    let used: BTreeSet<&str> = draft
        .rows()
        .flat_map(|row| [row.cell.as_str(), row.home.as_str()])
        .collect();
    used.into_iter()
        .filter_map(|name| known.get(name).cloned())
        .collect()
}
