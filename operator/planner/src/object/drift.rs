//! Whether a live object is as desired, and if not, in what.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// Whether the live object has everything that the desired one says, so that nothing needs to be written.
#[must_use]
pub fn covers(live: &Value, desired: &Value) -> bool {
    drift(live, desired).is_none()
}

/// The first place in which the live object is not as desired, and how: for people. Values of Secrets are not told.
///
/// What the apiserver and others add beside it is no drift, as with server-side apply: maps need only hold the desired
/// entries, lists need the same number of items in the same order. Where an entry more changes what the object does it
/// is drift, too: the content of a ConfigMap or Secret, the rules of a NetworkPolicy, the selector of a Service or of a
/// PodDisruptionBudget.
#[must_use]
pub fn drift(live: &Value, desired: &Value) -> Option<String> {
    let secret = kind(desired) == "Secret";
    let difference = differences(live, desired).into_iter().next()?;
    let at = difference.path.join(".");
    Some(match difference.how {
        _ if secret && difference.path.first().is_some_and(|field| field == "data") => {
            format!("{at}: another value")
        }
        How::Missing { desired } => format!("{at}: {} is missing", brief(desired)),
        How::Other { live, desired } => {
            format!("{at}: {} instead of {}", brief(live), brief(desired))
        }
        How::Length { live, desired } => {
            format!("{at}: {} items instead of {}", live.len(), desired.len())
        }
        How::Surplus { live } => format!("{at}: {} is not desired", brief(live)),
    })
}

/// The JSON Patch operations for what a server-side apply of the desired object would leave as it is: entries and
/// list items that others have added, and that are theirs in the object's managed fields. Empty for other drift.
#[must_use]
pub fn takeover(live: &Value, desired: &Value) -> Vec<Value> {
    differences(live, desired)
        .into_iter()
        .filter_map(|difference| {
            let path: String = difference
                .path
                .iter()
                .map(|key| format!("/{}", key.replace('~', "~0").replace('/', "~1")))
                .collect();
            match difference.how {
                How::Surplus { .. } => Some(json!({ "op": "remove", "path": path })),
                How::Length { desired, .. } => {
                    Some(json!({ "op": "replace", "path": path, "value": desired }))
                }
                // Whole lists are one value to the apiserver where their items have no key; where they have, an item that
                // moved stays where it was.
                How::Missing { .. } | How::Other { .. } => None,
            }
        })
        .collect()
}

/// One place in which the live object is not as desired.
struct Difference<'a> {
    path: Vec<String>,
    how: How<'a>,
}

enum How<'a> {
    Missing {
        desired: &'a Value,
    },
    Other {
        live: &'a Value,
        desired: &'a Value,
    },
    Length {
        live: &'a [Value],
        desired: &'a [Value],
    },
    Surplus {
        live: &'a Value,
    },
}

/// Fields in which what is not desired must not be there.
fn exact_fields(kind: &str) -> &'static [&'static [&'static str]] {
    match kind {
        "ConfigMap" | "Secret" => &[&["data"], &["binaryData"]],
        "NetworkPolicy" => &[&["spec"]],
        "Service" | "PodDisruptionBudget" => &[&["spec", "selector"]],
        "RoleBinding" => &[&["roleRef"], &["subjects"]],
        _ => &[],
    }
}

