//! Whose turn it is: of members that have to be replaced, and of those that are too many.

use chrono::{DateTime, Utc};

use super::rollout::{Replaced, Rollout, Turn};
use super::shrink::{self, Next};

/// What members do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Nothing.
    Over,
    /// One has to be replaced, and not yet, for this reason.
    Roll(String),
    /// One has to go for good, and not yet, for this reason.
    Stay(String),
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
            Turn::Wait(why) => return Move::Roll(why),
            Turn::Replace(next) => return Move::Replace(next),
        }
    }
    match departure {
        None => Move::Over,
        Some(Next::Keep(why)) => Move::Stay(why),
        Some(Next::Without(member)) => Move::Leave(member),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stores::patroni::{LockView, MemberView, PodState};

    /// Three members led by the first, the last of which is in this state and of this revision.
    fn next(last: PodState, revision: &str, too_many: bool) -> Move {
        let member = |number: u8, pod, revision: &str| MemberView {
            name: format!("postgres-{number}"),
            pod,
            began: true,
            revision: Some(revision.to_owned()),
            ..MemberView::default()
        };
        let members = [
            member(0, PodState::READY, "new"),
            member(1, PodState::READY, "new"),
            member(2, last, revision),
        ];
        let lock = LockView {
            holder: Some("postgres-0".to_owned()),
            standbys: vec!["postgres-1".to_owned()],
            renewed: Some(DateTime::UNIX_EPOCH),
            synchronous: true,
            ..LockView::default()
        };
        let rollout = Rollout {
            revision: "new",
            members: &members,
            lock: &lock,
            synchronous: true,
            expendable: true,
        };
        next_move("postgres", &rollout, too_many, DateTime::UNIX_EPOCH)
    }

    #[test]
    fn who_serves_is_replaced_before_anybody_goes_and_who_does_not_serve_just_goes() {
        let leave = Move::Leave("postgres-2".to_owned());
        assert_eq!(next(PodState::READY, "new", false), Move::Over);
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
}
