//! The watcher against a scripted server, which answers the expected requests in order and accepts no others.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Mutex;

use http::{Request, Response};
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::{Bytes, Frame};
use kube::api::{ApiResource, GroupVersionKind};
use serde_json::json;
use tokio::time::sleep;

use super::*;
use crate::cluster::Change;
use crate::kubernetes::object::Kind;
use crate::kubernetes::tracker::Tracker;
use crate::kubernetes::{ClusterUpdate, ListedNames};

/// How the server answers a request.
enum Answer {
    /// The connection is refused.
    Refused,
    /// The connection is lost before an answer.
    Lost,
    /// No answer ever comes.
    Silence,
    Status(u16),
    Json(serde_json::Value),
    /// An error with this status and body.
    Refusal(u16, serde_json::Value),
    /// Lines, each after a time, and then the end.
    Lines(Vec<(u64, String)>),
    /// Lines, each after a time, and then silence.
    Open(Vec<(u64, String)>),
}

type Body = BoxBody<Bytes, Infallible>;

fn body(mut lines: Vec<(u64, String)>, open: bool) -> Body {
    if open {
        lines.push((1_000_000_000, String::new()));
    }
    let frames = futures::stream::iter(lines).then(|(seconds, line)| async move {
        sleep(Duration::from_secs(seconds)).await;
        Ok(Frame::data(Bytes::from(line)))
    });
    BoxBody::new(StreamBody::new(Box::pin(frames) as std::pin::Pin<Box<dyn futures::Stream<Item = _> + Send + Sync>>))
}

/// A request in short form: `version`, `all` for a streaming list, `watch 7`, `list 500`.
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

/// Watches Services of a server that answers these requests in this order. Returns all updates and the time it took.
async fn script(steps: Vec<(&'static str, Answer)>) -> (Vec<ClusterUpdate>, Duration) {
    let steps = Arc::new(Mutex::new(VecDeque::from(steps)));
    let left = Arc::clone(&steps);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        // A failure here poisons the lock, and that ends the test.
        let mut steps = steps.lock().expect("no other holder panics");
        let (wanted, answer) = steps.pop_front().expect("a request that is answered");
        assert_eq!(short(&request), wanted);
        drop(steps);
        async move {
            let (code, lines, open) = match answer {
                Answer::Refused => return Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                Answer::Lost => return Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                Answer::Silence => std::future::pending().await,
                Answer::Refusal(code, status) => (code, vec![(0, status.to_string())], false),
                Answer::Status(code) => (code, vec![(0, json!({"code": code, "message": "no", "reason": "No"}).to_string())], false),
                Answer::Json(value) => (200, vec![(0, value.to_string())], false),
                Answer::Lines(lines) => (200, lines, false),
                Answer::Open(lines) => (200, lines, true),
            };
            Ok(Response::builder().status(code).body(body(lines, open)).expect("an answer"))
        }
    });
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Service"));
    let target = WatchTarget::all(Subject::Proxy(Kind::Service), resource);
    let mut watcher = Watcher::new(&Client::new(service, "default"), target, Tracker::new(Kind::Service), Arc::default());
    let (start, mut updates) = (Instant::now(), Vec::new());
    while !left.lock().expect("no other holder panics").is_empty() {
        updates.extend(watcher.next().await);
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
    // The type comes first, as servers write it.
    format!("{{\"type\":\"{kind}\",\"object\":{}}}\n", json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {}}))
}

fn bookmark(version: u64) -> String {
    line("BOOKMARK", "", version, false)
}

/// A complete streaming list at a version, and the lines after it.
fn all(version: u64, after: Vec<(u64, String)>) -> (&'static str, Answer) {
    let lines = vec![(0, line("ADDED", "a", 3, false)), (0, line("BOOKMARK", "", version, true))];
    ("all", Answer::Lines(lines.into_iter().chain(after).collect()))
}

