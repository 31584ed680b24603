//! The HTTP/1 server of all of sepal's ports. A handler answers at once, or later after it has asked a loop. Time limits keep slow clients from
//! blocking others.

pub(crate) mod listen;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::error_text::{panic_text, task_failure};
use listen::{ListenAddress, ListenError};

/// The wait before the server tries to listen again [kube-proxy 1.12].
const RETRY: Duration = Duration::from_secs(5);
/// The most connections of one listener. Another connection closes the oldest one: answers are quick, so an old connection is idle.
const CONNECTIONS: usize = 128;
/// Time limit for the head of a request. It is also the longest time that a connection is idle.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// A connection of this age ends after its current request.
const CONNECTION_AGE: Duration = Duration::from_secs(600);
/// Time limit for that last request.
const LAST_REQUEST_TIME: Duration = Duration::from_secs(10);
/// Time limit for the body of a request.
const BODY_TIME: Duration = Duration::from_secs(5);
/// The largest body of a request in bytes.
const BODY_SIZE: usize = 4096;
/// The largest head of a request in bytes.
const HEAD_SIZE: usize = 64 * 1024;
/// The wait after a connection that could not be accepted because the host lacks resources.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);

/// A request.
#[derive(Clone, Debug, Default)]
pub(crate) struct HttpRequest {
    /// Method.
    pub method: Method,
    /// Path without the query.
    pub path: String,
    /// The query, without the question mark.
    pub query: Option<String>,
    /// Headers.
    pub headers: HeaderMap,
    /// Body. It is only read for the method PUT.
    pub body: Bytes,
    /// The client's address.
    pub peer: Option<IpAddr>,
}

impl HttpRequest {
    /// True if the query has this parameter, with or without a value.
    #[must_use]
    pub(crate) fn asks_for(&self, parameter: &str) -> bool {
        let query = self.query.as_deref().unwrap_or_default();
        query.split('&').any(|pair| pair.split_once('=').map_or(pair, |(name, _)| name) == parameter)
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpAnswer {
    /// Status.
    pub status: StatusCode,
    /// Headers, without those that the server adds to all answers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl HttpAnswer {
    /// An answer with a content type.
    #[must_use]
    pub(crate) fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Self { status, headers, body: body.into() }
    }

    /// A plain text answer.
    #[must_use]
    pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body).nosniff()
    }

    /// The answer for an unknown path, in Go's words.
    #[must_use]
    pub(crate) fn not_found() -> Self {
        Self::text(StatusCode::NOT_FOUND, "404 page not found\n")
    }

    /// Adds the header that forbids browsers to guess the content type.
    #[must_use]
    pub(crate) fn nosniff(self) -> Self {
        self.with(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
    }

    /// Sets a header. An earlier value of that name is replaced.
    #[must_use]
    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// An answer that a handler gives later.
pub(crate) enum Reply {
    /// A complete answer.
    Whole(HttpAnswer),
    /// An answer whose body is followed by a stream.
    Stream(HttpAnswer, BoxStream<'static, Bytes>),
}

/// Answers requests.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers a request at once.
    fn answer(&self, request: &HttpRequest) -> HttpAnswer;

    /// Answers a request that needs a query to a loop, or gets a stream; `None` for requests that are answered at once.
    fn later(&self, _request: &HttpRequest) -> Option<BoxFuture<'static, Reply>> {
        None
    }
}

impl<F: Fn(&HttpRequest) -> HttpAnswer + Send + Sync + 'static> Handler for F {
    fn answer(&self, request: &HttpRequest) -> HttpAnswer {
        self(request)
    }
}

/// A running server. Dropping it closes the listener and its connections.
#[derive(Debug)]
pub(crate) struct HttpServer(JoinHandle<Infallible>);

impl HttpServer {
    /// Starts to serve a listener. Must be called within a runtime.
    #[must_use]
    pub(crate) fn start(listener: TcpListener, handler: Arc<dyn Handler>) -> Self {
        Self(tokio::spawn(async move {
            loop {
                let Err(panic) = AssertUnwindSafe(serve(&listener, Arc::clone(&handler))).catch_unwind().await;
                tracing::error!("a listener failed: {}, restarted in {} s", panic_text(&*panic), SHORTAGE_PAUSE.as_secs());
                sleep(SHORTAGE_PAUSE).await;
            }
        }))
    }

