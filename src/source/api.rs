//! The cluster from an API server: lists once, or watches for good, with upstream's selectors (spec section 2).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, ListParams, ObjectMeta};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DynamicResourceScope;
use kube::{Api, Client, Config, Resource};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tower::layer::layer_fn;

use super::object::{Kind, ObjectId};
use super::outage::Outages;
use super::requests::{Observed, Observer};
use super::watching::follow;
use super::{Complaints, Update, convert};
use crate::cluster::{Change, Node, Snapshot};

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

    /// A client for that server, whose every request somebody is told of. It does not try refused ones again, as [`Self::client`] does:
    /// after a minute of refusals that would take another minute to notice that there are none any more.
    ///
    /// # Errors
    /// As for [`Self::client`].
    pub async fn observed_client(&self, observer: Arc<dyn Observer>) -> anyhow::Result<Client> {
        let mut config = self.config().await?;
        config.default_retry = false;
        let host: Arc<str> = config.cluster_url.authority().map(http::uri::Authority::as_str).unwrap_or_default().into();
        let layer = layer_fn(move |inner| Observed::new(inner, Arc::clone(&host), Arc::clone(&observer)));
        Ok(ClientBuilder::try_from(config).context(NO_CONNECTION)?.with_layer(&layer).build())
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
    pub kind: Kind,
    pub resource: ApiResource,
    pub labels: Option<&'static str>,
    pub fields: Option<String>,
}

fn watched(node_name: &str) -> [Watched; 3] {
    [
        Watched {
            kind: Kind::Service,
            resource: ApiResource::erase::<core::Service>(&()),
            labels: Some("!service.kubernetes.io/service-proxy-name"),
            fields: Some("spec.clusterIP!=None".into()),
        },
        Watched {
            kind: Kind::EndpointSlice,
            resource: ApiResource::erase::<EndpointSlice>(&()),
            labels: Some("!service.kubernetes.io/headless"),
            fields: None,
        },
        Watched {
            kind: Kind::Node,
            resource: ApiResource::erase::<core::Node>(&()),
            labels: None,
            fields: Some(format!("metadata.name={node_name}")),
        },
    ]
}

/// The cluster as it is at this moment.
///
/// # Errors
/// A list that the server does not give.
pub async fn snapshot(client: &Client, node_name: &str) -> anyhow::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    let mut complaints = Complaints::default();
    for Watched { kind, resource, labels, fields } in watched(node_name) {
        let api: Api<Raw> = Api::all_with(client.clone(), &resource);
        let parameters = ListParams { label_selector: labels.map(str::to_owned), field_selector: fields, ..ListParams::default() };
        let list = api.list(&parameters).await.with_context(|| format!("cannot list {}{}", resource.plural, permission_hint(kind)))?;
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
    let api: Api<Raw> = Api::all_with(client.clone(), &ApiResource::erase::<core::Node>(&()));
    let found = api.get_opt(node_name).await.with_context(|| format!("cannot get Node {node_name}{}", permission_hint(Kind::Node)))?;
    let converted = found.map(|object| convert::text(&object.id(Kind::Node), object.text.get()).change);
    Ok(match converted {
        Some(Change::Node(node)) => node,
        _ => None,
    })
}

pub(super) const fn permission_hint(kind: Kind) -> &'static str {
    match kind {
        Kind::Service | Kind::EndpointSlice => " (needs the verbs list and watch; ClusterRole system:node-proxier has them)",
        Kind::Node => " (needs the verbs get, list and watch; ClusterRole system:node-proxier has them)",
    }
}

/// Everything that happens to the cluster, from its present state on, for good. Interruptions are logged and mended.
///
/// A client that tries refused requests again by itself delays that: see [`Connection::observed_client`].
#[must_use]
pub fn updates(client: &Client, node_name: &str) -> BoxStream<'static, Update> {
    let outages = Arc::new(Outages::default());
    let streams = watched(node_name).map(|watched| follow(client, watched, Arc::clone(&outages)));
    futures::stream::select_all(streams).boxed()
}
