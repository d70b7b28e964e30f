//! The status contract, for any steps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by them.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use titan_crds::{CellStatus, RangeStatus, ServiceStatus};
use titan_planner::Observed;
use titan_planner::status::{GRACE, StatusInput, Step, Steps, cell_status};
use titan_routing::{Assignment, AssignmentState, Epoch, Key, KeyRange};

fn time(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

fn done() -> Step {
    Step::Done("done".to_owned())
}

fn all_done() -> Steps {
    Steps {
        accepted: done(),
        range: done(),
        databases: done(),
        topics: done(),
        migrations: done(),
        services: done(),
        serving: done(),
    }
}

/// One write of a status.
#[derive(Clone, Debug)]
struct Look {
    generation: i64,
    revision: Option<&'static str>,
    paused: bool,
    steps: Steps,
}

fn look(generation: i64, steps: Steps) -> Look {
    Look {
        generation,
        revision: None,
        paused: false,
        steps,
    }
}

fn write(previous: Option<&CellStatus>, look: &Look, second: i64) -> CellStatus {
    cell_status(StatusInput {
        name: "cell-001",
        previous,
        generation: look.generation,
        revision: look.revision.map(str::to_owned),
        now: time(second),
        paused: look.paused,
        steps: look.steps.clone(),
        ranges: Observed::Known(&[Assignment {
            range: KeyRange::new(Key::new(10).unwrap(), Key::new(19).unwrap()).unwrap(),
            cell: "cell-001".to_owned(),
            home: "cell-001".to_owned(),
            // What a paused cell says of itself follows its pods only while a row is active.
            state: AssignmentState::Pending,
            epoch: Epoch(7),
        }]),
        database_id: None,
        services: None,
    })
}

fn get<'a>(status: &'a CellStatus, name: &str) -> Option<&'a Condition> {
    let mut found = status.conditions.iter().filter(|one| one.type_ == name);
    let condition = found.next();
    assert!(found.next().is_none(), "{name} twice");
    condition
}

fn text(status: &CellStatus, name: &str) -> String {
    get(status, name).map_or_else(
        || "absent".to_owned(),
        |condition| format!("{}/{}", condition.status, condition.reason),
    )
}

#[test]
fn each_state_of_the_contract_has_its_conditions() {
    let waits = Steps {
        databases: Step::waiting("DatabasesStarting", "waiting for postgres"),
        ..Steps::none()
    };
    let fails = Steps {
        services: Step::failed("ImagePullFailed", "no such image"),
        ..all_done()
    };
    for (steps, ready, reconciling, stalled) in [
        (
            Steps::none(),
            "Unknown/NotReconciled",
            "True/NotReconciled",
            "absent",
        ),
        (
            waits,
            "Unknown/DatabasesStarting",
            "True/DatabasesStarting",
            "absent",
        ),
        (
            fails,
            "False/ImagePullFailed",
            "absent",
            "True/ImagePullFailed",
        ),
        (all_done(), "True/Serving", "absent", "absent"),
    ] {
        // The first step to wait decides, whatever was not reached after it.
        let mut steps = steps;
        if !steps.databases.is_done() && steps.databases != Step::NotReached {
            steps.accepted = done();
            steps.range = done();
        }
        let status = write(None, &look(1, steps), 1);
        assert_eq!(text(&status, "Ready"), ready);
        assert_eq!(text(&status, "Reconciling"), reconciling);
        assert_eq!(text(&status, "Stalled"), stalled);
        assert_eq!(text(&status, "Paused"), "absent");
    }
}

#[test]
fn a_failure_decides_even_after_a_step_that_waits() {
    let steps = Steps {
        databases: Step::waiting("PostgresUnreachable", "no answer"),
        topics: Step::failed("KafkaRefused", "not allowed"),
        ..all_done()
    };
    let status = write(None, &look(1, steps), 1);
    assert_eq!(text(&status, "Ready"), "False/KafkaRefused");
    assert_eq!(text(&status, "DatabasesReady"), "False/PostgresUnreachable");
    assert_eq!(text(&status, "TopicsReady"), "False/KafkaRefused");
}

