//! JSON without what nothing here reads.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use titan_planner::object::Json;

/// An object as text, in which managed fields name their managers and no fields. Those fields are often the largest part of an
/// object, and most of the memory that all of it would take. Everything else is copied as it came: a tree of it would
/// be made in every pass over a cell for each of its objects.
pub(crate) struct Lean(pub(crate) Json);

type Members<'a> = BTreeMap<String, Part<'a>>;

/// The value of a member: as it came, or what takes its place.
enum Part<'a> {
    Same(&'a RawValue),
    Other(Box<RawValue>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Part<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(Part::Same)
    }
}

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Part::Same(value) => value.serialize(serializer),
            Part::Other(value) => value.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Lean {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Members::deserialize(deserializer)?;
        replace(&mut object, "metadata", |metadata| {
            let mut metadata: Members = serde_json::from_str(metadata)?;
            replace(&mut metadata, "managedFields", |entries| {
                let mut entries: Vec<Members> = serde_json::from_str(entries)?;
                for entry in &mut entries {
                    entry.remove("fieldsV1");
                }
                to_raw_value(&entries)
            })?;
            to_raw_value(&metadata)
        })
        .and_then(|()| serde_json::to_string(&object))
        .map(|text| Lean(Json::from_text(text)))
        .map_err(D::Error::custom)
    }
}

/// Puts something else in the place of a member that is there.
fn replace(
    object: &mut Members<'_>,
    name: &str,
    other: impl FnOnce(&str) -> serde_json::Result<Box<RawValue>>,
) -> serde_json::Result<()> {
    if let Some(part) = object.get_mut(name)
        && let Part::Same(value) = part
        && value.get() != "null"
    {
        *part = Part::Other(other(value.get())?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn lean(text: &str) -> serde_json::Result<Value> {
        serde_json::from_str(text).map(|Lean(json)| json.value())
    }

    #[test]
    fn only_the_fields_of_managers_are_skipped() {
        let text = r#"{"spec": [1, -2, 2.5, "\"x\u00e4", true, null, {"fieldsV1": 1}], "metadata": {"na\u006de": "a\\b",
            "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]}}"#;
        let mut whole: Value = serde_json::from_str(text).unwrap();
        whole["metadata"]["managedFields"][0]
            .as_object_mut()
            .unwrap()
            .remove("fieldsV1");
        assert_eq!(lean(text).unwrap(), whole);
    }

    #[test]
    fn what_lacks_them_is_as_it_came() {
        for text in [
            r#"{}"#,
            r#"{"metadata":null}"#,
            r#"{"metadata":{"managedFields":null}}"#,
        ] {
            assert_eq!(lean(text).unwrap().to_string(), text);
        }
        assert!(lean(r#"{"metadata": 1}"#).is_err());
        assert!(lean("[]").is_err());
    }
}
