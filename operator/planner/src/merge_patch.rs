//! JSON merge patches (RFC 7386).

use serde_json::{Map, Value};

/// The merge patch that turns one state into another. It names only what differs, so that it leaves alone what neither state
/// knows of.
#[must_use]
pub fn merge_patch(before: &Value, after: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (before, after) else {
        return after.clone();
    };
    let mut patch = Map::new();
    for (key, value) in after {
        match before.get(key) {
            Some(old) if old == value => {}
            Some(old) => {
                patch.insert(key.clone(), merge_patch(old, value));
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    patch.extend(gone.map(|key| (key.clone(), Value::Null)));
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_names_what_differs_and_nothing_else() {
        let before =
            json!({"epoch": 1, "home": "a", "range": {"first": 1, "last": 2}, "list": [1]});
        for (after, patch) in [
            (before.clone(), json!({})),
            (
                json!({"epoch": 2, "home": "a", "range": {"first": 1, "last": 2}, "list": [1]}),
                json!({"epoch": 2}),
            ),
            (
                json!({"epoch": 1, "range": {"first": 1, "last": 3}, "list": [1, 2], "new": {}}),
                json!({"home": null, "range": {"last": 3}, "list": [1, 2], "new": {}}),
            ),
        ] {
            assert_eq!(merge_patch(&before, &after), patch);
        }
        assert_eq!(merge_patch(&json!(1), &json!({"a": 1})), json!({"a": 1}));
    }
}
