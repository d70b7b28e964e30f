//! Desired objects as YAML, for people and for golden tests.

use serde_json::Value;

use super::build::build;
use super::model::{Credentials, Invalid, ValidatedCell};
use crate::object::{DESIRED_HASH, Kind, Object};

/// Everything that a cell consists of as YAML documents, without the values of Secrets.
///
/// # Errors
/// As [`build`].
pub fn render(cell: &ValidatedCell, credentials: &Credentials) -> Result<String, Invalid> {
    Ok(render_objects(&build(cell, credentials)?.objects))
}

/// Objects as YAML documents, without the values of Secrets.
#[must_use]
pub fn render_objects<'a>(objects: impl IntoIterator<Item = &'a Object>) -> String {
    objects
        .into_iter()
        .map(|object| {
            let mut body = object.body();
            if object.kind == Kind::Secret {
                redact(&mut body);
            }
            let yaml = serde_yaml::to_string(&body)
                .unwrap_or_else(|error| format!("# {} cannot be shown: {error}\n", object.name));
            format!("---\n{yaml}")
        })
        .collect()
}

fn redact(secret: &mut Value) {
    if let Some(data) = secret.get_mut("data").and_then(Value::as_object_mut) {
        for value in data.values_mut() {
            *value = Value::String("<redacted>".to_owned());
        }
    }
    // A hash over a guessable value gives it away.
    if let Some(annotations) = secret
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.insert(
            DESIRED_HASH.to_owned(),
            Value::String("<redacted>".to_owned()),
        );
    }
}
