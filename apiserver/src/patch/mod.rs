//! Applies patches of each kind to objects.

mod json;
mod strategic;

use serde_json::Value;

use crate::object::Object;
use crate::resource::Resource;
use crate::status_error::StatusError;

/// The kind of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchKind {
    /// JSON patch, RFC 6902.
    Json,
    /// JSON merge patch, RFC 7396.
    Merge,
    /// Strategic merge patch, which merges lists by their keys.
    Strategic,
    /// Apply patch: merged like a strategic merge patch. Creates the object if it does not exist.
    Apply,
}

impl PatchKind {
    const ALL: [(&'static str, Self); 4] = [
        ("application/json-patch+json", Self::Json),
        ("application/merge-patch+json", Self::Merge),
        ("application/apply-patch+yaml", Self::Apply),
        ("application/strategic-merge-patch+json", Self::Strategic),
    ];

    /// The kind of patch with this content type.
    pub(crate) fn from_content_type(content_type: &str) -> Result<Self, StatusError> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == content_type);
        found.map(|(_, kind)| kind).ok_or_else(|| StatusError::unsupported_media_type(&Self::ALL.map(|(name, _)| name).join(", ")))
    }
}

/// Applies a patch to an object.
pub(crate) fn apply(kind: PatchKind, resource: Resource, base: Object, patch: &Value) -> Result<Object, StatusError> {
    let patched = match (kind, patch) {
        (PatchKind::Json, Value::Array(operations)) => json::apply(Value::Object(base), operations)?,
        (PatchKind::Merge, Value::Object(_)) => {
            let mut document = Value::Object(base);
            json_patch::merge(&mut document, patch);
            document
        }
        (PatchKind::Strategic | PatchKind::Apply, Value::Object(_)) => strategic::apply(resource, Value::Object(base), patch),
        _ => return Err(StatusError::bad_request("json: cannot unmarshal the patch into Go value")),
    };
    match patched {
        Value::Object(object) => Ok(object),
        _ => Err(StatusError::bad_request("the patched document is not an object")),
    }
}