#[test]
fn a_cell_that_served_is_impaired_and_a_new_spec_is_worked_on() {
    let waits = Steps {
        services: Step::waiting("ServicesStarting", "order 0/1"),
        ..all_done()
    };
    let served = write(None, &look(1, all_done()), 1);
    let impaired = write(Some(&served), &look(1, waits.clone()), 2);
    assert_eq!(text(&impaired, "Ready"), "False/ServicesStarting");
    assert_eq!(text(&impaired, "Reconciling"), "absent");
    assert_eq!(text(&impaired, "Stalled"), "absent");
    let still = write(Some(&impaired), &look(1, waits.clone()), 3);
    assert_eq!(
        still,
        CellStatus { ..impaired.clone() },
        "nothing new is nothing to write"
    );

    let changed = write(Some(&impaired), &look(2, waits.clone()), 4);
    assert_eq!(text(&changed, "Ready"), "Unknown/ServicesStarting");
    assert_eq!(text(&changed, "Reconciling"), "True/ServicesStarting");

    let failed = Steps {
        databases: Step::failed("PostgresRefused", "no"),
        ..all_done()
    };
    let stalled = write(Some(&impaired), &look(1, failed), 5);
    assert_eq!(text(&stalled, "Stalled"), "True/PostgresRefused");
    let recovering = write(Some(&stalled), &look(1, waits), 6);
    assert_eq!(text(&recovering, "Stalled"), "absent");
}

#[test]
fn what_cannot_be_looked_at_is_as_it_was_and_then_unknown() {
    let unknown = |lasted| Step::unknown("PostgresUnreachable", "no answer", lasted);
    let moment = GRACE - Duration::from_secs(1);
    let steps = |databases: Step| Steps {
        databases,
        ..all_done()
    };
    let served = write(None, &look(1, all_done()), 1);
    let impaired = Steps {
        services: Step::waiting("ServicesStarting", "order 0/1"),
        ..all_done()
    };
    let impaired = write(Some(&served), &look(1, impaired), 2);
    let away = write(Some(&served), &look(1, steps(unknown(GRACE))), 2);
    let failed = Steps {
        topics: Step::failed("KafkaRefused", "no"),
        ..steps(unknown(moment))
    };
    for (before, seen, ready, databases, reconciling) in [
        // For a moment nothing is lost, and there is nothing to write.
        (
            Some(&served),
            steps(unknown(moment)),
            "True/Serving",
            "True/Done",
            "absent",
        ),
        // After that it is not known: who cannot look does not say False.
        (
            Some(&served),
            steps(unknown(GRACE)),
            "Unknown/PostgresUnreachable",
            "Unknown/PostgresUnreachable",
            "absent",
        ),
        // What is known to be amiss decides.
        (
            Some(&served),
            Steps {
                services: Step::waiting("ServicesStarting", "order 0/1"),
                ..steps(unknown(GRACE))
            },
            "False/ServicesStarting",
            "Unknown/PostgresUnreachable",
            "absent",
        ),
        (
            Some(&served),
            failed,
            "False/KafkaRefused",
            "True/Done",
            "absent",
        ),
        // What it was last need not be all well; what was not seen well before is not taken to be.
        (
            Some(&impaired),
            steps(unknown(moment)),
            "True/Serving",
            "True/Done",
            "absent",
        ),
        (
            Some(&away),
            steps(unknown(moment)),
            "Unknown/PostgresUnreachable",
            "Unknown/PostgresUnreachable",
            "absent",
        ),
        // It is still one that was brought up.
        (
            Some(&away),
            Steps {
                services: Step::waiting("ServicesStarting", "order 0/1"),
                ..all_done()
            },
            "False/ServicesStarting",
            "True/Done",
            "absent",
        ),
        // A cell that never served is worked on.
        (
            None,
            steps(unknown(moment)),
            "Unknown/PostgresUnreachable",
            "Unknown/PostgresUnreachable",
            "True/PostgresUnreachable",
        ),
    ] {
        let status = write(before, &look(1, seen.clone()), 3);
        assert_eq!(text(&status, "Ready"), ready, "{seen:?}");
        assert_eq!(text(&status, "DatabasesReady"), databases, "{seen:?}");
        assert_eq!(text(&status, "Reconciling"), reconciling, "{seen:?}");
    }
    let same = write(Some(&served), &look(1, steps(unknown(moment))), 9);
    assert_eq!(same, served, "one request that failed is nothing to write");
    // Of a new spec nothing was seen.
    let changed = write(Some(&served), &look(2, steps(unknown(moment))), 3);
    assert_eq!(text(&changed, "Ready"), "Unknown/PostgresUnreachable");
    assert_eq!(text(&changed, "Reconciling"), "True/PostgresUnreachable");
}

