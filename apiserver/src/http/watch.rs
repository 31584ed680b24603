//! Watches: sends the existing objects if the client asks for them, then every change, until the timeout or until the client closes.

use std::sync::Arc;
use std::time::Duration;
use std::{io, mem};

use hyper::Response;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::generate;
use crate::object::Entry;
use crate::resource::Resource;
use crate::selector::Selector;
use crate::state::ServerState;
use crate::status_error::StatusError;
use crate::store::{Cursor, Event, ReadResult};

use super::body::Body;
use super::query::Query;
use super::request::{ApiRequest, InitialEvents, ResourcePath};
use super::response::{JSON, response};

/// Events that are read from the store at once.
const BATCH: usize = 200;
/// A piece of the body is sent when it has this many bytes.
const PIECE: usize = 64 * 1024;
/// The longest time that a watch stays open.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

type Pieces = mpsc::Sender<io::Result<Bytes>>;

/// One watch.
struct Watch {
    resource: Resource,
    /// Empty for all namespaces.
    namespace: String,
    selector: Selector,
    metadata_only: bool,
    bookmarks: bool,
    initial_events: InitialEvents,
    ends: Instant,
}

/// Where a watch starts.
struct Start {
    cursor: Cursor,
    /// The existing objects, if the client asked for them.
    entries: Vec<Arc<Entry>>,
    /// The resource version of these objects, if the client asked for the bookmark that ends them.
    bookmark: Option<u64>,
}

/// The watch has ended, with or without an error.
struct Ended;

/// Starts a watch. A task sends its events.
pub(super) fn start(state: &Arc<ServerState>, request: &ApiRequest<'_>, path: &ResourcePath<'_>) -> Result<Response<Body>, StatusError> {
    let resource = path.resource;
    let selector = if path.name.is_empty() { request.selector(resource)? } else { Selector::name(path.name) };
    let timeout = request.query.seconds("timeoutSeconds")?.filter(|time| !time.is_zero());
    let timeout = timeout.unwrap_or_else(|| generate::duration_between(1800, 3600));
    let watch = Watch {
        resource,
        namespace: path.namespace.to_owned(),
        selector,
        metadata_only: request.metadata_only,
        bookmarks: request.query.flag("allowWatchBookmarks"),
        initial_events: request.initial_events,
        ends: Instant::now() + timeout.min(MAX_TIMEOUT),
    };
    // The channel holds one piece, so that a client that does not read uses little memory.
    let (pieces, body) = mpsc::channel(1);
    let start = watch.find_start(state, &request.query)?;
    let state = state.clone();
    tokio::spawn(async move {
        match start {
            Ok(start) => drop(watch.run(&state, start, &pieces).await),
            Err(expired) => drop(pieces.send(Ok(error_event(&expired))).await),
        }
    });
    Ok(response(200, JSON, Body::stream(body)))
}

