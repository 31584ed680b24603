//! HTTP: connections, requests in, answers out.

mod body;
mod discovery;
mod hooks;
mod query;
mod read;
mod review;
mod route;
mod watch;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::faults::Faults;
use crate::journal::{Journal, LogEntry};
use crate::refusal::Refusal;
use crate::stamp::wall_clock;
use crate::store::Store;

use body::Body;
use query::Query;
use route::Call;

/// The largest body a client may send.
const CLIENT_LIMIT: usize = 4 * 1024 * 1024;
/// The same for test hooks, which load whole clusters.
const HOOK_LIMIT: usize = 512 * 1024 * 1024;

/// What the connections of a server share, and its handle.
#[derive(Debug)]
pub(crate) struct Shared {
    store: Mutex<Store>,
    pub(crate) faults: Faults,
    pub(crate) journal: Journal,
}

impl Shared {
    pub(crate) fn new(store: Store) -> Self {
        Self { store: Mutex::new(store), faults: Faults::new(), journal: Journal::default() }
    }

    /// The store. Never held while waiting for anything.
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes connections for good.
pub(crate) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(converse(stream, shared.clone()))),
            // Out of file descriptors, or the client is gone already: either passes.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Answers the requests of one connection.
async fn converse(stream: TcpStream, shared: Arc<Shared>) {
    // Without it answers are late, and no worse.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(request, shared).await) }
    });
    // Fails when the client breaks off, or a watch is dropped.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Answers one request.
async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Response<Body> {
    let at = wall_clock();
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or_else(String::new, |path| path.as_str().to_owned());
    if let Some(hook) = head.uri.path().strip_prefix("/_test/") {
        let body = body::read(body, HOOK_LIMIT).await;
        let query = Query::parse(head.uri.query().unwrap_or_default());
        return body.and_then(|body| hooks::answer(&shared, hook, &query, &body)).unwrap_or_else(|refusal| refuse(&refusal));
    }
    let body = body::read(body, CLIENT_LIMIT).await;
    let content_type = header(&head, CONTENT_TYPE).to_owned();
    let patched = body.as_ref().ok().filter(|_| head.method == Method::PATCH).map(|body| String::from_utf8_lossy(body).into_owned());
    shared.faults.hold().await;
    let response = if let Some(refusal) = shared.faults.failure(&path) {
        shared.journal.count("failed");
        refuse(&refusal)
    } else {
        body.and_then(|body| route::route(&shared, &call(&head, body))).unwrap_or_else(|refusal| refuse(&refusal))
    };
    let (method, code) = (head.method.to_string(), response.status().as_u16());
    shared.journal.log(LogEntry { at, method, path, code, content_type, patch: patched.unwrap_or_default() });
    response
}

fn header(head: &Parts, name: HeaderName) -> &str {
    head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// What matters of a request.
fn call(head: &Parts, body: Bytes) -> Call<'_> {
    Call {
        method: &head.method,
        path: head.uri.path(),
        query: Query::parse(head.uri.query().unwrap_or_default()),
        metadata_only: header(head, ACCEPT).contains("as=PartialObjectMetadata"),
        content_type: header(head, CONTENT_TYPE).split(';').next().unwrap_or_default().trim(),
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
    value(refusal.code(), &refusal.status())
}
