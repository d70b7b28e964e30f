//! What a Cell's status says.
//!
//! The contract (kstatus, Argo CD and `kubectl wait` all read it): `Ready` is always there; working is Ready Unknown
//! with Reconciling True; done is Ready True; needing a person is Ready False with Stalled True; serving but impaired is
//! Ready False with a reason; Reconciling and Stalled are never there together, and each is there only while True.
//!
//! Rollouts and failover decide on `Ready`, so it is steady: a step that could not be looked at is as it was seen last, for
//! [`GRACE`]; after that it is Unknown, and never False.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use titan_crds::{CellStatus, ConditionType, RangeStatus, ServiceStatus};
use titan_routing::{Assignment, AssignmentState};

use crate::Observed;
use crate::condition::{Conditions, is_true};
use crate::fleet::state_to_resource;

/// For how long a step that cannot be looked at counts as what it was seen to be. The restart of an apiserver and the failover
/// of a database take less.
pub const GRACE: Duration = Duration::from_mins(1);

/// How far one step of a reconcile got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// An earlier step has to be done first.
    NotReached,
    /// It is as the spec says.
    Done(String),
    /// It will be, without anybody's help.
    Waiting {
        /// The condition reason.
        reason: String,
        /// What is waited for.
        message: String,
    },
    /// It will not be without a person.
    Failed {
        /// The condition reason.
        reason: String,
        /// What is wrong, where, and what to do.
        message: String,
    },
    /// It could not be looked at, for so long.
    Unknown {
        /// The condition reason.
        reason: String,
        /// What did not answer, and what is tried.
        message: String,
        /// Since it could not be looked at for the first time.
        lasted: Duration,
    },
}

