//! Sends requests to one API server, each with the current credentials. With HTTP/2 all requests share one connection. When credentials or
//! this node's addresses change, new connections are opened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, PROXY_AUTHORIZATION, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client as HttpClient, Error as HttpError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::Body;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tower::{BoxError, Service, ServiceExt};
use tower_http::decompression::{Decompression, DecompressionBody};

use crate::error_text::error_text;

use super::connections::{Closed, ClosedBody, Connections, Size};
use super::connector::{Connector, OpenConnections};
use super::credentials::Loaded;
use super::error::{ConnectionError, RequestError};
use super::exec_plugin::PluginCredentials;
use super::server::Server;
use super::server_url::Url;
use super::tls::{self, Identity};
use super::user_agent::user_agent;

/// How often the files with credentials are read again while requests are sent or watches are open.
const REREAD: Duration = Duration::from_secs(10);
/// How long reading them may take.
const READ_TIME: Duration = Duration::from_secs(5);
/// How long an answer may take to begin. The API server itself gives up after 60 s.
const ANSWER: Duration = Duration::from_secs(70);
/// How long an answer may take to be complete, if it is not a watch.
const COMPLETE: Duration = Duration::from_secs(300);
/// A connection on which no frame is read for this long gets a ping (RFC 9113 section 6.7), as client-go does it ...
const PING: Duration = Duration::from_secs(30);
/// ... and is closed if that has no answer after this time.
const PING_ANSWER: Duration = Duration::from_secs(15);
/// A connection without a request is closed after this time.
const IDLE: Duration = Duration::from_secs(90);
/// The longest time from the opening of a connection until the HTTP client offers it to the next request.
const POOLED_AFTER: Duration = Duration::from_millis(50);

type Http = HttpClient<Connector, Body>;
type AnswerBody = ClosedBody<DecompressionBody<Incoming>>;

/// Sends requests to one server. Clones share connections and credentials.
#[derive(Clone)]
pub(super) struct Transport(Arc<Shared>);

struct Shared {
    server: Server,
    connections: Connections,
    state: Mutex<State>,
    /// Held by the request that opens the first connection. Others wait and then use that connection.
    turn: AsyncMutex<()>,
    /// A thread reads the files with credentials.
    is_reading: Arc<AtomicBool>,
}

/// The parts that change while the client lives.
struct State {
    /// The credentials as last read from files.
    loaded: Loaded,
    /// The client certificate that the plugin gave last.
    plugin_identity: Option<Identity>,
    http: Http,
    open: Arc<OpenConnections>,
    proxy_authorization: Option<HeaderValue>,
    renewals: watch::Receiver<()>,
    looked: Instant,
    /// The last problem with a file. It is logged once.
    problem: Option<String>,
}

impl Transport {
    /// Reads the credentials. The first request opens a connection.
    ///
    /// # Errors
    /// Credentials that cannot be read or used.
    pub(super) fn new(server: Server, connections: &Connections) -> Result<Self, ConnectionError> {
        let origin = || server.origin.clone();
        let loaded = server.sources.load().map_err(|cause| ConnectionError::Credentials { origin: origin(), cause })?;
        let connector = connector(&server, &loaded, None).map_err(|cause| {
            let file = server.sources.file_of(&cause).map_or(String::new(), |path| format!(", {}", path.display()));
            ConnectionError::Tls { origin: origin() + &file, cause }
        })?;
        let state = State {
            loaded,
            plugin_identity: None,
            open: connector.open_connections(),
            proxy_authorization: connector.proxy_authorization(),
            http: http(connector),
            renewals: connections.renewals(),
            looked: Instant::now(),
            problem: None,
        };
        Ok(Self(Arc::new(Shared {
            server,
            connections: connections.clone(),
            state: Mutex::new(state),
            turn: AsyncMutex::default(),
            is_reading: Arc::default(),
        })))
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<AnswerBody>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Arc::clone(&self.0).send(request).boxed()
    }
}

