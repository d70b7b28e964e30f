//! Whose turn it is: of members that have to be replaced, and of those that are too many.

use chrono::{DateTime, Utc};

use super::rollout::{Replaced, Rollout, Turn};
use super::shrink::{self, Next};
use super::view::{LockView, MemberView};
use crate::stores::postgres::Witnesses;

/// What members do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Nothing.
    Nothing,
    /// One has to be replaced, and not yet, for this reason.
    WaitToReplace(String),
    /// One has to go for good, and not yet, for this reason.
    WaitToLeave(String),
    /// This one is replaced.
    Replace(Replaced),
    /// This one, the last of them, goes for good.
    Leave(String),
}

/// Decides what the members of cluster `scope` do next, of which there are too many or not. Pure.
///
/// Replacements come before departures: what three members hold outlives one, and what the last one without a volume holds
/// does not.
#[must_use]
pub fn next_move(scope: &str, rollout: &Rollout<'_>, too_many: bool, now: DateTime<Utc>) -> Move {
    let departure = too_many.then(|| shrink::next(scope, rollout.members, rollout.lock, now));
    // One that does not serve, and that may go, is not made anew before that.
    let last_is_broken = rollout.members.last().is_some_and(|last| !last.is_ready());
    if !(last_is_broken && matches!(departure, Some(Next::Without(_)))) {
        match rollout.turn(now) {
            Turn::Over => {}
            Turn::Wait(why) => return Move::WaitToReplace(why),
            Turn::Replace(next) => return Move::Replace(next),
        }
    }
    match departure {
        None => Move::Nothing,
        Some(Next::Keep(why)) => Move::WaitToLeave(why),
        Some(Next::Without(member)) => Move::Leave(member),
    }
}

impl Move {
    /// What is done instead when those who have to live do not say so.
    #[must_use]
    pub fn unconfirmed(self, why: &str) -> Self {
        match self {
            Move::Replace(Replaced { member, .. }) => {
                Move::WaitToReplace(format!("{member} has to be replaced, but {why}"))
            }
            Move::Leave(member) => Move::WaitToLeave(format!("{member} has to go, but {why}")),
            other => other,
        }
    }

    /// Who has to show that they live before it is made: what is known of them may be older than their deaths. Pure.
    ///
    /// Where a standby goes, those that stay are its leader and, of three, another standby: else commits would wait until a new
    /// one has copied everything.
    #[must_use]
    pub fn witnesses(&self, members: &[MemberView], lock: &LockView) -> Witnesses {
        let (Move::Replace(Replaced { member, .. }) | Move::Leave(member)) = self else {
            return Witnesses::Nobody;
        };
        let leads = lock.holder.as_ref() == Some(member);
        let is_missed = members
            .iter()
            .any(|it| it.name == *member && (it.is_ready() || leads && !it.on_volume));
        // A broken one that is replaced may be what keeps the others from living.
        if members.len() < 2 || !is_missed && matches!(self, Move::Replace(_)) {
            return Witnesses::Nobody;
        }
        let may_follow = |it: &&MemberView| {
            let in_time = !leads || !lock.synchronous || lock.standbys.contains(&it.name);
            it.name != *member && lock.holder.as_ref() != Some(&it.name) && it.is_ready() && in_time
        };
        let standbys: Vec<String> = members
            .iter()
            .filter(may_follow)
            .map(|it| it.name.clone())
            .collect();
        if leads || !standbys.is_empty() {
            Witnesses::OneOf(standbys)
        } else {
            Witnesses::Leader
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stores::patroni::PodState;

    fn member(number: usize, pod: PodState, revision: &str) -> MemberView {
        MemberView {
            name: format!("postgres-{number}"),
            pod,
            began: true,
            revision: Some(revision.to_owned()),
            ..MemberView::default()
        }
    }

    /// The first leads and waits for the second.
    fn lock() -> LockView {
        LockView {
            holder: Some("postgres-0".to_owned()),
            standbys: vec!["postgres-1".to_owned()],
            renewed: Some(DateTime::UNIX_EPOCH),
            synchronous: true,
            ..LockView::default()
        }
    }

    /// Three members, the last of which is in this state and of this revision.
    fn next(last: PodState, revision: &str, too_many: bool) -> Move {
        let members = [
            member(0, PodState::READY, "new"),
            member(1, PodState::READY, "new"),
            member(2, last, revision),
        ];
        let rollout = Rollout {
            revision: "new",
            members: &members,
            lock: &lock(),
            synchronous: true,
            expendable: true,
        };
        next_move("postgres", &rollout, too_many, DateTime::UNIX_EPOCH)
    }

    #[test]
    fn who_serves_is_replaced_before_anybody_goes_and_who_does_not_serve_just_goes() {
        let leave = Move::Leave("postgres-2".to_owned());
        assert_eq!(next(PodState::READY, "new", false), Move::Nothing);
        assert_eq!(next(PodState::READY, "new", true), leave);
        for too_many in [false, true] {
            let next = next(PodState::READY, "old", too_many);
            assert!(
                matches!(&next, Move::Replace(it) if it.member == "postgres-2"),
                "{next:?}"
            );
        }
        assert_eq!(next(PodState::UNREADY, "old", true), leave);
        let next = next(PodState::UNREADY, "old", false);
        assert!(matches!(next, Move::Replace(_)), "{next:?}");
    }

    #[test]
    fn those_who_stay_have_to_live() {
        let standby =
            |names: &[&str]| Witnesses::OneOf(names.iter().map(|&name| name.to_owned()).collect());
        let leave = |number| Move::Leave(format!("postgres-{number}"));
        let replace = |number| {
            Move::Replace(Replaced {
                member: format!("postgres-{number}"),
                uid: None,
                version: None,
                serves: true,
            })
        };
        let (ready, unready) = (PodState::READY, PodState::UNREADY);
        let of = |next: &Move, pods: &[PodState]| {
            let pods = pods.iter().enumerate();
            let members: Vec<_> = pods
                .map(|(number, pod)| member(number, *pod, "old"))
                .collect();
            next.witnesses(&members, &lock())
        };
        let three = [ready; 3];
        assert_eq!(
            of(&replace(0), &three),
            standby(&["postgres-1"]),
            "only it may lead"
        );
        assert_eq!(
            of(&replace(1), &three),
            standby(&["postgres-2"]),
            "it will be waited for"
        );
        assert_eq!(of(&replace(2), &three), standby(&["postgres-1"]));
        assert_eq!(of(&leave(2), &three), standby(&["postgres-1"]));
        assert_eq!(of(&leave(1), &[ready, ready]), Witnesses::Leader);
        assert_eq!(of(&leave(1), &[ready, unready]), Witnesses::Leader);
        assert_eq!(
            of(&replace(0), &[ready, unready, ready]),
            standby(&[]),
            "nobody may lead"
        );
        assert_eq!(
            of(&replace(0), &[unready, ready, ready]),
            standby(&["postgres-1"])
        );
        assert_eq!(of(&replace(2), &[ready, ready, unready]), Witnesses::Nobody);
        assert_eq!(of(&replace(0), &[ready]), Witnesses::Nobody, "alone");
        assert_eq!(of(&Move::Nothing, &three), Witnesses::Nobody);
    }
}
