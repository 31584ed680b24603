//! Watches: what there is, then what happens, until the time is over or the client is gone.

use std::sync::Arc;
use std::time::Duration;
use std::{io, mem};

use hyper::Response;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::object::Entry;
use crate::refusal::Refusal;
use crate::resource::Resource;
use crate::selector::Selector;
use crate::stamp;
use crate::store::{Cursor, Event, Found};

use super::query::Query;
use super::route::{Call, Place};
use super::{Body, Shared, respond};

/// Events that are looked at at once.
const BATCH: usize = 200;
/// Bytes that are sent at once, or little more.
const PIECE: usize = 64 * 1024;
/// Longer than any watch is left open.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

type Pieces = mpsc::Sender<io::Result<Bytes>>;

/// How the initial events of a watch end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Initial {
    /// With a bookmark that says so, if the client asked for it.
    Complete,
    /// Without it, although the watch goes on.
    WithoutBookmark,
    /// With the end of the watch.
    Ended,
}

/// What a watch is about.
struct Watch {
    resource: Resource,
    /// Empty for all.
    namespace: String,
    selector: Selector,
    metadata_only: bool,
    bookmarks: bool,
    initial: Initial,
    ends: Instant,
}

/// What a watch starts with.
struct Start {
    cursor: Cursor,
    /// Objects that are there already.
    entries: Vec<Arc<Entry>>,
    /// The version they are complete at, if the client is to be told.
    complete: Option<u64>,
}

/// The watch is over, with or without an error.
struct Over;

/// Starts a watch.
pub(super) fn start(shared: &Arc<Shared>, call: &Call<'_>, place: &Place<'_>) -> Result<Response<Body>, Refusal> {
    let resource = place.resource;
    let selector = if place.name.is_empty() { call.selector(resource)? } else { Selector::name(place.name) };
    let time = call.query.seconds("timeoutSeconds")?.filter(|time| !time.is_zero()).unwrap_or_else(|| stamp::between(1800, 3600));
    let watch = Watch {
        resource,
        namespace: place.namespace.to_owned(),
        selector,
        metadata_only: call.metadata_only,
        bookmarks: call.query.flag("allowWatchBookmarks"),
        initial: call.initial,
        ends: Instant::now() + time.min(LONGEST),
    };
    // One piece waits for the client; a client that does not read holds nothing else.
    let (pieces, body) = mpsc::channel(1);
    let start = watch.start(shared, &call.query)?;
    let shared = shared.clone();
    tokio::spawn(async move {
        match start {
            Ok(start) => drop(watch.run(&shared, start, &pieces).await),
            Err(expired) => drop(pieces.send(Ok(error_line(&expired))).await),
        }
    });
    Ok(respond(200, "application/json", Body::stream(body)))
}

