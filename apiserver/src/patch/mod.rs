//! The kinds of patches, applied to objects.

mod json;
mod strategic;

use serde_json::{Map, Value};

use crate::object::Object;
use crate::resource::Resource;
use crate::status_error::StatusError;

/// How a patch is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Merging lists by their keys.
    Strategic,
    /// As strategic, and what is missing is created.
    Apply,
}

impl PatchKind {
    const ALL: [(&'static str, Self); 4] = [
        ("application/json-patch+json", Self::Json),
        ("application/merge-patch+json", Self::Merge),
        ("application/apply-patch+yaml", Self::Apply),
        ("application/strategic-merge-patch+json", Self::Strategic),
    ];

    /// The one of a content type.
    pub(crate) fn from_content_type(content_type: &str) -> Result<Self, StatusError> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == content_type);
        found.map(|(_, kind)| kind).ok_or_else(|| StatusError::unsupported_media_type(&Self::ALL.map(|(name, _)| name).join(", ")))
    }
}

/// Applies a patch to an object.
pub(crate) fn apply(kind: PatchKind, resource: Resource, base: Object, patch: &Value) -> Result<Object, StatusError> {
    let patched = match (kind, patch) {
        (PatchKind::Json, Value::Array(operations)) => json::apply(Value::Object(base), operations)?,
        (PatchKind::Merge, Value::Object(_)) => merge(Value::Object(base), patch),
        (PatchKind::Strategic | PatchKind::Apply, Value::Object(_)) => strategic::apply(resource, Value::Object(base), patch),
        _ => return Err(StatusError::bad_request("json: cannot unmarshal the patch into Go value")),
    };
    match patched {
        Value::Object(object) => Ok(object),
        _ => Err(StatusError::bad_request("the patch leaves no object")),
    }
}

/// JSON merge patch.
fn merge(base: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut merged = into_map(base);
    for (field, value) in patch {
        if value.is_null() {
            merged.remove(field);
        } else {
            let before = merged.remove(field).unwrap_or_default();
            merged.insert(field.clone(), merge(before, value));
        }
    }
    Value::Object(merged)
}

/// The fields of an object; of anything else, none.
fn into_map(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

/// The items of a list; of anything else, none.
fn into_list(value: Value) -> Vec<Value> {
    if let Value::Array(items) = value { items } else { Vec::new() }
}
