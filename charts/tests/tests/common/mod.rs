//! Helm, and what it renders.
#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses some of it"
)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// The namespace that the tests install into.
pub const NAMESPACE: &str = "titan-system";

/// Runs helm and returns what it said, whether or not it succeeded.
pub fn helm(args: &[&str]) -> Output {
    let program = titan_testbed::cache::find("helm").unwrap();
    let home = std::env::temp_dir();
    Command::new(program)
        .args(args)
        .env("HELM_CACHE_HOME", home.join("helm-cache"))
        .env("HELM_CONFIG_HOME", home.join("helm-config"))
        .env("HELM_DATA_HOME", home.join("helm-data"))
        .output()
        .unwrap()
}

/// Renders the chart with these `--set-json` values; the error is what helm said.
pub fn try_render(values: &[&str]) -> Result<Vec<Value>, String> {
    let chart = titan_chart_tests::chart().display().to_string();
    let mut args = vec![
        "template",
        "titan",
        &chart,
        "--namespace",
        NAMESPACE,
        "--kube-version",
        titan_testbed::cache::KUBERNETES,
    ];
    for value in values {
        args.extend(["--set-json", value]);
    }
    let output = helm(&args);
    if output.status.success() {
        Ok(documents(&String::from_utf8(output.stdout).unwrap()))
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

/// Renders the chart, which must succeed.
pub fn render(values: &[&str]) -> Vec<Value> {
    try_render(values).unwrap()
}

/// Every optional part switched on.
pub const EVERYTHING: [&str; 3] = [
    r#"monitoring={"podMonitor":{"enabled":true},"rules":{"enabled":true}}"#,
    r#"argocd={"healthChecks":true}"#,
    r#"kafka={"bootstrap":"kafka-0.kafka:9094,kafka-1.kafka:9095"}"#,
];

/// The objects of a stream of YAML documents.
pub fn documents(yaml: &str) -> Vec<Value> {
    use serde::Deserialize;
    serde_yaml::Deserializer::from_str(yaml)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|document| !document.is_null())
        .collect()
}

/// The object of this kind and name.
pub fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("the chart renders no {kind} {name}"))
}

/// All objects of a kind.
pub fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

/// Strings of a JSON array; empty when it is none.
pub fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .map(|items| items.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// Writes objects as a stream that kubectl reads.
pub fn write_objects(path: &Path, objects: &[Value]) {
    let stream: Vec<String> = objects
        .iter()
        .map(|object| serde_json::to_string(object).unwrap())
        .collect();
    std::fs::write(path, stream.join("\n---\n")).unwrap();
}