impl Watch {
    /// Where the watch starts. The outer error is the answer to the request, the inner one is the first event.
    fn start(&self, shared: &Shared, query: &Query) -> Result<Result<Start, Refusal>, Refusal> {
        let initial = query.get("sendInitialEvents");
        let forbidden =
            |why: &str| Refusal::invalid(format!("ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: {why}"));
        match (initial, query.text("resourceVersionMatch")) {
            (Some(_), "NotOlderThan") | (None, "") => {}
            (Some(_), _) => return Err(forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")),
            (None, _) => return Err(forbidden("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")),
        }
        let since = query.version()?.unwrap_or_default();
        let asked = initial == Some("true");
        let store = shared.store();
        let current = store.version();
        if asked || (initial.is_none() && since == 0) {
            if since > current {
                return Err(Refusal::version_from_the_future(since, current));
            }
            let mut entries = store.list(self.resource, &self.namespace);
            entries.retain(|entry| self.selector.matches(entry));
            let complete = (asked && self.bookmarks).then_some(current);
            return Ok(Ok(Start { cursor: store.follow(self.resource, 0), entries, complete }));
        }
        let cursor = if since == 0 { Ok(store.follow(self.resource, 0)) } else { store.follow_since(self.resource, since) };
        Ok(cursor.map(|cursor| Start { cursor, entries: Vec::new(), complete: None }))
    }

    /// Sends what there is and what happens.
    async fn run(&self, shared: &Shared, start: Start, pieces: &Pieces) -> Result<(), Over> {
        let Start { mut cursor, entries, complete } = start;
        send_lines(pieces, entries.iter().map(|entry| self.line("ADDED", entry))).await?;
        drop(entries);
        if self.initial == Initial::Ended {
            return Ok(());
        }
        if let Some(version) = complete.filter(|_| self.initial == Initial::Complete) {
            send(pieces, self.bookmark(version, true)).await?;
        }
        let mut next_bookmark = Instant::now() + stamp::between(20, 40);
        loop {
            let found = shared.store().read(self.resource, &mut cursor, BATCH);
            let (version, called) = match found {
                Found::Events(events) => {
                    shared.faults.hold().await;
                    send_lines(pieces, events.iter().filter_map(|event| self.event(event))).await?;
                    continue;
                }
                Found::Expired(refusal) => return send(pieces, error_line(&refusal)).await,
                Found::Dropped => {
                    // The client need not be there to see it.
                    let _ = pieces.send(Err(io::Error::other("the watches were dropped"))).await;
                    return Err(Over);
                }
                Found::Nothing { version, called } => (version, called),
            };
            let now = Instant::now();
            let over = now >= self.ends;
            if over || called || now >= next_bookmark {
                next_bookmark = now + stamp::between(20, 40);
                if self.bookmarks {
                    shared.faults.hold().await;
                    send(pieces, self.bookmark(version, false)).await?;
                }
            }
            if over {
                return Ok(());
            }
            tokio::select! {
                news = cursor.news.changed() => news.map_err(|_| Over)?,
                () = sleep_until(self.ends.min(next_bookmark)) => {}
                () = pieces.closed() => return Err(Over),
            }
        }
    }

    /// How an event looks to this client: an object that stops to match is deleted for it, one that starts to is added.
    fn event(&self, event: &Event) -> Option<Vec<u8>> {
        let Event { version, old, new, deleted, .. } = event;
        if !self.namespace.is_empty() && *new.key.namespace != *self.namespace {
            return None;
        }
        let old = old.as_ref().filter(|old| self.selector.matches(old));
        match (old, !deleted && self.selector.matches(new)) {
            (None, false) => None,
            (None, true) => Some(self.line("ADDED", new)),
            (Some(_), true) => Some(self.line("MODIFIED", new)),
            (Some(_), false) if *deleted => Some(self.line("DELETED", new)),
            (Some(old), false) => Some(self.line("DELETED", &old.at_version(self.resource, *version).ok()?)),
        }
    }

    fn line(&self, kind: &str, entry: &Entry) -> Vec<u8> {
        line(kind, &if self.metadata_only { entry.metadata_only() } else { entry.full() })
    }

    /// A bookmark, with the empty fields an object of this type is sent with.
    fn bookmark(&self, version: u64, complete: bool) -> Bytes {
        let mut object = json!({
            "kind": self.resource.kind,
            "apiVersion": self.resource.api_version(),
            "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
        });
        if complete {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        if self.metadata_only {
            object["kind"] = "PartialObjectMetadata".into();
            object["apiVersion"] = "meta.k8s.io/v1".into();
        } else {
            let empty: &[(&str, Value)] = match self.resource.plural {
                "services" | "nodes" | "pods" => &[("spec", json!({})), ("status", json!({}))],
                "endpointslices" => &[("addressType", json!("")), ("endpoints", Value::Null), ("ports", Value::Null)],
                _ => &[],
            };
            for (field, value) in empty {
                object[*field] = value.clone();
            }
        }
        line("BOOKMARK", object.to_string().as_bytes()).into()
    }
}

/// Sends a piece. Fails if the client is gone.
async fn send(pieces: &Pieces, bytes: Bytes) -> Result<(), Over> {
    pieces.send(Ok(bytes)).await.map_err(|_| Over)
}

/// Sends lines, some at once.
async fn send_lines(pieces: &Pieces, lines: impl Iterator<Item = Vec<u8>>) -> Result<(), Over> {
    let mut piece = Vec::new();
    for line in lines {
        piece.extend_from_slice(&line);
        if piece.len() >= PIECE {
            send(pieces, mem::take(&mut piece).into()).await?;
        }
    }
    if piece.is_empty() { Ok(()) } else { send(pieces, piece.into()).await }
}

pub(super) fn error_line(refusal: &Refusal) -> Bytes {
    line("ERROR", refusal.status().to_string().as_bytes()).into()
}

fn line(kind: &str, object: &[u8]) -> Vec<u8> {
    [b"{\"type\":\"", kind.as_bytes(), b"\",\"object\":", object, b"}\n"].concat()
}
