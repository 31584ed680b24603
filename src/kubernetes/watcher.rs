//! The list-and-watch loop for one resource kind. It runs until it is dropped and reconnects after errors.
//!
//! kube's own watcher hides what this loop needs: how a watch ended, the resourceVersion of a list or bookmark, and when a request
//! succeeded. So the requests are kube's, and the state machine is here. Its states have the names of kube's watcher.
//!
//! - A full state comes as a streaming list (a watch with `sendInitialEvents`) where the server has it. If that fails, the loop lists in
//!   pages and then watches, at once, as client-go's reflector does. Exceptions: after a refused connection and after 429 it waits and
//!   tries again; after an expired or too large resourceVersion it starts from scratch.
//! - A watch that ends without an error (server's time limit, lost connection) continues at its resourceVersion. Nothing is listed again.
//! - After other errors the server may have another history (an etcd restored from a backup). Then the resourceVersion means something
//!   else or nothing, and only a new list is safe, even if versions look as before.
//! - 429 says that the server is there and busy. Watches continue at their resourceVersion, because lists would make it busier.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::api::{ListParams, ObjectList, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::time::{Instant, timeout};

use super::object::Subject;
use super::outage::{Backoff, Outages, WatchFailure};
use super::raw::{RawObject, WatchTarget};

#[cfg(test)]
mod tests;

/// Time limit for the start of an answer. The server itself gives up after 60 s.
const ANSWER_TIME: Duration = Duration::from_secs(70);
/// Time limit for the start of a streaming list, and between its events. Then this loop lists in pages; client-go only warns.
const INITIAL_SILENCE: Duration = Duration::from_secs(10);
/// Time limit between two events of a watch, before two bookmarks have shown their interval. The server ends a watch after 290 s, which is
/// kube's default.
const SILENCE: Duration = Duration::from_secs(295);
/// The shortest time limit between two events that bookmarks can set. Kubernetes sends one bookmark a minute on each watch.
const LEAST_SILENCE: Duration = Duration::from_secs(60);
/// A watch that ran for this time resets the backoff.
const STEADY: Duration = Duration::from_secs(60);
/// Two watches in a row that end within this time count as a failure.
const SHORT: Duration = Duration::from_secs(1);

/// A stream of all updates of one resource kind. It never ends.
pub(super) fn updates<T: ObjectTracker>(
    client: &Client,
    target: WatchTarget,
    tracker: T,
    outages: Arc<Outages>,
) -> BoxStream<'static, T::Update> {
    let watcher = Watcher::new(client, target, tracker, outages);
    futures::stream::unfold(watcher, |mut watcher| async move {
        let updates = watcher.next().await;
        Some((futures::stream::iter(updates), watcher))
    })
    .flatten()
    .boxed()
}

/// Turns the objects of one kind into updates.
pub(crate) trait ObjectTracker: Send + 'static {
    /// The type of updates.
    type Update: Send + 'static;
    /// A list begins. An earlier list that did not complete is dropped.
    fn begin(&mut self);
    /// The list contains this object.
    fn listed(&mut self, object: &RawObject) -> Vec<Self::Update>;
    /// The list is complete.
    fn complete(&mut self) -> Vec<Self::Update>;
    /// An object is new or changed.
    fn applied(&mut self, object: &RawObject) -> Vec<Self::Update>;
    /// An object was deleted.
    fn deleted(&mut self, object: &RawObject) -> Vec<Self::Update>;
    /// No list has been complete yet, and the last attempt failed for this reason.
    fn unknown(&mut self, _why: &str) -> Vec<Self::Update> {
        Vec::new()
    }
}

type WatchEvents = BoxStream<'static, kube::Result<WatchEvent<RawObject>>>;

/// Sends the requests for one kind.
struct Requests {
    client: Client,
    api: Api<RawObject>,
    labels: Option<String>,
    fields: Option<String>,
}