#[test]
fn a_pass_that_ended_early_leaves_every_later_step_unknown() {
    let mut steps = Steps {
        accepted: done(),
        range: done(),
        ..Steps::none()
    };
    let unknown = Step::unknown("ApiServerError", "409", Duration::ZERO);
    steps.end_with(&unknown);
    assert!(steps.accepted.is_done() && steps.range.is_done());
    assert_eq!((&steps.databases, &steps.serving), (&unknown, &unknown));
    let served = write(None, &look(1, all_done()), 1);
    assert_eq!(write(Some(&served), &look(1, steps), 2), served);
}

#[test]
fn another_revision_is_worked_on_until_it_is_ready() {
    let waits = Steps {
        services: Step::waiting("ReleaseRolling", "waiting for the new pods of order"),
        ..all_done()
    };
    let at = |revision, steps: &Steps| Look {
        revision,
        ..look(1, steps.clone())
    };
    let served = write(None, &at(Some("a"), &all_done()), 1);
    assert_eq!(served.observed_revision.as_deref(), Some("a"));
    let mut status = served.clone();
    for second in 2..5 {
        status = write(Some(&status), &at(Some("b"), &waits), second);
        assert_eq!(text(&status, "Ready"), "Unknown/ReleaseRolling");
        assert_eq!(text(&status, "Reconciling"), "True/ReleaseRolling");
        assert_eq!(text(&status, "Stalled"), "absent");
    }
    // A pass that did not come as far as the objects says nothing of a revision.
    status = write(Some(&status), &at(None, &waits), 5);
    assert_eq!(status.observed_revision.as_deref(), Some("b"));
    let ready = write(Some(&status), &at(Some("b"), &all_done()), 6);
    assert_eq!(text(&ready, "Ready"), "True/Serving");
    let impaired = write(Some(&ready), &at(Some("b"), &waits), 7);
    assert_eq!(text(&impaired, "Ready"), "False/ReleaseRolling");
    let impaired = write(Some(&ready), &at(None, &waits), 7);
    assert_eq!(text(&impaired, "Ready"), "False/ReleaseRolling");
}

#[test]
fn a_paused_cell_keeps_what_it_was() {
    let paused = Look {
        paused: true,
        ..look(2, Steps::none())
    };
    let served = write(None, &look(1, all_done()), 1);
    let status = write(Some(&served), &paused, 2);
    assert_eq!(text(&status, "Paused"), "True/PausedBySpec");
    assert_eq!(text(&status, "Ready"), "True/Serving");
    assert_eq!(text(&status, "DatabasesReady"), "True/Done");
    assert_eq!(write(Some(&status), &paused, 3), status);

    let resumed = write(Some(&status), &look(3, all_done()), 4);
    assert_eq!(text(&resumed, "Paused"), "absent");
    assert_eq!(
        get(&resumed, "Ready").unwrap().last_transition_time,
        time(1),
        "it was Ready all along"
    );

    let from_the_start = write(None, &paused, 1);
    assert_eq!(text(&from_the_start, "Ready"), "Unknown/Paused");
}

