//! From paths to what is done.

use std::sync::Arc;

use hyper::body::Bytes;
use hyper::{Method, Response};
use serde_json::{Value, json};

use crate::access::Caller;
use crate::object::Entry;
use crate::patch::PatchKind;
use crate::refusal::{ANONYMOUS, Refusal};
use crate::resource::Resource;
use crate::selector::Selector;
use crate::write::{self, Target};

use super::query::{Query, unescape};
use super::watch::Initial;
use super::{Body, Shared, discovery, json as bytes, read, review, text, value, watch};

/// The sort of a request as it is counted: `list services`. Kept with the answer.
#[derive(Clone, Debug)]
pub(super) struct Sort(pub(super) String);

/// What matters of a request.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: Query,
    /// The client only wants metadata.
    pub(super) metadata_only: bool,
    pub(super) content_type: &'a str,
    pub(super) caller: Caller,
    /// How the initial events of a watch end.
    pub(super) initial: Initial,
    pub(super) body: Bytes,
}

impl Call<'_> {
    /// An entry in the form the client wants.
    pub(super) fn form(&self, entry: &Entry) -> Bytes {
        if self.metadata_only { entry.metadata_only() } else { entry.full() }
    }

    /// True if it is a watch.
    pub(super) fn is_watch(&self) -> bool {
        self.query.flag("watch")
    }

    /// True if it is a watch that starts with everything there is: a streaming list.
    pub(super) fn is_streaming(&self) -> bool {
        self.is_watch() && self.query.flag("sendInitialEvents")
    }

    /// What the client selects.
    pub(super) fn selector(&self, resource: Resource) -> Result<Selector, Refusal> {
        Selector::parse(resource, self.query.text("labelSelector"), self.query.text("fieldSelector"))
    }
}

/// What a path names.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) resource: Resource,
    /// Empty if the path names none.
    pub(super) namespace: &'a str,
    /// Empty for the whole collection.
    pub(super) name: &'a str,
    status: bool,
}

/// Answers a request.
pub(super) fn route(shared: &Arc<Shared>, call: &Call<'_>) -> Result<Response<Body>, Refusal> {
    let raw: Vec<_> = call.path.trim_matches('/').split('/').collect();
    let reads = matches!(*call.method, Method::GET | Method::HEAD);
    let is_public = matches!(raw[0], "healthz" | "livez" | "readyz" | "version");
    let anonymous = call.caller == Caller::Anonymous && !is_public;
    if let Some(response) = discovery::answer(&raw) {
        if anonymous {
            return Err(Refusal::forbidden_path(ANONYMOUS, call.path));
        }
        return if reads { Ok(response) } else { Err(Refusal::method_not_allowed()) };
    }
    let (group, version, rest) = match raw.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ if anonymous => return Err(Refusal::forbidden_path(ANONYMOUS, call.path)),
        _ => return Ok(text(404, "404 page not found\n")),
    };
    let rest: Vec<_> = rest.iter().map(|part| unescape(part)).collect();
    let mut rest: Vec<_> = rest.iter().map(String::as_str).collect();
    let mut watches = call.is_watch();
    if rest.first() == Some(&"watch") {
        rest.remove(0);
        watches = true;
    }
    if let Some(kind) = rest.last().and_then(|plural| review::kind(group, version, plural)) {
        if *call.method != Method::POST {
            return Err(Refusal::method_not_allowed());
        }
        shared.journal.count(&format!("create {}", rest.last().unwrap_or(&"")));
        return Ok(value(201, &review::answer(&shared.faults, group, kind, &call.body)));
    }
    let place = place(group, version, &rest).ok_or_else(Refusal::no_such_resource)?;
    let verb = verb(call.method, &place, watches)?;
    let what = if place.status { format!("{}/status", place.resource.plural) } else { place.resource.plural.to_owned() };
    shared.journal.count(&format!("{verb} {what}"));
    if anonymous {
        return Err(Refusal::forbidden(ANONYMOUS, place.resource, place.name, place.namespace, (verb, &what)));
    }
    shared.faults.check(place.resource, place.name, place.namespace, (verb, &what))?;
    let mut response = respond(shared, call, &place, verb)?;
    response.extensions_mut().insert(Sort(format!("{verb} {what}")));
    Ok(response)
}

