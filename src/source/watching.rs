//! One kind of objects followed for good, whatever the server does: everything there is, then what happens.
//!
//! kube's own watcher keeps to itself what decides here: that a watch ended and how, what version a list or a bookmark is of, and when
//! a request got through. So the requests are kube's, and what follows from their answers stands here:
//!
//! - A watch that merely ends (by its time limit, with a dropped connection) goes on from the version it was at; nothing is listed.
//! - A server that could not be reached, refused, or had troubles of its own may come back with another history (an etcd restored from a
//!   backup), in which our version means something else, or nothing yet. Only a new list is safe, even if versions look as before.
//! - One that says 429 is there; its watches go on, as listing would make it busier still.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::api::{ListParams, ObjectList, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::time::{Instant, timeout};

use super::api::{Raw, Watched};
use super::object::Subject;
use super::outage::{Failure, Outages, Pace};

/// How long an answer may take to begin; the server itself gives up after 60 s.
const ANSWER: Duration = Duration::from_secs(70);
/// How long a watch may be silent: the server ends it after 290 s, which is kube's default.
const SILENCE: Duration = Duration::from_secs(295);
/// A watch that has lived for this long was no attempt any more: failures count from the start again.
const STEADY: Duration = Duration::from_secs(60);
/// A watch that ends sooner, and the next one too, is no watch.
const SHORT: Duration = Duration::from_secs(1);

/// Everything that happens to the objects of one kind, for good.
pub(super) fn follow<T: Tracks>(client: &Client, watched: Watched, tracker: T, outages: Arc<Outages>) -> BoxStream<'static, T::Told> {
    let following = Following::new(client, watched, tracker, outages);
    futures::stream::unfold(following, |mut following| async move {
        let updates = following.next().await;
        Some((futures::stream::iter(updates), following))
    })
    .flatten()
    .boxed()
}

/// What is made of the objects of one kind, as they are told.
pub(super) trait Tracks: Send + 'static {
    /// What it tells in turn.
    type Told: Send + 'static;
    /// A list begins; one that was under way is forgotten.
    fn begin(&mut self);
    /// An object of the list.
    fn listed(&mut self, object: &Raw) -> Vec<Self::Told>;
    /// The list is complete.
    fn complete(&mut self) -> Vec<Self::Told>;
    /// An object is new, or is different now.
    fn applied(&mut self, object: &Raw) -> Vec<Self::Told>;
    /// An object was deleted.
    fn deleted(&mut self, object: &Raw) -> Vec<Self::Told>;
}

type Events = BoxStream<'static, kube::Result<WatchEvent<Raw>>>;

/// The requests for one kind.
struct Requests {
    client: Client,
    api: Api<Raw>,
    labels: Option<String>,
    fields: Option<String>,
}

impl Requests {
    /// Servers before 1.27 do not know of watches that begin with everything there is and would leave us waiting; later ones have them
    /// or say no.
    async fn streams_lists(&self) -> Result<bool, Failure> {
        let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
        match answer(self.client.apiserver_version()).await {
            Ok(version) => Ok((number(&version.major), number(&version.minor)) >= (1, 27)),
            Err(Failure { code: Some(403 | 404), .. }) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// A page of a list: the first, or the one after another.
    async fn list(&self, limit: u32, after: Option<String>) -> Result<ObjectList<Raw>, Failure> {
        let parameters = ListParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            limit: Some(limit),
            continue_token: after,
            ..ListParams::default()
        };
        answer(self.api.list(&parameters)).await
    }

    /// A watch for what happens after a version; or one that begins with everything there is.
    async fn watch(&self, version: Option<&str>) -> Result<Events, Failure> {
        let parameters = WatchParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            send_initial_events: version.is_none(),
            ..WatchParams::default()
        };
        Ok(answer(self.api.watch(&parameters, version.unwrap_or("0"))).await?.boxed())
    }
}

/// An answer, if it comes in time.
async fn answer<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    let answered = timeout(ANSWER, request).await;
    Ok(answered.map_err(|_| Failure::unanswered(format!("no answer within {} s", ANSWER.as_secs())))??)
}

