//! The cluster from an API server: lists once, or watches for good, with upstream's selectors (spec section 2).

use std::borrow::Cow;
use std::collections::HashSet;

use anyhow::Context;
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, ListParams, ObjectMeta};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DynamicResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config, Resource};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::object::{Kind, ObjectId};
use super::{Complaints, Update, convert};
use crate::cluster::Snapshot;

/// An object as the server sends it. Nothing in it can make a whole list fail: it is only looked at when it is converted.
#[derive(Clone, Debug)]
struct Raw {
    metadata: ObjectMeta,
    value: Value,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let mut metadata = ObjectMeta::default();
        if let Some(Value::Object(fields)) = value.get_mut("metadata") {
            fields.remove("managedFields");
            let text = |field: &str| fields.get(field).and_then(Value::as_str).map(str::to_owned);
            metadata.name = text("name");
            metadata.namespace = text("namespace");
            metadata.resource_version = text("resourceVersion");
        }
        Ok(Self { metadata, value })
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
        // A watch is silent for minutes; the watcher's own time limit ends one that has died.
        config.read_timeout = None;
        tracing::info!("API server: {}", config.cluster_url);
        Client::try_from(config).context("cannot set up the connection to the API server")
    }
}

fn parse_url(master: &str) -> anyhow::Result<http::Uri> {
    let url: http::Uri = master.parse().with_context(|| format!("--master {master:?} is not a URL"))?;
    anyhow::ensure!(url.scheme().is_some() && url.authority().is_some(), "--master {master:?} is not a URL like https://10.0.0.1:6443");
    Ok(url)
}

/// What is read of one kind.
struct Watched {
    kind: Kind,
    resource: ApiResource,
    labels: Option<&'static str>,
    fields: Option<String>,
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
            let id = ObjectId::of(kind, &object.value);
            let converted = convert::object(&id, &object.value);
            complaints.note(&id, converted.problem.as_ref());
            snapshot.apply(converted.change);
        }
    }
    Ok(snapshot)
}

const fn permission_hint(kind: Kind) -> &'static str {
    match kind {
        Kind::Service | Kind::EndpointSlice => " (needs the verbs list and watch; ClusterRole system:node-proxier has them)",
        Kind::Node => " (needs the verbs get, list and watch; ClusterRole system:node-proxier has them)",
    }
}

/// Everything that happens to the cluster, from its present state on, for good. Interruptions are logged and mended.
#[must_use]
pub fn updates(client: &Client, node_name: &str) -> BoxStream<'static, Update> {
    let streams = watched(node_name).map(|watched| follow(client, watched));
    futures::stream::select_all(streams).boxed()
}

fn follow(client: &Client, watched: Watched) -> BoxStream<'static, Update> {
    let Watched { kind, resource, labels, fields } = watched;
    let api: Api<Raw> = Api::all_with(client.clone(), &resource);
    let mut config = watcher::Config::default();
    if let Some(labels) = labels {
        config = config.labels(labels);
    }
    if let Some(fields) = &fields {
        config = config.fields(fields);
    }
    let mut tracker = Tracker { kind, known: HashSet::new(), seen: HashSet::new(), complaints: Complaints::default() };
    let plural = resource.plural.clone();
    watcher(api, config)
        .default_backoff()
        .flat_map(move |event| {
            let updates = match event {
                Ok(event) => tracker.take(event),
                Err(error) => {
                    tracing::warn!("watch of {plural} interrupted{}: {}", permission_hint(kind), causes(&error));
                    Vec::new()
                }
            };
            futures::stream::iter(updates)
        })
        .boxed()
}

/// An error and everything behind it in one line, without repeating what an outer one says already.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Turns the events of one kind's watch into updates. A watch that starts over tells everything there is; what it leaves out is gone.
#[derive(Debug)]
struct Tracker {
    kind: Kind,
    known: HashSet<ObjectId>,
    seen: HashSet<ObjectId>,
    complaints: Complaints,
}

impl Tracker {
    fn take(&mut self, event: watcher::Event<Raw>) -> Vec<Update> {
        match event {
            watcher::Event::Init => {
                self.seen.clear();
                Vec::new()
            }
            watcher::Event::InitApply(object) => {
                let id = ObjectId::of(self.kind, &object.value);
                self.seen.insert(id.clone());
                vec![self.applied(id, &object.value)]
            }
            watcher::Event::InitDone => {
                let gone: Vec<ObjectId> = self.known.difference(&self.seen).cloned().collect();
                self.known = std::mem::take(&mut self.seen);
                let gone = gone.iter().map(|id| Update::Change(convert::gone(id)));
                gone.chain([Update::Complete(self.kind)]).collect()
            }
            watcher::Event::Apply(object) => {
                let id = ObjectId::of(self.kind, &object.value);
                vec![self.applied(id, &object.value)]
            }
            watcher::Event::Delete(object) => {
                let id = ObjectId::of(self.kind, &object.value);
                self.known.remove(&id);
                self.complaints.note(&id, None);
                vec![Update::Change(convert::gone(&id))]
            }
        }
    }

    fn applied(&mut self, id: ObjectId, value: &Value) -> Update {
        let converted = convert::object(&id, value);
        self.complaints.note(&id, converted.problem.as_ref());
        self.known.insert(id);
        Update::Change(converted.change)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::Change;

    fn raw(name: &str) -> Raw {
        let value =
            json!({"metadata": {"name": name, "namespace": "ns", "managedFields": [1]}, "spec": {"clusterIP": "10.0.0.1", "ports": []}});
        serde_json::from_value(value).expect("any object is taken")
    }

    #[test]
    fn what_a_new_list_leaves_out_is_gone() {
        let mut tracker = Tracker { kind: Kind::Service, known: HashSet::new(), seen: HashSet::new(), complaints: Complaints::default() };
        let mut take = |event| tracker.take(event);
        assert!(take(watcher::Event::Init).is_empty());
        assert_eq!(take(watcher::Event::InitApply(raw("a"))).len(), 1);
        assert_eq!(take(watcher::Event::InitApply(raw("b"))).len(), 1);
        assert!(matches!(take(watcher::Event::InitDone).as_slice(), [Update::Complete(Kind::Service)]));
        take(watcher::Event::Init);
        take(watcher::Event::InitApply(raw("b")));
        let updates = take(watcher::Event::InitDone);
        assert!(
            matches!(updates.as_slice(), [Update::Change(Change::Service(key, None)), Update::Complete(_)] if &*key.name == "a"),
            "{updates:?}"
        );
    }

    #[test]
    fn unused_parts_are_dropped_while_reading() {
        assert!(raw("a").value.pointer("/metadata/managedFields").is_none());
    }
}
