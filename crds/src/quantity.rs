//! Amounts of CPU, memory and storage as a Pod's spec accepts them: text such as `1.5Gi`, or a number such as `0.5`.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

/// The form that Kubernetes gives to quantities, without a minus: an amount below zero is no size.
const PATTERN: &str = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$";
/// Longer than any amount that a node can have.
const MAX_LENGTH: u32 = 32;

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Number(serde_json::Number),
}

impl From<Written> for String {
    fn from(written: Written) -> Self {
        match written {
            Written::Text(text) => text,
            Written::Number(number) => number.to_string(),
        }
    }
}

/// Reads an amount that must be there.
pub(crate) fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Written::deserialize(deserializer).map(String::from)
}

/// Reads an amount that may be left out.
pub(crate) fn optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let written = Option::<Written>::deserialize(deserializer)?;
    Ok(written.map(String::from))
}

/// The schema of an amount.
///
/// `x-kubernetes-int-or-string` would refuse `cpu: 0.5`, which YAML makes a number and a Pod accepts. So any value is let through
/// by type, and those that are neither text nor number are refused one by one: an object or a list must be empty, and what is
/// left of them is listed.
pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-preserve-unknown-fields": true,
        "pattern": PATTERN,
        "maxLength": MAX_LENGTH,
        "minimum": 0,
        "maxProperties": 0,
        "maxItems": 0,
        "not": { "enum": [true, false, {}, []] },
    })
}
