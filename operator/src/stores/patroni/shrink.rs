//! Fewer members, without what they alone know.
//!
//! A StatefulSet takes its last members away first, all of those that are too many at once, and knows nothing of leaders: of
//! three members it would take the leader and the only standby that has all of its commits, and leave one that is behind. So
//! members go one by one here, each only when somebody who stays has everything that was acknowledged, and their
//! replication stays synchronous until the last of them is gone.

use serde_json::Value;

use super::view::{LockView, PodState};
use crate::cluster::number;

/// The StatefulSet of the members, as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MembersView {
    /// How many it should have by its spec.
    pub asked: i64,
    /// How many pods it has, those that are leaving included.
    pub pods: i64,
    /// How many of them are ready.
    pub ready: i64,
    /// Whether each of them was made from the planned template, and none is to be replaced.
    pub rolled: bool,
}

impl MembersView {
    /// Reads a StatefulSet.
    #[must_use]
    pub fn of(set: &Value) -> Self {
        let asked = number(set, "/spec/replicas");
        let seen = number(set, "/status/observedGeneration");
        let revision = |name: &str| set.pointer(&format!("/status/{name}"));
        MembersView {
            asked,
            pods: number(set, "/status/replicas"),
            ready: number(set, "/status/readyReplicas"),
            rolled: seen >= number(set, "/metadata/generation")
                && revision("currentRevision") == revision("updateRevision"),
        }
    }

    /// Whether there are more members than these.
    #[must_use]
    pub const fn exceed(&self, wanted: i64) -> bool {
        self.asked > wanted || self.pods > wanted
    }
}

/// How many members there should be next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// As many as there are, for this reason.
    Keep(String),
    /// One less.
    Without(String),
}

/// Decides whether the last member of `scope`, whose pod is passed, may go. Pure; to be asked while there are too many.
#[must_use]
pub fn next(scope: &str, members: &MembersView, last_pod: PodState, lock: &LockView) -> Next {
    let name = |number: i64| format!("{scope}-{number}");
    let last = name(members.asked - 1);
    let last_is_ready = matches!(last_pod, PodState::Present { ready: true, .. });
    if members.pods > members.asked {
        return Next::Keep(format!("waiting for {} to be gone", name(members.pods - 1)));
    }
    let stays = |member: &str| (0..members.asked - 1).any(|number| name(number) == member);
    let Some(leader) = &lock.holder else {
        return Next::Keep(format!("{last} has to go, and {scope} has no leader now"));
    };
    if !members.rolled {
        // A rollout would go on to the next member as soon as this one is gone.
        return Next::Keep(format!(
            "{last} has to go, after all members of {scope} are as planned"
        ));
    }
    if stays(leader) && !last_is_ready {
        // It takes part in nothing.
        return Next::Without(last);
    }
    if members.ready < members.asked {
        return Next::Keep(format!(
            "{last} has to go, after all members of {scope} are ready: {} of {} are",
            members.ready, members.asked
        ));
    }
    if stays(leader) || lock.standbys.iter().any(|standby| stays(standby)) {
        return Next::Without(last);
    }
    Next::Keep(format!(
        "{last} has to go, but {leader} leads, and no member that stays is known to have all of its data; if it stays so, hand over to {} with patronictl switchover",
        name(0)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: MembersView = MembersView {
        asked: 3,
        pods: 3,
        ready: 3,
        rolled: true,
    };
    const TWO: MembersView = MembersView {
        asked: 2,
        pods: 2,
        ready: 2,
        ..THREE
    };

    fn lock(leader: &str, standbys: &[&str]) -> LockView {
        LockView {
            holder: Some(leader.to_owned()),
            standbys: standbys.iter().map(|name| (*name).to_owned()).collect(),
            ..LockView::default()
        }
    }

    const READY: PodState = PodState::Present {
        ready: true,
        created: chrono::DateTime::UNIX_EPOCH,
    };

    fn goes(members: &MembersView, lock: &LockView) -> Option<String> {
        goes_of(members, READY, lock)
    }

    fn goes_of(members: &MembersView, last: PodState, lock: &LockView) -> Option<String> {
        match next("postgres", members, last, lock) {
            Next::Without(member) => Some(member),
            Next::Keep(_) => None,
        }
    }

    #[test]
    fn the_last_one_goes_when_somebody_who_stays_knows_everything() {
        let two = || Some("postgres-2".to_owned());
        assert_eq!(goes(&THREE, &lock("postgres-0", &["postgres-2"])), two());
        assert_eq!(goes(&THREE, &lock("postgres-1", &["postgres-2"])), two());
        assert_eq!(goes(&THREE, &lock("postgres-2", &["postgres-1"])), two());
        assert_eq!(goes(&THREE, &lock("postgres-2", &[])), None);
        assert_eq!(goes(&THREE, &LockView::default()), None, "nobody leads");
        let one = || Some("postgres-1".to_owned());
        assert_eq!(goes(&TWO, &lock("postgres-0", &[])), one());
        assert_eq!(goes(&TWO, &lock("postgres-1", &["postgres-0"])), one());
        assert_eq!(
            goes(&TWO, &lock("postgres-1", &["postgres-2"])),
            None,
            "the one that knows everything is gone"
        );
    }

    #[test]
    fn nobody_goes_while_others_come_or_go() {
        let well = lock("postgres-0", &["postgres-1"]);
        let unlike = |change: fn(&mut MembersView)| {
            let mut members = THREE;
            change(&mut members);
            goes(&members, &well)
        };
        assert_eq!(unlike(|it| it.pods = 4), None);
        assert_eq!(unlike(|it| it.rolled = false), None);
        assert_eq!(unlike(|it| it.ready = 2), None);
    }

    #[test]
    fn a_last_one_that_is_not_well_holds_up_nothing() {
        let broken = MembersView { ready: 2, ..THREE };
        let goes = |lock| goes_of(&broken, PodState::Absent, &lock);
        let two = Some("postgres-2".to_owned());
        assert_eq!(goes(lock("postgres-0", &["postgres-1"])), two);
        let leads = lock("postgres-2", &["postgres-1"]);
        assert_eq!(goes(leads), None, "its successor comes first");
        let rolling = MembersView {
            rolled: false,
            ..broken
        };
        let well = lock("postgres-0", &["postgres-1"]);
        assert_eq!(goes_of(&rolling, PodState::Absent, &well), None);
    }

    #[test]
    fn a_statefulset_is_read() {
        let set = |observed: i64, revision: &str| {
            MembersView::of(&serde_json::json!({
                "metadata": {"generation": 4}, "spec": {"replicas": 3},
                "status": {
                    "observedGeneration": observed, "replicas": 3, "readyReplicas": 3,
                    "currentRevision": "a", "updateRevision": revision,
                },
            }))
        };
        assert_eq!(set(4, "a"), THREE);
        assert!(!set(3, "a").rolled && !set(4, "b").rolled);
        assert!(THREE.exceed(1) && TWO.exceed(1) && !THREE.exceed(3));
        let leaving = MembersView {
            pods: 2,
            asked: 1,
            ..TWO
        };
        assert!(leaving.exceed(1));
    }
}
