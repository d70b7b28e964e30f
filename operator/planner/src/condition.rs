//! Conditions of our resources.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use titan_crds::ConditionType;

/// Makes the conditions of one status.
#[derive(Clone, Debug)]
pub struct Conditions<'a> {
    /// The conditions so far.
    pub before: &'a [Condition],
    /// The generation of the spec that they speak of.
    pub generation: i64,
    /// The time, for transitions.
    pub now: Time,
}

impl Conditions<'_> {
    /// A condition whose transition time moves only when its status does.
    #[must_use]
    pub fn condition(
        &self,
        name: ConditionType,
        status: &str,
        reason: &str,
        message: &str,
    ) -> Condition {
        let since = self
            .before
            .iter()
            .find(|old| old.type_ == name.as_str() && old.status == status)
            .map_or_else(|| self.now.clone(), |old| old.last_transition_time.clone());
        Condition {
            type_: name.as_str().to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: since,
            observed_generation: Some(self.generation),
        }
    }
}

/// Whether a condition is there and True.
#[must_use]
pub fn is_true(conditions: &[Condition], name: ConditionType) -> bool {
    conditions
        .iter()
        .any(|condition| condition.type_ == name.as_str() && condition.status == "True")
}
