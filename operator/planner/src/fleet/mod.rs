//! All cells of a fleet: which cells its template makes, its status, and the routing table as a resource.

mod resource;
mod status;
mod template;

pub(crate) use resource::state_from_resource;
pub use resource::{
    TableResourceError, from_resource, mode_from_resource, state_to_resource, to_resource,
};
pub use status::{FleetStatusInput, fleet_status};
pub use template::{TemplateReport, missing_cells};
