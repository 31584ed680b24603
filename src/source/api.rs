//! The cluster from an API server: lists once, or watches for good, with upstream's selectors (spec section 2).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, ListParams, ObjectMeta};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DynamicResourceScope;
use kube::{Api, Client, Config, Resource};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use tower::layer::layer_fn;
use tower::service_fn;

use super::connections::{Connections, Renewed};
use super::nodes::{NodeTracker, NodeUpdate};
use super::object::{Kind, ObjectId, Subject};
use super::outage::Outages;
use super::requests::{Observed, Observer};
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

/// No answer for so long is none.
const SILENCE: Duration = Duration::from_secs(300);

const NO_CONNECTION: &str = "cannot set up the connection to the API server";

/// How to reach the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Path of a kubeconfig; without one it is found as kubectl finds it, or in-cluster.
    pub kubeconfig: Option<String>,
    /// Address of the server, overrides the kubeconfig's.
    pub master: Option<String>,
}

impl Connection {
    /// A client for that server.
    ///
    /// # Errors
    /// The kubeconfig cannot be read or used, or there is none.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let config = self.config().await?;
        Client::try_from(config).context(NO_CONNECTION)
    }

    /// The server's address.
    ///
    /// # Errors
    /// As for [`Self::client`].
    pub async fn url(&self) -> anyhow::Result<String> {
        Ok(self.config().await?.cluster_url.to_string())
    }

    /// A client for that server, whose every request somebody is told of. It does not try refused ones again, as [`Self::client`] does:
    /// after a minute of refusals that would take another minute to notice that there are none any more. Its connections can be given up.
    ///
    /// # Errors
    /// As for [`Self::client`].
    pub async fn observed_client(&self, observer: Arc<dyn Observer>, connections: &Connections) -> anyhow::Result<Client> {
        let mut config = self.config().await?;
        config.default_retry = false;
        let host: Arc<str> = config.cluster_url.authority().map(http::uri::Authority::as_str).unwrap_or_default().into();
        let layer = layer_fn(move |inner| Observed::new(inner, Arc::clone(&host), Arc::clone(&observer)));
        let namespace = config.default_namespace.clone();
        let new = move || {
            let client = Client::try_from(config.clone())?;
            Ok::<_, kube::Error>(service_fn(move |request| {
                let client = client.clone();
                async move { client.send(request).await }
            }))
        };
        let renewed = Renewed::new(new().context(NO_CONNECTION)?, move || new().ok(), connections);
        Ok(ClientBuilder::new(renewed, namespace).with_layer(&layer).build())
    }

    async fn config(&self) -> anyhow::Result<Config> {
        let mut config = match (&self.kubeconfig, &self.master) {
            (Some(path), _) => {
                let file = Kubeconfig::read_from(path).with_context(|| format!("cannot use kubeconfig {path}"))?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(file, &options).await.with_context(|| format!("cannot use kubeconfig {path}"))?
            }
            (None, Some(master)) => Config::new(parse_url(master)?),
            (None, None) => {
                Config::infer().await.context("no API server to talk to: give --kubeconfig, or --manifests to do without one")?
            }
        };
        if let Some(master) = &self.master {
            config.cluster_url = parse_url(master)?;
        }
        // A watch is silent for minutes, and then its own time limit ends it; this is for servers that never answer.
        config.read_timeout = Some(SILENCE);
        tracing::info!("API server: {}", config.cluster_url);
        Ok(config)
    }
}

fn parse_url(master: &str) -> anyhow::Result<http::Uri> {
    let url: http::Uri = master.parse().with_context(|| format!("--master {master:?} is not a URL"))?;
    anyhow::ensure!(url.scheme().is_some() && url.authority().is_some(), "--master {master:?} is not a URL like https://10.0.0.1:6443");
    Ok(url)
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
        let list = listed.with_context(|| format!("cannot list {}{}", resource.plural, subject.permission_hint()))?;
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
    let hint = Subject::Proxy(Kind::Node).permission_hint();
    let found = api.get_opt(node_name).await.with_context(|| format!("cannot get Node {node_name}{hint}"))?;
    let converted = found.map(|object| convert::text(&object.id(Kind::Node), object.text.get()).change);
    Ok(match converted {
        Some(Change::Node(node)) => node,
        _ => None,
    })
}

/// The watches of one process. They share what they know of the server: the first one to get through after an outage tells the others.
#[derive(Clone)]
pub struct Watches {
    client: Client,
    outages: Arc<Outages>,
}

impl Watches {
    /// Watches by a client. One that tries refused requests again by itself delays them: see [`Connection::observed_client`].
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
