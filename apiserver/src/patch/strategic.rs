//! Strategic merge patch: merges lists by the keys that Kubernetes declares for the type of an object.

use serde_json::{Map, Value};

use crate::resource::Resource;

/// How a list is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListMerge {
    /// The list of the patch replaces the stored one.
    Replace,
    /// Items that the stored list lacks are appended.
    Union,
    /// Items are objects. Items with the same value of this field are merged.
    ByKey(&'static str),
}

/// How the list in a field is merged.
fn list_merge(resource: Resource, field: &str) -> ListMerge {
    match (field, resource.plural) {
        ("conditions", "endpointslices") => ListMerge::Replace,
        ("conditions", _) | ("addresses", "nodes") => ListMerge::ByKey("type"),
        ("taints", _) => ListMerge::ByKey("key"),
        ("ports", "services") => ListMerge::ByKey("port"),
        ("ownerReferences", _) => ListMerge::ByKey("uid"),
        ("containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets", _) => ListMerge::ByKey("name"),
        ("volumeMounts", _) => ListMerge::ByKey("mountPath"),
        ("hostAliases", _) => ListMerge::ByKey("ip"),
        ("finalizers", _) | ("podCIDRs", "nodes") => ListMerge::Union,
        _ => ListMerge::Replace,
    }
}

/// Applies a patch to an object of a resource.
pub(super) fn apply(resource: Resource, base: Value, patch: &Value) -> Value {
    merge(resource, "", base, patch)
}

/// Merges the value of a field.
fn merge(resource: Resource, field: &str, base: Value, patch: &Value) -> Value {
    match patch {
        Value::Object(fields) => Value::Object(merge_fields(resource, into_map(base), fields)),
        Value::Array(items) => Value::Array(merge_items(resource, list_merge(resource, field), into_list(base), items)),
        _ => patch.clone(),
    }
}

fn merge_fields(resource: Resource, mut merged: Map<String, Value>, patch: &Map<String, Value>) -> Map<String, Value> {
    match directive(patch) {
        "replace" => merged = Map::new(),
        "delete" => return Map::new(),
        _ => {}
    }
    for (field, value) in patch {
        if let Some(list) = field.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(items)), Value::Array(removed)) = (merged.get_mut(list), value) {
                items.retain(|item| !removed.contains(item));
            }
        } else if field.starts_with('$') {
            // `$setElementOrder` only orders lists and `$retainKeys` only affects unions: not supported here.
        } else if value.is_null() {
            merged.remove(field);
        } else {
            let before = merged.remove(field).unwrap_or_default();
            merged.insert(field.clone(), merge(resource, field, before, value));
        }
    }
    merged
}

fn merge_items(resource: Resource, how: ListMerge, mut merged: Vec<Value>, patch: &[Value]) -> Vec<Value> {
    match how {
        ListMerge::ByKey(key) if patch.iter().all(Value::is_object) => {
            if patch.iter().filter_map(Value::as_object).any(|item| directive(item) == "replace") {
                return patch.iter().filter(|item| item.get("$patch").is_none()).cloned().collect();
            }
            for item in patch.iter().filter_map(Value::as_object) {
                let index = merged.iter().position(|stored| stored.get(key) == item.get(key));
                match (index, directive(item)) {
                    (Some(index), "delete") => drop(merged.remove(index)),
                    (None, "delete") => {}
                    (Some(index), _) => merged[index] = Value::Object(merge_fields(resource, into_map(merged[index].take()), item)),
                    (None, _) => merged.push(Value::Object(merge_fields(resource, Map::new(), item))),
                }
            }
            merged
        }
        ListMerge::Union => {
            let missing: Vec<_> = patch.iter().filter(|item| !merged.contains(item)).cloned().collect();
            merged.extend(missing);
            merged
        }
        ListMerge::ByKey(_) | ListMerge::Replace => patch.to_vec(),
    }
}

