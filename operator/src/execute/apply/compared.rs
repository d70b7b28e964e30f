//! What has been compared already.
//!
//! A cell has some 250 objects, and most passes are there because one of them changed. Whether the others are as planned is known:
//! an object of the same uid and resourceVersion is the same object, and the plan is a text.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use titan_planner::object::Object;

use crate::execute::apply::LiveObject;

/// How many comparisons are remembered: about twice the objects of 500 cells. What is forgotten is compared again.
const REMEMBERED: usize = 1 << 18;

/// Fingerprints of objects together with the plans that they were found to be as. Each place holds the last of those that
/// fall on it; 2 MiB.
pub struct Compared {
    fingerprints: Box<[AtomicU64]>,
    hasher: RandomState,
}

impl Default for Compared {
    fn default() -> Self {
        Compared {
            fingerprints: (0..REMEMBERED).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }
}

impl Compared {
    /// Whether the object is as planned: by memory, or by a look that is remembered if it is.
    pub(super) fn is_as_planned(
        &self,
        object: &Object,
        live: &LiveObject,
        look: impl FnOnce(&Object, &LiveObject) -> bool,
    ) -> bool {
        let both = (&live.uid, &live.resource_version, object.json.text());
        // 64 bits of a keyed hash: two that are taken for one another are not to be expected in the life of a planet.
        let fingerprint = self.hasher.hash_one(both);
        let place = usize::try_from(fingerprint).unwrap_or_default() % self.fingerprints.len();
        let remembered = &self.fingerprints[place];
        let is_as_planned = remembered.load(Ordering::Relaxed) == fingerprint || look(object, live);
        if is_as_planned {
            remembered.store(fingerprint, Ordering::Relaxed);
        }
        is_as_planned
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use titan_planner::object::{Json, Kind, Stage};

    use super::*;

    fn planned(value: &str) -> Object {
        let map = json!({"metadata": {"name": "a"}, "data": {"key": value}});
        Object::new(Kind::ConfigMap, Stage::Foundation, false, &map).unwrap()
    }

    fn live(uid: &str, version: &str) -> LiveObject {
        let map = json!({"metadata": {"name": "a", "uid": uid, "resourceVersion": version}});
        LiveObject::new(Kind::ConfigMap, Json::from(&map)).unwrap()
    }

    #[test]
    fn only_the_same_object_next_to_the_same_plan_is_not_compared_again() {
        let compared = Compared::default();
        let is_compared = |object: &Object, live: &LiveObject, answer: bool| {
            let mut looked = false;
            let said = compared.is_as_planned(object, live, |_, _| {
                looked = true;
                answer
            });
            assert_eq!(said, answer || !looked);
            looked
        };
        let plan = planned("x");
        assert!(is_compared(&plan, &live("u", "1"), false));
        assert!(
            is_compared(&plan, &live("u", "1"), true),
            "it was not as planned"
        );
        assert!(!is_compared(&plan, &live("u", "1"), true));
        assert!(is_compared(&plan, &live("u", "2"), false), "it changed");
        assert!(
            is_compared(&plan, &live("v", "1"), false),
            "another one of its name"
        );
        assert!(
            is_compared(&planned("y"), &live("u", "1"), false),
            "another plan"
        );
        assert!(!is_compared(&plan, &live("u", "1"), true), "still known");
    }
}