/// How far one kind is known.
enum Place {
    /// What is known counts for nothing: everything is to be told anew.
    Outset,
    /// In a list that comes in pages: the rest of it comes after this token.
    Listing(Option<String>),
    /// In a watch that begins with everything there is.
    Telling(Events),
    /// Known up to this version; no watch is open.
    At(String),
    /// The same, and there is reason to ask whether that version is of the server's history.
    Doubted(String),
    /// Known up to a version, and followed.
    Watching(Watch),
}

/// A watch that is under way.
struct Watch {
    events: Events,
    /// The version it is at.
    version: String,
    began: Instant,
    /// It has brought nothing yet, not even a bookmark.
    silent: bool,
}

impl Watch {
    fn new(events: Events, version: String) -> Self {
        Self { events, version, began: Instant::now(), silent: true }
    }

    /// It has told everything up to here. An object that is broken enough to have no version is told, and leaves it where it was.
    fn at(&mut self, version: Option<&str>) {
        if let Some(version) = version.filter(|version| !version.is_empty()) {
            version.clone_into(&mut self.version);
        }
    }
}

/// One kind, followed for good.
struct Following<T> {
    requests: Requests,
    subject: Subject,
    tracker: T,
    place: Place,
    /// Whether the server has watches that begin with everything; `None` if it has not been asked.
    streaming: Option<bool>,
    /// The watch before ended at once.
    was_short: bool,
    pace: Pace,
    outages: Arc<Outages>,
}

impl<T: Tracks> Following<T> {
    fn new(client: &Client, watched: Watched, tracker: T, outages: Arc<Outages>) -> Self {
        let Watched { subject, resource, namespace, labels, fields } = watched;
        let api = match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        Self {
            requests: Requests { client: client.clone(), api, labels, fields },
            subject,
            tracker,
            place: Place::Outset,
            streaming: None,
            was_short: false,
            pace: Pace::new(),
            outages,
        }
    }

    /// The updates that the next answer or event brings. After a failure it waits, and there are none.
    async fn next(&mut self) -> Vec<T::Told> {
        let failure = match self.step().await {
            Ok(updates) => return updates,
            Err(failure) => failure,
        };
        if !(failure.is_busy() && matches!(self.place, Place::At(_))) {
            self.place = Place::Outset;
        }
        if failure.code.is_none() {
            // It may come back as another release.
            self.streaming = None;
        }
        self.outages.failed(self.subject, &failure);
        self.outages.wait(self.pace.after(&failure).min(self.subject.longest_wait())).await;
        Vec::new()
    }

    async fn step(&mut self) -> Result<Vec<T::Told>, Failure> {
        match &mut self.place {
            Place::Outset => self.begin().await,
            Place::Listing(after) => {
                let after = after.take();
                self.list(after).await
            }
            Place::Telling(events) => {
                let event = timeout(SILENCE, events.next()).await.ok().flatten();
                self.told(event.ok_or_else(|| Failure::unanswered("it ended before everything was told"))??)
            }
            Place::At(version) => {
                let events = self.requests.watch(Some(version)).await?;
                self.place = Place::Watching(Watch::new(events, std::mem::take(version)));
                self.outages.answered();
                self.outages.followed(self.subject);
                Ok(Vec::new())
            }
            Place::Doubted(version) => {
                let list = self.requests.list(1, None).await?;
                same_history(version, &list.metadata.resource_version.unwrap_or_default())?;
                self.place = Place::At(std::mem::take(version));
                Ok(Vec::new())
            }
            Place::Watching(watch) => match timeout(SILENCE, watch.events.next()).await.ok().flatten() {
                Some(Ok(event)) => self.happened(event),
                None | Some(Err(kube::Error::ReadEvents(_) | kube::Error::HyperError(_) | kube::Error::Service(_))) => self.ended(),
                Some(Err(error)) => Err(error.into()),
            },
        }
    }

