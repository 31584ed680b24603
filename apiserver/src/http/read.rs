//! Lists, and the deletion of what a list shows.

use std::fmt::Write;
use std::sync::Arc;

use hyper::Response;
use hyper::body::Bytes;
use serde_json::{Map, Value};

use crate::object::{Entry, Key};
use crate::refusal::Refusal;
use crate::resource::Resource;

use super::query::Query;
use super::route::{Call, Place};
use super::{Body, Shared, json as bytes};

/// Which state of the collection a list shows.
enum State {
    /// What there is now.
    Now,
    /// What there was at a version.
    At(u64),
    /// What there was at a version, behind a key.
    Rest(u64, Key),
}

/// Lists a collection, or a page of it.
pub(super) fn list(shared: &Shared, call: &Call<'_>, place: &Place<'_>) -> Result<Response<Body>, Refusal> {
    let Place { resource, namespace, .. } = *place;
    let selector = call.selector(resource)?;
    let limit = call.query.number("limit")? as usize;
    let (version, mut entries) = entries(shared, &call.query, resource, namespace)?;
    let mut next = None;
    if limit > 0 && !selector.is_empty() {
        entries.retain(|entry| selector.matches(entry));
    }
    if limit > 0 && entries.len() > limit {
        next = Some((token(version, &entries[limit - 1].key), entries.len() - limit));
        entries.truncate(limit);
    }
    if limit == 0 {
        entries.retain(|entry| selector.matches(entry));
    }
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), version.to_string().into());
    if let Some((token, left)) = next {
        metadata.insert("continue".into(), token.into());
        // Nobody counts what a selector would leave.
        if selector.is_empty() {
            metadata.insert("remainingItemCount".into(), left.into());
        }
    }
    Ok(bytes(200, page(resource, call.metadata_only, metadata, &entries)))
}

/// The entries a query asks for, with their version.
fn entries(shared: &Shared, query: &Query, resource: Resource, namespace: &str) -> Result<(u64, Vec<Arc<Entry>>), Refusal> {
    let state = state(query)?;
    let store = shared.store();
    let current = store.version();
    match state {
        State::Now => {
            let least = query.version()?.unwrap_or_default();
            if least > current {
                return Err(Refusal::version_from_the_future(least, current));
            }
            Ok((current, store.list(resource, namespace)))
        }
        State::At(version) if version > current => Err(Refusal::version_from_the_future(version, current)),
        State::At(version) => {
            let entries = store.list_at(resource, namespace, version);
            let expired = || Refusal::expired("The resourceVersion for the provided list is too old.");
            Ok((version, entries.ok_or_else(expired)?))
        }
        State::Rest(version, after) => {
            let expired = || {
                Refusal::expired(
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

fn state(query: &Query) -> Result<State, Refusal> {
    let version = query.version()?;
    let matching = query.text("resourceVersionMatch");
    if !query.text("continue").is_empty() {
        let (version, key) = read_token(query.text("continue")).ok_or_else(|| Refusal::bad_request("continue key is not valid"))?;
        return Ok(State::Rest(version, key));
    }
    match (matching, version) {
        ("", _) | ("NotOlderThan", Some(_)) => Ok(State::Now),
        ("Exact", Some(version)) if version > 0 => Ok(State::At(version)),
        ("Exact", Some(_)) => {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            Err(Refusal::invalid(format!("resourceVersionMatch: Forbidden: {why}")))
        }
        (_, None) => {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            Err(Refusal::invalid(format!("resourceVersionMatch: Forbidden: {why}")))
        }
        (other, Some(_)) => Err(Refusal::invalid(format!("resourceVersionMatch: Unsupported value: \"{other}\""))),
    }
}

/// A continue token: version and last key, in hexadecimal so that it needs no escapes.
fn token(version: u64, last: &Key) -> String {
    let text = format!("{version}/{}/{}", last.namespace, last.name);
    text.bytes().fold(String::new(), |mut token, byte| {
        // Writing to a string does not fail.
        let _ = write!(token, "{byte:02x}");
        token
    })
}

fn read_token(token: &str) -> Option<(u64, Key)> {
    let pairs = token.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok());
    let text = String::from_utf8(pairs.collect::<Option<_>>()?).ok()?;
    let (version, key) = text.split_once('/')?;
    let (namespace, name) = key.split_once('/')?;
    Some((version.parse().ok()?, Key::new(namespace, name)))
}

/// A list of entries: their bytes, one after the other.
fn page(resource: Resource, metadata_only: bool, metadata: Map<String, Value>, entries: &[Arc<Entry>]) -> Bytes {
    let (kind, api_version) = if metadata_only {
        ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned())
    } else {
        (format!("{}List", resource.kind), resource.api_version())
    };
    let head = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{},\"items\":[", Value::Object(metadata));
    let length = entries.iter().map(|entry| entry.list_item().len() + 2).sum::<usize>();
    let mut page = Vec::with_capacity(head.len() + length + 2);
    page.extend_from_slice(head.as_bytes());
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 {
            page.push(b',');
        }
        if metadata_only {
            page.extend_from_slice(&entry.metadata_only());
        } else {
            page.push(b'{');
            page.extend_from_slice(entry.list_item());
        }
    }
    page.extend_from_slice(b"]}");
    page.into()
}

/// Removes what is selected, and lists it.
pub(super) fn delete_collection(shared: &Shared, call: &Call<'_>, place: &Place<'_>) -> Result<Response<Body>, Refusal> {
    let Place { resource, namespace, .. } = *place;
    let selector = call.selector(resource)?;
    let mut store = shared.store();
    let selected: Vec<_> = store.list(resource, namespace).into_iter().filter(|entry| selector.matches(entry)).collect();
    let removed = if call.query.text("dryRun").is_empty() {
        selected.iter().map(|entry| store.remove(resource, entry)).collect::<Result<_, _>>()?
    } else {
        selected
    };
    let metadata = Map::from_iter([("resourceVersion".to_owned(), store.version().to_string().into())]);
    Ok(bytes(200, page(resource, false, metadata, &removed)))
}
