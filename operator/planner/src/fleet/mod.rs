//! All cells of a fleet: which cells its template makes, and the next routing table.

mod resource;
mod routing;
mod status;
mod template;

pub use resource::{TableResourceError, from_resource, mode_from_resource, to_resource};
pub use routing::{CellView, Claim, Decision, Plan, PlanInput, PlanReport, claim, plan};
pub use status::{FleetStatusInput, fleet_status};
pub use template::{TemplateReport, missing_cells};