fn last() -> (&'static str, Answer) {
    ("all", Answer::Lines(Vec::new()))
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_continues_at_its_version() {
    let (updates, _) = script(vec![
        version(),
        all(7, vec![(30, line("MODIFIED", "a", 9, false)), (30, bookmark(12))]),
        ("watch 12", Answer::Lines(vec![(5, line("DELETED", "a", 13, false))])),
        ("watch 13", Answer::Lines(vec![(290, bookmark(13))])),
        ("watch 13", Answer::Lines(Vec::new())),
    ])
    .await;
    let [
        ClusterUpdate::Change(..),
        ClusterUpdate::Complete(_),
        ClusterUpdate::Change(..),
        ClusterUpdate::Change(Change::Service(key, None), _),
    ] = updates.as_slice()
    else {
        panic!("{updates:?}")
    };
    assert_eq!(&*key.name, "a");
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_everything_is_listed_again() {
    for code in [401, 403, 410] {
        script(vec![version(), all(7, vec![(30, bookmark(7))]), ("watch 7", Answer::Status(code)), last()]).await;
    }
    for code in [500, 503, 504] {
        script(vec![version(), all(7, vec![(30, bookmark(7))]), ("watch 7", Answer::Status(code)), version(), last()]).await;
    }
    let refused = ("watch 7", Answer::Refused);
    script(vec![version(), all(7, vec![(30, bookmark(7))]), refused, ("version", Answer::Refused), version(), last()]).await;
    let error = "{\"type\":\"ERROR\",\"object\":{\"code\":410,\"message\":\"too old\",\"reason\":\"Expired\"}}\n".to_owned();
    script(vec![version(), all(7, vec![(30, error)]), last()]).await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_is_not_asked_for_lists() {
    let busy = || ("watch 7", Answer::Status(429));
    let (_, time) =
        script(vec![version(), all(7, vec![(30, bookmark(7))]), busy(), busy(), busy(), busy(), ("watch 7", Answer::Lines(Vec::new()))])
            .await;
    // Waits of 0.8, 1.6, 3 and 3 s, each up to twice as long; the watch had run for 30 s.
    assert!((38_400..=46_800).contains(&time.as_millis()), "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lower_version_is_another_history() {
    script(vec![version(), all(7, vec![(30, bookmark(6))]), version(), last()]).await;
    // A server that has not reached our version yet is silent.
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
    assert!(
        matches!(updates.as_slice(), [ClusterUpdate::Change(..), ClusterUpdate::Change(..), ClusterUpdate::Complete(_)]),
        "{updates:?}"
    );
}

/// A page of a list: one Service, and the token of the next page.
fn page(token: &str, name: &str, version: &str) -> Answer {
    let item = json!({"metadata": {"name": name, "namespace": "ns", "resourceVersion": "3"}, "spec": {}});
    Answer::Json(json!({"metadata": {"resourceVersion": version, "continue": token}, "items": [item]}))
}

/// A watch event of type ERROR.
fn error_event(code: u16, reason: &str, message: &str) -> String {
    let status = json!({"apiVersion": "v1", "kind": "Status", "code": code, "reason": reason, "message": message, "status": "Failure"});
    format!("{{\"type\":\"ERROR\",\"object\":{status}}}\n")
}

/// All failures of a streaming list, each with the longest time until it is noticed.
fn failed_streams() -> Vec<(&'static str, Answer, Duration)> {
    let added = || (0, line("ADDED", "old", 3, false));
    let (at_once, silence) = (Duration::ZERO, INITIAL_SILENCE);
    let mut streams: Vec<_> = [400, 401, 403, 404, 405, 406, 409, 415, 422, 500, 501, 502, 503, 504, 599]
        .map(|code| ("a status", Answer::Status(code), at_once))
        .into();
    let old_etcd = "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled";
    streams.extend([
        ("an error event", Answer::Lines(vec![(0, error_event(500, "InternalError", old_etcd))]), at_once),
        ("an error event with the stream left open", Answer::Open(vec![(0, error_event(500, "InternalError", old_etcd))]), at_once),
        ("an error event after objects", Answer::Lines(vec![added(), (0, error_event(403, "Forbidden", "no"))]), at_once),
        ("the end at once", Answer::Lines(Vec::new()), at_once),
        ("the end after objects", Answer::Lines(vec![added(), (0, bookmark(5))]), at_once),
        ("an unreadable event", Answer::Open(vec![added(), (0, "<html>\n".into())]), at_once),
        ("an event of an unknown type", Answer::Open(vec![(0, "{\"type\":\"HELLO\",\"object\":{}}\n".into())]), at_once),
        ("a lost connection", Answer::Lost, at_once),
        ("no answer", Answer::Silence, silence),
        ("no event", Answer::Open(Vec::new()), silence),
        ("no bookmark", Answer::Open(vec![added(), (0, bookmark(5))]), silence),
    ]);
    streams
}

#[tokio::test(start_paused = true)]
async fn every_failure_of_a_streaming_list_falls_back_to_pages_at_once() {
    for (what, answer, limit) in failed_streams() {
        let what = format!("{what}: {}", if let Answer::Status(code) = &answer { code.to_string() } else { String::new() });
        let (updates, time) = script(vec![
            version(),
            ("all", answer),
            ("list 500", page("x", "a", "7")),
            ("list 500 after x", page("", "b", "7")),
            ("watch 7", Answer::Lines(vec![(0, line("ADDED", "c", 8, false))])),
            ("watch 8", Answer::Lines(Vec::new())),
        ])
        .await;
        assert!(time <= limit, "{what}: {time:?}");
        // The list counts, whatever the stream delivered before it failed.
        let mut names: Vec<String> = Vec::new();
        let mut complete = 0;
        for update in &updates {
            match update {
                ClusterUpdate::Change(Change::Service(key, _), _) => {
                    names.retain(|name| **name != *key.name);
                    names.push(key.name.to_string());
                }
                ClusterUpdate::Listed(ListedNames::Services(known)) => names.retain(|name| known.iter().any(|key| *key.name == **name)),
                ClusterUpdate::Complete(_) => complete += 1,
                _ => panic!("{what}: {update:?}"),
            }
        }
        assert_eq!((names, complete), (["a", "b", "c"].map(String::from).to_vec(), 1), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_and_a_busy_server_are_waited_for() {
    let (updates, time) = script(vec![version(), ("all", Answer::Refused), version(), all(7, Vec::new()), ("watch 7", Answer::Lost)]).await;
    assert!((800..=1_600).contains(&time.as_millis()), "{time:?}");
    let [ClusterUpdate::Unknown(Kind::Service, why), ClusterUpdate::Change(..), ClusterUpdate::Complete(_)] = updates.as_slice() else {
        panic!("{updates:?}")
    };
    assert!(why.contains("connection refused"), "{why}");
    // After 429 the version is not requested again.
    for busy in [Answer::Status(429), Answer::Lines(vec![(0, error_event(429, "TooManyRequests", "no"))])] {
        let (_, time) = script(vec![version(), ("all", busy), ("all", Answer::Status(429)), all(7, Vec::new())]).await;
        assert!((2_400..=4_800).contains(&time.as_millis()), "{time:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_version_starts_from_scratch() {
    let too_large = || {
        let causes = json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]);
        let status = json!({"code": 504, "reason": "Timeout", "message": "Too large resource version: 8, current: 7"});
        let mut status = status;
        status["details"] = json!({"causes": causes, "retryAfterSeconds": 1});
        Answer::Refusal(504, status)
    };
    let expired = || Answer::Lines(vec![(0, error_event(410, "Expired", "too old"))]);
    for answer in [too_large(), expired(), Answer::Status(410)] {
        let (_, time) = script(vec![version(), ("all", answer), all(7, Vec::new())]).await;
        assert_eq!(time, Duration::ZERO);
    }
    // Repeated expiry leads to a wait, not to a list in pages.
    let (_, time) = script(vec![version(), ("all", expired()), ("all", too_large()), ("all", expired()), all(7, Vec::new())]).await;
    assert!((2_400..=4_800).contains(&time.as_millis()), "{time:?}");
}

#[tokio::test(start_paused = true)]
async fn the_version_is_requested_again_only_after_a_lost_connection() {
    let (list, watch) = (|| ("list 500", page("", "a", "7")), |lines| ("watch 7", Answer::Lines(lines)));
    let refuses = || ("all", Answer::Status(500));
    let expired = || vec![(70, error_event(410, "Expired", "too old"))];
    script(vec![
        version(),
        refuses(),
        list(),
        // A watch that ends and an expired version do not change the server.
        watch(vec![(290, bookmark(7))]),
        watch(expired()),
        list(),
        // An outage may.
        ("watch 7", Answer::Refused),
        version(),
        refuses(),
        list(),
        ("watch 7", Answer::Status(503)),
        version(),
        all(7, Vec::new()),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_say_its_version_is_listed_in_pages() {
    for answer in [Answer::Status(403), Answer::Status(500), Answer::Lines(vec![(0, "<html>".into())])] {
        let (updates, time) =
            script(vec![("version", answer), ("list 500", page("", "a", "7")), ("watch 7", Answer::Lines(Vec::new()))]).await;
        assert!(matches!(updates.as_slice(), [ClusterUpdate::Change(..), ClusterUpdate::Complete(_)]), "{updates:?}");
        assert_eq!(time, Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_deleted_during_a_streaming_list_is_deleted() {
    let stream = [("ADDED", "a", false), ("ADDED", "b", false), ("DELETED", "a", false), ("BOOKMARK", "", true)];
    let lines = stream.map(|(kind, name, end)| (0, line(kind, name, 9, end))).into();
    let (updates, _) = script(vec![version(), ("all", Answer::Lines(lines)), ("watch 9", Answer::Lines(Vec::new()))]).await;
    assert!(
        matches!(&updates[2], ClusterUpdate::Change(Change::Service(key, None), _) if &*key.name == "a")
            && matches!(updates[3], ClusterUpdate::Complete(_)),
        "{updates:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_before_the_first_list_is_an_update() {
    let (updates, _) =
        script(vec![version(), ("all", Answer::Status(500)), ("list 500", Answer::Status(403)), ("list 500", page("", "a", "7"))]).await;
    let [ClusterUpdate::Unknown(Kind::Service, why), ClusterUpdate::Change(..), ClusterUpdate::Complete(_)] = updates.as_slice() else {
        panic!("{updates:?}")
    };
    assert_eq!(&**why, "no (403 No)");
    // Later failures are not: the known objects stay.
    let (updates, _) = script(vec![version(), all(7, Vec::new()), ("watch 7", Answer::Status(500)), version(), last()]).await;
    assert!(!updates.iter().any(|update| matches!(update, ClusterUpdate::Unknown(..))), "{updates:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_without_due_bookmarks_is_replaced() {
    let open = |after: &[(u64, String)]| {
        let listed = [(0, line("ADDED", "a", 3, false)), (0, line("BOOKMARK", "", 7, true))];
        ("all", Answer::Open([&listed[..], after].concat()))
    };
    let next = ("watch 9", Answer::Lines(Vec::new()));
    let (_, took) = script(vec![version(), open(&[(60, bookmark(8)), (60, bookmark(9))]), next]).await;
    assert_eq!(took, Duration::from_secs(240), "twice the time between two bookmarks after the last one");
    let next = ("watch 9", Answer::Lines(Vec::new()));
    let (_, took) = script(vec![version(), open(&[(1, bookmark(8)), (1, bookmark(9))]), next]).await;
    assert_eq!(took, LEAST_SILENCE + Duration::from_secs(2));
    // A server without bookmarks may be silent for the whole watch.
    let list = Answer::Json(json!({"metadata": {"resourceVersion": "7"}, "items": []}));
    let (_, took) = script(vec![version(), open(&[]), ("list 1", list)]).await;
    assert_eq!(took, SILENCE);
}