#[test]
fn a_paused_cell_says_how_its_services_are() {
    let range = KeyRange::new(Key::new(10).unwrap(), Key::new(19).unwrap()).unwrap();
    let row = Assignment {
        range,
        cell: "cell-001".to_owned(),
        home: "cell-001".to_owned(),
        state: AssignmentState::Active,
        epoch: Epoch(7),
    };
    let paused = |previous: &CellStatus, services: Step, row: Option<&Assignment>| {
        cell_status(StatusInput {
            name: "cell-001",
            previous: Some(previous),
            generation: 2,
            revision: None,
            now: time(9),
            paused: true,
            steps: Steps {
                services,
                ..Steps::none()
            },
            ranges: row.map_or(Observed::Known(&[][..]), |row| {
                Observed::Known(std::slice::from_ref(row))
            }),
            database_id: None,
            services: None,
        })
    };
    let done = || Step::Done("2 services have their pods".to_owned());
    let crashes = || Step::failed("ServiceCrashing", "order crashes");

    let served = write(None, &look(1, all_done()), 1);
    let down = paused(&served, crashes(), Some(&row));
    assert_eq!(text(&down, "Ready"), "False/ServiceCrashing");
    assert_eq!(text(&down, "ServicesAvailable"), "False/ServiceCrashing");
    assert_eq!(text(&down, "Stalled"), "absent");
    assert_eq!(text(&down, "Paused"), "True/PausedBySpec");
    assert_eq!(paused(&down, crashes(), Some(&row)), down);
    let up = paused(&down, done(), Some(&row));
    assert_eq!(text(&up, "Ready"), "True/Serving");
    assert_eq!(text(&up, "ServicesAvailable"), "True/Done");

    // What was amiss before the services stays: it is not looked at.
    let homeless = Steps {
        databases: Step::failed("PostgresLoginRefused", "wrong password"),
        ..all_done()
    };
    let homeless = write(None, &look(1, homeless), 1);
    for services in [done(), crashes()] {
        let status = paused(&homeless, services, Some(&row));
        assert_eq!(text(&status, "Ready"), "False/PostgresLoginRefused");
    }
    // Pods alone do not make a cell that was never brought up, or that has no range, Ready.
    let starting = Steps {
        services: Step::waiting("ServicesStarting", "waiting for order 0/1"),
        ..all_done()
    };
    let starting = write(None, &look(1, starting), 1);
    let status = paused(&starting, done(), Some(&row));
    assert_eq!(text(&status, "Ready"), "Unknown/ServicesStarting");
    assert_eq!(text(&status, "ServicesAvailable"), "True/Done");
    let status = paused(&down, done(), None);
    assert_eq!(text(&status, "Ready"), "False/ServiceCrashing");
}

#[test]
fn the_range_and_the_services_are_summed_up() {
    let range = KeyRange::new(Key::new(10).unwrap(), Key::new(19).unwrap()).unwrap();
    let row = Assignment {
        range,
        cell: "cell-001".to_owned(),
        home: "cell-002".to_owned(),
        state: AssignmentState::Active,
        epoch: Epoch(7),
    };
    let service = |name: &str, release: &str, desired: i32, ready: i32| ServiceStatus {
        name: name.to_owned(),
        release: release.to_owned(),
        desired,
        ready,
        message: None,
    };
    let status = |previous: Option<&CellStatus>, services: Option<Vec<ServiceStatus>>| {
        cell_status(StatusInput {
            name: "cell-001",
            previous,
            generation: 1,
            revision: None,
            now: time(1),
            paused: false,
            steps: all_done(),
            ranges: Observed::Known(std::slice::from_ref(&row)),
            database_id: None,
            services,
        })
    };
    for (services, ready, release) in [
        (vec![], None, None),
        (
            vec![service("a", "1", 2, 2), service("b", "1", 0, 0)],
            Some("2/2"),
            Some("1"),
        ),
        (
            vec![service("a", "1", 2, 2), service("b", "2", 1, 1)],
            Some("2/2"),
            None,
        ),
        (
            vec![service("a", "1", 2, 1), service("b", "1", 1, 1)],
            Some("1/2"),
            None,
        ),
    ] {
        let status = status(None, Some(services));
        assert_eq!(status.services_ready.as_deref(), ready);
        assert_eq!(status.release.as_deref(), release);
        let range = RangeStatus {
            first: 10,
            last: 19,
            cell: "cell-001".to_owned(),
            home: "cell-002".to_owned(),
            state: titan_crds::AssignmentState::Active,
            epoch: 7,
        };
        assert_eq!(status.ranges, [range]);
        assert!(!status.claim_granted, "its own databases hold nothing");
    }
    let seen = status(None, Some(vec![service("a", "1", 1, 1)]));
    let unseen = status(Some(&seen), None);
    assert_eq!(unseen.services, seen.services, "not looked at is not gone");
}

