//! A rollout that knows who leads.
//!
//! A StatefulSet replaces its members from the last to the first, whoever leads, and goes on as soon as one is ready: Patroni
//! names its synchronous standby some seconds later. That is up to one change of leaders for each member, and moments in which
//! nobody may follow. So the StatefulSet leaves it to the operator (`OnDelete`): standbys first, those that the leader waits
//! for after the others, the leader last, and each only when all of the others are ready and a standby has everything that was
//! acknowledged. CloudNativePG and the operators of Zalando and Crunchy roll in this order, too.
//!
//! A member that is ready is evicted, so that a node that is being drained at the same time does not take another one: the
//! apiserver counts both against the PodDisruptionBudget. One that is not ready is deleted, for the budget would keep it where
//! none is ready, and the template may be what mends it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, EvictParams, Preconditions};
use tokio::time::timeout;

use super::classify;
use super::view::{LockView, MemberView};
use crate::ledger::{Ledger, System, Write};
use crate::stores::Result;

/// What the members of a cluster are, and what it may rely on.
#[derive(Clone, Copy, Debug)]
pub struct Rollout<'a> {
    /// The revision that all of them should be made from.
    pub revision: &'a str,
    /// All members that are asked for.
    pub members: &'a [MemberView],
    /// Who leads, and who may follow.
    pub lock: &'a LockView,
    /// Whether a member that is replaced finds its data again.
    pub volumes: bool,
    /// Whether replication is to be synchronous; where it is so already, it counts as such.
    pub synchronous: bool,
    /// Whether their disruption budget lets one go that is ready.
    pub expendable: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// No member is to be replaced.
    Over,
    /// One is, and not yet, for this reason.
    Wait(String),
    /// This one is, now.
    Replace(Replaced),
}

/// A member that is to be made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The name of its pod.
    pub member: String,
    /// Which pod of that name.
    pub uid: Option<String>,
    /// Whether it serves, so that it may only go if its disruption budget allows it.
    pub serves: bool,
}

impl Rollout<'_> {
    /// Decides which member is replaced next. Pure.
    #[must_use]
    pub fn turn(&self, now: DateTime<Utc>) -> Turn {
        let outdated = || {
            let outdated = |member: &&MemberView| {
                let revision = member.revision.as_deref();
                !member.leaving && revision.is_some_and(|revision| revision != self.revision)
            };
            self.members.iter().filter(outdated)
        };
        let leads = |member: &MemberView| self.lock.holder.as_deref() == Some(&member.name);
        let is_waited_for = |member: &MemberView| self.lock.standbys.contains(&member.name);
        let order = |member: &&MemberView| (leads(member), is_waited_for(member));
        let Some(next) = outdated().min_by_key(order) else {
            return Turn::Over;
        };
        if let Some(leaving) = self.members.iter().find(|member| member.leaving) {
            return Turn::Wait(format!("waiting for {} to be replaced", leaving.name));
        }
        let needless = |member: &&MemberView| {
            let holds_nothing = self.volumes || member.empty || !member.began;
            !member.is_ready() && holds_nothing
        };
        if let Some(broken) = outdated().find(needless) {
            return Turn::Replace(Replaced::of(broken));
        }
        match self.may_go_on_without(next, now) {
            Ok(()) => Turn::Replace(Replaced::of(next)),
            Err(why) => Turn::Wait(format!("{} has to be replaced, but {why}", next.name)),
        }
    }

    fn may_go_on_without(
        &self,
        next: &MemberView,
        now: DateTime<Utc>,
    ) -> std::result::Result<(), String> {
        if next.is_ready() && !self.expendable {
            return Err(BUDGET.to_owned());
        }
        if self.members.len() == 1 {
            return Ok(());
        }
        let lacks = |member: &&MemberView| member.name != next.name && !member.is_ready();
        if let Some(lacking) = self.members.iter().find(lacks) {
            return Err(format!("{} is not ready", lacking.name));
        }
        let leader = self.lock.living_leader(now)?;
        let follows =
            |member: &MemberView| member.is_ready() && self.lock.standbys.contains(&member.name);
        let synchronous = self.synchronous || self.lock.synchronous;
        if synchronous && !self.members.iter().any(follows) {
            return Err(format!(
                "no standby is known to have all that {leader} acknowledged"
            ));
        }
        Ok(())
    }
}