impl Requests {
    /// True if the server's version has streaming lists; `None` if the server does not give its version. Servers before 1.27 ignore
    /// `sendInitialEvents` and would keep the loop waiting. Later ones support it or answer with an error.
    async fn streams_lists(&self) -> Result<Option<bool>, WatchFailure> {
        let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
        match answer(ANSWER_TIME, self.client.apiserver_version()).await {
            Ok(version) => Ok(Some((number(&version.major), number(&version.minor)) >= (1, 27))),
            Err(failure) if failure.is_answer() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Gets the first page of a list, or the page after a continue token.
    async fn list(&self, limit: u32, after: Option<String>) -> Result<ObjectList<RawObject>, WatchFailure> {
        let parameters = ListParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            limit: Some(limit),
            continue_token: after,
            ..ListParams::default()
        };
        answer(ANSWER_TIME, self.api.list(&parameters)).await
    }

    /// Opens a watch from a resourceVersion, or a streaming list without one.
    async fn watch(&self, version: Option<&str>) -> Result<WatchEvents, WatchFailure> {
        let parameters = WatchParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            send_initial_events: version.is_none(),
            ..WatchParams::default()
        };
        let limit = if version.is_none() { INITIAL_SILENCE } else { ANSWER_TIME };
        Ok(answer(limit, self.api.watch(&parameters, version.unwrap_or("0"))).await?.boxed())
    }
}

/// Waits for an answer to begin. Fails after the limit.
async fn answer<T>(limit: Duration, request: impl Future<Output = kube::Result<T>>) -> Result<T, WatchFailure> {
    let answered = timeout(limit, request).await;
    Ok(answered.map_err(|_| WatchFailure::unanswered(format!("no answer within {} s", limit.as_secs())))??)
}

/// The state of the watcher.
enum State {
    /// No objects are known, or all have to be listed again.
    Empty,
    /// Within a list in pages. This is the continue token of the next page.
    ListPage(Option<String>),
    /// Within a streaming list.
    InitialWatch(WatchEvents),
    /// The objects are known up to this resourceVersion. No watch is open.
    Listed(String),
    /// As `Listed`, but the server's history may have changed. A list of one object shows its current resourceVersion.
    Suspect(String),
    /// A watch is open.
    Watching(Watch),
}

/// An open watch.
struct Watch {
    events: WatchEvents,
    /// The resourceVersion that it has reached.
    version: String,
    began: Instant,
    /// No event has come yet, not even a bookmark.
    silent: bool,
    /// When its last bookmark came.
    bookmark: Option<Instant>,
}

impl Watch {
    fn new(events: WatchEvents, version: String) -> Self {
        Self { events, version, began: Instant::now(), silent: true, bookmark: None }
    }

    /// Stores the resourceVersion of an event. A broken object may have none; then the version stays.
    fn reached(&mut self, version: Option<&str>) {
        if let Some(version) = version.filter(|version| !version.is_empty()) {
            version.clone_into(&mut self.version);
        }
    }
}

/// Lists and watches one kind.
struct Watcher<T> {
    requests: Requests,
    subject: Subject,
    tracker: T,
    state: State,
    /// Whether the server has streaming lists; `None` if that is unknown: at the start, and after a lost connection or an outage.
    streaming: Option<bool>,
    /// The longest time between two bookmarks so far; `None` before the second bookmark.
    between_bookmarks: Option<Duration>,
    /// At least one list was complete.
    listed: bool,
    /// The previous watch ended within [`SHORT`].
    was_short: bool,
    /// The last failure was an expired resourceVersion, and the watcher started from scratch without a wait.
    restarted: bool,
    backoff: Backoff,
    /// The wait before the next request.
    wait: Option<Duration>,
    outages: Arc<Outages>,
}

impl<T: ObjectTracker> Watcher<T> {
    fn new(client: &Client, target: WatchTarget, tracker: T, outages: Arc<Outages>) -> Self {
        let WatchTarget { subject, resource, namespace, labels, fields } = target;
        let api = match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        Self {
            requests: Requests { client: client.clone(), api, labels, fields },
            subject,
            tracker,
            state: State::Empty,
            streaming: None,
            between_bookmarks: None,
            listed: false,
            was_short: false,
            restarted: false,
            backoff: Backoff::new(),
            wait: None,
            outages,
        }
    }