#[test]
fn a_cell_that_is_ready_says_for_whom() {
    let row = |cell: &str| Assignment {
        range: KeyRange::new(Key::new(10).unwrap(), Key::new(19).unwrap()).unwrap(),
        cell: cell.to_owned(),
        home: "cell-001".to_owned(),
        state: AssignmentState::Active,
        epoch: Epoch(7),
    };
    let status = |ranges: Observed<&[Assignment]>, previous: Option<&CellStatus>| {
        cell_status(StatusInput {
            name: "cell-001",
            previous,
            generation: 1,
            revision: None,
            now: time(1),
            paused: false,
            steps: all_done(),
            ranges,
            database_id: None,
            services: None,
        })
    };
    let own = [row("cell-001")];
    let serves = status(Observed::Known(&own), None);
    assert_eq!(text(&serves, "Ready"), "True/Serving");
    assert!(serves.claim_granted);

    // Only a table that was read says that there are no rows any more.
    for unread in [Observed::Unknown, Observed::Absent] {
        let unread = status(unread, Some(&serves));
        assert_eq!(unread.ranges, serves.ranges);
    }
    let elsewhere = status(Observed::Known(&[row("cell-002")]), Some(&serves));
    assert_eq!(text(&elsewhere, "Ready"), "True/ServedElsewhere");
    let moved_away = status(Observed::Known(&[]), Some(&serves));
    assert_eq!(text(&moved_away, "Ready"), "True/EmptyCapacity");
    assert_eq!(moved_away.ranges, []);
    assert!(moved_away.claim_granted, "it does not claim its range back");
    assert!(!status(Observed::Known(&[]), None).claim_granted);
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::NotReached),
        Just(done()),
        "[AB]".prop_map(|reason| Step::waiting(&reason, "waiting")),
        "[CD]".prop_map(|reason| Step::failed(&reason, "failed")),
        ("[EF]", prop::bool::ANY).prop_map(|(reason, long)| {
            Step::unknown(
                &reason,
                "no answer",
                if long { GRACE } else { Duration::ZERO },
            )
        }),
    ]
}

fn steps() -> impl Strategy<Value = Steps> {
    let any = (step(), step(), step(), step(), step(), step(), step()).prop_map(
        |(accepted, range, databases, topics, migrations, services, serving)| Steps {
            accepted,
            range,
            databases,
            topics,
            migrations,
            services,
            serving,
        },
    );
    prop_oneof![1 => Just(all_done()), 3 => any]
}

fn history() -> impl Strategy<Value = Vec<Look>> {
    let look = (steps(), prop::bool::weighted(0.2), 0..2_i64);
    prop::collection::vec(look, 1..10).prop_map(|looks| {
        let mut generation = 1;
        let mut was_paused = false;
        looks
            .into_iter()
            .map(|(steps, paused, step)| {
                // To pause is to change the spec.
                generation += if paused == was_paused { step } else { 1 };
                was_paused = paused;
                Look {
                    generation,
                    revision: None,
                    paused,
                    steps,
                }
            })
            .collect()
    })
}

/// Whether the cell was brought up at this generation, as the status before says.
fn was_serving(before: &CellStatus, generation: i64) -> bool {
    let is = |name: &str| get(before, name).is_some_and(|condition| condition.status == "True");
    let unread = get(before, "Ready").is_some_and(|ready| ready.status == "Unknown");
    let working = is("Stalled") || is("Reconciling") || unread && is("Paused");
    before.observed_generation == generation && !working
}

