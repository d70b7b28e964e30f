//! The cells that a fleet's template asks for.

use std::collections::{BTreeMap, BTreeSet};

use kube::api::ObjectMeta;
use titan_crds::{Cell, CellFleetSpec, CellSpec, CellTemplateSpec, UserRange};

use crate::cell::Invalid;
use crate::object::FLEET_LABEL;

/// What the template asks for, next to what there is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TemplateReport {
    /// Cells to create, in order.
    pub missing: Vec<Cell>,
    /// Cells of the template's names that are not as the template would make them today. They are left alone: the
    /// template is for new cells.
    pub differing: Vec<String>,
    /// Cells that carry the template's prefix and a number beyond its count. They are left alone: nothing deletes a
    /// cell but a person.
    pub beyond: Vec<String>,
}

/// The cells that the template of a fleet asks for and that do not exist.
///
/// # Errors
/// When the template's cells do not fit the keyspace.
pub fn missing_cells<'a>(
    fleet: &str,
    spec: &CellFleetSpec,
    cells: impl IntoIterator<Item = &'a Cell>,
) -> Result<TemplateReport, Invalid> {
    let Some(template) = &spec.template else {
        return Ok(TemplateReport::default());
    };
    let existing: BTreeMap<&str, &Cell> = cells
        .into_iter()
        .filter_map(|cell| Some((cell.metadata.name.as_deref()?, cell)))
        .collect();

    let mut report = TemplateReport::default();
    let mut named = BTreeSet::new();
    for number in 1..=i64::from(template.count) {
        let name = format!("{}-{number:03}", template.name_prefix);
        let range = nth_range(template.first_key, template.users_per_cell, number - 1).ok_or_else(
            || Invalid {
                reason: "TemplateBeyondKeyspace",
                message: format!(
                    "spec.template: cell {name} would end beyond the largest key, {}; lower count, usersPerCell or firstKey",
                    i64::MAX
                ),
            },
        )?;
        let wanted = cell_of(fleet, &name, range, &template.spec);
        match existing.get(name.as_str()) {
            None => report.missing.push(wanted),
            Some(cell) if differs(&cell.spec, &wanted.spec) => report.differing.push(name.clone()),
            Some(_) => {}
        }
        named.insert(name);
    }
    report.beyond = existing
        .keys()
        .filter(|name| !named.contains(**name) && is_numbered(name, &template.name_prefix))
        .map(|name| (*name).to_owned())
        .collect();
    Ok(report)
}

fn nth_range(first_key: i64, users: i64, index: i64) -> Option<UserRange> {
    let first = users.checked_mul(index)?.checked_add(first_key)?;
    let last = first.checked_add(users - 1)?;
    Some(UserRange { first, last })
}

fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(|number| number.len() >= 3 && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a cell is something else than the template makes. A person may pause a cell without it being different.
fn differs(cell: &CellSpec, wanted: &CellSpec) -> bool {
    let unpaused = CellSpec {
        paused: false,
        ..cell.clone()
    };
    unpaused != *wanted
}

fn cell_of(fleet: &str, name: &str, user_range: UserRange, spec: &CellTemplateSpec) -> Cell {
    let CellTemplateSpec {
        profile,
        release,
        overrides,
        placement,
        databases,
        failover,
        reclaim_policy,
    } = spec.clone();
    Cell {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([(FLEET_LABEL.to_owned(), fleet.to_owned())])),
            ..ObjectMeta::default()
        },
        spec: CellSpec {
            fleet: fleet.to_owned(),
            user_range: Some(user_range),
            profile,
            release,
            overrides,
            placement,
            databases,
            failover,
            paused: false,
            reclaim_policy,
        },
        status: None,
    }
}