impl Shared {
    async fn send(self: Arc<Self>, mut request: Request<Body>) -> Result<Response<AnswerBody>, BoxError> {
        let watches = request.uri().query().is_some_and(|query| query.split('&').any(|part| matches!(part, "watch=true" | "watch=1")));
        self.reread_credentials().await;
        let given = match &self.server.plugin {
            Some(plugin) => plugin.credentials().await?,
            None => PluginCredentials::default(),
        };
        self.use_identity(given.identity.as_ref());
        let refused = given.clone();
        let (http, open) = self.prepare(&mut request, given.authorization)?;
        let mut ends = if watches { Arc::clone(&self).until_watch_ends() } else { self.connections.until_request_ends(COMPLETE) };
        let mut http = Decompression::new(http).gzip(self.server.compress);
        let answer = self.in_turn(&open, http.ready().await?.call(request));
        let answer = tokio::select! {
            biased;
            answer = timeout(ANSWER, answer) => answer.map_err(|_| RequestError::new(format!("no answer within {} s", ANSWER.as_secs())))?,
            closed = &mut ends => return Err(closed.into()),
        };
        let answer = answer.map_err(|error| plain(&error))?;
        if let (StatusCode::UNAUTHORIZED, Some(plugin)) = (answer.status(), &self.server.plugin) {
            plugin.forget(&refused).await;
        }
        let size = if watches { Size::Line } else { Size::Whole };
        Ok(answer.map(|body| ClosedBody::new(body, size, ends)))
    }

    /// Adds the server's address, the user agent and the credentials to a request. Returns the HTTP client that sends it.
    fn prepare(&self, request: &mut Request<Body>, given: Option<HeaderValue>) -> Result<(Http, Arc<OpenConnections>), BoxError> {
        *request.uri_mut() = below(&self.server.url.uri, request.uri())?;
        let mut state = self.state();
        if state.renewals.has_changed().unwrap_or(false) {
            state.renewals.mark_unchanged();
            self.replace(&mut state);
        }
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::try_from(user_agent(self.server.name))?);
        if let Some(authorization) = given.or_else(|| state.loaded.authorization.clone()) {
            headers.insert(AUTHORIZATION, authorization);
        }
        if let Some(authorization) = &state.proxy_authorization {
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        for (name, value) in &self.server.impersonation {
            headers.append(name.clone(), value.clone());
        }
        Ok((state.http.clone(), Arc::clone(&state.open)))
    }

    /// Sends a request. While no connection is open, one request opens it and the others wait: with HTTP/2 one connection is enough for all.
    async fn in_turn<T>(&self, open: &OpenConnections, request: impl Future<Output = T>) -> T {
        tokio::pin!(request);
        if !open.any() {
            let turn = self.turn.lock().await;
            if !open.any() {
                let opened = async {
                    open.opened().await;
                    sleep(POOLED_AFTER).await;
                };
                tokio::select! {
                    biased;
                    answer = &mut request => return answer,
                    () = opened => {}
                }
            }
            drop(turn);
        }
        request.await
    }