impl Watch {
    /// Finds where the watch starts. The outer error is the response to the request; the inner one is sent as the first event.
    fn find_start(&self, state: &ServerState, query: &Query) -> Result<Result<Start, StatusError>, StatusError> {
        let initial = query.get("sendInitialEvents");
        let forbidden =
            |why: &str| StatusError::invalid(format!("ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: {why}"));
        match (initial, query.text("resourceVersionMatch")) {
            (Some(_), "NotOlderThan") | (None, "") => {}
            (Some(_), _) => return Err(forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")),
            (None, _) => return Err(forbidden("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")),
        }
        let since = query.version()?.unwrap_or_default();
        let is_streaming_list = initial == Some("true");
        let store = state.store();
        let current = store.version();
        if is_streaming_list || (initial.is_none() && since == 0) {
            if since > current {
                return Err(StatusError::version_too_large(since, current));
            }
            let mut entries = store.list(self.resource, &self.namespace);
            entries.retain(|entry| self.selector.matches(entry));
            let bookmark = (is_streaming_list && self.bookmarks).then_some(current);
            return Ok(Ok(Start { cursor: store.cursor_at_end(self.resource), entries, bookmark }));
        }
        let cursor = if since == 0 { Ok(store.cursor_at_end(self.resource)) } else { store.cursor_after(self.resource, since) };
        Ok(cursor.map(|cursor| Start { cursor, entries: Vec::new(), bookmark: None }))
    }

    /// Sends the initial events, and then events and bookmarks until the watch ends.
    async fn run(&self, state: &ServerState, start: Start, pieces: &Pieces) -> Result<(), Ended> {
        let Start { mut cursor, entries, bookmark } = start;
        send_lines(pieces, entries.iter().map(|entry| self.encode_event("ADDED", entry))).await?;
        drop(entries);
        if self.initial_events == InitialEvents::Ended {
            return Ok(());
        }
        if let Some(version) = bookmark.filter(|_| self.initial_events == InitialEvents::Complete) {
            send(pieces, self.encode_bookmark(version, true)).await?;
        }
        let mut next_bookmark = Instant::now() + generate::duration_between(20, 40);
        loop {
            let read = state.store().read(self.resource, &mut cursor, BATCH);
            let (version, bookmark_requested) = match read {
                ReadResult::Events(events) => {
                    state.faults.wait().await;
                    send_lines(pieces, events.iter().filter_map(|event| self.translate(event))).await?;
                    continue;
                }
                ReadResult::Expired(error) => return send(pieces, error_event(&error)).await,
                ReadResult::Dropped => {
                    // Fails only if the client has closed the watch already.
                    let _ = pieces.send(Err(io::Error::other("the watches were dropped"))).await;
                    return Err(Ended);
                }
                ReadResult::NoEvents { version, bookmark_requested } => (version, bookmark_requested),
            };
            let now = Instant::now();
            let timed_out = now >= self.ends;
            if timed_out || bookmark_requested || now >= next_bookmark {
                next_bookmark = now + generate::duration_between(20, 40);
                if self.bookmarks {
                    state.faults.wait().await;
                    send(pieces, self.encode_bookmark(version, false)).await?;
                }
            }
            if timed_out {
                return Ok(());
            }
            tokio::select! {
                changed = cursor.changes.changed() => changed.map_err(|_| Ended)?,
                () = sleep_until(self.ends.min(next_bookmark)) => {}
                () = pieces.closed() => return Err(Ended),
            }
        }
    }

    /// Translates a store event for this client. The client sees DELETED when an object no longer matches its selector, and ADDED when
    /// an object begins to match.
    fn translate(&self, event: &Event) -> Option<Vec<u8>> {
        let Event { version, old, new, deleted, .. } = event;
        if !self.namespace.is_empty() && *new.key.namespace != *self.namespace {
            return None;
        }
        let old = old.as_ref().filter(|old| self.selector.matches(old));
        match (old, !deleted && self.selector.matches(new)) {
            (None, false) => None,
            (None, true) => Some(self.encode_event("ADDED", new)),
            (Some(_), true) => Some(self.encode_event("MODIFIED", new)),
            (Some(_), false) if *deleted => Some(self.encode_event("DELETED", new)),
            (Some(old), false) => Some(self.encode_event("DELETED", &old.at_version(self.resource, *version).ok()?)),
        }
    }

    fn encode_event(&self, kind: &str, entry: &Entry) -> Vec<u8> {
        encode_line(kind, &if self.metadata_only { entry.metadata_only() } else { entry.full() })
    }

    /// Encodes a bookmark. Like kube-apiserver, it includes the required fields of the type, empty. `ends_initial_events` adds the
    /// annotation of the bookmark that ends the initial events.
    fn encode_bookmark(&self, version: u64, ends_initial_events: bool) -> Bytes {
        let mut object = json!({
            "kind": self.resource.kind,
            "apiVersion": self.resource.api_version(),
            "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
        });
        if ends_initial_events {
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
        encode_line("BOOKMARK", object.to_string().as_bytes()).into()
    }
}

/// Sends a piece of the body. Fails if the client has closed the watch.
async fn send(pieces: &Pieces, bytes: Bytes) -> Result<(), Ended> {
    pieces.send(Ok(bytes)).await.map_err(|_| Ended)
}

/// Sends lines, several in one piece.
async fn send_lines(pieces: &Pieces, lines: impl Iterator<Item = Vec<u8>>) -> Result<(), Ended> {
    let mut piece = Vec::new();
    for line in lines {
        piece.extend_from_slice(&line);
        if piece.len() >= PIECE {
            send(pieces, mem::take(&mut piece).into()).await?;
        }
    }
    if piece.is_empty() { Ok(()) } else { send(pieces, piece.into()).await }
}

/// Encodes an event of type ERROR.
pub(super) fn error_event(error: &StatusError) -> Bytes {
    encode_line("ERROR", error.status().to_string().as_bytes()).into()
}

/// Encodes one event as a line of JSON.
fn encode_line(kind: &str, object: &[u8]) -> Vec<u8> {
    [b"{\"type\":\"", kind.as_bytes(), b"\",\"object\":", object, b"}\n"].concat()
}
