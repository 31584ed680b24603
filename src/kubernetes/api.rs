//! The cluster from an API server: lists once, or watches for good, with upstream's selectors (spec section 2).

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, ListParams};
use kube::{Api, Client};

use super::object::{Kind, Subject};
use super::outage::Outages;
use super::raw::{Raw, Watched};
use super::tracker::Tracker;
use super::watcher::{Tracks, follow};
use super::{Complaints, Update, convert};
use crate::cluster::{Change, Node, Snapshot};

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

pub(crate) fn lease_resource() -> ApiResource {
    ApiResource::erase::<Lease>(&())
}

pub(crate) fn node_resource() -> ApiResource {
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

    /// All updates of the objects that match, for good.
    pub(crate) fn follow<T: Tracks>(&self, watched: Watched, tracker: T) -> BoxStream<'static, T::Told> {
        follow(&self.client, watched, tracker, Arc::clone(&self.outages))
    }
}

/// Everything that happens to the cluster, from its present state on, for good: [`Watches::cluster`] where there are no other watches.
#[must_use]
pub fn updates(client: &Client, node_name: &str) -> BoxStream<'static, Update> {
    Watches::new(client).cluster(node_name)
}