    /// Waits if the last attempt failed. Returns the updates of the next answer or event.
    async fn next(&mut self) -> Vec<T::Update> {
        if let Some(wait) = self.wait.take() {
            self.outages.wait(wait).await;
        }
        let began = if let State::Watching(watch) = &self.state { Some(watch.began) } else { None };
        let failure = match self.step().await {
            Ok(updates) => return updates,
            Err(failure) => failure,
        };
        if began.is_some_and(|began| began.elapsed() >= STEADY) {
            self.reset_backoff();
        }
        if !(failure.is_busy() && matches!(self.state, State::Listed(_))) {
            self.state = State::Empty;
        }
        if failure.is_outage() {
            // After the outage the server may have another release or another etcd.
            self.streaming = None;
        }
        if failure.is_expired() && !std::mem::replace(&mut self.restarted, true) {
            tracing::debug!("listing {} again: {}", self.subject.as_str(), failure.why);
            return Vec::new();
        }
        let wait = self.backoff.after(&failure).min(self.subject.longest_wait());
        self.wait = Some(wait);
        self.outages.failed(self.subject, &failure, wait, self.listed);
        if self.listed { Vec::new() } else { self.tracker.unknown(&failure.why) }
    }

    async fn step(&mut self) -> Result<Vec<T::Update>, WatchFailure> {
        match &mut self.state {
            State::Empty => self.begin().await,
            State::ListPage(after) => {
                let after = after.take();
                self.list(after).await
            }
            State::InitialWatch(events) => match timeout(INITIAL_SILENCE, events.next()).await {
                Ok(Some(Ok(event))) => self.initial_event(event),
                Ok(Some(Err(error))) => self.no_streaming_list(error.into()),
                Ok(None) => self.no_streaming_list(WatchFailure::unreadable("the stream ended before its bookmark initial-events-end")),
                Err(_) => self.no_streaming_list(WatchFailure::unanswered(format!("no event within {} s", INITIAL_SILENCE.as_secs()))),
            },
            State::Listed(version) => {
                let events = self.requests.watch(Some(version)).await?;
                self.state = State::Watching(Watch::new(events, std::mem::take(version)));
                self.outages.answered();
                self.outages.recovered(self.subject);
                Ok(Vec::new())
            }
            State::Suspect(version) => {
                let list = self.requests.list(1, None).await?;
                same_history(version, &list.metadata.resource_version.unwrap_or_default())?;
                self.state = State::Listed(std::mem::take(version));
                Ok(Vec::new())
            }
            State::Watching(watch) => match timeout(silence(self.between_bookmarks), watch.events.next()).await {
                Ok(Some(Ok(event))) => self.event(event),
                Ok(None) => self.ended(),
                Err(_) => {
                    tracing::info!("the watch of {} was silent for too long, opening another one", self.subject.as_str());
                    self.between_bookmarks = None;
                    self.streaming = None;
                    self.ended()
                }
                Ok(Some(Err(kube::Error::ReadEvents(_) | kube::Error::HyperError(_) | kube::Error::Service(_)))) => {
                    self.streaming = None;
                    self.ended()
                }
                Ok(Some(Err(error))) => Err(error.into()),
            },
        }
    }

    /// Starts a list of all objects.
    async fn begin(&mut self) -> Result<Vec<T::Update>, WatchFailure> {
        if self.streaming.is_none() {
            self.streaming = self.requests.streams_lists().await?;
        }
        if self.streaming != Some(true) {
            self.begin_list(State::ListPage(None));
            return Ok(Vec::new());
        }
        match self.requests.watch(None).await {
            Ok(events) => {
                self.outages.answered();
                self.begin_list(State::InitialWatch(events));
                Ok(Vec::new())
            }
            Err(failure) => self.no_streaming_list(failure),
        }
    }

    fn begin_list(&mut self, state: State) {
        self.state = state;
        self.tracker.begin();
    }

    /// Handles a failed streaming list. Unless the failure forbids it, the watcher lists in pages at once.
    fn no_streaming_list(&mut self, failure: WatchFailure) -> Result<Vec<T::Update>, WatchFailure> {
        if !failure.falls_back() {
            return Err(failure);
        }
        tracing::debug!("streaming list of {} failed, listing in pages: {}", self.subject.as_str(), failure.why);
        self.streaming = Some(false);
        self.begin_list(State::ListPage(None));
        Ok(Vec::new())
    }

    async fn list(&mut self, after: Option<String>) -> Result<Vec<T::Update>, WatchFailure> {
        let list = self.requests.list(self.subject.page_size(), after).await?;
        self.outages.answered();
        let mut updates: Vec<T::Update> = list.items.into_iter().flat_map(|object| self.tracker.listed(&object)).collect();
        if let Some(after) = list.metadata.continue_.filter(|after| !after.is_empty()) {
            self.state = State::ListPage(Some(after));
            return Ok(updates);
        }
        let version = list.metadata.resource_version.filter(|version| !version.is_empty());
        self.state = State::Listed(version.ok_or_else(|| WatchFailure::unreadable("a list without resourceVersion"))?);
        updates.extend(self.complete());
        Ok(updates)
    }

