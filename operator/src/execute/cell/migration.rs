//! The schema migrations of a cell: one Job a service, release and database.

use std::collections::BTreeMap;

use serde::Deserialize;
use titan_planner::cell::MIGRATION_SECONDS;
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
    /// The controller of Jobs has begun with it, and there is no pod.
    WithoutPod,
    Failed,
    /// It took longer than a migration may.
    TimedOut,
}

/// What of a Job is looked at.
#[derive(Default, Deserialize)]
struct Job {
    #[serde(default)]
    status: JobStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JobStatus {
    #[serde(default)]
    conditions: Vec<JobCondition>,
    start_time: Option<String>,
    #[serde(default)]
    active: i64,
    #[serde(default)]
    failed: i64,
}

#[derive(Deserialize)]
struct JobCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    #[serde(default)]
    reason: String,
}

fn state(job: &LiveObject) -> Migration {
    let Job { status } = job.read();
    let get = |name: &str| {
        let mut conditions = status.conditions.iter();
        conditions.find(|condition| condition.type_ == name && condition.status == "True")
    };
    if get("Complete").is_some() {
        Migration::Done
    } else if let Some(failed) = get("Failed") {
        match failed.reason.as_str() {
            "DeadlineExceeded" => Migration::TimedOut,
            _ => Migration::Failed,
        }
    } else if status.start_time.is_some() && status.active == 0 && status.failed == 0 {
        Migration::WithoutPod
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
    let late = migrations
        .iter()
        .find(|(_, (_, state))| *state == Migration::TimedOut);
    if let Some((service, (job, _))) = late {
        return Step::failed(
            "MigrationTimedOut",
            format!(
                "the schema migration of {service} did not end within {} minutes, and Job {job} was stopped; the old release keeps running. kubectl describe -n {cell} job/{job} says what its pods waited for. Once that is mended, delete the Job, and it runs again",
                MIGRATION_SECONDS / 60
            ),
        );
    }
    let running: Vec<&str> = migrations
        .iter()
        .filter(|(_, (_, state))| matches!(state, Migration::Running | Migration::WithoutPod))
        .map(|(service, _)| service.as_str())
        .collect();
    if running.is_empty() {
        return Step::Done(format!("{} schemas are at the release", migrations.len()));
    }
    if let Some(diagnosis) = running.iter().find_map(|service| diagnoses.get(*service)) {
        return step_of(diagnosis);
    }
    let without_pod = migrations
        .iter()
        .find(|(_, (_, state))| *state == Migration::WithoutPod);
    if let Some((service, (job, _))) = without_pod {
        return Step::waiting(
            "MigrationWithoutPod",
            format!(
                "the schema migration of {service} has no pod: kubectl describe -n {cell} job/{job} says why, for example a ResourceQuota or an admission webhook"
            ),
        );
    }
    Step::waiting("Migrating", format!("migrating {}", running.join(", ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use titan_planner::object::Json;

    use super::*;

    fn job(status: &serde_json::Value) -> LiveObject {
        let body = json!({
            "metadata": {"name": "cart-migrate-1", "uid": "u", "resourceVersion": "1"}, "status": status,
        });
        LiveObject::new(Kind::Job, Json::from(&body)).unwrap()
    }

    fn said(status: &serde_json::Value) -> String {
        let job = job(status);
        let migrations = Migrations::from([("cart".to_owned(), (job.name.clone(), state(&job)))]);
        match migrations_step("cell-001", &migrations, &Diagnoses::new()) {
            Step::Waiting { reason, .. } => format!("waiting {reason}"),
            Step::Failed { reason, message } => {
                assert!(message.contains("cart-migrate-1"), "{message}");
                format!("failed {reason}")
            }
            step => format!("{step:?}"),
        }
    }

    #[test]
    fn each_state_of_a_job_has_its_reason() {
        let failed = |reason: &str| json!({"conditions": [{"type": "Failed", "status": "True", "reason": reason}]});
        for (status, wanted) in [
            (json!({}), "waiting Migrating"),
            (json!({"startTime": "t", "active": 1}), "waiting Migrating"),
            (json!({"startTime": "t", "failed": 1}), "waiting Migrating"),
            (json!({"startTime": "t"}), "waiting MigrationWithoutPod"),
            (failed("BackoffLimitExceeded"), "failed MigrationFailed"),
            (failed("DeadlineExceeded"), "failed MigrationTimedOut"),
        ] {
            assert_eq!(said(&status), wanted, "{status}");
        }
    }
}
