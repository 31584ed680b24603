//! The cluster from an API server: lists once, or watches for good, with upstream's selectors (spec section 2).

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

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
use serde_json::value::RawValue;

use super::object::{Kind, ObjectId};
use super::{Complaints, Known, Update, convert};
use crate::cluster::Snapshot;

/// An object as the server sends it: its text, and the little that a watch has to know. Nothing in it can make a whole list fail: it is
/// only looked at when it is converted.
#[derive(Clone, Debug)]
struct Raw {
    metadata: ObjectMeta,
    text: Box<RawValue>,
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
    fn id(&self, kind: Kind) -> ObjectId {
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
        // A watch is silent for minutes, and then the watcher's own time limit ends it; this is for servers that never answer.
        config.read_timeout = Some(SILENCE);
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
            let id = object.id(kind);
            let converted = convert::text(&id, object.text.get());
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
    let mut config = watcher::Config::default();
    if let Some(labels) = labels {
        config = config.labels(labels);
    }
    if let Some(fields) = &fields {
        config = config.fields(fields);
    }
    let api: Api<Raw> = Api::all_with(client.clone(), &resource);
    let state = Following { client: client.clone(), api, config, kind, plural: resource.plural, tracker: Tracker::new(kind), watch: None };
    futures::stream::unfold(state, |mut state| async move {
        let updates = state.next().await;
        Some((futures::stream::iter(updates), state))
    })
    .flatten()
    .boxed()
}

/// A watch that is under way.
struct Watch {
    events: BoxStream<'static, watcher::Result<watcher::Event<Raw>>>,
    /// The initial objects come as events, not as a list.
    streaming: bool,
    /// Refusals since the last event.
    refusals: usize,
}

/// One kind, followed for good.
struct Following {
    client: Client,
    api: Api<Raw>,
    config: watcher::Config,
    kind: Kind,
    plural: String,
    tracker: Tracker,
    watch: Option<Watch>,
}

/// A server that refuses this often in a row has lost the history that the watch goes on from, and does not say so.
const REFUSALS: usize = 3;
/// This one does: its versions start over, and it waits for ours to come.
const FROM_THE_FUTURE: &str = "Too large resource version";

impl Following {
    /// The updates that the next event brings.
    async fn next(&mut self) -> Vec<Update> {
        let watch = if let Some(watch) = &mut self.watch {
            watch
        } else {
            let streaming = streams_lists(&self.client).await;
            self.watch.insert(start(&self.api, &self.config, streaming))
        };
        match watch.events.next().await {
            Some(Ok(event)) => {
                watch.refusals = 0;
                self.tracker.take(event)
            }
            Some(Err(error)) => {
                if let Some(answer) = refusal(&error) {
                    watch.refusals += 1;
                    // A server without streaming lists refuses the very first request.
                    if watch.streaming || watch.refusals >= REFUSALS || answer.contains(FROM_THE_FUTURE) {
                        *watch = start(&self.api, &self.config, false);
                    }
                }
                tracing::warn!("watch of {} interrupted{}: {}", self.plural, permission_hint(self.kind), causes(&error));
                Vec::new()
            }
            None => {
                self.watch = None;
                Vec::new()
            }
        }
    }
}

fn start(api: &Api<Raw>, config: &watcher::Config, streaming: bool) -> Watch {
    let config = if streaming { config.clone().streaming_lists() } else { config.clone() };
    Watch { events: watcher(api.clone(), config).default_backoff().boxed(), streaming, refusals: 0 }
}

/// Servers before 1.27 do not know of streaming lists and would leave us waiting for their end; later ones have them or say no.
async fn streams_lists(client: &Client) -> bool {
    let Ok(version) = client.apiserver_version().await else { return false };
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
    (number(&version.major), number(&version.minor)) >= (1, 27)
}

/// What the server said, if it answered and its answer was no.
fn refusal(error: &watcher::Error) -> Option<String> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.message.clone()),
        watcher::Error::WatchError(status) => Some(status.message.clone()),
        watcher::Error::NoResourceVersion => Some(error.to_string()),
        _ => None,
    }
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
    /// What a list that is under way has told; nothing is kept of the first one, before which there was nothing.
    seen: Option<HashSet<ObjectId>>,
    told_any: bool,
    complaints: Complaints,
}

impl Tracker {
    fn new(kind: Kind) -> Self {
        Self { kind, seen: None, told_any: false, complaints: Complaints::default() }
    }

    fn take(&mut self, event: watcher::Event<Raw>) -> Vec<Update> {
        match event {
            watcher::Event::Init => {
                self.seen = self.told_any.then(HashSet::new);
                Vec::new()
            }
            watcher::Event::InitApply(object) => {
                let id = object.id(self.kind);
                if let Some(seen) = &mut self.seen {
                    seen.insert(id.clone());
                }
                vec![self.applied(&id, &object)]
            }
            watcher::Event::InitDone => {
                let listed = self.seen.take().and_then(|seen| self.known(&seen)).map(Update::Listed);
                listed.into_iter().chain([Update::Complete(self.kind)]).collect()
            }
            watcher::Event::Apply(object) => {
                let id = object.id(self.kind);
                vec![self.applied(&id, &object)]
            }
            watcher::Event::Delete(object) => {
                let id = object.id(self.kind);
                self.complaints.note(&id, None);
                vec![Update::Change(convert::gone(&id))]
            }
        }
    }

    fn applied(&mut self, id: &ObjectId, object: &Raw) -> Update {
        self.told_any = true;
        let converted = convert::text(id, object.text.get());
        self.complaints.note(id, converted.problem.as_ref());
        Update::Change(converted.change)
    }

    fn known(&self, seen: &HashSet<ObjectId>) -> Option<Known> {
        match self.kind {
            Kind::Service => Some(Known::Services(seen.iter().map(convert::service_key).collect())),
            Kind::EndpointSlice => Some(Known::Slices(seen.iter().map(convert::slice_key).collect())),
            // A deleted Node keeps its last facts.
            Kind::Node => None,
        }
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
        serde_json::from_str(&value.to_string()).expect("any object is taken")
    }

    #[test]
    fn what_a_new_list_leaves_out_is_gone() {
        let mut tracker = Tracker::new(Kind::Service);
        let mut take = |event| tracker.take(event);
        assert!(take(watcher::Event::Init).is_empty());
        assert!(
            matches!(take(watcher::Event::InitApply(raw("a"))).as_slice(), [Update::Change(Change::Service(key, Some(_)))] if &*key.name == "a")
        );
        assert_eq!(take(watcher::Event::InitApply(raw("b"))).len(), 1);
        assert!(matches!(take(watcher::Event::InitDone).as_slice(), [Update::Complete(Kind::Service)]));
        take(watcher::Event::Init);
        take(watcher::Event::InitApply(raw("b")));
        let updates = take(watcher::Event::InitDone);
        let [Update::Listed(Known::Services(known)), Update::Complete(_)] = updates.as_slice() else { panic!("{updates:?}") };
        assert_eq!(known.iter().map(|key| &*key.name).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_broken_object_costs_only_itself() {
        for text in ["{\"metadata\": 7}", "[]", "{\"metadata\": {\"name\": \"x\", \"annotations\": 5}}"] {
            let raw: Raw = serde_json::from_str(text).expect("any JSON is taken");
            let mut tracker = Tracker::new(Kind::Service);
            assert!(matches!(tracker.take(watcher::Event::Apply(raw)).as_slice(), [Update::Change(Change::Service(_, None))]), "{text}");
        }
    }
}