    fn complete(&mut self) -> Vec<T::Update> {
        self.listed = true;
        self.tracker.complete()
    }

    /// Handles an event of a streaming list. Changes before its final bookmark come as events, too.
    fn initial_event(&mut self, event: WatchEvent<RawObject>) -> Result<Vec<T::Update>, WatchFailure> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => Ok(self.tracker.listed(&object)),
            WatchEvent::Deleted(object) => Ok(self.tracker.deleted(&object)),
            WatchEvent::Bookmark(bookmark) if bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end") => {
                if let State::InitialWatch(events) = std::mem::replace(&mut self.state, State::Empty) {
                    self.state = State::Watching(Watch::new(events, bookmark.metadata.resource_version));
                }
                self.outages.recovered(self.subject);
                Ok(self.complete())
            }
            WatchEvent::Bookmark(_) => Ok(Vec::new()),
            WatchEvent::Error(status) => self.no_streaming_list(status.into()),
        }
    }

    /// Handles an event of a watch.
    fn event(&mut self, event: WatchEvent<RawObject>) -> Result<Vec<T::Update>, WatchFailure> {
        let State::Watching(watch) = &mut self.state else { return Ok(Vec::new()) };
        watch.silent = false;
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                watch.reached(object.metadata.resource_version.as_deref());
                Ok(self.tracker.applied(&object))
            }
            WatchEvent::Deleted(object) => {
                watch.reached(object.metadata.resource_version.as_deref());
                Ok(self.tracker.deleted(&object))
            }
            WatchEvent::Bookmark(bookmark) => {
                same_history(&watch.version, &bookmark.metadata.resource_version)?;
                watch.version = bookmark.metadata.resource_version;
                if let Some(before) = watch.bookmark.replace(Instant::now()) {
                    self.between_bookmarks = self.between_bookmarks.max(Some(before.elapsed()));
                }
                Ok(Vec::new())
            }
            WatchEvent::Error(status) => {
                self.state = State::Listed(std::mem::take(&mut watch.version));
                Err(status.into())
            }
        }
    }

    /// Handles the end of a watch without an error. The next watch continues at its resourceVersion.
    fn ended(&mut self) -> Result<Vec<T::Update>, WatchFailure> {
        let State::Watching(watch) = &mut self.state else { return Ok(Vec::new()) };
        let lived = watch.began.elapsed();
        // A server whose history is behind this resourceVersion sends no events until it reaches it, not even bookmarks.
        let suspect = watch.silent && lived >= STEADY;
        let version = std::mem::take(&mut watch.version);
        tracing::debug!("watch of {} ended after {lived:?}, at resourceVersion {version}", self.subject.as_str());
        self.state = if suspect { State::Suspect(version) } else { State::Listed(version) };
        if lived >= STEADY {
            self.reset_backoff();
        }
        let twice_short = self.was_short && lived < SHORT;
        self.was_short = lived < SHORT;
        if twice_short { Err(WatchFailure::unanswered("watches end as soon as they begin")) } else { Ok(Vec::new()) }
    }

    /// Resets the backoff after a watch that ran for [`STEADY`].
    fn reset_backoff(&mut self) {
        self.backoff = Backoff::new();
        self.restarted = false;
    }
}

/// Time limit between two events of a watch. Missing bookmarks show that a connection was lost without an error, where no HTTP/2 ping shows
/// it.
fn silence(between_bookmarks: Option<Duration>) -> Duration {
    between_bookmarks.map_or(SILENCE, |between| (between * 2).clamp(LEAST_SILENCE, SILENCE))
}

/// Fails if the server's resourceVersion is lower than ours: then the server has another history.
fn same_history(ours: &str, servers: &str) -> Result<(), WatchFailure> {
    match (ours.parse::<u64>(), servers.parse::<u64>()) {
        (Ok(mine), Ok(now)) if now < mine => Err(WatchFailure::unanswered(format!(
            "the API server has another history than before, it is at resourceVersion {servers} after {ours}"
        ))),
        _ => Ok(()),
    }
}
