//! Fewer members, without what they alone know.
//!
//! A StatefulSet takes its last members away first, all of those that are too many at once, and knows nothing of leaders: of
//! three members it would take the leader and the only standby that has all of its commits, and leave one that is behind. So
//! members go one by one here, each only when somebody who stays has everything that was acknowledged, and their
//! replication stays synchronous until the last of them is gone.

use chrono::{DateTime, Utc};

use super::view::{LockView, MemberView};

/// How many members there should be next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// As many as there are, for this reason.
    Keep(String),
    /// One less.
    Without(String),
}

/// Decides whether the last of the members that are asked for may go. `pods` are theirs. Pure; to be asked while there are too
/// many, none of them is leaving, and none that serves has to be replaced: what three of them hold outlives that, and what one
/// without a volume holds does not.
#[must_use]
pub fn next(scope: &str, pods: &[MemberView], lock: &LockView, now: DateTime<Utc>) -> Next {
    let Some((last, others)) = pods.split_last() else {
        return Next::Keep(format!("{scope} has no members"));
    };
    let keep = |why: &str| Next::Keep(format!("{} has to go, but {why}", last.name));
    if let Some(lacking) = others.iter().find(|member| !member.is_ready()) {
        return keep(&format!("{} is not ready", lacking.name));
    }
    let leader = match lock.living_leader(now) {
        Ok(leader) => leader,
        Err(why) => return keep(&why),
    };
    let stays = |name: &str| others.iter().any(|member| member.name == name);
    let follows =
        last.name == leader && last.is_ready() && lock.standbys.iter().any(|name| stays(name));
    if stays(leader) || follows {
        return Next::Without(last.name.clone());
    }
    keep(&format!(
        "{leader} leads, and no member that stays is known to have all of its data; where replication is not synchronous, hand over to {scope}-0 with patronictl switchover"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stores::patroni::PodState;

    fn lock(leader: &str, standbys: &[&str]) -> LockView {
        LockView {
            holder: Some(leader.to_owned()),
            standbys: standbys.iter().map(|name| (*name).to_owned()).collect(),
            renewed: Some(DateTime::UNIX_EPOCH),
            ..LockView::default()
        }
    }

    /// Whether the last member goes, when those of these numbers are not ready.
    fn goes_without(members: i64, unready: &[i64], lock: &LockView) -> bool {
        let pods: Vec<_> = (0..members)
            .map(|number| MemberView {
                name: format!("postgres-{number}"),
                pod: PodState::Present {
                    ready: !unready.contains(&number),
                    created: DateTime::UNIX_EPOCH,
                },
                ..MemberView::default()
            })
            .collect();
        let now = DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(10);
        match next("postgres", &pods, lock, now) {
            Next::Without(member) => {
                assert_eq!(member, format!("postgres-{}", members - 1));
                true
            }
            Next::Keep(_) => false,
        }
    }

    fn goes(members: i64, lock: &LockView) -> bool {
        goes_without(members, &[], lock)
    }

    #[test]
    fn the_last_one_goes_when_somebody_who_stays_knows_everything() {
        assert!(goes(3, &lock("postgres-0", &["postgres-2"])));
        assert!(goes(3, &lock("postgres-1", &["postgres-2"])));
        assert!(goes(3, &lock("postgres-2", &["postgres-1"])));
        assert!(!goes(3, &lock("postgres-2", &[])));
        assert!(!goes(3, &LockView::default()), "nobody leads");
        assert!(goes(2, &lock("postgres-0", &[])));
        assert!(goes(2, &lock("postgres-1", &["postgres-0"])));
        assert!(
            !goes(2, &lock("postgres-1", &["postgres-2"])),
            "the one that knows everything is gone"
        );
    }

    #[test]
    fn nobody_goes_while_others_are_not_well() {
        let well = lock("postgres-0", &["postgres-1"]);
        assert!(!goes_without(3, &[0], &well), "its leader may be dead");
        assert!(!goes_without(3, &[1], &well));
        let silent = LockView {
            renewed: DateTime::from_timestamp(-1, 0),
            ..well
        };
        assert!(!goes(3, &silent), "its leader may be dead, ready or not");
    }

    #[test]
    fn a_last_one_that_is_not_well_holds_up_nothing() {
        assert!(goes_without(3, &[2], &lock("postgres-0", &["postgres-1"])));
        let leads = lock("postgres-2", &["postgres-1"]);
        assert!(!goes_without(3, &[2], &leads), "its successor comes first");
    }
}
