//! Reads the cluster from the API server, once or continuously, with kube-proxy's selectors [kube-proxy 2].

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
use super::raw::{RawObject, WatchTarget};
use super::tracker::Tracker;
use super::watcher::{self, ObjectTracker};
use super::{ClusterUpdate, ProblemLog, convert};
use crate::cluster::{Change, Node, Snapshot};

/// What to list and watch of a kind.
fn watch_target(kind: Kind, node_name: &str) -> WatchTarget {
    let subject = Subject::Proxy(kind);
    match kind {
        Kind::Service => WatchTarget {
            labels: Some("!service.kubernetes.io/service-proxy-name".into()),
            fields: Some("spec.clusterIP!=None".into()),
            ..WatchTarget::all(subject, ApiResource::erase::<core::Service>(&()))
        },
        Kind::EndpointSlice => WatchTarget {
            labels: Some("!service.kubernetes.io/headless".into()),
            ..WatchTarget::all(subject, ApiResource::erase::<EndpointSlice>(&()))
        },
        Kind::Node => WatchTarget { fields: Some(format!("metadata.name={node_name}")), ..WatchTarget::all(subject, node_resource()) },
    }
}

pub(crate) fn lease_resource() -> ApiResource {
    ApiResource::erase::<Lease>(&())
}

pub(crate) fn node_resource() -> ApiResource {
    ApiResource::erase::<core::Node>(&())
}

/// Lists the cluster once.
///
/// # Errors
/// A list fails.
pub async fn snapshot(client: &Client, node_name: &str) -> anyhow::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    let mut problems = ProblemLog::default();
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        let WatchTarget { subject, resource, labels, fields, .. } = watch_target(kind, node_name);
        let api: Api<RawObject> = Api::all_with(client.clone(), &resource);
        let parameters = ListParams { label_selector: labels, field_selector: fields, ..ListParams::default() };
        let listed = api.list(&parameters).await;
        let list = listed.map_err(|error| refused(&format!("cannot list {}", resource.plural), subject, error))?;
        for object in list {
            let id = object.id(kind);
            let converted = convert::text(&id, object.text.get());
            problems.note(&id, converted.problem.as_ref());
            snapshot.apply(converted.change);
        }
    }
    Ok(snapshot)
}

/// Gets this node's Node; `None` if it does not exist or cannot be used.
///
/// # Errors
/// The request fails.
pub async fn node(client: &Client, node_name: &str) -> anyhow::Result<Option<Node>> {
    let api: Api<RawObject> = Api::all_with(client.clone(), &node_resource());
    let found = api.get_opt(node_name).await;
    let found = found.map_err(|error| refused(&format!("cannot get Node {node_name}"), Subject::Proxy(Kind::Node), error))?;
    let converted = found.map(|object| convert::text(&object.id(Kind::Node), object.text.get()).change);
    Ok(match converted {
        Some(Change::Node(node)) => node,
        _ => None,
    })
}

/// An error that names the request, and the permission if the server forbids it.
fn refused(what: &str, subject: Subject, error: kube::Error) -> anyhow::Error {
    let forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
    let hint = if forbidden { subject.permission_hint() } else { "" };
    anyhow::Error::new(error).context(format!("{what}{hint}"))
}

/// The watches of one process. They share one backoff: after an outage, the first answer ends the wait of all.
#[derive(Clone)]
pub struct Watches {
    client: Client,
    outages: Arc<Outages>,
}

impl Watches {
    /// Watches that use this client. It must not retry failed requests itself, which would delay them: see
    /// [`super::client::ConnectionSettings::observed_client`].
    #[must_use]
    pub fn new(client: &Client) -> Self {
        Self { client: client.clone(), outages: Arc::default() }
    }

    /// All updates of the Services, EndpointSlices and this node's Node, starting with a full list. The stream never ends: after failures the
    /// watches reconnect.
    #[must_use]
    pub fn cluster(&self, node_name: &str) -> BoxStream<'static, ClusterUpdate> {
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Node];
        futures::stream::select_all(kinds.map(|kind| self.follow(watch_target(kind, node_name), Tracker::new(kind)))).boxed()
    }

    /// All updates of the target's objects. The stream never ends.
    pub(crate) fn follow<T: ObjectTracker>(&self, target: WatchTarget, tracker: T) -> BoxStream<'static, T::Update> {
        watcher::updates(&self.client, target, tracker, Arc::clone(&self.outages))
    }
}

/// [`Watches::cluster`] without other watches.
#[must_use]
pub fn updates(client: &Client, node_name: &str) -> BoxStream<'static, ClusterUpdate> {
    Watches::new(client).cluster(node_name)
}