impl Step {
    /// A step that waits.
    #[must_use]
    pub fn waiting(reason: &str, message: impl Into<String>) -> Self {
        Step::Waiting {
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    /// A step that needs a person.
    #[must_use]
    pub fn failed(reason: &str, message: impl Into<String>) -> Self {
        Step::Failed {
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    /// A step that could not be looked at, for so long.
    #[must_use]
    pub fn unknown(reason: &str, message: impl Into<String>, lasted: Duration) -> Self {
        Step::Unknown {
            reason: reason.to_owned(),
            message: message.into(),
            lasted,
        }
    }

    /// Whether the step is done.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self, Step::Done(_))
    }
}

/// How far the steps of a cell's reconcile got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    /// The spec is valid, and its profile and fleet are there.
    pub accepted: Step,
    /// The routing table holds the range.
    pub range: Step,
    /// PostgreSQL and Redis answer and hold what the services need.
    pub databases: Step,
    /// The topics exist.
    pub topics: Step,
    /// The migrations are done.
    pub migrations: Step,
    /// The services have their pods.
    pub services: Step,
    /// The range is active in the table and in the data home.
    pub serving: Step,
}

impl Steps {
    /// Steps of which none has been reached.
    #[must_use]
    pub const fn none() -> Self {
        Steps {
            accepted: Step::NotReached,
            range: Step::NotReached,
            databases: Step::NotReached,
            topics: Step::NotReached,
            migrations: Step::NotReached,
            services: Step::NotReached,
            serving: Step::NotReached,
        }
    }

    fn in_order(&self) -> [(Option<ConditionType>, &Step); 7] {
        let Steps {
            accepted,
            range,
            databases,
            topics,
            migrations,
            services,
            serving,
        } = self;
        [
            (None, accepted),
            (Some(ConditionType::RangeAssigned), range),
            (Some(ConditionType::DatabasesReady), databases),
            (Some(ConditionType::TopicsReady), topics),
            (Some(ConditionType::Migrated), migrations),
            (Some(ConditionType::ServicesAvailable), services),
            (None, serving),
        ]
    }

    /// Whether all is done that comes before migrations and services.
    #[must_use]
    pub fn stores_are_done(&self) -> bool {
        let before = [&self.accepted, &self.range, &self.databases, &self.topics];
        before.iter().all(|step| step.is_done())
    }

    /// The step that decides: the first that failed, else the first that waits, else the first that is not done, else none.
    #[must_use]
    pub fn decisive(&self) -> Option<&Step> {
        let steps = self.in_order().map(|(_, step)| step);
        steps
            .iter()
            .find(|step| matches!(step, Step::Failed { .. }))
            .or_else(|| {
                // What is known to be amiss says more than what could not be looked at.
                steps
                    .iter()
                    .find(|step| matches!(step, Step::Waiting { .. }))
            })
            .or_else(|| steps.iter().find(|step| !step.is_done()))
            .copied()
    }

    /// The steps in the order in which a pass takes them, with their names.
    pub fn named_mut(&mut self) -> [(&'static str, &mut Step); 7] {
        let Steps {
            accepted,
            range,
            databases,
            topics,
            migrations,
            services,
            serving,
        } = self;
        [
            ("accepted", accepted),
            ("range", range),
            ("databases", databases),
            ("topics", topics),
            ("migrations", migrations),
            ("services", services),
            ("serving", serving),
        ]
    }

    /// Says of every step that a pass did not get to that it could not be looked at.
    pub fn end_with(&mut self, unknown: &Step) {
        for (_, step) in self.named_mut() {
            if *step == Step::NotReached {
                step.clone_from(unknown);
            }
        }
    }

    /// The steps, with those as they were seen last, at the same generation, that could not be looked at for a moment. The two
    /// that have no condition of their own are taken for done where the cell was brought up.
    fn with_last_seen(mut self, before: &[Condition], was_serving: bool) -> Steps {
        let last = |name: ConditionType| {
            let mut all = before.iter();
            all.find(|it| it.type_ == name.as_str() && it.status == "True")
                .map(|it| Step::Done(it.message.clone()))
        };
        let brought_up = was_serving.then(|| Step::Done(String::new()));
        for (name, step) in self.named_mut() {
            let Step::Unknown { lasted, .. } = step else {
                continue;
            };
            let seen = match name {
                "range" => last(ConditionType::RangeAssigned),
                "databases" => last(ConditionType::DatabasesReady),
                "topics" => last(ConditionType::TopicsReady),
                "migrations" => last(ConditionType::Migrated),
                "services" => last(ConditionType::ServicesAvailable),
                _ => brought_up.clone(),
            };
            if let Some(seen) = seen.filter(|_| *lasted < GRACE) {
                *step = seen;
            }
        }
        self
    }
}

/// What a status is made from.
#[derive(Clone, Debug)]
pub struct StatusInput<'a> {
    /// The name of the cell.
    pub name: &'a str,
    /// The status so far.
    pub previous: Option<&'a CellStatus>,
    /// The generation of the spec that was reconciled.
    pub generation: i64,
    /// The revision that the objects of the cell were built at, if they were built.
    pub revision: Option<String>,
    /// The time, for transitions.
    pub now: Time,
    /// Whether `spec.paused` is set.
    pub paused: bool,
    /// The steps.
    pub steps: Steps,
    /// The rows that the cell serves or holds. Only a table that is known says that there are none.
    pub ranges: Observed<&'a [Assignment]>,
    /// The id of the database, if it was reached.
    pub database_id: Option<String>,
    /// The services, if they were looked at.
    pub services: Option<Vec<ServiceStatus>>,
}

/// The status of a cell.
#[must_use]
pub fn cell_status(input: StatusInput<'_>) -> CellStatus {
    let StatusInput {
        name,
        previous,
        generation,
        revision,
        now,
        paused,
        steps,
        ranges,
        database_id,
        services,
    } = input;
    let observed_revision =
        revision.or_else(|| previous.and_then(|status| status.observed_revision.clone()));
    let before: &[Condition] = previous.map_or(&[], |status| status.conditions.as_slice());
    let writer = Conditions {
        before,
        generation,
        now,
    };
    let services = services.unwrap_or_else(|| {
        previous
            .map(|status| status.services.clone())
            .unwrap_or_default()
    });
    let same = previous.filter(|status| status.observed_generation == generation);
    // A rollout that a profile, a fleet or a new operator asked for is work, not a failure, as one that the spec asked for is.
    let was_serving = same.is_some_and(|status| {
        status.observed_revision == observed_revision && served(&status.conditions)
    });

    CellStatus {
        observed_generation: generation,
        observed_revision,
        conditions: if paused {
            let active = match ranges {
                Observed::Known(rows) => {
                    rows.iter().any(|row| row.state == AssignmentState::Active)
                }
                _ => previous.is_some_and(|status| status.ranges.iter().any(is_active)),
            };
            paused_conditions(&writer, &steps.services, active, served_by(name, ranges))
        } else {
            let seen = same.map_or(&[][..], |status| &status.conditions);
            let steps = steps.with_last_seen(seen, was_serving);
            conditions(&writer, &steps, was_serving, served_by(name, ranges))
        },
        claim_granted: previous.is_some_and(|status| status.claim_granted)
            || matches!(ranges, Observed::Known(rows) if rows.iter().any(|row| row.home == name)),
        ranges: match ranges {
            Observed::Known(rows) => rows.iter().map(range_status).collect(),
            // What a table that is lost is made from again.
            _ => previous
                .map(|status| status.ranges.clone())
                .unwrap_or_default(),
        },
        database_id: database_id.or_else(|| previous.and_then(|status| status.database_id.clone())),
        release: common_release(&services),
        services_ready: (!services.is_empty()).then(|| {
            let ready = services
                .iter()
                .filter(|service| service.ready >= service.desired)
                .count();
            format!("{ready}/{}", services.len())
        }),
        services,
    }
}

fn range_status(row: &Assignment) -> RangeStatus {
    RangeStatus {
        first: row.range.first().as_i64(),
        last: row.range.last().as_i64(),
        cell: row.cell.clone(),
        home: row.home.clone(),
        state: state_to_resource(row.state),
        epoch: row.epoch.0,
    }
}

fn is_active(range: &RangeStatus) -> bool {
    range.state == titan_crds::AssignmentState::Active
}

/// The status of a cell that is being deleted and waits for `step`.
#[must_use]
pub fn deletion_status(
    previous: Option<&CellStatus>,
    generation: i64,
    now: Time,
    step: &Step,
) -> CellStatus {
    let previous = previous.cloned().unwrap_or_default();
    let writer = Conditions {
        before: &previous.conditions,
        generation,
        now,
    };
    CellStatus {
        observed_generation: generation,
        conditions: open_conditions(&writer, step, false),
        ..previous
    }
}

/// Whether conditions say that the cell was brought up at their generation: it is Ready, or impaired since, or it could not be
/// looked at since.
#[must_use]
pub fn served(conditions: &[Condition]) -> bool {
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == ConditionType::Ready.as_str());
    let paused = is_true(conditions, ConditionType::Paused);
    ready.is_some_and(|ready| ready.status != "Unknown" || !paused)
        && !is_true(conditions, ConditionType::Stalled)
        && !is_true(conditions, ConditionType::Reconciling)
}

fn common_release(services: &[ServiceStatus]) -> Option<String> {
    let first = services.first()?;
    services
        .iter()
        .all(|service| service.release == first.release && service.ready >= service.desired)
        .then(|| first.release.clone())
}

/// A paused cell says what it was when it was paused, how its services are now, and that it is paused.
fn paused_conditions(
    writer: &Conditions<'_>,
    services: &Step,
    active: bool,
    work: Work,
) -> Vec<Condition> {
    let is = |condition: &Condition, name: ConditionType| condition.type_ == name.as_str();
    let before = |name: ConditionType| writer.before.iter().find(|it| is(it, name));
    let seen = *services != Step::NotReached;
    let mut said_anew = vec![
        ConditionType::Ready,
        ConditionType::Reconciling,
        ConditionType::Stalled,
        ConditionType::Paused,
    ];
    said_anew.extend(seen.then_some(ConditionType::ServicesAvailable));
    let mut conditions = vec![paused_ready(
        writer,
        before(ConditionType::Ready),
        services,
        active,
        work,
    )];
    conditions.extend(
        writer
            .before
            .iter()
            .filter(|it| !said_anew.iter().any(|name| is(it, *name)))
            .cloned()
            .map(|condition| at_generation(condition, writer.generation)),
    );
    if seen {
        conditions.push(step_condition(
            writer,
            ConditionType::ServicesAvailable,
            services,
        ));
    }
    conditions.push(writer.condition(
        ConditionType::Paused,
        "True",
        "PausedBySpec",
        "spec.paused is true: until it is false, nothing is changed, and a deletion waits",
    ));
    conditions
}

/// What `Ready` says of a paused cell. Only its services are looked at, so it follows them where they are what decides: in a
/// cell that was brought up, while nothing that comes before them was amiss.
fn paused_ready(
    writer: &Conditions<'_>,
    before: Option<&Condition>,
    services: &Step,
    active: bool,
    work: Work,
) -> Condition {
    let Some(before) = before else {
        let message = "paused before the first reconcile";
        return writer.condition(ConditionType::Ready, "Unknown", "Paused", message);
    };
    let brought_up = before.status != "Unknown" && active;
    let earlier_done = [
        ConditionType::RangeAssigned,
        ConditionType::DatabasesReady,
        ConditionType::TopicsReady,
        ConditionType::Migrated,
    ]
    .iter()
    .all(|name| is_true(writer.before, *name));
    match services {
        Step::Waiting { reason, message } | Step::Failed { reason, message }
            if brought_up && earlier_done =>
        {
            writer.condition(ConditionType::Ready, "False", reason, message)
        }
        Step::Done(_) if brought_up && earlier_done => ready(writer, work),
        _ => at_generation(before.clone(), writer.generation),
    }
}

fn at_generation(condition: Condition, generation: i64) -> Condition {
    Condition {
        observed_generation: Some(generation),
        ..condition
    }
}

/// What a cell that is Ready does.
#[derive(Clone, Copy)]
enum Work {
    /// Requests are routed to it.
    Serves,
    /// Its databases hold rows that other cells serve.
    Holds,
    /// Neither.
    Nothing,
}

fn served_by(cell: &str, ranges: Observed<&[Assignment]>) -> Work {
    match ranges {
        Observed::Known([]) => Work::Nothing,
        Observed::Known(rows) if rows.iter().all(|row| row.cell != cell) => Work::Holds,
        _ => Work::Serves,
    }
}

fn ready(writer: &Conditions<'_>, work: Work) -> Condition {
    match work {
        Work::Serves => writer.condition(
            ConditionType::Ready,
            "True",
            "Serving",
            "every service has its pods and the range is routed to this cell",
        ),
        Work::Holds => writer.condition(
            ConditionType::Ready,
            "True",
            "ServedElsewhere",
            "every service has its pods; what this cell's databases hold is served by another cell, see status.ranges",
        ),
        Work::Nothing => writer.condition(
            ConditionType::Ready,
            "True",
            "EmptyCapacity",
            "every service has its pods; the cell has no users, and a split or a move can give it some",
        ),
    }
}

fn step_condition(writer: &Conditions<'_>, name: ConditionType, step: &Step) -> Condition {
    match step {
        Step::Done(message) => writer.condition(name, "True", "Done", message),
        Step::Waiting { reason, message } | Step::Failed { reason, message } => {
            writer.condition(name, "False", reason, message)
        }
        Step::Unknown {
            reason, message, ..
        } => writer.condition(name, "Unknown", reason, message),
        Step::NotReached => {
            writer.condition(name, "Unknown", "NotReached", "an earlier step comes first")
        }
    }
}

fn conditions(
    writer: &Conditions<'_>,
    steps: &Steps,
    was_serving: bool,
    work: Work,
) -> Vec<Condition> {
    let mut conditions = match steps.decisive() {
        None => vec![ready(writer, work)],
        Some(step) => open_conditions(writer, step, was_serving),
    };
    for (name, step) in steps.in_order() {
        let Some(name) = name else { continue };
        conditions.push(step_condition(writer, name, step));
    }
    conditions
}

/// What `Ready` and its companions say while a step is not done.
fn open_conditions(writer: &Conditions<'_>, step: &Step, was_serving: bool) -> Vec<Condition> {
    let (ready, companion, reason, message) = match step {
        Step::Failed { reason, message } => {
            ("False", Some(ConditionType::Stalled), &**reason, &**message)
        }
        Step::Waiting { reason, message } if was_serving => ("False", None, &**reason, &**message),
        // It may serve as it did: who cannot look does not know.
        Step::Unknown {
            reason, message, ..
        } if was_serving => ("Unknown", None, &**reason, &**message),
        Step::Waiting { reason, message }
        | Step::Unknown {
            reason, message, ..
        } => (
            "Unknown",
            Some(ConditionType::Reconciling),
            &**reason,
            &**message,
        ),
        Step::NotReached | Step::Done(_) => (
            "Unknown",
            Some(ConditionType::Reconciling),
            "NotReconciled",
            "the operator has not got to this cell yet",
        ),
    };
    let mut conditions = vec![writer.condition(ConditionType::Ready, ready, reason, message)];
    conditions.extend(companion.map(|name| writer.condition(name, "True", reason, message)));
    conditions
}
