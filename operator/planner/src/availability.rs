//! Whether a service has the pods that it needs.

/// What a Deployment says of its pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// Pods that it should have by its own spec, which an autoscaler may have set.
    pub desired: i64,
    /// Pods of the current template that are ready.
    pub ready: i64,
    /// Whether its status speaks of its current spec.
    pub observed: bool,
}

/// Whether there are enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// There are.
    Enough,
    /// There are not.
    Lacking,
    /// The Deployment's status speaks of an older spec: an autoscaler or a rollout has changed it a moment ago.
    Unobserved,
}

/// Whether a service has the pods that the plan asks for: its replicas or, where an autoscaler decides, the fewest that it may
/// set. An autoscaler that asks for more makes nothing worse. Where there is no plan, the Deployment's own number counts.
#[must_use]
pub fn availability(pods: Pods, planned: Option<i64>) -> Availability {
    if !pods.observed {
        return Availability::Unobserved;
    }
    let needed = planned.map_or(pods.desired, |planned| planned.min(pods.desired));
    if pods.ready >= needed {
        Availability::Enough
    } else {
        Availability::Lacking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_autoscaler_that_asks_for_more_takes_nothing_away() {
        use Availability::{Enough, Lacking, Unobserved};
        for (desired, ready, observed, planned, expected) in [
            // As planned.
            (3, 3, true, Some(3), Enough),
            (3, 2, true, Some(3), Lacking),
            (1, 0, true, Some(1), Lacking),
            (0, 0, true, Some(0), Enough),
            // Scaled out from 2 to 10: not yet there, and nothing is lost; below 2 it is.
            (10, 2, true, Some(2), Enough),
            (10, 1, true, Some(2), Lacking),
            // Just now.
            (10, 0, false, Some(2), Unobserved),
            // Without a plan.
            (3, 3, true, None, Enough),
            (3, 2, true, None, Lacking),
            // By hand to fewer, which is repaired as drift.
            (1, 1, true, Some(3), Enough),
        ] {
            let pods = Pods {
                desired,
                ready,
                observed,
            };
            assert_eq!(
                availability(pods, planned),
                expected,
                "{pods:?} {planned:?}"
            );
        }
    }
}
