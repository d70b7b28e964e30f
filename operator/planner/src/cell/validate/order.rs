//! The order in which services start: each after those that it calls.

use std::collections::{BTreeMap, BTreeSet};

use super::invalid;
use crate::cell::model::{Invalid, ValidatedService};

/// Sorts services so that each comes after those it depends on, and by name where that leaves a choice.
pub(super) fn topological(
    profile: &str,
    services: BTreeMap<String, ValidatedService>,
) -> Result<Vec<ValidatedService>, Invalid> {
    for service in services.values() {
        if let Some(unknown) = service
            .depends_on
            .iter()
            .find(|dependency| !services.contains_key(*dependency))
        {
            return Err(invalid(
                "UnknownDependency",
                format!(
                    "service {} of profile {profile} depends on {unknown}, which the profile does not have; add {unknown} \
                     or remove it from dependsOn",
                    service.name
                ),
            ));
        }
    }
    let mut waiting = services;
    let mut started: BTreeSet<String> = BTreeSet::new();
    let mut sorted = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        // The first by name of those that wait for nobody.
        let next = waiting
            .values()
            .find(|service| service.depends_on.iter().all(|d| started.contains(d)))
            .map(|service| service.name.clone());
        let Some(service) = next.and_then(|name| waiting.remove(&name)) else {
            return Err(invalid(
                "DependencyCycle",
                format!(
                    "the services of profile {profile} depend on each other in a circle, so none can start first: {}; \
                     remove one of these from dependsOn",
                    cycle(&waiting).join(" -> ")
                ),
            ));
        };
        started.insert(service.name.clone());
        sorted.push(service);
    }
    Ok(sorted)
}

/// A cycle among services of which each waits for another one of them.
fn cycle(waiting: &BTreeMap<String, ValidatedService>) -> Vec<String> {
    let mut path: Vec<String> = Vec::new();
    let mut at = waiting.keys().next().cloned();
    while let Some(name) = at {
        if let Some(start) = path.iter().position(|seen| *seen == name) {
            let mut circle = path.split_off(start);
            circle.push(name);
            return circle;
        }
        at = waiting
            .get(&name)
            .and_then(|service| service.depends_on.iter().find(|d| waiting.contains_key(*d)))
            .cloned();
        path.push(name);
    }
    path
}
