//! Lists collections in whole or in pages, and deletes collections.

use std::fmt::Write;
use std::sync::Arc;

use hyper::Response;
use hyper::body::Bytes;
use serde_json::{Map, Value};

use crate::object::{Entry, ObjectKey};
use crate::resource::Resource;
use crate::state::ServerState;
use crate::status_error::StatusError;

use super::body::Body;
use super::query::Query;
use super::request::{ApiRequest, ResourcePath};
use super::response::json_bytes;

/// The state of the collection that a list shows.
enum ListState {
    /// The current objects.
    Current,
    /// The objects at a resource version.
    Exact(u64),
    /// The objects at a resource version whose keys are greater than this key: the pages after a continue token.
    Continued(u64, ObjectKey),
}

/// Lists a collection, or a page of it.
pub(super) fn list(state: &ServerState, request: &ApiRequest<'_>, path: &ResourcePath<'_>) -> Result<Response<Body>, StatusError> {
    let ResourcePath { resource, namespace, .. } = *path;
    let selector = request.selector(resource)?;
    let limit = request.query.number("limit")? as usize;
    let (version, mut entries) = select_entries(state, &request.query, resource, namespace)?;
    let mut next = None;
    if limit > 0 && !selector.is_empty() {
        entries.retain(|entry| selector.matches(entry));
    }
    if limit > 0 && entries.len() > limit {
        next = Some((write_token(version, &entries[limit - 1].key), entries.len() - limit));
        entries.truncate(limit);
    }
    if limit == 0 {
        entries.retain(|entry| selector.matches(entry));
    }
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), version.to_string().into());
    if let Some((token, remaining)) = next {
        metadata.insert("continue".into(), token.into());
        // kube-apiserver omits the count if there is a selector.
        if selector.is_empty() {
            metadata.insert("remainingItemCount".into(), remaining.into());
        }
    }
    Ok(json_bytes(200, encode_list(resource, request.metadata_only, metadata, &entries)))
}

/// The entries that a query asks for, and their resource version. Selectors are not applied.
fn select_entries(state: &ServerState, query: &Query, resource: Resource, namespace: &str) -> Result<(u64, Vec<Arc<Entry>>), StatusError> {
    let list_state = parse_list_state(query)?;
    let store = state.store();
    let current = store.version();
    match list_state {
        ListState::Current => {
            let least = query.version()?.unwrap_or_default();
            if least > current {
                return Err(StatusError::version_too_large(least, current));
            }
            Ok((current, store.list(resource, namespace)))
        }
        ListState::Exact(version) if version > current => Err(StatusError::version_too_large(version, current)),
        ListState::Exact(version) => {
            let entries = store.list_at(resource, namespace, version);
            let expired = || StatusError::expired("The resourceVersion for the provided list is too old.");
            Ok((version, entries.ok_or_else(expired)?))
        }
        ListState::Continued(version, after) => {
            let expired = || {
                StatusError::expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
                     the continue parameter, or use the continue token in this response to retrieve the remainder of the results.",
                )
            };
            let mut entries = store.list_at(resource, namespace, version).ok_or_else(expired)?;
            let start = entries.partition_point(|entry| entry.key <= after);
            entries.drain(..start);
            Ok((version, entries))
        }
    }
}

/// Reads `continue`, `resourceVersion` and `resourceVersionMatch`.
fn parse_list_state(query: &Query) -> Result<ListState, StatusError> {
    let version = query.version()?;
    let matching = query.text("resourceVersionMatch");
    if !query.text("continue").is_empty() {
        let (version, key) = read_token(query.text("continue")).ok_or_else(|| StatusError::bad_request("continue key is not valid"))?;
        return Ok(ListState::Continued(version, key));
    }
    match (matching, version) {
        ("", _) | ("NotOlderThan", Some(_)) => Ok(ListState::Current),
        ("Exact", Some(version)) if version > 0 => Ok(ListState::Exact(version)),
        ("Exact", Some(_)) => {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            Err(StatusError::invalid(format!("resourceVersionMatch: Forbidden: {why}")))
        }
        (_, None) => {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            Err(StatusError::invalid(format!("resourceVersionMatch: Forbidden: {why}")))
        }
        (other, Some(_)) => Err(StatusError::invalid(format!("resourceVersionMatch: Unsupported value: \"{other}\""))),
    }
}

/// Writes a continue token: version and last key, in hexadecimal so that URLs need no escapes.
fn write_token(version: u64, last: &ObjectKey) -> String {
    let text = format!("{version}/{}/{}", last.namespace, last.name);
    text.bytes().fold(String::new(), |mut token, byte| {
        // Writing to a string does not fail.
        let _ = write!(token, "{byte:02x}");
        token
    })
}

fn read_token(token: &str) -> Option<(u64, ObjectKey)> {
    let pairs = token.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok());
    let text = String::from_utf8(pairs.collect::<Option<_>>()?).ok()?;
    let (version, key) = text.split_once('/')?;
    let (namespace, name) = key.split_once('/')?;
    Some((version.parse().ok()?, ObjectKey::new(namespace, name)))
}

/// Encodes a list by joining the stored bytes of its entries.
fn encode_list(resource: Resource, metadata_only: bool, metadata: Map<String, Value>, entries: &[Arc<Entry>]) -> Bytes {
    let (kind, api_version) = if metadata_only {
        ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned())
    } else {
        (format!("{}List", resource.kind), resource.api_version())
    };
    let head = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{},\"items\":[", Value::Object(metadata));
    let length = entries.iter().map(|entry| entry.list_item().len() + 2).sum::<usize>();
    let mut list = Vec::with_capacity(head.len() + length + 2);
    list.extend_from_slice(head.as_bytes());
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 {
            list.push(b',');
        }
        if metadata_only {
            list.extend_from_slice(&entry.metadata_only());
        } else {
            list.push(b'{');
            list.extend_from_slice(entry.list_item());
        }
    }
    list.extend_from_slice(b"]}");
    list.into()
}

/// Removes the selected objects and returns them as a list.
pub(super) fn delete_collection(
    state: &ServerState,
    request: &ApiRequest<'_>,
    path: &ResourcePath<'_>,
) -> Result<Response<Body>, StatusError> {
    let ResourcePath { resource, namespace, .. } = *path;
    let selector = request.selector(resource)?;
    let mut store = state.store();
    let selected: Vec<_> = store.list(resource, namespace).into_iter().filter(|entry| selector.matches(entry)).collect();
    let removed = if request.query.text("dryRun").is_empty() {
        selected.iter().map(|entry| store.remove(resource, entry)).collect::<Result<_, _>>()?
    } else {
        selected
    };
    let metadata = Map::from_iter([("resourceVersion".to_owned(), store.version().to_string().into())]);
    Ok(json_bytes(200, encode_list(resource, false, metadata, &removed)))
}
