//! API objects: as JSON while they are written, and as bytes with a few extracted fields while they are stored.

use hyper::body::Bytes;
use serde_json::{Map, Value, json};

use crate::resource::Resource;
use crate::status_error::StatusError;

/// An API object, or a part of one, as JSON.
pub(crate) type Object = Map<String, Value>;

/// Returns a field that must be an object. Creates it if it is missing or null.
pub(crate) fn child_mut<'a>(object: &'a mut Object, field: &str) -> Result<&'a mut Object, StatusError> {
    let value = object.entry(field).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().ok_or_else(|| StatusError::bad_request(format!("json: cannot unmarshal field {field} into Go value")))
}

/// A field of `metadata`; empty if it is missing or not a string.
pub(crate) fn metadata_text<'a>(object: &'a Object, field: &str) -> &'a str {
    object.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// Refuses a value that is not a JSON object.
pub(crate) fn expect_object(value: Value, resource: Resource) -> Result<Object, StatusError> {
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(StatusError::bad_request(format!("the object provided is unrecognized (must be of type {})", resource.kind))),
    }
}

/// Namespace and name of an object. Keys sort in the order of lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectKey {
    /// Empty for cluster-wide resources.
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

impl ObjectKey {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// A stored object.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: ObjectKey,
    pub(crate) uid: Box<str>,
    /// `metadata.resourceVersion`.
    pub(crate) version: u64,
    pub(crate) labels: Vec<(Box<str>, Box<str>)>,
    /// Values of the fields that field selectors may name, in the order of `Row::fields`.
    pub(crate) fields: Box<[Box<str>]>,
    full: Bytes,
    /// Offset in `full` of the fields after `kind` and `apiVersion`.
    fields_start: usize,
}

impl Entry {
    /// Encodes an object with a resource version.
    pub(crate) fn new(resource: Resource, mut object: Object, version: u64) -> Self {
        if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
            metadata.insert("resourceVersion".into(), version.to_string().into());
        }
        let labels = match object.get("metadata").and_then(|metadata| metadata.get("labels")) {
            Some(Value::Object(labels)) => {
                labels.iter().filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into()))).collect()
            }
            _ => Vec::new(),
        };
        let fields = resource.fields.iter().map(|path| field_text(&object, path).into()).collect();
        let key = ObjectKey::new(metadata_text(&object, "namespace"), metadata_text(&object, "name"));
        let uid = metadata_text(&object, "uid").into();
        let (full, fields_start) = encode_parts(resource, object);
        Self { key, uid, version, labels, fields, full, fields_start }
    }

    /// The encoded object with `kind` and `apiVersion`.
    pub(crate) fn full(&self) -> Bytes {
        self.full.clone()
    }

    /// The encoded object without `kind`, `apiVersion` and the opening brace. Items of lists have this form.
    pub(crate) fn list_item(&self) -> &[u8] {
        &self.full[self.fields_start..]
    }

    /// Decodes the object.
    pub(crate) fn object(&self) -> Result<Object, StatusError> {
        serde_json::from_slice(&self.full).map_err(|error| StatusError::internal(&error.to_string()))
    }

    /// The same object with another resource version.
    pub(crate) fn at_version(&self, resource: Resource, version: u64) -> Result<Self, StatusError> {
        Ok(Self::new(resource, self.object()?, version))
    }

    /// The object's metadata, encoded as a `PartialObjectMetadata`.
    pub(crate) fn metadata_only(&self) -> Bytes {
        let metadata = self.object().ok().and_then(|mut object| object.remove("metadata"));
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}).to_string().into()
    }
}

/// Encodes an object that is not stored.
pub(crate) fn encode(resource: Resource, object: Object) -> Bytes {
    encode_parts(resource, object).0
}

/// Encodes an object. Also returns the offset of the fields after `kind` and `apiVersion`.
fn encode_parts(resource: Resource, mut object: Object) -> (Bytes, usize) {
    object.remove("kind");
    object.remove("apiVersion");
    let mut text = format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",", resource.kind, resource.api_version());
    let fields_start = text.len();
    text.push_str(&Value::Object(object).to_string()[1..]);
    (text.into(), fields_start)
}

/// The value that a field selector compares with. A missing `spec.unschedulable` is `false`; other missing fields are empty.
fn field_text(object: &Object, path: &str) -> String {
    let mut names = path.split('.');
    let first = names.next().and_then(|name| object.get(name));
    match names.fold(first, |value, name| value.and_then(|value| value.get(name))) {
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
        _ if path == "spec.unschedulable" => "false".to_owned(),
        _ => String::new(),
    }
}
