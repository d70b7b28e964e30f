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
//! none is ready, and the template may be what mends it: where nothing is lost with it, it does not wait for the others.
//!
//! Where replication is not synchronous, a leader that is told to go waits for the standbys that are connected, and what they
//! have not got goes with its data, as in every failover of such a cluster.

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, PostParams, Preconditions};
use serde_json::Value;
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
    /// The version of it that was looked at.
    pub version: Option<String>,
    /// Whether it serves, so that it may only go if its disruption budget allows it.
    pub serves: bool,
}

impl Rollout<'_> {
    /// Decides which member is replaced next. Pure.
    #[must_use]
    pub fn turn(&self, now: DateTime<Utc>) -> Turn {
        // One that is broken before one that serves; those that the leader waits for after others.
        let order = |member: &&MemberView| {
            let is_waited_for = self.lock.standbys.contains(&member.name);
            (self.leads(member), is_waited_for, member.is_ready())
        };
        let Some(next) = self.outdated().min_by_key(order) else {
            return Turn::Over;
        };
        if let Some(leaving) = self.members.iter().find(|member| member.leaving) {
            return Turn::Wait(format!("waiting for {} to be replaced", leaving.name));
        }
        // A data directory that cannot be read counts as empty, too; not those of all.
        let all_empty = self
            .members
            .iter()
            .all(|member| member.empty || !member.began);
        let holds_nothing = |member: &&MemberView| {
            !member.is_ready() && (!member.began || member.empty && all_empty)
        };
        if let Some(blank) = self.outdated().find(holds_nothing) {
            return Turn::Replace(Replaced::of(blank));
        }
        match self.may_go_on_without(next, now) {
            Ok(()) => Turn::Replace(Replaced::of(next)),
            Err(why) => Turn::Wait(format!("{} has to be replaced, but {why}", next.name)),
        }
    }

    fn outdated(&self) -> impl Iterator<Item = &MemberView> {
        self.members
            .iter()
            .filter(|member| !member.leaving && !self.is_new(member) && member.revision.is_some())
    }

    fn is_new(&self, member: &MemberView) -> bool {
        member.revision.as_deref() == Some(self.revision)
    }

    fn leads(&self, member: &MemberView) -> bool {
        self.lock.holder.as_deref() == Some(&member.name)
    }

    fn may_go_on_without(
        &self,
        next: &MemberView,
        now: DateTime<Utc>,
    ) -> std::result::Result<(), String> {
        if self.members.len() > 1 {
            self.others_go_on(next, now)?;
        }
        if next.is_ready() && !self.expendable {
            return Err(BUDGET.to_owned());
        }
        Ok(())
    }

    fn others_go_on(
        &self,
        next: &MemberView,
        now: DateTime<Utc>,
    ) -> std::result::Result<(), String> {
        let unready = |member: &&MemberView| !member.is_ready();
        let not_ready = |member: &MemberView| format!("{} is not ready", member.name);
        // It may be the template that keeps it from starting; or it waits for the data of one that is to be replaced.
        let waits_for_next = next.on_volume && !self.members.iter().any(MemberView::is_ready);
        let is_starting = |member: &MemberView| {
            (self.is_new(member) || member.revision.is_none()) && !(waits_for_next && member.empty)
        };
        let mut starting = self.members.iter().filter(unready);
        if let Some(starting) = starting.find(|member| is_starting(member)) {
            return Err(not_ready(starting));
        }
        let leader = self.lock.living_leader(now);
        let is_well = |name: &str| {
            let mut ready = self.members.iter().filter(|member| member.is_ready());
            ready.any(|member| member.name == name)
        };
        if !next.is_ready() {
            // The old template may be what keeps all of them from starting, and the data is still there afterwards.
            if next.on_volume && !self.outdated().any(MemberView::is_ready) {
                return Ok(());
            }
            // Nobody misses a standby that is broken and that the leader does not wait for.
            let missed = self.leads(next) || self.lock.standbys.contains(&next.name);
            if !missed && leader.as_ref().is_ok_and(|leader| is_well(leader)) {
                return Ok(());
            }
        }
        let mut others = self.members.iter().filter(unready);
        if let Some(lacking) = others.find(|member| member.name != next.name) {
            return Err(not_ready(lacking));
        }
        let leader = leader?;
        let synchronous = self.synchronous || self.lock.synchronous;
        if synchronous && !self.lock.standbys.iter().any(|name| is_well(name)) {
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
            version: member.version.clone(),
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
/// The apiserver cannot be reached.
pub async fn replace(
    client: &kube::Client,
    namespace: &str,
    replaced: &Replaced,
    ledger: &dyn Ledger,
) -> Result<Option<String>> {
    let Replaced {
        member,
        uid,
        version,
        serves,
    } = replaced;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let (verb, answer) = if *serves {
        let eviction = Eviction {
            metadata: ObjectMeta {
                name: Some(member.clone()),
                ..ObjectMeta::default()
            },
            delete_options: Some(DeleteOptions {
                preconditions: Some(meta::v1::Preconditions {
                    uid: uid.clone(),
                    resource_version: None,
                }),
                ..DeleteOptions::default()
            }),
        };
        let parameters = PostParams::default();
        let evicted = pods.create_subresource("eviction", member, &parameters, &eviction);
        let Ok(answer) = timeout(PATIENCE, evicted).await else {
            return Ok(Some(BUDGET.to_owned()));
        };
        ("evict", answer.map(|_: Value| ()))
    } else {
        let this_one = DeleteParams {
            preconditions: Some(Preconditions {
                uid: uid.clone(),
                // It may have become ready since.
                resource_version: version.clone(),
            }),
            ..DeleteParams::default()
        };
        ("delete", pods.delete(member, &this_one).await.map(drop))
    };
    match answer {
        Ok(()) => {}
        // Whatever it is, the rest of the cell does not wait for it.
        Err(kube::Error::Api(answer)) => return Ok(Some(answer.message)),
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

    /// Members that run, of these revisions.
    fn members<const N: usize>(revisions: [&str; N]) -> [MemberView; N] {
        let mut number = 0;
        revisions.map(|revision| {
            let name = format!("postgres-{number}");
            number += 1;
            MemberView {
                name,
                pod: PodState::READY,
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

    fn rollout<'a>(members: &'a [MemberView], lock: &'a LockView) -> Rollout<'a> {
        Rollout {
            revision: "new",
            members,
            lock,
            synchronous: members.len() > 1,
            expendable: true,
        }
    }

    fn turn(members: &[MemberView], lock: &LockView) -> Turn {
        rollout(members, lock).turn(DateTime::UNIX_EPOCH)
    }

    /// Who is replaced.
    fn replaced(members: &[MemberView], lock: &LockView) -> Option<String> {
        match turn(members, lock) {
            Turn::Replace(replaced) => Some(replaced.member),
            Turn::Over | Turn::Wait(_) => None,
        }
    }

    #[test]
    fn standbys_come_first_and_the_leader_last() {
        let well = lock("postgres-1", "postgres-0");
        let next = |revisions| replaced(&members(revisions), &well);
        assert_eq!(next(["old", "old", "old"]).unwrap(), "postgres-2");
        assert_eq!(next(["old", "old", "new"]).unwrap(), "postgres-0");
        assert_eq!(next(["new", "old", "new"]).unwrap(), "postgres-1");
        assert_eq!(turn(&members(["new", "new", "new"]), &well), Turn::Over);
    }

    #[test]
    fn nobody_who_serves_goes_unless_all_others_are_well_and_one_of_them_knows_everything() {
        let all = members(["old", "old", "old"]);
        assert_eq!(replaced(&all, &lock("postgres-0", "")), None);
        assert_eq!(replaced(&all, &LockView::default()), None, "nobody leads");
        let mut silent = lock("postgres-0", "postgres-1");
        silent.renewed = DateTime::from_timestamp(-11, 0);
        assert_eq!(replaced(&all, &silent), None, "its leader may be dead");

        let well = lock("postgres-0", "postgres-2");
        let mut leaderless = members(["old", "old", "old"]);
        leaderless[0].pod = PodState::UNREADY;
        assert_eq!(replaced(&leaderless, &well), None);
        let mut absent = members(["old", "old", "old"]);
        absent[1] = MemberView {
            name: "postgres-1".to_owned(),
            pod: PodState::Absent,
            ..MemberView::default()
        };
        assert_eq!(replaced(&absent, &well), None);
        let mut leaving = members(["old", "new", "old"]);
        leaving[1].leaving = true;
        assert_eq!(replaced(&leaving, &well), None);
        let mut leaving = members(["old", "old", "old"]);
        (leaving[2].leaving, leaving[2].pod) = (true, PodState::UNREADY);
        assert_eq!(replaced(&leaving, &well), None, "it is under way");
    }

    #[test]
    fn one_that_holds_nothing_goes_at_once() {
        let nobody = LockView::default();
        let mut broken = members(["old", "old", "old"]);
        broken
            .iter_mut()
            .for_each(|member| member.pod = PodState::UNREADY);
        assert_eq!(replaced(&broken, &nobody), None, "they may know something");
        broken[1].began = false;
        assert_eq!(replaced(&broken, &nobody).unwrap(), "postgres-1");
        broken[1].began = true;
        broken[2].empty = true;
        assert_eq!(replaced(&broken, &nobody), None, "it may be unreadable");
        broken.iter_mut().for_each(|member| member.empty = true);
        assert_eq!(replaced(&broken, &nobody).unwrap(), "postgres-0");
    }

    #[test]
    fn new_members_without_data_wait_for_one_that_has_it() {
        let nobody = LockView::default();
        let mut first = members(["old", "new", "new"]);
        for member in &mut first {
            (member.pod, member.on_volume, member.empty) = (PodState::UNREADY, true, true);
        }
        first[0].empty = false;
        assert_eq!(replaced(&first, &nobody).unwrap(), "postgres-0");
        first[0].on_volume = false;
        assert_eq!(replaced(&first, &nobody), None, "its data would be gone");
    }

    #[test]
    fn a_template_that_no_member_starts_with_is_replaced_where_data_stays() {
        let nobody = LockView::default();
        let mut broken = members(["old", "old", "old"]);
        for member in &mut broken {
            (member.pod, member.on_volume) = (PodState::UNREADY, true);
        }
        let Turn::Replace(first) = turn(&broken, &nobody) else {
            panic!("{broken:?}");
        };
        assert_eq!((&*first.member, first.serves), ("postgres-0", false));
        broken[0].revision = Some("new".to_owned());
        assert_eq!(replaced(&broken, &nobody), None, "is the new one better?");
        broken[0].pod = PodState::READY;
        assert_eq!(replaced(&broken, &nobody).unwrap(), "postgres-1");
        // One that is mixed: what is on no volume goes with its pod.
        broken[1].on_volume = false;
        broken[2].on_volume = false;
        assert_eq!(replaced(&broken, &nobody), None);
    }

    #[test]
    fn a_template_that_does_not_start_takes_no_more_members_with_it() {
        let well = lock("postgres-0", "postgres-1");
        let mut rolling = members(["old", "old", "new"]);
        for member in &mut rolling {
            member.on_volume = true;
        }
        rolling[2].pod = PodState::UNREADY;
        assert_eq!(replaced(&rolling, &well), None);
        rolling[1].pod = PodState::UNREADY;
        assert_eq!(replaced(&rolling, &well), None, "it comes back by itself");
    }

    #[test]
    fn nobody_misses_standbys_that_are_broken_while_the_leader_is_well() {
        let mut broken = members(["old", "old", "old"]);
        (broken[1].pod, broken[2].pod) = (PodState::UNREADY, PodState::UNREADY);
        let alone = lock("postgres-0", "");
        assert_eq!(replaced(&broken, &alone).unwrap(), "postgres-1");
        let waits = lock("postgres-0", "postgres-1");
        assert_eq!(replaced(&broken, &waits).unwrap(), "postgres-2");
        broken[0].pod = PodState::UNREADY;
        assert_eq!(replaced(&broken, &alone), None);
    }

    #[test]
    fn nobody_who_serves_goes_against_the_budget() {
        let well = lock("postgres-0", "postgres-1");
        let against = |members: &[MemberView]| {
            let rollout = Rollout {
                expendable: false,
                ..rollout(members, &well)
            };
            match rollout.turn(DateTime::UNIX_EPOCH) {
                Turn::Wait(why) => why,
                other => format!("{other:?}"),
            }
        };
        assert!(against(&members(["old"])).contains(BUDGET));
        let mut all = members(["old", "old", "old"]);
        assert!(against(&all).contains(BUDGET));
        // Which the budget does not allow either, but that is not what a person has to know.
        all[2].pod = PodState::UNREADY;
        all[2].revision = Some("new".to_owned());
        let why = against(&all);
        assert!(why.contains("postgres-2 is not ready"), "{why}");
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
        let next = |lock: &LockView| {
            let rollout = Rollout {
                synchronous: false,
                ..rollout(&all, lock)
            };
            rollout.turn(DateTime::UNIX_EPOCH)
        };
        let mut lock = lock("postgres-0", "");
        assert!(matches!(next(&lock), Turn::Wait(_)));
        lock.synchronous = false;
        assert!(matches!(next(&lock), Turn::Replace(_)));
    }
}