    /// Closes the listener and its connections. The port is free after that.
    pub(crate) async fn close(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A server that had to listen and could not.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub(crate) struct StartError {
    /// The action that failed.
    pub what: String,
    /// The cause.
    pub cause: ListenError,
}

/// Listens and serves until the future is dropped. If it cannot listen, it tries again every 5 s, or fails at once with `hard_fail`
/// (`bindAddressHardFail`). `what` names the action in errors.
///
/// # Errors
/// It cannot listen and `hard_fail` is set.
pub(crate) async fn keep_serving(
    address: ListenAddress,
    hard_fail: bool,
    what: String,
    handler: Arc<dyn Handler>,
) -> Result<Infallible, StartError> {
    keep_trying(address, (!hard_fail).then_some(RETRY), what, handler).await
}

async fn keep_trying(
    address: ListenAddress,
    retry: Option<Duration>,
    what: String,
    handler: Arc<dyn Handler>,
) -> Result<Infallible, StartError> {
    loop {
        match (listen::listen(address), retry) {
            (Ok(listener), _) => return Ok(serve(&listener, handler).await),
            (Err(cause), None) => return Err(StartError { what, cause }),
            (Err(cause), Some(pause)) => {
                tracing::error!("{what}: {cause}. Next try in {} s", pause.as_secs_f32());
                sleep(pause).await;
            }
        }
    }
}

async fn serve(listener: &TcpListener, handler: Arc<dyn Handler>) -> Infallible {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.take(stream, Arc::clone(&handler)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!("cannot take a connection: {error}");
                sleep(SHORTAGE_PAUSE).await;
            }
        }
    }
}

/// The connections of one listener, oldest first.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    order: VecDeque<AbortHandle>,
}

impl Connections {
    fn take(&mut self, stream: TcpStream, handler: Arc<dyn Handler>) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!("a connection failed: {}", task_failure(error));
            }
        }
        self.order.retain(|task| !task.is_finished());
        if self.order.len() >= CONNECTIONS
            && let Some(oldest) = self.order.pop_front()
        {
            oldest.abort();
        }
        self.order.push_back(self.tasks.spawn(serve_connection(stream, handler)));
    }
}

/// Serves one connection until it ends. Its errors affect no other connection.
async fn serve_connection(stream: TcpStream, handler: Arc<dyn Handler>) {
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().ok().map(|peer| peer.ip());
    let service = service_fn(|request| async { Ok::<_, Infallible>(respond(request, peer, &*handler).await) });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(HEAD_SIZE).title_case_headers(true);
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
    if timeout(CONNECTION_AGE, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LAST_REQUEST_TIME, connection).await;
    }
}

