//! Handles one request: reads the body, applies faults, authenticates, routes, logs and compresses.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, USER_AGENT};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};

use crate::authentication::Caller;
use crate::connections::ConnectionHandle;
use crate::generate::wall_clock;
use crate::request_log::LogEntry;
use crate::state::ServerState;

use super::body::{self, Body};
use super::query::Query;
use super::request::{ApiRequest, InitialEvents, RequestKind};
use super::response::status_error;
use super::{gzip, hooks, injected, route};

/// The largest body that a client may send.
const MAX_CLIENT_BODY: usize = 4 * 1024 * 1024;
/// The largest body of a test hook. Hooks load whole clusters.
const MAX_HOOK_BODY: usize = 512 * 1024 * 1024;

/// Handles one request and returns its response.
pub(super) async fn handle(request: Request<Incoming>, state: Arc<ServerState>, connection: Arc<ConnectionHandle>) -> Response<Body> {
    let at = wall_clock();
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or_else(String::new, |path| path.as_str().to_owned());
    if let Some(hook) = head.uri.path().strip_prefix("/_test/") {
        let body = body::read(body, MAX_HOOK_BODY).await;
        let query = Query::parse(head.uri.query().unwrap_or_default());
        return body.and_then(|body| hooks::run(&state, hook, &query, &body)).unwrap_or_else(|error| status_error(&error));
    }
    let body = body::read(body, MAX_CLIENT_BODY).await;
    let patch_body = body.as_ref().ok().filter(|_| head.method == Method::PATCH).map(|body| String::from_utf8_lossy(body).into_owned());
    state.faults.wait().await;
    let caller = state.authenticator.check(&connection.chain, head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()));
    let request = caller.and_then(|caller| Ok(api_request(&head, caller, body?)));
    let failure =
        request.as_ref().ok().and_then(|request| state.faults.take_failure(&path, request.is_watch(), request.is_streaming_list()));
    let response = match failure {
        Some(failure) => {
            state.request_log.count("failed");
            injected::respond(&state, &failure, request)
        }
        None => Some(request.and_then(|request| route::route(&state, &request)).unwrap_or_else(|error| status_error(&error))),
    };
    let code = response.as_ref().map_or(0, |response| response.status().as_u16());
    state.request_log.add(LogEntry { at, path, code, patch: patch_body.unwrap_or_default(), ..log_entry(&head, &connection) });
    match response {
        Some(response) => finish(&state, &head, response),
        None => injected::close(&connection).await,
    }
}

/// Compresses a response if the client accepts gzip, and counts its bytes.
fn finish(state: &ServerState, head: &Parts, response: Response<Body>) -> Response<Body> {
    let kind = response.extensions().get::<RequestKind>().cloned();
    let plain = response.body().length();
    let response =
        if head.method == Method::GET && gzip::is_accepted(header(head, ACCEPT_ENCODING)) { gzip::compress(response) } else { response };
    match kind {
        Some(RequestKind(kind)) => response.map(|body| body.counted(state.request_log.clone(), kind, plain)),
        None => response,
    }
}

/// A log entry with the fields that are known from the request's head alone.
fn log_entry(head: &Parts, connection: &ConnectionHandle) -> LogEntry {
    let text = |name| header(head, name).to_owned();
    LogEntry {
        at: Duration::ZERO,
        method: head.method.to_string(),
        path: String::new(),
        code: 0,
        content_type: text(CONTENT_TYPE),
        patch: String::new(),
        http: format!("{:?}", head.version),
        host: head.uri.authority().map_or_else(|| text(HOST), ToString::to_string),
        user_agent: text(USER_AGENT),
        authorization: text(AUTHORIZATION),
        accept_encoding: text(ACCEPT_ENCODING),
        connection: connection.connection.clone(),
    }
}

/// The value of a header; empty if it is missing or not text.
fn header(head: &Parts, name: HeaderName) -> &str {
    head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn api_request(head: &Parts, caller: Caller, body: Bytes) -> ApiRequest<'_> {
    ApiRequest {
        method: &head.method,
        path: head.uri.path(),
        query: Query::parse(head.uri.query().unwrap_or_default()),
        metadata_only: header(head, ACCEPT).contains("as=PartialObjectMetadata"),
        content_type: header(head, CONTENT_TYPE).split(';').next().unwrap_or_default().trim(),
        caller,
        initial_events: InitialEvents::Complete,
        body,
    }
}
