//! The volumes of a StatefulSet that is there: its claim templates cannot be changed.

use serde_json::{Map, Value};

use super::canonical;

const TEMPLATES: &str = "volumeClaimTemplates";

/// What is desired of a StatefulSet, on the volumes that the live one has; any other object as it is desired.
///
/// The apiserver refuses a StatefulSet with other claim templates than before as a whole, and with it everything else that
/// the change would mend. A volume that is a claim in one of the two and part of the pod in the other stays what it is, too:
/// pods that mount what is nowhere would not start.
#[must_use]
pub fn on_live_volumes(live: &Value, mut desired: Value) -> Value {
    let Some(live) = live.get("spec") else {
        return desired;
    };
    if desired.get("kind").and_then(Value::as_str) != Some("StatefulSet") {
        return desired;
    }
    let Some(spec) = desired.get_mut("spec").and_then(Value::as_object_mut) else {
        return desired;
    };
    let planned = names(spec.get(TEMPLATES));
    let kept = names(live.get(TEMPLATES));
    match live.get(TEMPLATES) {
        Some(templates) => spec.insert(TEMPLATES.to_owned(), canonical(templates.clone())),
        None => spec.remove(TEMPLATES),
    };
    if planned != kept
        && let Some(pod) = spec
            .get_mut("template")
            .and_then(|template| template.get_mut("spec"))
            .and_then(Value::as_object_mut)
    {
        let volumes = volumes_beside(&kept, &planned, pod, live);
        pod.insert("volumes".to_owned(), Value::Array(volumes));
    }
    desired
}

/// The pod's own volumes: without those that are claims, and with those that were to become claims.
fn volumes_beside(
    kept: &[String],
    planned: &[String],
    pod: &Map<String, Value>,
    live: &Value,
) -> Vec<Value> {
    let is_in = |volume: &Value, names: &[String]| {
        name(volume).is_some_and(|name| names.iter().any(|other| other == name))
    };
    let of_plan = list(pod.get("volumes"));
    let of_live = list(live.pointer("/template/spec/volumes"));
    of_plan
        .iter()
        .filter(|volume| !is_in(volume, kept))
        .chain(of_live.iter().filter(|volume| is_in(volume, planned)))
        .cloned()
        .collect()
}

/// In what the live StatefulSet keeps other volumes than are desired, for people; `None` where it has those, and for any
/// other object.
#[must_use]
pub fn kept_volumes(live: &Value, desired: &Value) -> Option<String> {
    if desired.get("kind").and_then(Value::as_str) != Some("StatefulSet") {
        return None;
    }
    let claims = |object: &Value| -> Vec<String> {
        let templates = object.get("spec").and_then(|spec| spec.get(TEMPLATES));
        list(templates).iter().map(claim).collect()
    };
    let (kept, planned) = (claims(live), claims(desired));
    if kept == planned {
        return None;
    }
    let described = |claims: Vec<String>| match claims.join(", ") {
        none if none.is_empty() => "volumes in its pods".to_owned(),
        claims => claims,
    };
    let name = name(desired.get("metadata")?)?;
    Some(format!(
        "{name} keeps {}, where the spec has {}: a StatefulSet cannot be given others. To grow them, expand the claims and delete the StatefulSet with --cascade=orphan; otherwise set the spec back",
        described(kept),
        described(planned)
    ))
}

/// A claim in words, by all of it that a plan says.
fn claim(template: &Value) -> String {
    let text = |pointer: &str| template.pointer(pointer).and_then(Value::as_str);
    let size = text("/spec/resources/requests/storage").unwrap_or("no size");
    match text("/spec/storageClassName") {
        Some(class) => format!("claims of {size} of StorageClass {class}"),
        None => format!("claims of {size}"),
    }
}

fn names(templates: Option<&Value>) -> Vec<String> {
    list(templates)
        .iter()
        .filter_map(|template| name(template.get("metadata")?))
        .map(str::to_owned)
        .collect()
}

