//! Changes of every field of a resource, made from the schema that its definition states.
//!
//! What a schema cannot say (which string is a release, which a Secret) is in one small table, [`EXAMPLES`]: a new string
//! field has no example, and the test that walks it fails until it gets one.

use serde_json::{Value, json};

/// Good values of strings, and of numbers whose bounds are not meant to be tried against real servers.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("/fleet", &["elsewhere"]),
    ("/profile", &["nowhere"]),
    ("/release", &["2.0.0"]),
    ("/placement/region", &["eu-west-1"]),
    ("/placement/zones/-", &["zone-a"]),
    ("/failover/partner", &["some-partner"]),
    ("/external/secretName", &["nowhere"]),
    ("/cpu", &["250m"]),
    ("/memory", &["134217728"]),
    ("/sizeLimit", &["3Gi"]),
    ("/persistent/size", &["30Gi"]),
    ("/storageClassName", &["fast"]),
    ("/services/-/name", &["added"]),
    ("/dependsOn/-", &["cart", "nowhere"]),
    ("/env/*", &["changed"]),
    ("/topics/-/name", &["order.facts"]),
    ("/services/-/port", &["50777"]),
    ("/minReplicas", &["2"]),
    ("/partitions", &["4"]),
    ("/userRange/first", &["0"]),
    ("/userRange/last", &["9223372036854775807"]),
];

/// Fields that cannot be set beside others: setting the first removes the second, next to it.
const EXCLUSIVE: &[(&str, &[&str])] = &[
    ("/storage/ephemeral", &["persistent"]),
    ("/storage/persistent", &["ephemeral"]),
    (
        "/external",
        &["members", "synchronous", "storage", "resources", "topology"],
    ),
];

/// Fields that can only be set together: the path, and what is set with it.
const TOGETHER: &[(&str, &str, &str)] = &[("/failover/partner", "/failover/mode", "Partner")];

/// One change of a spec.
pub struct Mutation {
    /// The field, as the schema has it: `-` is any item and `*` any key.
    pub path: String,
    /// What is done to it.
    pub what: String,
    /// The whole spec after it.
    pub spec: Value,
    /// What a refusal may say to name the field: its name, its value.
    pub words: Vec<String>,
}

