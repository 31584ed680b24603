//! One kind of objects followed for good: a watch, and what it takes to keep it going whatever the server does.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::api::ListParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::ResetTimerBackoff;
use kube::runtime::watcher::{self, ExponentialBackoff, watcher};
use kube::{Api, Client};

use super::api::{Raw, Watched, permission_hint};
use super::object::{Kind, ObjectId};
use super::{Complaints, Known, Update, convert};

/// Everything that happens to the objects of one kind, for good.
pub(super) fn follow(client: &Client, watched: Watched, history: Arc<History>) -> BoxStream<'static, Update> {
    let Watched { kind, resource, labels, fields } = watched;
    let mut config = watcher::Config::default();
    if let Some(labels) = labels {
        config = config.labels(labels);
    }
    if let Some(fields) = &fields {
        config = config.fields(fields);
    }
    let api: Api<Raw> = Api::all_with(client.clone(), &resource);
    let state = Following {
        client: client.clone(),
        api,
        config,
        kind,
        plural: resource.plural,
        tracker: Tracker::new(kind),
        watch: None,
        doubtful: false,
        history,
        known_history: 0,
    };
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
    /// It has brought events.
    begun: bool,
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
    /// The server was out of reach, and may be another when it comes back.
    doubtful: bool,
    history: Arc<History>,
    known_history: u64,
}

/// What the watches of all kinds together have seen of the server's history: versions are common to all kinds.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The highest version seen of any object.
    version: AtomicU64,
    /// How many times it started over.
    number: AtomicU64,
}

impl History {
    fn saw(&self, object: &Raw) {
        let version = object.metadata.resource_version.as_deref().and_then(|version| version.parse().ok());
        self.version.fetch_max(version.unwrap_or_default(), Relaxed);
    }

    /// The server is at this version; gives the number of the history it is in.
    fn at(&self, version: u64) -> u64 {
        if version < self.version.load(Relaxed) {
            self.version.store(version, Relaxed);
            self.number.fetch_add(1, Relaxed);
        }
        self.number.load(Relaxed)
    }
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
        let event = tokio::select! {
            event = watch.events.next() => event,
            version = version(&self.api), if self.doubtful => {
                self.doubtful = false;
                let history = self.history.at(version);
                if history != self.known_history {
                    self.known_history = history;
                    tracing::warn!("the API server has another history than before: {} are listed anew", self.plural);
                    *watch = start(&self.api, &self.config, watch.streaming);
                }
                return Vec::new();
            }
        };
        match event {
            Some(Ok(event)) => {
                (watch.begun, watch.refusals) = (true, 0);
                if let watcher::Event::InitApply(object) | watcher::Event::Apply(object) | watcher::Event::Delete(object) = &event {
                    self.history.saw(object);
                }
                self.tracker.take(event)
            }
            Some(Err(error)) => {
                if let Some(answer) = refusal(&error) {
                    watch.refusals += usize::from(!struggling(&error));
                    // A server without streaming lists refuses the very first request.
                    let no_streaming = watch.streaming && !watch.begun;
                    if no_streaming || watch.refusals >= REFUSALS || answer.contains(FROM_THE_FUTURE) {
                        *watch = start(&self.api, &self.config, watch.streaming && !no_streaming);
                    }
                    if no_streaming {
                        tracing::debug!("the API server has no streaming list of {}: {answer}", self.plural);
                        return Vec::new();
                    }
                }
                self.doubtful |= refusal(&error).is_none();
                let hint = if causes(&error).contains("orbidden") { permission_hint(self.kind) } else { "" };
                tracing::warn!("watch of {} interrupted{hint}: {}", self.plural, causes(&error));
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
    Watch { events: watcher(api.clone(), config).backoff(pace()).boxed(), streaming, begun: false, refusals: 0 }
}

/// How long to wait after a failure: the library's own pace, but no more than a few seconds. Rules that are behind the cluster cost more
/// than a request.
fn pace() -> ResetTimerBackoff<ExponentialBackoff> {
    let growing = backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(400))
        .with_max_delay(Duration::from_secs(5))
        .with_factor(2.0)
        .with_jitter()
        .without_max_times();
    ResetTimerBackoff::new(growing.into(), Duration::from_secs(10))
}

/// The version the server is at, as soon as it answers. One whose versions have started over takes a watch from a version it has yet to
/// reach, and is silent (an etcd that was restored from a backup does that).
async fn version(api: &Api<Raw>) -> u64 {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Ok(list) = api.list(&ListParams::default().limit(1)).await {
            return list.metadata.resource_version.and_then(|version| version.parse().ok()).unwrap_or(u64::MAX);
        }
    }
}

/// Servers before 1.27 do not know of streaming lists and would leave us waiting for their end; later ones have them or say no.
async fn streams_lists(client: &Client) -> bool {
    let Ok(version) = client.apiserver_version().await else { return false };
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
    (number(&version.major), number(&version.minor)) >= (1, 27)
}

/// Whether the server has troubles of its own, or knows better than to let us: starting over would help neither.
fn struggling(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => matches!(status.code, 401 | 403 | 429 | 500..),
        _ => false,
    }
}

/// What the server said, if it answered and its answer was no.
fn refusal(error: &watcher::Error) -> Option<String> {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => Some(status.message.clone()),
        NoResourceVersion => Some(error.to_string()),
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
                vec![Update::Change(convert::gone(&id), None)]
            }
        }
    }

    fn applied(&mut self, id: &ObjectId, object: &Raw) -> Update {
        self.told_any = true;
        let converted = convert::text(id, object.text.get());
        self.complaints.note(id, converted.problem.as_ref());
        Update::Change(converted.change, converted.trigger)
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
            matches!(take(watcher::Event::InitApply(raw("a"))).as_slice(), [Update::Change(Change::Service(key, Some(_)), None)] if &*key.name == "a")
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
            assert!(
                matches!(tracker.take(watcher::Event::Apply(raw)).as_slice(), [Update::Change(Change::Service(_, None), None)]),
                "{text}"
            );
        }
    }
}
