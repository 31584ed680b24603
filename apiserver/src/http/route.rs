//! Finds out what a request asks for, and calls its handler.

use std::sync::Arc;

use hyper::{Method, Response};
use serde_json::{Value, json};

use crate::authentication::Caller;
use crate::patch::PatchKind;
use crate::resource::Resource;
use crate::state::ServerState;
use crate::status_error::{ANONYMOUS, StatusError};
use crate::write::{self, Target};

use super::body::Body;
use super::query::unescape;
use super::request::{ApiRequest, RequestKind, ResourcePath};
use super::response::{json_bytes, json_value, plain_text};
use super::{discovery, list, review, watch};

/// Returns the response to a request.
pub(super) fn route(state: &Arc<ServerState>, request: &ApiRequest<'_>) -> Result<Response<Body>, StatusError> {
    let raw: Vec<_> = request.path.trim_matches('/').split('/').collect();
    let is_read = matches!(*request.method, Method::GET | Method::HEAD);
    let is_public = matches!(raw[0], "healthz" | "livez" | "readyz" | "version");
    let anonymous = request.caller == Caller::Anonymous && !is_public;
    if let Some(response) = discovery::respond(&raw) {
        if anonymous {
            return Err(StatusError::forbidden_path(ANONYMOUS, request.path));
        }
        return if is_read { Ok(response) } else { Err(StatusError::method_not_allowed()) };
    }
    let (group, version, rest) = match raw.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ if anonymous => return Err(StatusError::forbidden_path(ANONYMOUS, request.path)),
        _ => return Ok(plain_text(404, "404 page not found\n")),
    };
    let rest: Vec<_> = rest.iter().map(|part| unescape(part)).collect();
    let mut rest: Vec<_> = rest.iter().map(String::as_str).collect();
    let mut is_watch = request.is_watch();
    if rest.first() == Some(&"watch") {
        rest.remove(0);
        is_watch = true;
    }
    if let Some(kind) = rest.last().and_then(|plural| review::find_kind(group, version, plural)) {
        if *request.method != Method::POST {
            return Err(StatusError::method_not_allowed());
        }
        state.request_log.count(&format!("create {}", rest.last().unwrap_or(&"")));
        return Ok(json_value(201, &review::answer(&state.faults, group, kind, &request.body)));
    }
    let path = parse_path(group, version, &rest).ok_or_else(StatusError::no_such_resource)?;
    let verb = find_verb(request.method, &path, is_watch)?;
    let resource = if path.status { format!("{}/status", path.resource.plural) } else { path.resource.plural.to_owned() };
    let kind = format!("{verb} {resource}");
    state.request_log.count(&kind);
    if anonymous {
        return Err(StatusError::forbidden(ANONYMOUS, path.resource, path.name, path.namespace, (verb, &resource)));
    }
    state.faults.check_denied(path.resource, path.name, path.namespace, (verb, &resource))?;
    let mut response = call_handler(state, request, &path, verb)?;
    response.extensions_mut().insert(RequestKind(kind));
    Ok(response)
}

/// Calls the handler of a verb.
fn call_handler(
    state: &Arc<ServerState>,
    request: &ApiRequest<'_>,
    path: &ResourcePath<'_>,
    verb: &str,
) -> Result<Response<Body>, StatusError> {
    match verb {
        "watch" => watch::start(state, request, path),
        "list" => list::list(state, request, path),
        "get" => {
            let entry = state.store().get(path.resource, path.namespace, path.name);
            let entry = entry.ok_or_else(|| StatusError::not_found(path.resource, path.name))?;
            Ok(json_bytes(200, request.encode(&entry)))
        }
        "deletecollection" => list::delete_collection(state, request, path),
        _ => write(state, request, path, verb),
    }
}

/// Parses the part of a path after group and version. `None` if the server has no such resource.
fn parse_path<'a>(group: &str, version: &str, parts: &[&'a str]) -> Option<ResourcePath<'a>> {
    let (namespace, parts) = match parts {
        // This path names the status of a namespace, not a resource called `status` in a namespace.
        ["namespaces", _, "status"] => ("", parts),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        _ => ("", parts),
    };
    let (plural, name, subresource) = match parts {
        [plural] => (*plural, "", None),
        [plural, name] => (*plural, *name, None),
        [plural, name, subresource] => (*plural, *name, Some(*subresource)),
        _ => return None,
    };
    let resource = Resource::at(group, version, plural)?;
    let is_known = match subresource {
        None => true,
        Some(subresource) => subresource == "status" && resource.status && !name.is_empty(),
    };
    let fits = if resource.namespaced { name.is_empty() || !namespace.is_empty() } else { namespace.is_empty() };
    (is_known && fits).then_some(ResourcePath { resource, namespace, name, status: subresource.is_some() })
}

/// The Kubernetes verb of a method on a path.
fn find_verb(method: &Method, path: &ResourcePath<'_>, is_watch: bool) -> Result<&'static str, StatusError> {
    let is_collection = path.name.is_empty();
    match *method {
        Method::GET | Method::HEAD if is_watch => Ok("watch"),
        Method::GET | Method::HEAD => Ok(if is_collection { "list" } else { "get" }),
        Method::POST if is_collection => Ok("create"),
        Method::PUT if !is_collection => Ok("update"),
        Method::PATCH if !is_collection => Ok("patch"),
        Method::DELETE if !path.status => Ok(if is_collection { "deletecollection" } else { "delete" }),
        _ => Err(StatusError::method_not_allowed()),
    }
}

/// Creates, updates, patches or deletes an object.
fn write(state: &ServerState, request: &ApiRequest<'_>, path: &ResourcePath<'_>, verb: &str) -> Result<Response<Body>, StatusError> {
    let ResourcePath { resource, namespace, name, status } = *path;
    let target = Target { resource, namespace, name, status, dry_run: !request.query.text("dryRun").is_empty() };
    let document = parse_body(request, verb)?;
    let mut store = state.store();
    let written = match verb {
        "create" => write::create(&mut store, target, document),
        "update" => write::update(&mut store, target, document),
        "delete" => write::delete(&mut store, target, &document),
        _ => {
            let kind = PatchKind::from_content_type(request.content_type)?;
            write::patch(&mut store, target, kind, request.query.text("fieldManager"), document)
        }
    }?;
    Ok(json_bytes(if written.created { 201 } else { 200 }, written.body))
}

/// Parses the body of a write. Protobuf is refused, except for the options of a deletion, which are ignored.
fn parse_body(request: &ApiRequest<'_>, verb: &str) -> Result<Value, StatusError> {
    if request.content_type == "application/vnd.kubernetes.protobuf" && verb != "delete" {
        return Err(StatusError::unsupported_media_type("application/json"));
    }
    if request.body.is_empty() || request.content_type == "application/vnd.kubernetes.protobuf" {
        return Ok(json!({}));
    }
    let parsed = serde_json::from_slice(&request.body);
    parsed.map_err(|error| {
        if request.content_type == "application/apply-patch+yaml" {
            StatusError::bad_request("this server reads apply patches as JSON only")
        } else {
            StatusError::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
        }
    })
}
