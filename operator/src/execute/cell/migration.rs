//! The schema migrations of a cell: one Job a service, release and database.

use std::collections::BTreeMap;

use serde::Deserialize;
use titan_planner::object::{DATABASE_ID, Kind, Object, Stage};
use titan_planner::status::Step;

use crate::error::ReconcileError;
use crate::execute::apply::{LiveObject, Scope, apply_stage, remove};
use crate::execute::cell::services::{Diagnoses, step_of};

/// The Jobs of the plan and how far they are, by service.
pub(super) type Migrations = BTreeMap<String, (String, Migration)>;

/// The state of a migration Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Migration {
    Done,
    Running,
    Failed,
}

/// What of a Job is looked at.
#[derive(Default, Deserialize)]
struct Job {
    #[serde(default)]
    status: JobStatus,
}

#[derive(Default, Deserialize)]
struct JobStatus {
    #[serde(default)]
    conditions: Vec<JobCondition>,
}

#[derive(Deserialize)]
struct JobCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
}

fn state(job: &LiveObject) -> Migration {
    let Job { status } = job.read();
    let has = |name: &str| {
        let mut conditions = status.conditions.iter();
        conditions.any(|condition| condition.type_ == name && condition.status == "True")
    };
    if has("Complete") {
        Migration::Done
    } else if has("Failed") {
        Migration::Failed
    } else {
        Migration::Running
    }
}

/// Applies the migrations, for the database of this id. A Job that ran for another one, which is lost, is deleted and made
/// again in a later pass: what it did is lost, too.
pub(super) async fn migrate(
    scope: Scope<'_>,
    objects: &[Object],
    database: &str,
) -> Result<Migrations, ReconcileError> {
    let mut migrations = Migrations::new();
    let mut wanted = Vec::new();
    for object in objects {
        let Stage::Migration(service) = &object.stage else {
            continue;
        };
        let live = scope.live.get(Kind::Job, &object.name);
        let lost = live.filter(|job| {
            job.annotation(DATABASE_ID)
                .is_some_and(|known| known != database)
        });
        let state = match (live, lost) {
            (_, Some(job)) => {
                if !job.is_deleting() {
                    tracing::warn!(
                        cell = scope.cell,
                        service,
                        "the database is a new one: its migration runs again"
                    );
                    remove(scope, job).await?;
                }
                Migration::Running
            }
            (job, None) => {
                wanted.push(object.annotated(DATABASE_ID, database));
                job.map_or(Migration::Running, state)
            }
        };
        migrations.insert(service.clone(), (object.name.clone(), state));
    }
    apply_stage(scope, &wanted).await?;
    Ok(migrations)
}

/// What the migrations come to.
pub(super) fn migrations_step(cell: &str, migrations: &Migrations, diagnoses: &Diagnoses) -> Step {
    let failed = migrations
        .iter()
        .find(|(_, (_, state))| *state == Migration::Failed);
    if let Some((service, (job, _))) = failed {
        return Step::failed(
            "MigrationFailed",
            format!(
                "the schema migration of {service} failed: kubectl logs -n {cell} job/{job}; the old release keeps running. Fix the migration and roll it out as a new release"
            ),
        );
    }
    let running: Vec<&str> = migrations
        .iter()
        .filter(|(_, (_, state))| *state == Migration::Running)
        .map(|(service, _)| service.as_str())
        .collect();
    if running.is_empty() {
        return Step::Done(format!("{} schemas are at the release", migrations.len()));
    }
    if let Some(diagnosis) = running.iter().find_map(|service| diagnoses.get(*service)) {
        return step_of(diagnosis);
    }
    Step::waiting("Migrating", format!("migrating {}", running.join(", ")))
}
