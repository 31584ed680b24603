//! HTTP: connections, requests in, answers out.

mod body;
mod connection;
mod discovery;
mod failing;
mod gzip;
mod hooks;
mod query;
mod read;
mod review;
mod route;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;

use crate::access::{Access, Caller};
use crate::connections::{Connections, Link};
use crate::faults::Faults;
use crate::journal::{Journal, LogEntry};
use crate::refusal::Refusal;
use crate::stamp::wall_clock;
use crate::store::Store;
use crate::tls::Tls;

pub(crate) use connection::accept;

use body::Body;
use query::Query;
use route::{Call, Sort};
use watch::Initial;

/// The largest body a client may send.
const CLIENT_LIMIT: usize = 4 * 1024 * 1024;
/// The same for test hooks, which load whole clusters.
const HOOK_LIMIT: usize = 512 * 1024 * 1024;

/// What the connections of a server share, and its handle.
#[derive(Debug)]
pub(crate) struct Shared {
    store: Mutex<Store>,
    pub(crate) faults: Faults,
    pub(crate) journal: Arc<Journal>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) access: Arc<Access>,
}

impl Shared {
    pub(crate) fn new(store: Store, tls: Option<Arc<Tls>>, access: Arc<Access>) -> Self {
        let (journal, connections) = (Arc::default(), Arc::default());
        Self { store: Mutex::new(store), faults: Faults::new(), journal, connections, tls, access }
    }

    /// The store. Never held while waiting for anything.
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers one request.
async fn answer(request: Request<Incoming>, shared: Arc<Shared>, link: Arc<Link>) -> Response<Body> {
    let at = wall_clock();
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or_else(String::new, |path| path.as_str().to_owned());
    if let Some(hook) = head.uri.path().strip_prefix("/_test/") {
        let body = body::read(body, HOOK_LIMIT).await;
        let query = Query::parse(head.uri.query().unwrap_or_default());
        return body.and_then(|body| hooks::answer(&shared, hook, &query, &body)).unwrap_or_else(|refusal| refuse(&refusal));
    }
    let body = body::read(body, CLIENT_LIMIT).await;
    let patched = body.as_ref().ok().filter(|_| head.method == Method::PATCH).map(|body| String::from_utf8_lossy(body).into_owned());
    shared.faults.hold().await;
    let admitted = shared.access.check(&link.chain, head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()));
    let called = admitted.and_then(|caller| Ok(call(&head, caller, body?)));
    let failure = called.as_ref().ok().and_then(|call| shared.faults.failure(&path, call.is_watch(), call.is_streaming()));
    let response = match failure {
        Some(failure) => {
            shared.journal.count("failed");
            failing::answer(&shared, &failure, called)
        }
        None => Some(called.and_then(|call| route::route(&shared, &call)).unwrap_or_else(|refusal| refuse(&refusal))),
    };
    let code = response.as_ref().map_or(0, |response| response.status().as_u16());
    let entry = LogEntry { at, path, code, patch: patched.unwrap_or_default(), ..entry(&head, &link) };
    shared.journal.log(entry);
    match response {
        Some(response) => finish(&shared, &head, response),
        None => failing::close(&link).await,
    }
}

/// Compresses an answer if the client takes that, and counts its bytes.
fn finish(shared: &Shared, head: &Parts, response: Response<Body>) -> Response<Body> {
    let sort = response.extensions().get::<Sort>().cloned();
    let plain = response.body().length();
    let response =
        if head.method == Method::GET && gzip::is_accepted(header(head, ACCEPT_ENCODING)) { gzip::compress(response) } else { response };
    match sort {
        Some(Sort(sort)) => response.map(|body| body.counted(shared.journal.clone(), sort, plain)),
        None => response,
    }
}

/// What is remembered of a request before its answer is known.
fn entry(head: &Parts, link: &Link) -> LogEntry {
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
        connection: link.connection.clone(),
    }
}

fn header(head: &Parts, name: HeaderName) -> &str {
    head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// What matters of a request.
fn call(head: &Parts, caller: Caller, body: Bytes) -> Call<'_> {
    Call {
        method: &head.method,
        path: head.uri.path(),
        query: Query::parse(head.uri.query().unwrap_or_default()),
        metadata_only: header(head, ACCEPT).contains("as=PartialObjectMetadata"),
        content_type: header(head, CONTENT_TYPE).split(';').next().unwrap_or_default().trim(),
        caller,
        initial: Initial::Complete,
        body,
    }
}

/// An answer of a type.
fn respond(code: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn json(code: u16, bytes: impl Into<Bytes>) -> Response<Body> {
    respond(code, "application/json", Body::whole(bytes.into()))
}

fn value(code: u16, value: &Value) -> Response<Body> {
    json(code, value.to_string())
}

fn text(code: u16, text: &'static str) -> Response<Body> {
    respond(code, "text/plain; charset=utf-8", Body::whole(Bytes::from_static(text.as_bytes())))
}

fn refuse(refusal: &Refusal) -> Response<Body> {
    let mut response = value(refusal.code(), &refusal.status());
    if let Some(seconds) = refusal.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