/// The value of `$patch`; empty if there is none.
fn directive(patch: &Map<String, Value>) -> &str {
    patch.get("$patch").and_then(Value::as_str).unwrap_or_default()
}

/// The fields of an object; no fields for other values.
fn into_map(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

/// The items of a list; no items for other values.
fn into_list(value: Value) -> Vec<Value> {
    if let Value::Array(items) = value { items } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    #[allow(clippy::needless_pass_by_value, reason = "the calls are shorter")]
    fn lists_are_merged_by_their_keys() {
        let nodes = Resource::named("nodes").unwrap();
        let check = |base: Value, patch: Value, expected: Value| assert_eq!(apply(nodes, base, &patch), expected, "{patch}");
        let conditions = json!({"conditions": [{"type": "Ready", "status": "True", "reason": "ok"}, {"type": "Disk", "status": "False"}]});
        check(
            conditions.clone(),
            json!({"conditions": [{"type": "Ready", "status": "False", "reason": null}, {"type": "Net", "status": "True"}]}),
            json!({"conditions": [{"type": "Ready", "status": "False"}, {"type": "Disk", "status": "False"}, {"type": "Net", "status": "True"}]}),
        );
        check(
            conditions.clone(),
            json!({"conditions": [{"type": "Disk", "$patch": "delete"}, {"type": "Gone", "$patch": "delete"}]}),
            json!({"conditions": [{"type": "Ready", "status": "True", "reason": "ok"}]}),
        );
        check(
            conditions,
            json!({"conditions": [{"$patch": "replace"}, {"type": "Net", "status": "True"}]}),
            json!({"conditions": [{"type": "Net", "status": "True"}]}),
        );
        check(
            json!({"addresses": [{"type": "Hostname", "address": "a"}], "taints": [{"key": "k", "effect": "NoSchedule"}]}),
            json!({"addresses": [{"type": "Hostname", "address": "b"}], "taints": [{"key": "l"}], "$setElementOrder/taints": []}),
            json!({"addresses": [{"type": "Hostname", "address": "b"}], "taints": [{"key": "k", "effect": "NoSchedule"}, {"key": "l"}]}),
        );
        check(
            json!({"metadata": {"finalizers": ["a", "b"]}, "images": [1, 2]}),
            json!({"metadata": {"finalizers": ["c", "a"]}, "images": [3]}),
            json!({"metadata": {"finalizers": ["a", "b", "c"]}, "images": [3]}),
        );
        check(
            json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "y"}}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "labels": {"$patch": "replace", "z": "1"}}}),
            json!({"metadata": {"finalizers": ["b"], "labels": {"z": "1"}}}),
        );
    }

    #[test]
    fn values_of_other_types_are_replaced() {
        let nodes = Resource::named("nodes").unwrap();
        assert_eq!(
            apply(nodes, json!({"conditions": "x"}), &json!({"conditions": [{"type": "A"}]})),
            json!({"conditions": [{"type": "A"}]})
        );
        assert_eq!(apply(nodes, json!({"taints": [{"key": "k"}]}), &json!({"taints": [1]})), json!({"taints": [1]}));
        assert_eq!(apply(nodes, json!({"a": 1}), &json!({"a": {"b": null, "$patch": 7}})), json!({"a": {}}));
    }

    #[test]
    fn list_keys_depend_on_the_resource() {
        let patch = json!({"ports": [{"port": 80, "name": "b"}], "addresses": ["c"]});
        let base = json!({"ports": [{"port": 80, "protocol": "TCP"}], "addresses": ["a"]});
        let patched = |name: &str| apply(Resource::named(name).unwrap(), base.clone(), &patch);
        assert_eq!(patched("services"), json!({"ports": [{"port": 80, "protocol": "TCP", "name": "b"}], "addresses": ["c"]}));
        assert_eq!(patched("endpointslices"), json!({"ports": [{"port": 80, "name": "b"}], "addresses": ["c"]}));
    }
}