/// Does what a request asks for.
fn respond(shared: &Arc<Shared>, call: &Call<'_>, place: &Place<'_>, verb: &str) -> Result<Response<Body>, Refusal> {
    match verb {
        "watch" => watch::start(shared, call, place),
        "list" => read::list(shared, call, place),
        "get" => {
            let entry = shared.store().get(place.resource, place.namespace, place.name);
            let entry = entry.ok_or_else(|| Refusal::not_found(place.resource, place.name))?;
            Ok(bytes(200, call.form(&entry)))
        }
        "deletecollection" => read::delete_collection(shared, call, place),
        _ => write(shared, call, place, verb),
    }
}

/// Finds what a path names.
fn place<'a>(group: &str, version: &str, path: &[&'a str]) -> Option<Place<'a>> {
    let (namespace, path) = match path {
        // A namespace itself may have a subresource, too.
        ["namespaces", _, "status"] => ("", path),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        _ => ("", path),
    };
    let (plural, name, sub) = match path {
        [plural] => (*plural, "", None),
        [plural, name] => (*plural, *name, None),
        [plural, name, sub] => (*plural, *name, Some(*sub)),
        _ => return None,
    };
    let resource = Resource::at(group, version, plural)?;
    let known = match sub {
        None => true,
        Some(sub) => sub == "status" && resource.status && !name.is_empty(),
    };
    let fits = if resource.namespaced { name.is_empty() || !namespace.is_empty() } else { namespace.is_empty() };
    (known && fits).then_some(Place { resource, namespace, name, status: sub.is_some() })
}

fn verb(method: &Method, place: &Place<'_>, watches: bool) -> Result<&'static str, Refusal> {
    let whole = place.name.is_empty();
    match *method {
        Method::GET | Method::HEAD if watches => Ok("watch"),
        Method::GET | Method::HEAD => Ok(if whole { "list" } else { "get" }),
        Method::POST if whole => Ok("create"),
        Method::PUT if !whole => Ok("update"),
        Method::PATCH if !whole => Ok("patch"),
        Method::DELETE if !place.status => Ok(if whole { "deletecollection" } else { "delete" }),
        _ => Err(Refusal::method_not_allowed()),
    }
}

/// Create, update, patch or delete.
fn write(shared: &Shared, call: &Call<'_>, place: &Place<'_>, verb: &str) -> Result<Response<Body>, Refusal> {
    let Place { resource, namespace, name, status } = *place;
    let target = Target { resource, namespace, name, status, dry_run: !call.query.text("dryRun").is_empty() };
    let document = document(call, verb)?;
    let mut store = shared.store();
    let written = match verb {
        "create" => write::create(&mut store, target, document),
        "update" => write::update(&mut store, target, document),
        "delete" => write::delete(&mut store, target, &document),
        _ => {
            let kind = PatchKind::of(call.content_type)?;
            write::patch(&mut store, target, kind, call.query.text("fieldManager"), document)
        }
    }?;
    Ok(bytes(if written.created { 201 } else { 200 }, written.body))
}

/// The body of a write. Nothing here reads protobuf; what a deletion says in it does not matter.
fn document(call: &Call<'_>, verb: &str) -> Result<Value, Refusal> {
    if call.content_type == "application/vnd.kubernetes.protobuf" && verb != "delete" {
        return Err(Refusal::unsupported_media_type("application/json"));
    }
    if call.body.is_empty() || call.content_type == "application/vnd.kubernetes.protobuf" {
        return Ok(json!({}));
    }
    let parsed = serde_json::from_slice(&call.body);
    parsed.map_err(|error| {
        if call.content_type == "application/apply-patch+yaml" {
            Refusal::bad_request("this server reads apply patches as JSON only")
        } else {
            Refusal::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
        }
    })
}
