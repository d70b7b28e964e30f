//! Argo CD's health checks, run in Lua 5.1 as Argo CD does, against statuses that the operator writes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod common;

use common::{object, render};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use mlua::{Lua, LuaOptions, LuaSerdeExt, StdLib};
use serde_json::{Value, json};
use titan_crds::CellStatus;
use titan_planner::Observed;
use titan_planner::status::{StatusInput, Step, Steps, cell_status};

const KINDS: [&str; 2] = ["Cell", "CellFleet"];

/// Lua with what Argo CD opens for a health check: base, package, table, and of `os` what tells the time. There is neither
/// `string` nor `math`.
fn as_argo_cd_runs_it() -> Lua {
    let lua = Lua::new_with(
        StdLib::PACKAGE | StdLib::TABLE | StdLib::OS,
        LuaOptions::default(),
    )
    .unwrap();
    let os: mlua::Table = lua.globals().get("os").unwrap();
    for pair in os.pairs::<String, mlua::Value>() {
        let (name, _) = pair.unwrap();
        if !["time", "date", "clock", "difftime"].contains(&name.as_str()) {
            os.set(name, mlua::Nil).unwrap();
        }
    }
    lua
}

/// What Argo CD would show: the health and its message.
fn health(kind: &str, resource: &Value) -> (String, String) {
    let objects = render(&[r#"argocd={"healthChecks":true}"#]);
    let key = format!("resource.customizations.health.titan.dev_{kind}");
    let script = object(&objects, "ConfigMap", "titan-argocd-health")["data"][&key]
        .as_str()
        .unwrap()
        .to_owned();
    let lua = as_argo_cd_runs_it();
    lua.globals()
        .set("obj", lua.to_value(resource).unwrap())
        .unwrap();
    let answer: mlua::Table = lua.load(script).eval().unwrap();
    (
        answer.get("status").unwrap(),
        answer.get("message").unwrap(),
    )
}

fn resource(generation: i64, status: &Value) -> Value {
    json!({"metadata": {"name": "cell-001", "generation": generation}, "status": status})
}

/// Steps of which all are done.
fn done() -> Steps {
    let done = || Step::Done("done".to_owned());
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

fn written(
    previous: Option<&CellStatus>,
    generation: i64,
    paused: bool,
    steps: Steps,
) -> CellStatus {
    written_at("first", previous, generation, paused, steps)
}

fn written_at(
    revision: &str,
    previous: Option<&CellStatus>,
    generation: i64,
    paused: bool,
    steps: Steps,
) -> CellStatus {
    cell_status(StatusInput {
        name: "cell-001",
        previous,
        generation,
        revision: Some(revision.to_owned()),
        now: Time(Timestamp::UNIX_EPOCH),
        paused,
        steps,
        ranges: Observed::Absent,
        database_id: None,
        services: None,
    })
}

fn cell(generation: i64, status: &CellStatus) -> Value {
    resource(generation, &serde_json::to_value(status).unwrap())
}

#[test]
fn each_state_of_a_cell_is_read_right() {
    let serving = written(None, 3, false, done());
    let databases = Steps {
        databases: Step::waiting("DatabasesStarting", "0 of 3 members"),
        ..done()
    };
    let range = Steps {
        range: Step::failed("RangeOverlaps", "cell-000 holds 0..=99"),
        ..done()
    };
    let services = Steps {
        services: Step::waiting("PodsNotReady", "order has 2 of 3 pods"),
        ..done()
    };
    let cases = [
        (
            "never looked at",
            cell(1, &written(None, 1, false, Steps::none())),
            "Progressing",
        ),
        (
            "waiting",
            cell(1, &written(None, 1, false, databases.clone())),
            "Progressing",
        ),
        (
            "refused",
            cell(1, &written(None, 1, false, range)),
            "Degraded",
        ),
        ("serving", cell(3, &serving), "Healthy"),
        (
            "impaired",
            cell(3, &written(Some(&serving), 3, false, services.clone())),
            "Degraded",
        ),
        (
            "rolling to a new profile",
            cell(3, &written_at("second", Some(&serving), 3, false, services)),
            "Progressing",
        ),
        (
            "rolling to a new spec",
            cell(4, &written(Some(&serving), 4, false, databases)),
            "Progressing",
        ),
        (
            "paused while serving",
            cell(4, &written(Some(&serving), 4, true, Steps::none())),
            "Suspended",
        ),
        (
            "paused from the start",
            cell(1, &written(None, 1, true, Steps::none())),
            "Suspended",
        ),
        ("the spec has moved on", cell(4, &serving), "Progressing"),
    ];
    for (case, resource, wanted) in cases {
        let (status, message) = health("Cell", &resource);
        assert_eq!(status, wanted, "{case}: {message}");
        assert!(!message.is_empty(), "{case}");
    }
}

#[test]
fn the_message_is_the_one_of_the_condition() {
    let steps = Steps {
        topics: Step::failed(
            "KafkaRefused",
            "the topic has 6 partitions, the profile says 3",
        ),
        ..done()
    };
    let (_, message) = health("Cell", &cell(1, &written(None, 1, false, steps)));
    assert_eq!(message, "the topic has 6 partitions, the profile says 3");
}

#[test]
fn what_the_operator_has_not_looked_at_is_in_progress() {
    for kind in KINDS {
        let fresh = [
            json!({"metadata": {"generation": 1}}),
            resource(1, &json!({})),
            resource(1, &json!({"observedGeneration": -1})),
        ];
        for resource in fresh {
            assert_eq!(
                health(kind, &resource).0,
                "Progressing",
                "{kind}: {resource}"
            );
        }
    }
}

#[test]
fn a_generation_is_shown_as_a_whole_number() {
    for kind in KINDS {
        for generation in [1, 123_456_789] {
            let (_, message) = health(kind, &resource(generation, &json!({})));
            let wanted = format!("waiting for the operator to look at generation {generation}");
            assert_eq!(message, wanted);
        }
    }
}

#[test]
fn a_stale_condition_says_nothing() {
    let ready = json!({"type": "Ready", "status": "True", "reason": "Serving", "message": "", "observedGeneration": 1});
    for kind in KINDS {
        let stale = resource(2, &json!({"observedGeneration": 2, "conditions": [ready]}));
        assert_eq!(health(kind, &stale).0, "Progressing", "{kind}");
        let fresh = resource(1, &json!({"observedGeneration": 1, "conditions": [ready]}));
        assert_eq!(
            health(kind, &fresh),
            ("Healthy".to_owned(), "Serving".to_owned()),
            "{kind}"
        );
    }
}

#[test]
fn a_deletion_is_in_progress_until_it_is_stuck() {
    let mut deleting = cell(3, &written(None, 3, false, done()));
    deleting["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(health("Cell", &deleting).0, "Progressing");
    let steps = Steps {
        topics: Step::failed("KafkaUnreachable", "3 topics are left"),
        ..done()
    };
    let mut stuck = cell(3, &written(None, 3, false, steps));
    stuck["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(
        health("Cell", &stuck),
        ("Degraded".to_owned(), "3 topics are left".to_owned())
    );
}