/// The schema of `spec` of a definition.
pub fn spec_schema(kind: &str) -> Value {
    let definition = titan_crds::definitions()
        .into_iter()
        .find(|definition| definition.spec.names.kind == kind)
        .unwrap();
    let definition = serde_json::to_value(definition).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

/// The paths of all leaves, with their schemas.
pub fn leaves(schema: &Value) -> Vec<(String, Value)> {
    fn walk(schema: &Value, path: String, found: &mut Vec<(String, Value)>) {
        if let Some(properties) = schema["properties"].as_object() {
            for (name, property) in properties {
                walk(property, format!("{path}/{name}"), found);
            }
        } else if schema["additionalProperties"].is_object() {
            walk(&schema["additionalProperties"], format!("{path}/*"), found);
        } else if schema["items"].is_object() {
            walk(&schema["items"], format!("{path}/-"), found);
        } else {
            found.push((path, schema.clone()));
        }
    }
    let mut found = Vec::new();
    walk(schema, String::new(), &mut found);
    found
}

/// Every leaf set to other good values, and everything that may be left out left out.
pub fn mutations(schema: &Value, base: &Value) -> Vec<Mutation> {
    let mut mutations = Vec::new();
    for (path, leaf) in leaves(schema) {
        for value in examples(&path, &leaf) {
            let spec = set(schema, base, &path, &value);
            if spec == *base {
                continue;
            }
            let with = TOGETHER.iter().filter(|(setter, _, _)| path == *setter);
            let mut words = vec![last_name(&path), plain(&value)];
            words.extend(with.map(|(_, _, other)| (*other).to_owned()));
            mutations.push(Mutation {
                what: format!("{path} = {value}"),
                path: path.clone(),
                spec,
                words,
            });
        }
    }
    removals(schema, base, "", "", &mut |path, pointer, value| {
        let mut spec = base.clone();
        remove(&mut spec, pointer);
        let mut words = vec![last_name(path)];
        scalars(value, &mut words);
        mutations.push(Mutation {
            path: path.to_owned(),
            what: format!("no {pointer}"),
            spec,
            words,
        });
    });
    mutations
}

/// Every leaf set to a value that its schema forbids.
pub fn forbidden(schema: &Value, base: &Value) -> Vec<Mutation> {
    let mut mutations = Vec::new();
    for (path, leaf) in leaves(schema) {
        let mut values = match leaf["type"].as_str() {
            Some("string") => vec![json!(17)],
            Some(_) => vec![json!("seventeen")],
            // A quantity.
            None => vec![
                json!("seventeen"),
                json!(true),
                json!({}),
                json!({"a": 1}),
                json!([]),
                json!([1]),
            ],
        };
        if !leaf["enum"].is_null() && leaf["type"] == "string" {
            values.push(json!("Nonsense"));
        }
        if !leaf["pattern"].is_null() {
            values.push(json!("!?"));
        }
        if leaf["minLength"].as_i64() == Some(1) {
            values.push(json!(""));
        }
        if let Some(longest) = leaf["maxLength"].as_u64() {
            values.push(json!("a".repeat(usize::try_from(longest).unwrap() + 1)));
        }
        if let Some(least) = leaf["minimum"].as_f64() {
            values.push(json!(whole(least) - 1));
        }
        if let Some(most) = leaf["maximum"].as_f64() {
            values.push(json!(whole(most) + 1));
        }
        for value in values {
            mutations.push(Mutation {
                what: format!("{path} = {value}"),
                spec: set(schema, base, &path, &value),
                words: vec![last_name(&path)],
                path: path.clone(),
            });
        }
    }
    mutations
}

/// Good values of a leaf.
fn examples(path: &str, schema: &Value) -> Vec<Value> {
    let listed = EXAMPLES
        .iter()
        .filter(|(end, _)| path.ends_with(end))
        .max_by_key(|(end, _)| end.len());
    let numeric = schema["type"] == "integer";
    if let Some((_, texts)) = listed {
        return texts
            .iter()
            .map(|text| match text.parse::<i64>() {
                Ok(number) if numeric => json!(number),
                _ => json!(text),
            })
            .collect();
    }
    if let Some(values) = schema["enum"].as_array() {
        return values
            .iter()
            .filter(|value| !value.is_null())
            .cloned()
            .collect();
    }
    match (schema["type"].as_str(), schema["maximum"].as_f64()) {
        (Some("boolean"), _) => vec![json!(true), json!(false)],
        (Some("integer"), Some(most)) => vec![json!(whole(most))],
        _ => panic!("{path} is new here: give it an example value in EXAMPLES ({schema})"),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "bounds of a schema are whole numbers"
)]
fn whole(bound: f64) -> i64 {
    bound as i64
}

/// The spec with a leaf set: in the last item of a list that has it, and with what has to be there beside it.
fn set(schema: &Value, base: &Value, path: &str, value: &Value) -> Value {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let mut spec = put(Some(base), schema, "", &segments, value);
    for (setter, others) in EXCLUSIVE {
        if let Some((before, _)) = path.split_once(setter) {
            let parent = setter.rsplit_once('/').unwrap().0;
            for other in *others {
                remove(&mut spec, &format!("{before}{parent}/{other}"));
            }
        }
    }
    for (setter, other, with) in TOGETHER {
        if path == *setter {
            spec = set(schema, &spec, other, &json!(with));
        }
    }
    spec
}

fn put(now: Option<&Value>, schema: &Value, path: &str, rest: &[&str], leaf: &Value) -> Value {
    let Some((segment, rest)) = rest.split_first() else {
        return leaf.clone();
    };
    let here = format!("{path}/{segment}");
    let mut value = now.cloned().unwrap_or_else(|| sample(schema, path));
    match *segment {
        "*" => {
            let fields = value.as_object_mut().unwrap();
            let name = fields.keys().next_back().cloned();
            let name = name.unwrap_or_else(|| "order".to_owned());
            let child = put(
                fields.get(&name),
                &schema["additionalProperties"],
                &here,
                rest,
                leaf,
            );
            fields.insert(name, child);
        }
        "-" => {
            let items = value.as_array_mut().unwrap();
            let pointer: String = rest.iter().map(|name| format!("/{name}")).collect();
            let pointer = pointer
                .split("/-")
                .next()
                .unwrap()
                .split("/*")
                .next()
                .unwrap()
                .to_owned();
            let at = items
                .iter()
                .rposition(|item| !rest.is_empty() && item.pointer(&pointer).is_some())
                .or_else(|| items.len().checked_sub(1).filter(|_| !rest.is_empty()));
            match at {
                Some(at) => items[at] = put(Some(&items[at]), &schema["items"], &here, rest, leaf),
                None => items.push(put(None, &schema["items"], &here, rest, leaf)),
            }
        }
        name => {
            let child = put(
                value.get(name),
                &schema["properties"][name],
                &here,
                rest,
                leaf,
            );
            value[name] = child;
        }
    }
    value
}

/// The least that is valid.
fn sample(schema: &Value, path: &str) -> Value {
    if let Some(properties) = schema["properties"].as_object() {
        let required = schema["required"].as_array().into_iter().flatten();
        return required
            .filter_map(Value::as_str)
            .map(|name| {
                (
                    name.to_owned(),
                    sample(&properties[name], &format!("{path}/{name}")),
                )
            })
            .collect::<serde_json::Map<_, _>>()
            .into();
    }
    match schema["type"].as_str() {
        Some("object") => json!({}),
        Some("array") => json!([]),
        _ => examples(path, schema)[0].clone(),
    }
}

/// Everything in `value` that its schema does not require.
fn removals(
    schema: &Value,
    value: &Value,
    path: &str,
    pointer: &str,
    found: &mut impl FnMut(&str, &str, &Value),
) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let pointer = format!("{pointer}/{name}");
                let (path, schema, optional) = if schema["properties"].is_object() {
                    let required = schema["required"].as_array();
                    let required = required.is_some_and(|names| names.contains(&json!(name)));
                    (
                        format!("{path}/{name}"),
                        &schema["properties"][name],
                        !required,
                    )
                } else {
                    (format!("{path}/*"), &schema["additionalProperties"], true)
                };
                if optional {
                    found(&path, &pointer, field);
                }
                removals(schema, field, &path, &pointer, found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let (path, pointer) = (format!("{path}/-"), format!("{pointer}/{index}"));
                found(&path, &pointer, item);
                removals(&schema["items"], item, &path, &pointer, found);
            }
        }
        _ => {}
    }
}

fn remove(value: &mut Value, pointer: &str) {
    let Some((parent, name)) = pointer.rsplit_once('/') else {
        return;
    };
    match value.pointer_mut(parent) {
        Some(Value::Object(fields)) => {
            fields.remove(name);
        }
        Some(Value::Array(items)) => {
            items.remove(name.parse().unwrap());
        }
        _ => {}
    }
}

/// The innermost name of a path.
pub fn last_name(path: &str) -> String {
    path.rsplit('/')
        .find(|segment| !["-", "*"].contains(segment))
        .unwrap()
        .to_owned()
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn scalars(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.values().for_each(|value| scalars(value, found)),
        Value::Array(items) => items.iter().for_each(|value| scalars(value, found)),
        Value::String(text) => found.push(text.clone()),
        _ => {}
    }
}