fn name(of: &Value) -> Option<&str> {
    of.get("name").and_then(Value::as_str)
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::drift;

    fn claims(size: &str, class: Option<&str>) -> Value {
        canonical(json!([{
            "metadata": { "name": "data", "labels": { "a": "b" } },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": { "requests": { "storage": size } },
                "storageClassName": class,
            },
        }]))
    }

    fn set(claims: &Value, volumes: &Value) -> Value {
        canonical(json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "postgres" },
            "spec": {
                "replicas": 3, "volumeClaimTemplates": claims,
                "template": { "spec": { "volumes": volumes } },
            },
        }))
    }

    /// As the apiserver gives it back, in a list.
    fn defaulted(mut set: Value) -> Value {
        set.as_object_mut().unwrap().remove("kind");
        let template = &mut set["spec"]["volumeClaimTemplates"][0];
        template["kind"] = "PersistentVolumeClaim".into();
        template["metadata"]["creationTimestamp"] = Value::Null;
        template["spec"]["volumeMode"] = "Filesystem".into();
        template["status"] = json!({ "phase": "Pending" });
        set
    }

    const EMPTY: &str = r#"[{ "name": "run" }, { "name": "data", "emptyDir": {} }]"#;
    const NO_DATA: &str = r#"[{ "name": "run" }]"#;

    fn volumes(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn claims_stay_what_they_are_and_all_else_follows_the_plan() {
        let of = |size, class| set(&claims(size, class), &volumes(NO_DATA));
        let live = defaulted(of("10Gi", Some("slow")));
        for planned in [
            of("20Gi", Some("slow")),
            of("10Gi", Some("fast")),
            of("10Gi", None),
        ] {
            let mut planned = planned;
            planned["spec"]["replicas"] = 1.into();
            let kept = on_live_volumes(&live, planned.clone());
            assert_eq!(
                drift(&live, &kept).as_deref(),
                Some("spec.replicas: 3 instead of 1"),
                "and nothing of the claims"
            );
            let claim = &kept["spec"]["volumeClaimTemplates"][0];
            assert_eq!(claim["spec"]["storageClassName"], "slow");
            let mut all_else = kept.clone();
            all_else["spec"]["volumeClaimTemplates"] =
                planned["spec"]["volumeClaimTemplates"].clone();
            assert_eq!(all_else, planned);
        }
    }

    #[test]
    fn a_volume_of_the_pod_does_not_become_a_claim_nor_a_claim_one_of_the_pod() {
        let in_pods = set(&Value::Null, &volumes(EMPTY));
        let on_claims = set(&claims("10Gi", None), &volumes(NO_DATA));
        for (live, planned) in [
            (in_pods.clone(), on_claims.clone()),
            (defaulted(on_claims), in_pods),
        ] {
            assert!(drift(&live, &planned).is_some());
            let kept = on_live_volumes(&live, planned);
            assert_eq!(drift(&live, &kept), None);
            assert_eq!(
                kept["spec"]["template"], live["spec"]["template"],
                "pods mount what they did"
            );
        }
    }

    #[test]
    fn what_is_kept_is_told() {
        let of = |size, class| set(&claims(size, class), &volumes(NO_DATA));
        let live = defaulted(of("10Gi", None));
        assert_eq!(kept_volumes(&live, &of("10Gi", None)), None);
        let told = |planned: &Value| kept_volumes(&live, planned).unwrap();
        let grown = told(&of("20Gi", None));
        assert!(
            grown.starts_with("postgres keeps claims of 10Gi, where the spec has claims of 20Gi:"),
            "{grown}"
        );
        let other = told(&of("10Gi", Some("fast")));
        assert!(
            other.contains("claims of 10Gi of StorageClass fast"),
            "{other}"
        );
        let none = told(&set(&Value::Null, &volumes(EMPTY)));
        assert!(
            none.contains("where the spec has volumes in its pods"),
            "{none}"
        );
    }

    #[test]
    fn other_objects_and_new_ones_are_as_planned() {
        let planned = set(&claims("10Gi", None), &volumes(NO_DATA));
        assert_eq!(
            on_live_volumes(&json!({ "metadata": {} }), planned.clone()),
            planned
        );
        let deployment = json!({ "kind": "Deployment", "spec": { "replicas": 3 } });
        let live = set(&claims("10Gi", None), &volumes(NO_DATA));
        assert_eq!(on_live_volumes(&live, deployment.clone()), deployment);
        assert_eq!(kept_volumes(&live, &deployment), None);
    }
}
