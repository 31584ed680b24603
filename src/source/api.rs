//! The cluster from an API server: lists once, or watches for good, with upstream's selectors (spec section 2).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, ListParams, ObjectMeta};
use kube::core::DynamicResourceScope;
use kube::{Api, Client, Resource};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::nodes::{NodeTracker, NodeUpdate};
use super::object::{Kind, ObjectId, Subject};
use super::outage::Outages;
use super::tracker::Tracker;
use super::watching::{Tracks, follow};
use super::{Complaints, Update, convert};
use crate::cluster::{Change, Node, Snapshot};
use crate::network::annotations::Prefix;

/// An object as the server sends it: its text, and the little that a watch has to know. Nothing in it can make a whole list fail: it is
/// only looked at when it is converted.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub metadata: ObjectMeta,
    pub text: Box<RawValue>,
}

/// What is needed of an object's metadata to watch it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Identity {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    /// Of a bookmark: that it ends the initial events.
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Identified {
    metadata: Identity,
}

impl Raw {
    pub(super) fn id(&self, kind: Kind) -> ObjectId {
        ObjectId::new(kind, self.metadata.namespace.as_deref().unwrap_or_default(), self.metadata.name.as_deref().unwrap_or_default())
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let Identity { name, namespace, resource_version, annotations } =
            serde_json::from_str::<Identified>(text.get()).unwrap_or_default().metadata;
        Ok(Self { metadata: ObjectMeta { name, namespace, resource_version, annotations, ..ObjectMeta::default() }, text })
    }
}

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text.serialize(serializer)
    }
}

impl Resource for Raw {
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

/// What is read of one kind.
pub(super) struct Watched {
    pub subject: Subject,
    pub resource: ApiResource,
    /// All namespaces, or only this one.
    pub namespace: Option<String>,
    pub labels: Option<String>,
    pub fields: Option<String>,
}

impl Watched {
    pub(super) const fn all(subject: Subject, resource: ApiResource) -> Self {
        Self { subject, resource, namespace: None, labels: None, fields: None }
    }
}

fn watched(kind: Kind, node_name: &str) -> Watched {
    let subject = Subject::Proxy(kind);
    match kind {
        Kind::Service => Watched {
            labels: Some("!service.kubernetes.io/service-proxy-name".into()),
            fields: Some("spec.clusterIP!=None".into()),
            ..Watched::all(subject, ApiResource::erase::<core::Service>(&()))
        },
        Kind::EndpointSlice => Watched {
            labels: Some("!service.kubernetes.io/headless".into()),
            ..Watched::all(subject, ApiResource::erase::<EndpointSlice>(&()))
        },
        Kind::Node => Watched { fields: Some(format!("metadata.name={node_name}")), ..Watched::all(subject, node_resource()) },
    }
}

pub(super) fn lease_resource() -> ApiResource {
    ApiResource::erase::<Lease>(&())
}

fn node_resource() -> ApiResource {
    ApiResource::erase::<core::Node>(&())
}

/// The cluster as it is at this moment.
///
/// # Errors
/// A list that the server does not give.
pub async fn snapshot(client: &Client, node_name: &str) -> anyhow::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    let mut complaints = Complaints::default();
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        let Watched { subject, resource, labels, fields, .. } = watched(kind, node_name);
        let api: Api<Raw> = Api::all_with(client.clone(), &resource);
        let parameters = ListParams { label_selector: labels, field_selector: fields, ..ListParams::default() };
        let listed = api.list(&parameters).await;
        let list = listed.map_err(|error| refused(&format!("cannot list {}", resource.plural), subject, error))?;
        for object in list {
            let id = object.id(kind);
            let converted = convert::text(&id, object.text.get());
            complaints.note(&id, converted.problem.as_ref());
            snapshot.apply(converted.change);
        }
    }
    Ok(snapshot)
}

/// This node's Node as it is at this moment; `None` if there is none, or it cannot be used.
///
/// # Errors
/// The server does not say.
pub async fn node(client: &Client, node_name: &str) -> anyhow::Result<Option<Node>> {
    let api: Api<Raw> = Api::all_with(client.clone(), &node_resource());
    let found = api.get_opt(node_name).await;
    let found = found.map_err(|error| refused(&format!("cannot get Node {node_name}"), Subject::Proxy(Kind::Node), error))?;
    let converted = found.map(|object| convert::text(&object.id(Kind::Node), object.text.get()).change);
    Ok(match converted {
        Some(Change::Node(node)) => node,
        _ => None,
    })
}

/// An error that says what could not be read, and which permission it needs if the server forbids it.
fn refused(what: &str, subject: Subject, error: kube::Error) -> anyhow::Error {
    let forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
    let hint = if forbidden { subject.permission_hint() } else { "" };
    anyhow::Error::new(error).context(format!("{what}{hint}"))
}

/// The watches of one process. They share what they know of the server: the first one to get through after an outage tells the others.
#[derive(Clone)]
pub struct Watches {
    client: Client,
    outages: Arc<Outages>,
}

impl Watches {
    /// Watches by a client. One that tries refused requests again by itself delays them: see [`super::client::Connection::observed_client`].
    #[must_use]
    pub fn new(client: &Client) -> Self {
        Self { client: client.clone(), outages: Arc::default() }
    }

    /// Everything that happens to what the proxy needs, from its present state on, for good. Interruptions are logged and mended.
    #[must_use]
    pub fn cluster(&self, node_name: &str) -> BoxStream<'static, Update> {
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Node];
        futures::stream::select_all(kinds.map(|kind| self.follow(watched(kind, node_name), Tracker::new(kind)))).boxed()
    }

    /// Everything that happens to all Nodes, in the few parts that the pod network needs. `prefix` is what names of flannel's annotations
    /// begin with.
    #[must_use]
    pub fn nodes(&self, prefix: &Prefix) -> BoxStream<'static, NodeUpdate> {
        self.follow(Watched::all(Subject::Nodes, node_resource()), NodeTracker::new(prefix))
    }

    pub(super) fn follow<T: Tracks>(&self, watched: Watched, tracker: T) -> BoxStream<'static, T::Told> {
        follow(&self.client, watched, tracker, Arc::clone(&self.outages))
    }
}

/// Everything that happens to the cluster, from its present state on, for good: [`Watches::cluster`] where there are no other watches.
#[must_use]
pub fn updates(client: &Client, node_name: &str) -> BoxStream<'static, Update> {
    Watches::new(client).cluster(node_name)
}