    /// Ends when a watch has to end. Reads the files meanwhile, because no other request may be sent for hours.
    fn until_watch_ends(self: Arc<Self>) -> BoxFuture<'static, Closed> {
        let mut ends = self.connections.until_watch_ends();
        async move {
            loop {
                tokio::select! {
                    closed = &mut ends => return closed,
                    () = sleep(REREAD) => self.reread_credentials().await,
                }
            }
        }
        .boxed()
    }

    /// Reads the files with credentials again if the last time was [`REREAD`] ago. A file that cannot be read or used changes nothing, and is
    /// logged once. A file system that hangs delays one request by [`READ_TIME`] and blocks one thread.
    async fn reread_credentials(&self) {
        {
            let mut state = self.state();
            if state.looked.elapsed() < REREAD || self.is_reading.swap(true, Ordering::Relaxed) {
                return;
            }
            state.looked = Instant::now();
        }
        let (sources, is_reading) = (self.server.sources.clone(), Arc::clone(&self.is_reading));
        let reading = spawn_blocking(move || {
            let loaded = sources.load();
            is_reading.store(false, Ordering::Relaxed);
            loaded
        });
        let loaded = match timeout(READ_TIME, reading).await {
            Ok(Ok(loaded)) => loaded.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error_text(&error)),
            Err(_) => Err(format!("the files with credentials cannot be read within {} s", READ_TIME.as_secs())),
        };
        self.use_loaded(loaded);
    }

    /// Uses the credentials that were read, if they differ from those in use.
    fn use_loaded(&self, loaded: Result<Loaded, String>) {
        let mut state = self.state();
        let changed = match loaded {
            Ok(loaded) => difference(&state.loaded, &loaded).map(|what| (what, loaded)),
            Err(problem) => return self.reject(&mut state, problem),
        };
        let Some((what, loaded)) = changed else {
            state.problem = None;
            return;
        };
        match connector(&self.server, &loaded, state.plugin_identity.as_ref()) {
            Ok(connector) => {
                tracing::info!("{what} has changed: connections to the API server are opened again with what is valid now");
                (state.problem, state.loaded) = (None, loaded);
                self.install(&mut state, connector);
            }
            Err(error) => self.reject(&mut state, error.to_string()),
        }
    }

    /// Keeps the credentials in use because the newly read ones cannot be used. Each problem is logged once.
    fn reject(&self, state: &mut State, problem: String) {
        if state.problem.as_ref() != Some(&problem) {
            tracing::warn!("{}: {problem}; the credentials that were read before are used", self.server.origin);
        }
        state.problem = Some(problem);
    }

    /// Uses the client certificate that the plugin gave, if it differs from the one in use.
    fn use_identity(&self, given: Option<&Identity>) {
        let mut state = self.state();
        if given.is_some() && state.plugin_identity.as_ref() != given {
            state.plugin_identity = given.cloned();
            self.replace(&mut state);
        }
    }

    /// Replaces the HTTP client: the next requests open new connections.
    fn replace(&self, state: &mut State) {
        match connector(&self.server, &state.loaded, state.plugin_identity.as_ref()) {
            Ok(connector) => self.install(state, connector),
            Err(error) => tracing::warn!("{}: {error}; the connections stay as they are", self.server.origin),
        }
    }

    fn install(&self, state: &mut State, connector: Connector) {
        state.open = connector.open_connections();
        state.proxy_authorization = connector.proxy_authorization();
        state.http = http(connector);
        self.connections.end_watches();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connector for these credentials.
fn connector(server: &Server, loaded: &Loaded, given: Option<&Identity>) -> Result<Connector, tls::BadTls> {
    let is_tls = server.url.is_tls();
    let tls = is_tls.then(|| tls::client_config(&loaded.trust, loaded.identity.as_ref().or(given))).transpose()?;
    let needs_own = !is_tls && server.proxy.as_ref().is_some_and(Url::is_tls);
    let proxy_tls = needs_own.then(|| tls::client_config(&tls::Trust::System, None)).transpose()?;
    Ok(Connector::new(tls, proxy_tls, server.tls_name.clone(), server.proxy.clone()))
}

fn http(connector: Connector) -> Http {
    HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PING_ANSWER)
        .http2_keep_alive_while_idle(true)
        .build(connector)
}

/// Names what differs in newly read credentials, for the log.
fn difference(before: &Loaded, now: &Loaded) -> Option<&'static str> {
    if before.trust != now.trust {
        Some("the certificate authority")
    } else if before.identity != now.identity {
        Some("the client certificate")
    } else if before.authorization != now.authorization {
        Some("the token")
    } else {
        None
    }
}

/// Puts a request's path behind the server's URL. That URL has a path if the server is behind a gateway.
fn below(server: &Uri, request: &Uri) -> Result<Uri, http::Error> {
    let path = request.path_and_query().map_or("/", PathAndQuery::as_str);
    let mut parts = server.clone().into_parts();
    parts.path_and_query = Some(format!("{}{path}", server.path().trim_end_matches('/')).try_into()?);
    Ok(Uri::from_parts(parts)?)
}

/// An error of the HTTP library in one sentence.
fn plain(error: &HttpError) -> RequestError {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<RequestError>() {
            return found.copy();
        }
        next = cause.source();
    }
    RequestError::caused("the connection to the API server broke", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_go_below_the_path_of_the_server() {
        let uri = |text: &str| text.parse::<Uri>().expect("a URI");
        for (server, request, sent) in [
            ("https://a:1", "/api/v1/nodes?watch=true", "https://a:1/api/v1/nodes?watch=true"),
            ("https://a/k8s/c-1", "/version", "https://a/k8s/c-1/version"),
            ("https://a/k8s/c-1/", "/version", "https://a/k8s/c-1/version"),
        ] {
            assert_eq!(below(&uri(server), &uri(request)).expect("a URI"), uri(sent));
        }
    }
}