async fn respond(
    request: hyper::Request<Incoming>,
    peer: Option<IpAddr>,
    handler: &dyn Handler,
) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let (parts, body) = request.into_parts();
    let body = if parts.method == Method::PUT { read(body).await } else { Ok(Bytes::new()) };
    let reply = match body {
        Err(refusal) => Reply::Whole(refusal),
        Ok(body) => {
            let request = HttpRequest {
                method: parts.method,
                path: parts.uri.path().to_owned(),
                query: parts.uri.query().map(str::to_owned),
                headers: parts.headers,
                body,
                peer,
            };
            let reply = AssertUnwindSafe(async {
                match handler.later(&request) {
                    Some(reply) => reply.await,
                    None => Reply::Whole(handler.answer(&request)),
                }
            });
            // A panic only ends this answer.
            reply.catch_unwind().await.unwrap_or_else(|panic| {
                let text = format!("the answer to {} {} failed: {}", request.method, request.path, panic_text(&*panic));
                tracing::error!("{text}");
                Reply::Whole(HttpAnswer::text(StatusCode::INTERNAL_SERVER_ERROR, text + "\n"))
            })
        }
    };
    let (answer, more) = match reply {
        Reply::Whole(answer) => (answer, None),
        Reply::Stream(answer, more) => (answer, Some(more)),
    };
    let body = match more {
        None => Full::new(answer.body).boxed_unsync(),
        Some(more) => {
            let chunks = futures::stream::iter([answer.body]).chain(more).map(|chunk| Ok(Frame::data(chunk)));
            StreamBody::new(chunks).boxed_unsync()
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

async fn read(body: Incoming) -> Result<Bytes, HttpAnswer> {
    match timeout(BODY_TIME, Limited::new(body, BODY_SIZE).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(HttpAnswer::text(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {BODY_SIZE} bytes\n")))
        }
        Ok(Err(error)) => Err(HttpAnswer::text(StatusCode::BAD_REQUEST, format!("cannot read the body: {error}\n"))),
        Err(_) => Err(HttpAnswer::text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Sends text and returns everything that the server sends until it closes; `None` if it cannot be reached.
    pub(crate) async fn say(address: SocketAddr, text: &str) -> Option<String> {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(text.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// Requests a path over a new connection; `None` if the address cannot be reached.
    pub(crate) async fn get(address: SocketAddr, path: &str) -> Option<String> {
        say(address, &format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")).await
    }

    fn echo() -> Arc<dyn Handler> {
        Arc::new(|request: &HttpRequest| {
            HttpAnswer::text(StatusCode::OK, format!("{} {} {:?} {}", request.method, request.path, request.query, request.body.len()))
        })
    }

    fn start() -> (HttpServer, SocketAddr) {
        let listener = listen::listen(ListenAddress::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        (HttpServer::start(listener, echo()), address)
    }

    #[tokio::test]
    async fn requests_are_answered_one_after_another_on_one_connection() {
        let (_serving, address) = start();
        let both = say(
            address,
            "GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\nPUT /d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\n456",
        );
        let both = both.await.expect("an answer");
        assert!(both.starts_with("HTTP/1.1 200 OK\r\n"), "{both}");
        assert!(both.contains("Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n"), "{both}");
        assert!(both.contains("GET /a Some(\"b=c\") 0") && both.ends_with("PUT /d None 3"), "{both}");
    }

    #[tokio::test]
    async fn a_head_request_gets_no_body_and_nonsense_an_error() {
        let (_serving, address) = start();
        let answer = say(address, "HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
        let answer = say(address, "what?\r\n\r\n").await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }

    #[tokio::test]
    async fn a_panic_ends_one_answer() {
        let listener = listen::listen(ListenAddress::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let handler = |request: &HttpRequest| match request.path.as_str() {
            "/a" => HttpAnswer::text(StatusCode::OK, "a"),
            _ => panic!("index 7 of 3"),
        };
        let _serving = HttpServer::start(listener, Arc::new(handler));
        let answer = get(address, "/b").await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("the answer to GET /b failed: index 7 of 3 ("), "{answer}");
        assert!(get(address, "/a").await.expect("an answer").starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn a_large_body_is_refused() {
        let (_serving, address) = start();
        let body = "x".repeat(BODY_SIZE + 1);
        let put = format!("PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answer = say(address, &put).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }

    #[tokio::test]
    async fn silent_clients_do_not_block_others() {
        let (_serving, address) = start();
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS + 10 {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            stream.write_all(b"GET / HT").await.expect("sent");
            silent.push(stream);
        }
        assert!(get(address, "/a").await.expect("an answer").ends_with("GET /a None 0"));
        // The oldest connection was closed.
        let mut rest = Vec::new();
        assert_eq!(silent[0].read_to_end(&mut rest).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn closing_ends_connections_and_frees_the_port() {
        let (serving, address) = start();
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
        let mut some = [0; 16];
        stream.read_exact(&mut some).await.expect("an answer");
        serving.close().await;
        let again = listen::listen(ListenAddress::tcp(address)).expect("the port is free");
        // The connection ends, with or without an error.
        let _ = stream.read_to_end(&mut Vec::new()).await;
        drop(again);
        assert_eq!(get(address, "/a").await, None);
    }

    #[tokio::test]
    async fn a_port_in_use_is_tried_until_it_is_free() {
        let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = taken.local_addr().expect("an address");
        let error =
            keep_serving(ListenAddress::tcp(address), true, "failed to start".to_owned(), echo()).await.expect_err("the port is taken");
        assert!(error.to_string().starts_with(&format!("failed to start: listen tcp {address}: bind: ")), "{error}");

        let serving = tokio::spawn(keep_trying(ListenAddress::tcp(address), Some(Duration::from_millis(1)), "test".to_owned(), echo()));
        sleep(Duration::from_millis(20)).await;
        assert!(!serving.is_finished());
        drop(taken);
        let answered = async {
            loop {
                if let Some(answer) = get(address, "/a").await {
                    return answer;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let answer = timeout(Duration::from_secs(60), answered).await.expect("the port was tried again");
        assert!(answer.ends_with("GET /a None 0"), "{answer}");
        serving.abort();
    }

    #[test]
    fn a_query_names_parameters_with_and_without_values() {
        let request = |query: &str| HttpRequest { query: Some(query.to_owned()), ..HttpRequest::default() };
        assert!(request("verbose").asks_for("verbose") && request("a=b&verbose=0").asks_for("verbose"));
        assert!(!request("verbosely&a=verbose").asks_for("verbose") && !HttpRequest::default().asks_for("verbose"));
    }
}