    /// Asks for everything there is.
    async fn begin(&mut self) -> Result<Vec<T::Told>, Failure> {
        let streaming = match self.streaming {
            Some(streaming) => streaming,
            None => self.requests.streams_lists().await?,
        };
        self.streaming = Some(streaming);
        self.place = Place::Listing(None);
        if streaming {
            match self.requests.watch(None).await {
                Ok(events) => {
                    self.outages.answered();
                    self.place = Place::Telling(events);
                }
                Err(failure) if failure.is_unknown_request() => {
                    tracing::debug!("the API server has no streaming list of {}: {}", self.subject.as_str(), failure.why);
                    self.streaming = Some(false);
                }
                Err(failure) => return Err(failure),
            }
        }
        self.tracker.begin();
        Ok(Vec::new())
    }

    async fn list(&mut self, after: Option<String>) -> Result<Vec<T::Told>, Failure> {
        let list = self.requests.list(self.subject.page(), after).await?;
        self.outages.answered();
        let mut updates: Vec<T::Told> = list.items.into_iter().flat_map(|object| self.tracker.listed(&object)).collect();
        if let Some(after) = list.metadata.continue_.filter(|after| !after.is_empty()) {
            self.place = Place::Listing(Some(after));
            return Ok(updates);
        }
        let version = list.metadata.resource_version.filter(|version| !version.is_empty());
        self.place = Place::At(version.ok_or_else(|| Failure::unanswered("a list without resourceVersion"))?);
        updates.extend(self.tracker.complete());
        Ok(updates)
    }

    /// An event of a watch that begins with everything there is.
    fn told(&mut self, event: WatchEvent<Raw>) -> Result<Vec<T::Told>, Failure> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => Ok(self.tracker.listed(&object)),
            WatchEvent::Bookmark(bookmark) if bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end") => {
                if let Place::Telling(events) = std::mem::replace(&mut self.place, Place::Outset) {
                    self.place = Place::Watching(Watch::new(events, bookmark.metadata.resource_version));
                }
                self.outages.followed(self.subject);
                Ok(self.tracker.complete())
            }
            // Nothing can be deleted that was not told.
            WatchEvent::Bookmark(_) | WatchEvent::Deleted(_) => Ok(Vec::new()),
            WatchEvent::Error(status) => Err(status.into()),
        }
    }

    /// An event of a watch.
    fn happened(&mut self, event: WatchEvent<Raw>) -> Result<Vec<T::Told>, Failure> {
        let Place::Watching(watch) = &mut self.place else { return Ok(Vec::new()) };
        watch.silent = false;
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                watch.at(object.metadata.resource_version.as_deref());
                Ok(self.tracker.applied(&object))
            }
            WatchEvent::Deleted(object) => {
                watch.at(object.metadata.resource_version.as_deref());
                Ok(self.tracker.deleted(&object))
            }
            WatchEvent::Bookmark(bookmark) => {
                same_history(&watch.version, &bookmark.metadata.resource_version)?;
                watch.version = bookmark.metadata.resource_version;
                Ok(Vec::new())
            }
            WatchEvent::Error(status) => {
                self.place = Place::At(std::mem::take(&mut watch.version));
                Err(status.into())
            }
        }
    }

    /// A watch is over, and nothing is wrong; it goes on from where it was.
    fn ended(&mut self) -> Result<Vec<T::Told>, Failure> {
        let Place::Watching(watch) = &mut self.place else { return Ok(Vec::new()) };
        let lived = watch.began.elapsed();
        if lived >= STEADY {
            self.pace = Pace::new();
        }
        let twice_short = self.was_short && lived < SHORT;
        self.was_short = lived < SHORT;
        // A server whose history is behind our version has nothing to tell until it gets there, not even by bookmarks.
        let doubted = watch.silent && lived >= STEADY;
        let version = std::mem::take(&mut watch.version);
        tracing::debug!("watch of {} ended after {lived:?}, at version {version}", self.subject.as_str());
        self.place = if doubted { Place::Doubted(version) } else { Place::At(version) };
        if twice_short { Err(Failure::unanswered("watches end as soon as they begin")) } else { Ok(Vec::new()) }
    }
}

