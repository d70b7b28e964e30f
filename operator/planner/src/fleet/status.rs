//! What a fleet's status says of its cells and its table.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use titan_crds::{CellFleet, CellFleetStatus, ConditionType};
use titan_routing::Epoch;

use crate::cell::Invalid;
use crate::condition::Conditions;
use crate::fleet::TemplateReport;

/// What the status of a fleet is made from.
#[derive(Clone, Debug)]
pub struct FleetStatusInput<'a> {
    /// The fleet.
    pub fleet: &'a CellFleet,
    /// The generation of its spec.
    pub generation: i64,
    /// The time, for transitions.
    pub now: Time,
    /// How many Cells there are or were just made.
    pub cells: usize,
    /// How many of them are ready.
    pub ready: usize,
    /// What the template asks for, or why it cannot be had.
    pub template: Result<&'a TemplateReport, &'a Invalid>,
    /// Which cell of the template could not be made, and why.
    pub not_created: Option<String>,
    /// The epoch of the committed table, or why the next one could not be committed.
    pub committed: Result<Epoch, String>,
}

/// The status of a fleet.
#[must_use]
pub fn fleet_status(input: FleetStatusInput<'_>) -> CellFleetStatus {
    let FleetStatusInput {
        fleet,
        generation,
        now,
        cells,
        ready,
        template,
        not_created,
        committed,
    } = input;
    let before = fleet.status.as_ref();
    let writer = Conditions {
        before: before.map_or(&[][..], |status| &status.conditions),
        generation,
        now,
    };
    let deleting = fleet.metadata.deletion_timestamp.is_some();
    let working = Some(ConditionType::Reconciling);
    let (status, companion, reason, message) = match (&committed, template) {
        // Impaired, as the contract has it: the last table that was committed is served on.
        (Err(error), _) => (
            "False",
            None,
            "CommitFailed",
            format!(
                "the next routing table could not be committed and the last one stays in force: {error}"
            ),
        ),
        (Ok(_), _) if deleting => (
            "Unknown",
            working,
            "CellsRemain",
            format!("the fleet goes with the last of its cells, of which there are {cells}"),
        ),
        (Ok(_), Err(invalid)) => (
            "False",
            Some(ConditionType::Stalled),
            invalid.reason,
            invalid.message.clone(),
        ),
        (Ok(_), Ok(_)) if let Some(error) = not_created => (
            "False",
            None,
            "CellsNotCreated",
            format!("a cell of the template cannot be made, which holds up no other; {error}"),
        ),
        (Ok(_), Ok(template)) if ready == cells => {
            ("True", None, "CellsReady", summary(ready, cells, template))
        }
        (Ok(_), Ok(template)) => (
            "Unknown",
            working,
            "CellsNotReady",
            summary(ready, cells, template),
        ),
    };
    let mut conditions = vec![writer.condition(ConditionType::Ready, status, reason, &message)];
    conditions.extend(companion.map(|name| writer.condition(name, "True", reason, &message)));
    CellFleetStatus {
        observed_generation: generation,
        conditions,
        cells: i32::try_from(cells).unwrap_or(i32::MAX),
        ready_cells: i32::try_from(ready).unwrap_or(i32::MAX),
        // Where nothing was committed, what was said before still holds.
        epoch: match committed {
            Ok(epoch) => Some(epoch.0),
            Err(_) => before.and_then(|status| status.epoch),
        },
    }
}

fn summary(ready: usize, cells: usize, template: &TemplateReport) -> String {
    let mut message = format!("{ready} of {cells} cells are ready");
    if !template.differing.is_empty() {
        message.push_str(&format!(
            "; {} differ from the template, which is for new cells only",
            template.differing.len()
        ));
    }
    if !template.beyond.is_empty() {
        message.push_str(&format!(
            "; {} are beyond the template's count and stay until they are deleted by name",
            template.beyond.len()
        ));
    }
    message
}
