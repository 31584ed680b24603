//! API objects as JSON text, and the selection of objects that a watch covers.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kube::Resource;
use kube::api::{ApiResource, ObjectMeta};
use kube::core::DynamicResourceScope;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::object::{Kind, ObjectId, Subject};

/// An object as JSON text, with the metadata that a watch needs. The text is parsed later, object by object, so that one broken object does
/// not fail a whole list.
#[derive(Clone, Debug)]
pub(crate) struct RawObject {
    pub metadata: ObjectMeta,
    pub text: Box<RawValue>,
}

impl RawObject {
    pub(crate) fn id(&self, kind: Kind) -> ObjectId {
        ObjectId::new(kind, self.metadata.namespace.as_deref().unwrap_or_default(), self.metadata.name.as_deref().unwrap_or_default())
    }
}

impl<'de> Deserialize<'de> for RawObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let Identity { name, namespace, resource_version, annotations } =
            serde_json::from_str::<Identified>(text.get()).unwrap_or_default().metadata;
        Ok(Self { metadata: ObjectMeta { name, namespace, resource_version, annotations, ..ObjectMeta::default() }, text })
    }
}

impl Serialize for RawObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text.serialize(serializer)
    }
}

impl Resource for RawObject {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The metadata that a watch needs.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Identity {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    /// A bookmark may have the annotation that ends the initial events.
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Identified {
    metadata: Identity,
}

/// The objects of one kind that a watch covers.
pub(crate) struct WatchTarget {
    pub subject: Subject,
    pub resource: ApiResource,
    /// One namespace; `None` for all.
    pub namespace: Option<String>,
    pub labels: Option<String>,
    pub fields: Option<String>,
}

impl WatchTarget {
    pub(crate) const fn all(subject: Subject, resource: ApiResource) -> Self {
        Self { subject, resource, namespace: None, labels: None, fields: None }
    }
}