/// Versions grow within a history. Fails if the server is at one that is lower than ours.
fn same_history(ours: &str, servers: &str) -> Result<(), Failure> {
    match (ours.parse::<u64>(), servers.parse::<u64>()) {
        (Ok(mine), Ok(now)) if now < mine => {
            Err(Failure::unanswered(format!("the API server has another history than before, it is at version {servers} after {ours}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::Mutex;

    use http::{Request, Response};
    use http_body_util::StreamBody;
    use http_body_util::combinators::BoxBody;
    use hyper::body::{Bytes, Frame};
    use kube::api::{ApiResource, GroupVersionKind};
    use serde_json::json;
    use tokio::time::sleep;

    use super::super::Update;
    use super::super::object::Kind;
    use super::super::tracker::Tracker;
    use super::*;
    use crate::cluster::Change;

    /// What a server does with a request.
    enum Answer {
        /// Nothing listens.
        Refused,
        Status(u16),
        Json(serde_json::Value),
        /// Lines after a time each, and then the end.
        Lines(Vec<(u64, String)>),
    }

    type Body = BoxBody<Bytes, Infallible>;

    fn body(lines: Vec<(u64, String)>) -> Body {
        let frames = futures::stream::iter(lines).then(|(seconds, line)| async move {
            sleep(Duration::from_secs(seconds)).await;
            Ok(Frame::data(Bytes::from(line)))
        });
        BoxBody::new(StreamBody::new(Box::pin(frames) as std::pin::Pin<Box<dyn futures::Stream<Item = _> + Send + Sync>>))
    }

    /// A request in short: `version`, `all` for a watch that begins with everything, `watch 7`, `list`.
    fn short(request: &Request<kube::client::Body>) -> String {
        let query: std::collections::HashMap<&str, &str> =
            request.uri().query().unwrap_or_default().split('&').filter_map(|part| part.split_once('=')).collect();
        match (request.uri().path(), query.get("watch"), query.get("sendInitialEvents")) {
            ("/version", ..) => "version".into(),
            (_, Some(_), Some(_)) => "all".into(),
            (_, Some(_), None) => format!("watch {}", query["resourceVersion"]),
            _ => format!("list {}{}", query["limit"], query.get("continue").map(|token| format!(" after {token}")).unwrap_or_default()),
        }
    }

    /// Follows Services of a server that answers these requests in this order, and no others; gives all updates, and the time it took.
    async fn script(steps: Vec<(&'static str, Answer)>) -> (Vec<Update>, Duration) {
        let steps = Arc::new(Mutex::new(VecDeque::from(steps)));
        let left = Arc::clone(&steps);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            // What fails here poisons the lock, which ends the test.
            let mut steps = steps.lock().expect("nobody panics");
            let (wanted, answer) = steps.pop_front().expect("a request that is answered");
            assert_eq!(short(&request), wanted);
            drop(steps);
            async move {
                let (code, lines) = match answer {
                    Answer::Refused => return Err("connection refused"),
                    Answer::Status(code) => (code, vec![(0, json!({"code": code, "message": "no", "reason": "No"}).to_string())]),
                    Answer::Json(value) => (200, vec![(0, value.to_string())]),
                    Answer::Lines(lines) => (200, lines),
                };
                Ok(Response::builder().status(code).body(body(lines)).expect("an answer"))
            }
        });
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Service"));
        let watched = Watched::all(Subject::Proxy(Kind::Service), resource);
        let mut following = Following::new(&Client::new(service, "default"), watched, Tracker::new(Kind::Service), Arc::default());
        let (start, mut updates) = (Instant::now(), Vec::new());
        while !left.lock().expect("nobody panics").is_empty() {
            updates.extend(following.next().await);
        }
        (updates, start.elapsed())
    }

    fn version() -> (&'static str, Answer) {
        (
            "version",
            Answer::Json(json!({"major": "1", "minor": "36+", "gitVersion": "", "gitCommit": "", "gitTreeState": "", "buildDate": "",
            "goVersion": "", "compiler": "", "platform": ""})),
        )
    }

    fn line(kind: &str, name: &str, version: u64, end: bool) -> String {
        let annotations = if end { json!({"k8s.io/initial-events-end": "true"}) } else { json!({}) };
        let metadata = json!({"name": name, "namespace": "ns", "resourceVersion": version.to_string(), "annotations": annotations});
        // With the type in front, as servers write it.
        format!("{{\"type\":\"{kind}\",\"object\":{}}}\n", json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {}}))
    }

    fn bookmark(version: u64) -> String {
        line("BOOKMARK", "", version, false)
    }

    /// Everything there is, complete at a version, and what comes after that.
    fn all(version: u64, after: Vec<(u64, String)>) -> (&'static str, Answer) {
        let told = vec![(0, line("ADDED", "a", 3, false)), (0, line("BOOKMARK", "", version, true))];
        ("all", Answer::Lines(told.into_iter().chain(after).collect()))
    }

    fn last() -> (&'static str, Answer) {
        ("all", Answer::Lines(Vec::new()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_ends_goes_on_where_it_was() {
        let (updates, _) = script(vec![
            version(),
            all(7, vec![(30, line("MODIFIED", "a", 9, false)), (30, bookmark(12))]),
            ("watch 12", Answer::Lines(vec![(5, line("DELETED", "a", 13, false))])),
            ("watch 13", Answer::Lines(vec![(290, bookmark(13))])),
            ("watch 13", Answer::Lines(Vec::new())),
        ])
        .await;
        let [Update::Change(..), Update::Complete(_), Update::Change(..), Update::Change(Change::Service(key, None), _)] =
            updates.as_slice()
        else {
            panic!("{updates:?}")
        };
        assert_eq!(&*key.name, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_outage_everything_is_told_anew() {
        for code in [401, 403, 410, 500, 503, 504] {
            script(vec![version(), all(7, vec![(30, bookmark(7))]), ("watch 7", Answer::Status(code)), last()]).await;
        }
        let refused = ("watch 7", Answer::Refused);
        script(vec![version(), all(7, vec![(30, bookmark(7))]), refused, ("version", Answer::Refused), version(), last()]).await;
        let error = "{\"type\":\"ERROR\",\"object\":{\"code\":410,\"message\":\"too old\",\"reason\":\"Expired\"}}\n".to_owned();
        script(vec![version(), all(7, vec![(30, error)]), last()]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_server_is_not_asked_for_everything() {
        let busy = || ("watch 7", Answer::Status(429));
        let (_, time) = script(vec![
            version(),
            all(7, vec![(30, bookmark(7))]),
            busy(),
            busy(),
            busy(),
            busy(),
            ("watch 7", Answer::Lines(Vec::new())),
        ])
        .await;
        // Waits of 0.8, 1.6, 3 and 3 s, each up to twice as long.
        assert!((38_400..=46_800).contains(&time.as_millis()), "{time:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_version_is_another_history() {
        script(vec![version(), all(7, vec![(30, bookmark(6))]), version(), last()]).await;
        // A server that has yet to reach our version is silent.
        let list = |version: &str| ("list 1", Answer::Json(json!({"metadata": {"resourceVersion": version}, "items": []})));
        let silent = || Answer::Lines(vec![(290, "\n".into())]);
        script(vec![
            version(),
            all(7, vec![(0, bookmark(7))]),
            ("watch 7", silent()),
            list("7"),
            ("watch 7", silent()),
            list("6"),
            version(),
            last(),
        ])
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn watches_that_end_at_once_are_an_outage() {
        let at_once = || Answer::Lines(Vec::new());
        let (_, time) = script(vec![version(), all(7, Vec::new()), ("watch 7", at_once()), version(), last()]).await;
        assert!(time >= Duration::from_millis(800), "{time:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_without_streaming_lists_is_listed_in_pages() {
        let page = |token: &str, name: &str| {
            let item = json!({"metadata": {"name": name, "namespace": "ns", "resourceVersion": "3"}, "spec": {}});
            Answer::Json(json!({"metadata": {"resourceVersion": "7", "continue": token}, "items": [item]}))
        };
        let (updates, _) = script(vec![
            version(),
            ("all", Answer::Status(422)),
            ("list 500", page("x", "a")),
            ("list 500 after x", page("", "b")),
            ("watch 7", Answer::Lines(Vec::new())),
        ])
        .await;
        assert!(matches!(updates.as_slice(), [Update::Change(..), Update::Change(..), Update::Complete(_)]), "{updates:?}");
    }
}
