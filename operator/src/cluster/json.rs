//! JSON without what nothing here reads.

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Number, Value};
use titan_planner::object::Json;

/// A value whose managed fields name their managers and no fields. Those fields are often the largest part of an object,
/// and most of the memory that all of it would take.
pub(crate) struct Lean(pub(crate) Value);

impl<'de> Deserialize<'de> for Lean {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Reader { managed: false }
            .deserialize(deserializer)
            .map(Lean)
    }
}

/// The same as text.
pub(super) struct LeanText(pub(super) Json);

impl<'de> Deserialize<'de> for LeanText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Lean::deserialize(deserializer).map(|Lean(value)| LeanText(Json::from(&value)))
    }
}

#[derive(Clone, Copy)]
struct Reader {
    /// Whether this is inside of `managedFields`.
    managed: bool,
}

impl<'de> DeserializeSeed<'de> for Reader {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        list.shrink_to_fit();
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if self.managed && key == "fieldsV1" {
                entries.next_value::<IgnoredAny>()?;
                continue;
            }
            let managed = self.managed || key == "managedFields";
            let value = entries.next_value_seed(Reader { managed })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_fields_of_managers_are_skipped() {
        let text = r#"{"a": [1, -2, 2.5, "x", true, null, {"fieldsV1": 1}], "metadata": {"managedFields": [
            {"manager": "m", "operation": "Update", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]}}"#;
        let Lean(lean) = serde_json::from_str(text).unwrap();
        let mut whole: Value = serde_json::from_str(text).unwrap();
        whole["metadata"]["managedFields"][0]
            .as_object_mut()
            .unwrap()
            .remove("fieldsV1");
        assert_eq!(lean, whole);
    }
}
