//! What the planner knows of one cell.

use titan_crds::{Cell, ConditionType, RangeStatus};
use titan_routing::{Assignment, Epoch, Key, KeyRange};

use crate::cell::key_range;
use crate::condition::is_true;
use crate::fleet::state_from_resource;

/// What the planner knows of one cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellView {
    /// Its name.
    pub name: String,
    /// When it was created, in seconds since 1970. Of two cells that claim the same keys, the older gets them.
    pub created: i64,
    /// The keys it claims at its creation: `spec.userRange`. A cell without a claim is empty capacity.
    pub claim: Option<KeyRange>,
    /// The table has granted the claim once. A claim is granted once: what the cell serves and holds afterwards is what the
    /// table says, so a range that was moved away is not claimed back.
    pub granted: bool,
    /// Its region.
    pub region: String,
    /// The DNS suffix of its services.
    pub endpoint: String,
    /// Its services and databases stand ready to take requests.
    pub serving: bool,
    /// It is being deleted.
    pub deleting: bool,
    /// It is paused: its rows stay as they are.
    pub paused: bool,
    /// The rows that its status has of it, as compute or as home. Used when the table itself is lost.
    pub recorded: Vec<Assignment>,
}

impl CellView {
    /// What the table needs to know of a Cell; `None` for an object without a name, which no apiserver sends.
    #[must_use]
    pub fn of(cell: &Cell, cluster_domain: &str) -> Option<Self> {
        let name = cell.metadata.name.clone()?;
        let status = cell.status.as_ref();
        let conditions = status.map_or(&[][..], |status| &status.conditions);
        Some(CellView {
            created: cell
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(i64::MAX, |time| time.0.as_second()),
            // The cell's own reconcile reports a range that is none.
            claim: cell.spec.user_range.and_then(|it| key_range(it).ok()),
            granted: status.is_some_and(|status| status.claim_granted),
            region: cell.spec.placement.region.clone(),
            endpoint: format!("{name}.svc.{cluster_domain}"),
            serving: is_true(conditions, ConditionType::ServicesAvailable)
                && is_true(conditions, ConditionType::DatabasesReady),
            deleting: cell.metadata.deletion_timestamp.is_some(),
            paused: cell.spec.paused,
            recorded: recorded_rows(cell),
            name,
        })
    }

    /// Whether it leaves: it is being deleted and no pause holds that up.
    pub(super) fn leaves(&self) -> bool {
        self.deleting && !self.paused
    }
}

/// The rows that a Cell's status has of it.
#[must_use]
pub fn recorded_rows(cell: &Cell) -> Vec<Assignment> {
    let ranges = cell.status.as_ref().map_or(&[][..], |it| &it.ranges);
    ranges.iter().filter_map(row_of_status).collect()
}

/// What a status records is the operator's own writing; what is no range is left out.
fn row_of_status(recorded: &RangeStatus) -> Option<Assignment> {
    let key = |value: i64| Key::new(u64::try_from(value).ok()?).ok();
    Some(Assignment {
        range: KeyRange::new(key(recorded.first)?, key(recorded.last)?).ok()?,
        cell: recorded.cell.clone(),
        home: recorded.home.clone(),
        state: state_from_resource(recorded.state),
        epoch: Epoch(recorded.epoch),
    })
}