fn kind(object: &Value) -> &str {
    object
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn differences<'a>(live: &'a Value, desired: &'a Value) -> Vec<Difference<'a>> {
    let mut comparison = Comparison {
        exact: exact_fields(kind(desired)),
        path: Vec::new(),
        found: Vec::new(),
    };
    comparison.compare(live, desired);
    comparison.found
}

struct Comparison<'a> {
    exact: &'static [&'static [&'static str]],
    path: Vec<String>,
    found: Vec<Difference<'a>>,
}

impl<'a> Comparison<'a> {
    fn compare(&mut self, live: &'a Value, desired: &'a Value) {
        match (live, desired) {
            (Value::Object(live), Value::Object(desired)) => self.maps(live, desired),
            (Value::Array(live), Value::Array(desired)) if live.len() == desired.len() => {
                for (index, (live, desired)) in live.iter().zip(desired).enumerate() {
                    self.at(&index.to_string(), |this| this.compare(live, desired));
                }
            }
            (Value::Array(live), Value::Array(desired)) => {
                self.note(How::Length { live, desired });
            }
            (live, desired) if live == desired => {}
            (live, desired) => self.note(How::Other { live, desired }),
        }
    }

    fn maps(&mut self, live: &'a Map<String, Value>, desired: &'a Map<String, Value>) {
        for (key, desired) in desired {
            match live.get(key) {
                Some(live) => self.at(key, |this| this.compare(live, desired)),
                // The apiserver leaves out what is empty.
                None if is_empty(desired) => {}
                // The items of a list do not repeat what the list says of itself.
                None if self.path.is_empty() && matches!(key.as_str(), "apiVersion" | "kind") => {}
                None => self.at(key, |this| this.note(How::Missing { desired })),
            }
        }
        let known: BTreeSet<&String> = desired.keys().collect();
        for (key, live) in live {
            if !known.contains(key) && !is_empty(live) {
                self.at(key, |this| {
                    if this.is_exact() {
                        this.note(How::Surplus { live });
                    }
                });
            }
        }
    }

    /// Whether the place is inside a field that is ours whole.
    fn is_exact(&self) -> bool {
        self.exact.iter().any(|field| {
            field.len() <= self.path.len() && field.iter().zip(&self.path).all(|(a, b)| a == b)
        })
    }

    fn at(&mut self, key: &str, look: impl FnOnce(&mut Self)) {
        self.path.push(key.to_owned());
        look(self);
        self.path.pop();
    }

    fn note(&mut self, how: How<'a>) {
        self.found.push(Difference {
            path: self.path.clone(),
            how,
        });
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A value short enough for a message.
fn brief(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_add_is_no_drift() {
        let live = json!({
            "metadata": { "labels": { "a": "1", "b": "2" }, "uid": "x", "annotations": { "theirs": "y" } },
            "spec": { "replicas": 3, "list": [{ "name": "a", "defaulted": true }], "policy": "Default" },
            "status": {},
        });
        let desired = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "labels": { "a": "1" } },
            "spec": { "replicas": 3, "list": [{ "name": "a" }], "empty": [], "none": "" },
        });
        assert_eq!(drift(&live, &desired), None);
        assert!(covers(&live, &desired));
    }

    #[test]
    fn the_first_difference_is_named() {
        let live = json!({ "spec": { "a": { "b": [{ "c": 1 }, { "c": 2 }] } } });
        for (desired, message) in [
            (
                json!({ "spec": { "a": { "b": [{ "c": 1 }, { "c": 3 }] } } }),
                "spec.a.b.1.c: 2 instead of 3",
            ),
            (
                json!({ "spec": { "a": { "b": [{ "c": 1 }] } } }),
                "spec.a.b: 2 items instead of 1",
            ),
            (
                json!({ "spec": { "a": { "d": 7 } } }),
                "spec.a.d: 7 is missing",
            ),
            (
                json!({ "spec": { "a": "text" } }),
                r#"spec.a: {"b":[{"c":1},{"c":2}]} instead of "text""#,
            ),
            (
                json!({ "metadata": { "name": "x" } }),
                r#"metadata: {"name":"x"} is missing"#,
            ),
        ] {
            assert_eq!(drift(&live, &desired).as_deref(), Some(message));
        }
    }

    #[test]
    fn content_and_rules_are_ours_whole() {
        let secret = |data: Value| json!({ "kind": "Secret", "data": data });
        assert_eq!(
            drift(
                &secret(json!({ "a": "1", "b": "2" })),
                &secret(json!({ "a": "1" }))
            )
            .as_deref(),
            Some("data.b: another value")
        );
        assert_eq!(
            drift(&secret(json!({ "a": "1" })), &secret(json!({ "a": "2" }))).as_deref(),
            Some("data.a: another value"),
            "no value of a Secret is told"
        );
        let policy = |spec: Value| json!({ "kind": "NetworkPolicy", "spec": spec });
        let live = policy(json!({ "podSelector": {}, "ingress": [{}] }));
        let desired = policy(json!({ "podSelector": {} }));
        assert_eq!(
            drift(&live, &desired).as_deref(),
            Some("spec.ingress: [{}] is not desired")
        );
    }

    #[test]
    fn a_takeover_removes_what_an_apply_would_leave() {
        let desired = json!({
            "kind": "ConfigMap", "data": { "a": "1" }, "metadata": { "annotations": { "x/y": "1" } },
            "list": [{ "name": "a" }],
        });
        let live = json!({
            "data": { "a": "2", "b/c": "2" }, "metadata": { "annotations": { "theirs": "1" } },
            "list": [{ "name": "a" }, { "name": "b" }],
        });
        assert_eq!(
            takeover(&live, &desired),
            [
                json!({ "op": "remove", "path": "/data/b~1c" }),
                json!({ "op": "replace", "path": "/list", "value": [{ "name": "a" }] }),
            ]
        );
        assert!(takeover(&desired, &desired).is_empty());
    }
}