/// What a cell is taken to be while it cannot be looked at for a moment.
fn as_last_seen(before: Option<&CellStatus>, look: &Look) -> Steps {
    let mut steps = look.steps.clone();
    let Some(before) = before.filter(|it| it.observed_generation == look.generation) else {
        return steps;
    };
    let served = was_serving(before, look.generation);
    for (name, step) in steps.named_mut() {
        let condition = match name {
            "range" => Some("RangeAssigned"),
            "databases" => Some("DatabasesReady"),
            "topics" => Some("TopicsReady"),
            "migrations" => Some("Migrated"),
            "services" => Some("ServicesAvailable"),
            _ => None,
        };
        let seen = condition.map_or(served, |name| {
            get(before, name).is_some_and(|condition| condition.status == "True")
        });
        if seen && matches!(step, Step::Unknown { lasted, .. } if lasted.is_zero()) {
            *step = done();
        }
    }
    steps
}

fn check(
    before: Option<&CellStatus>,
    status: &CellStatus,
    look: &Look,
) -> Result<(), TestCaseError> {
    let of = |name: &str| get(status, name).map(|condition| condition.status.as_str());
    prop_assert_eq!(status.observed_generation, look.generation);
    for condition in &status.conditions {
        prop_assert_eq!(condition.observed_generation, Some(look.generation));
        prop_assert!(!condition.reason.is_empty() && !condition.message.is_empty());
    }
    let (ready, reconciling, stalled) = (of("Ready"), of("Reconciling"), of("Stalled"));
    prop_assert!(ready.is_some(), "Ready is always there");
    prop_assert!(!(reconciling.is_some() && stalled.is_some()));
    for present in [reconciling, stalled, of("Paused")] {
        prop_assert!(present.is_none_or(|status| status == "True"));
    }
    prop_assert_eq!(of("Paused").is_some(), look.paused);
    if look.paused {
        prop_assert!(reconciling.is_none() && stalled.is_none());
        return Ok(());
    }
    let served = before.is_some_and(|before| was_serving(before, look.generation));
    match ready.unwrap() {
        "True" => prop_assert!(reconciling.is_none() && stalled.is_none()),
        // Who served and cannot be looked at is not worked on.
        "Unknown" => prop_assert!(reconciling.is_some() || served),
        _ => prop_assert!(reconciling.is_none()),
    }
    let Steps {
        accepted,
        range,
        databases,
        topics,
        migrations,
        services,
        serving,
    } = &as_last_seen(before, look);
    let all = [
        accepted, range, databases, topics, migrations, services, serving,
    ];
    prop_assert_eq!(ready == Some("True"), all.iter().all(|step| step.is_done()));
    let failed = all.iter().find(|step| matches!(step, Step::Failed { .. }));
    prop_assert_eq!(stalled.is_some(), failed.is_some());
    if let Some(Step::Failed { reason, message }) = failed {
        let ready = get(status, "Ready").unwrap();
        prop_assert_eq!((&ready.reason, &ready.message), (reason, message));
    }
    for (name, step) in [
        ("RangeAssigned", range),
        ("DatabasesReady", databases),
        ("TopicsReady", topics),
        ("Migrated", migrations),
        ("ServicesAvailable", services),
    ] {
        let expected = match step {
            Step::Done(_) => "True",
            Step::NotReached | Step::Unknown { .. } => "Unknown",
            Step::Waiting { .. } | Step::Failed { .. } => "False",
        };
        prop_assert_eq!(of(name), Some(expected));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_the_contract(history in history()) {
        let mut before: Option<CellStatus> = None;
        for (look, second) in history.iter().zip(1..) {
            let status = write(before.as_ref(), look, second);
            check(before.as_ref(), &status, look)?;
            for condition in &status.conditions {
                let old = before.as_ref().and_then(|before| get(before, &condition.type_));
                let same = old.filter(|old| old.status == condition.status);
                let since = same.map_or_else(|| time(second), |old| old.last_transition_time.clone());
                prop_assert_eq!(&condition.last_transition_time, &since, "{}", condition.type_);
            }
            // Only its services are looked at; while they are not, it is what it was.
            let unseen = look.steps.services == Step::NotReached;
            if look.paused && unseen && let Some(before) = &before {
                prop_assert_eq!(text(&status, "Ready"), text(before, "Ready"));
            }
            // A second look that finds the same has nothing to write, unless it is now known that the cell had been serving.
            let again = write(Some(&status), look, second + 100);
            prop_assert_eq!(&again, &status);
            before = Some(status);
        }
    }
}