impl Replaced {
    fn of(member: &MemberView) -> Self {
        Replaced {
            member: member.name.clone(),
            uid: member.uid.clone(),
            serves: member.is_ready(),
        }
    }
}

const BUDGET: &str = "its PodDisruptionBudget does not let it go now";
/// For how long to try. The client repeats what the budget refuses, and once it allows it, it may be another one's turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// Replaces a member; what keeps it from going, if something does.
///
/// # Errors
/// The apiserver cannot be reached or refuses.
pub async fn replace(
    client: &kube::Client,
    namespace: &str,
    replaced: &Replaced,
    ledger: &dyn Ledger,
) -> Result<Option<&'static str>> {
    let Replaced {
        member,
        uid,
        serves,
    } = replaced;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let this_one = DeleteParams {
        preconditions: Some(Preconditions {
            uid: uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let (verb, answer) = if *serves {
        let eviction = EvictParams {
            delete_options: Some(this_one),
            ..EvictParams::default()
        };
        let Ok(answer) = timeout(PATIENCE, pods.evict(member, &eviction)).await else {
            return Ok(Some(BUDGET));
        };
        ("evict", answer.map(drop))
    } else {
        ("delete", pods.delete(member, &this_one).await.map(drop))
    };
    match answer {
        Ok(()) => {}
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => {
            return Ok(Some("another pod has its name by now"));
        }
        Err(error) => return Err(classify("Pod", namespace, member, &error)),
    }
    ledger.record(Write {
        system: System::Kubernetes,
        verb,
        target: format!("Pod {namespace}/{member}"),
    })?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stores::patroni::PodState;

    const READY: PodState = PodState::Present {
        ready: true,
        created: DateTime::UNIX_EPOCH,
    };
    const UNREADY: PodState = PodState::Present {
        ready: false,
        created: DateTime::UNIX_EPOCH,
    };

    /// Members that run, of these revisions.
    fn members<const N: usize>(revisions: [&str; N]) -> [MemberView; N] {
        let mut number = 0;
        revisions.map(|revision| {
            let name = format!("postgres-{number}");
            number += 1;
            MemberView {
                name,
                pod: READY,
                began: true,
                revision: Some(revision.to_owned()),
                ..MemberView::default()
            }
        })
    }

    fn lock(leader: &str, standby: &str) -> LockView {
        LockView {
            holder: Some(leader.to_owned()),
            standbys: (!standby.is_empty())
                .then(|| standby.to_owned())
                .into_iter()
                .collect(),
            renewed: Some(DateTime::UNIX_EPOCH),
            synchronous: true,
            ..LockView::default()
        }
    }

    /// Who is replaced, in a cluster without volumes.
    fn replaced(members: &[MemberView], lock: &LockView) -> Option<String> {
        let rollout = Rollout {
            revision: "new",
            members,
            lock,
            volumes: false,
            synchronous: members.len() > 1,
            expendable: true,
        };
        match rollout.turn(DateTime::UNIX_EPOCH) {
            Turn::Replace(replaced) => Some(replaced.member),
            Turn::Over | Turn::Wait(_) => None,
        }
    }

    fn is_over(members: &[MemberView]) -> bool {
        let rollout = Rollout {
            revision: "new",
            members,
            lock: &LockView::default(),
            volumes: false,
            synchronous: true,
            expendable: false,
        };
        rollout.turn(DateTime::UNIX_EPOCH) == Turn::Over
    }

    #[test]
    fn standbys_come_first_and_the_leader_last() {
        let well = lock("postgres-1", "postgres-0");
        let next = |revisions| replaced(&members(revisions), &well);
        assert_eq!(next(["old", "old", "old"]).unwrap(), "postgres-2");
        assert_eq!(next(["old", "old", "new"]).unwrap(), "postgres-0");
        assert_eq!(next(["new", "old", "new"]).unwrap(), "postgres-1");
        assert!(is_over(&members(["new", "new", "new"])));
    }

    #[test]
    fn nobody_goes_unless_all_others_are_well_and_one_of_them_knows_everything() {
        let all = members(["old", "old", "old"]);
        assert_eq!(replaced(&all, &lock("postgres-0", "")), None);
        assert_eq!(replaced(&all, &LockView::default()), None, "nobody leads");
        let mut silent = lock("postgres-0", "postgres-1");
        silent.renewed = DateTime::from_timestamp(-11, 0);
        assert_eq!(replaced(&all, &silent), None, "its leader may be dead");

        let well = lock("postgres-0", "postgres-1");
        for (number, state) in [(1, UNREADY), (0, UNREADY), (1, PodState::Absent)] {
            let mut lacking = members(["old", "old", "old"]);
            lacking[number].pod = state;
            assert_eq!(replaced(&lacking, &well), None, "{number} {state:?}");
        }
        let mut leaving = members(["old", "new", "old"]);
        leaving[1].leaving = true;
        assert_eq!(replaced(&leaving, &well), None);
        let mut leaving = members(["old", "old", "old"]);
        (leaving[2].leaving, leaving[2].pod) = (true, UNREADY);
        assert_eq!(replaced(&leaving, &well), None, "it is under way");
    }

    #[test]
    fn one_that_is_broken_goes_at_once_if_nothing_is_lost_with_it() {
        let nobody = LockView::default();
        let mut broken = members(["old", "old", "old"]);
        broken.iter_mut().for_each(|member| member.pod = UNREADY);
        assert_eq!(replaced(&broken, &nobody), None, "they may know something");
        broken[1].began = false;
        assert_eq!(replaced(&broken, &nobody).unwrap(), "postgres-1");
        broken[1].began = true;
        broken[2].empty = true;
        assert_eq!(replaced(&broken, &nobody).unwrap(), "postgres-2");
        broken[2].empty = false;
        let on_volumes = Rollout {
            revision: "new",
            members: &broken,
            lock: &nobody,
            volumes: true,
            synchronous: true,
            expendable: false,
        };
        let turn = on_volumes.turn(DateTime::UNIX_EPOCH);
        let Turn::Replace(Replaced { serves: false, .. }) = turn else {
            panic!("{turn:?}");
        };
        // A standby that is behind, where all others are well.
        let mut behind = members(["old", "old", "old"]);
        behind[2].pod = UNREADY;
        let well = lock("postgres-0", "postgres-1");
        assert_eq!(replaced(&behind, &well).unwrap(), "postgres-2");
    }

    #[test]
    fn nobody_who_serves_goes_against_the_budget() {
        for all in [&members(["old"])[..], &members(["old", "old", "old"])] {
            let rollout = Rollout {
                revision: "new",
                members: all,
                lock: &lock("postgres-0", "postgres-1"),
                volumes: true,
                synchronous: true,
                expendable: false,
            };
            let turn = rollout.turn(DateTime::UNIX_EPOCH);
            assert!(
                matches!(&turn, Turn::Wait(why) if why.contains(BUDGET)),
                "{turn:?}"
            );
        }
    }

    #[test]
    fn one_that_is_alone_waits_for_nobody() {
        let alone = members(["old"]);
        assert_eq!(
            replaced(&alone, &LockView::default()).unwrap(),
            "postgres-0"
        );
    }

    #[test]
    fn replication_that_is_synchronous_still_counts_as_such() {
        let all = members(["old", "new", "new"]);
        let turn = |lock: &LockView| {
            let rollout = Rollout {
                revision: "new",
                members: &all,
                lock,
                volumes: true,
                synchronous: false,
                expendable: true,
            };
            rollout.turn(DateTime::UNIX_EPOCH)
        };
        let mut lock = lock("postgres-0", "");
        assert!(matches!(turn(&lock), Turn::Wait(_)));
        lock.synchronous = false;
        // A leader that is told to go waits until a standby has what it has.
        assert!(matches!(turn(&lock), Turn::Replace(_)));
    }
}
