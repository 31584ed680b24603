//! Objects as JSON, and how they are kept: as bytes, with the little that is asked of them often.

use hyper::body::Bytes;
use serde_json::{Map, Value, json};

use crate::refusal::Refusal;
use crate::resource::Resource;

/// An object while it is being written.
pub(crate) type Object = Map<String, Value>;

/// A field that must be an object itself; it is created if it is missing.
pub(crate) fn child<'a>(object: &'a mut Object, field: &str) -> Result<&'a mut Object, Refusal> {
    let value = object.entry(field).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().ok_or_else(|| Refusal::bad_request(format!("json: cannot unmarshal field {field} into Go value")))
}

/// A field of `metadata`, empty if it is not a string.
pub(crate) fn meta_text<'a>(object: &'a Object, field: &str) -> &'a str {
    object.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// A value that must be an object.
pub(crate) fn as_object(value: Value, resource: Resource) -> Result<Object, Refusal> {
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(Refusal::bad_request(format!("the object provided is unrecognized (must be of type {})", resource.kind))),
    }
}

/// Where an object is kept: sorted as lists are.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Empty for cluster-wide resources.
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// An object as it is stored.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    pub(crate) uid: Box<str>,
    /// `metadata.resourceVersion`.
    pub(crate) version: u64,
    pub(crate) labels: Vec<(Box<str>, Box<str>)>,
    /// Values of the fields that selectors may name, in the order of the resource's table row.
    pub(crate) fields: Box<[Box<str>]>,
    full: Bytes,
    /// Where the fields after `kind` and `apiVersion` start in `full`.
    rest: usize,
}

impl Entry {
    /// Stores an object under a resource version.
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
        let key = Key::new(meta_text(&object, "namespace"), meta_text(&object, "name"));
        let uid = meta_text(&object, "uid").into();
        let (full, rest) = write(resource, object);
        Self { key, uid, version, labels, fields, full, rest }
    }

    /// The object with `kind` and `apiVersion`.
    pub(crate) fn full(&self) -> Bytes {
        self.full.clone()
    }

    /// The object without them and without its opening brace, as the items of lists are written.
    pub(crate) fn list_item(&self) -> &[u8] {
        &self.full[self.rest..]
    }

    /// The object, to be changed.
    pub(crate) fn object(&self) -> Result<Object, Refusal> {
        serde_json::from_slice(&self.full).map_err(|error| Refusal::internal(&error.to_string()))
    }

    /// The same object at another resource version.
    pub(crate) fn at_version(&self, resource: Resource, version: u64) -> Result<Self, Refusal> {
        Ok(Self::new(resource, self.object()?, version))
    }

    /// The object's metadata alone, as a `PartialObjectMetadata`.
    pub(crate) fn metadata_only(&self) -> Bytes {
        let metadata = self.object().ok().and_then(|mut object| object.remove("metadata"));
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}).to_string().into()
    }
}

/// An object as it is sent.
pub(crate) fn to_bytes(resource: Resource, object: Object) -> Bytes {
    write(resource, object).0
}

/// The bytes, and where the fields after `kind` and `apiVersion` start.
fn write(resource: Resource, mut object: Object) -> (Bytes, usize) {
    object.remove("kind");
    object.remove("apiVersion");
    let mut text = format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",", resource.kind, resource.api_version());
    let rest = text.len();
    text.push_str(&Value::Object(object).to_string()[1..]);
    (text.into(), rest)
}

/// The value a field selector compares with; a missing flag is false.
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
