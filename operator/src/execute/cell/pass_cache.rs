//! What is known of cells that wait for nothing but their pods.
//!
//! No watch tells of a pod that is stuck, so that such a cell is looked at again after a while. As long as nothing else has
//! happened, a look at its pods is enough: a pass reads all of its objects, which are 300, and asks its stores. What else is not
//! watched, Secrets and what is in the stores, waits for the next pass, as it does in a cell that is Ready.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kube::ResourceExt;
use titan_crds::Cell;

use crate::execute::cell::reconcile::Progress;
use crate::execute::cell::requeue::RESYNC;
use crate::execute::cell::services::Services;

/// What a pass found.
pub(super) struct Found {
    pub(super) progress: Progress,
    pub(super) services: Services,
    generation: Option<i64>,
    at: Instant,
}

impl Found {
    /// Found now, of the cell as it is.
    pub(super) fn new(cell: &Cell, progress: Progress, services: Services) -> Self {
        Found {
            progress,
            services,
            generation: cell.metadata.generation,
            at: Instant::now(),
        }
    }
}

/// Cells by name. One that is touched is forgotten, whether a pass over it is under way or ended.
#[derive(Default)]
pub struct PassCache {
    cells: Mutex<HashMap<String, Known>>,
}

enum Known {
    /// A pass is under way, and nothing has happened since it began.
    Passing,
    /// The cell waits, and nothing has happened since the pass that found so began.
    Found(Arc<Found>),
}

impl PassCache {
    /// A pass begins.
    pub(super) fn start(&self, cell: &Cell) {
        self.cells().insert(cell.name_any(), Known::Passing);
    }

    /// A pass found a cell waiting. What it found is kept unless the cell was touched since the pass began.
    pub(super) fn store(&self, cell: &Cell, found: Found) {
        if let Some(known) = self.cells().get_mut(&cell.name_any()) {
            *known = Known::Found(Arc::new(found));
        }
    }

    /// Something happened to a cell, or to what it refers to.
    pub(super) fn invalidate(&self, cell: &str) {
        self.cells().remove(cell);
    }

    /// What was found of a cell, if that is all there is to know. What no watch tells of is looked after as often as in a cell
    /// that is Ready.
    pub(super) fn get(&self, cell: &Cell) -> Option<Arc<Found>> {
        match self.cells().get(&cell.name_any()) {
            Some(Known::Found(found))
                if found.at.elapsed() < RESYNC && found.generation == cell.metadata.generation =>
            {
                Some(found.clone())
            }
            _ => None,
        }
    }

    fn cells(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use titan_crds::CellSpec;

    use super::*;

    fn cell() -> Cell {
        let spec = serde_json::json!({
            "fleet": "f", "profile": "p", "release": "1", "userRange": {"first": 1, "last": 2},
        });
        Cell::new(
            "cell-001",
            serde_json::from_value::<CellSpec>(spec).unwrap(),
        )
    }

    fn found() -> Found {
        Found::new(&cell(), Progress::new(), Services::default())
    }

    #[test]
    fn what_a_pass_found_is_kept_until_something_happens() {
        let cache = PassCache::default();
        cache.start(&cell());
        assert!(cache.get(&cell()).is_none());
        cache.store(&cell(), found());
        assert!(cache.get(&cell()).is_some());
        let mut changed = cell();
        changed.metadata.generation = Some(2);
        assert!(cache.get(&changed).is_none());
        cache.invalidate("cell-002");
        assert!(cache.get(&cell()).is_some());
        cache.invalidate("cell-001");
        assert!(cache.get(&cell()).is_none());
    }

    #[test]
    fn what_happened_during_a_pass_is_not_in_what_it_found() {
        let cache = PassCache::default();
        cache.start(&cell());
        cache.invalidate("cell-001");
        cache.store(&cell(), found());
        assert!(cache.get(&cell()).is_none());
    }

    #[test]
    fn a_new_pass_forgets_the_last_one() {
        let cache = PassCache::default();
        cache.start(&cell());
        cache.store(&cell(), found());
        cache.start(&cell());
        assert!(cache.get(&cell()).is_none());
    }
}
