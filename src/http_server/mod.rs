//! The one small HTTP/1 server behind all of sepal's ports: answers are made at once from what is known, or by whoever knows, and nobody
//! who is slow to ask or to listen holds anything for long.

pub mod listen;

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
use listen::{ListenError, Place};

/// What cannot be listened at is tried again after this time (spec section 1.12).
const RETRY: Duration = Duration::from_secs(5);
/// Connections of one listener at a time. One more, and the oldest is closed: what is answered at once does not get old.
const CONNECTIONS: usize = 128;
/// The head of a request has to be there in this time; so an idle connection lasts as long.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// A connection ends after the request it is at when it is as old as this.
const CONNECTION_AGE: Duration = Duration::from_secs(600);
/// After that, the request may take this long.
const LAST_REQUEST_TIME: Duration = Duration::from_secs(10);
/// The body of a request has to be there in this time.
const BODY_TIME: Duration = Duration::from_secs(5);
/// Bytes of a request's body.
const BODY_SIZE: usize = 4096;
/// Bytes of a request's head.
const HEAD_SIZE: usize = 64 * 1024;
/// The pause after a connection that could not be taken: the host is short of something.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Method.
    pub method: Method,
    /// Path without the query.
    pub path: String,
    /// What follows the question mark.
    pub query: Option<String>,
    /// Headers.
    pub headers: HeaderMap,
    /// Body; only read where the method is PUT.
    pub body: Bytes,
    /// Who asks.
    pub peer: Option<IpAddr>,
}

impl Request {
    /// Whether the query names this parameter, with or without a value.
    #[must_use]
    pub fn asks_for(&self, parameter: &str) -> bool {
        let query = self.query.as_deref().unwrap_or_default();
        query.split('&').any(|pair| pair.split_once('=').map_or(pair, |(name, _)| name) == parameter)
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers, besides those that every answer has.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// An answer of some type.
    #[must_use]
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Self { status, headers, body: body.into() }
    }

    /// An answer for people to read.
    #[must_use]
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body).nosniff()
    }

    /// There is nothing at that path. As Go puts it.
    #[must_use]
    pub fn not_found() -> Self {
        Self::text(StatusCode::NOT_FOUND, "404 page not found\n")
    }

    /// Has browsers believe the content type.
    #[must_use]
    pub fn nosniff(self) -> Self {
        self.with(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
    }

    /// With this header, in place of one of that name.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// What is answered by somebody else, or for as long as somebody listens.
pub enum Reply {
    /// All of it.
    Whole(Answer),
    /// An answer whose body is followed by more.
    Stream(Answer, BoxStream<'static, Bytes>),
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// The answer to one request, at once.
    fn answer(&self, request: &Request) -> Answer;

    /// The answer to a request for which somebody else has to be asked, or that goes on; `None` for all that are answered at once.
    fn later(&self, _request: &Request) -> Option<BoxFuture<'static, Reply>> {
        None
    }
}

impl<F: Fn(&Request) -> Answer + Send + Sync + 'static> Handler for F {
    fn answer(&self, request: &Request) -> Answer {
        self(request)
    }
}

/// A listener at work. Dropped, it and its connections are closed.
#[derive(Debug)]
pub struct Serving(JoinHandle<Infallible>);

impl Serving {
    /// Starts to answer who comes to a listener. To be called within a runtime.
    #[must_use]
    pub fn start(listener: TcpListener, handler: Arc<dyn Handler>) -> Self {
        Self(tokio::spawn(async move {
            loop {
                let Err(panic) = AssertUnwindSafe(serve(&listener, Arc::clone(&handler))).catch_unwind().await;
                tracing::error!("a listener failed: {}, restarted in {} s", panic_text(&*panic), SHORTAGE_PAUSE.as_secs());
                sleep(SHORTAGE_PAUSE).await;
            }
        }))
    }

    /// Closes the listener and its connections; afterwards the port is free.
    pub async fn close(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A server that was to start or nothing, and did not.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct StartError {
    /// What failed.
    pub what: String,
    /// Why.
    pub cause: ListenError,
}

/// Listens and answers until it is dropped. A place that cannot be listened at is tried again every 5 s, unless that counts as
/// failure (`bindAddressHardFail`). `what` says what fails then.
///
/// # Errors
/// The place cannot be listened at, and that counts as failure.
pub async fn keep_serving(place: Place, hard_fail: bool, what: String, handler: Arc<dyn Handler>) -> Result<Infallible, StartError> {
    keep_trying(place, (!hard_fail).then_some(RETRY), what, handler).await
}

async fn keep_trying(place: Place, retry: Option<Duration>, what: String, handler: Arc<dyn Handler>) -> Result<Infallible, StartError> {
    loop {
        match (listen::listen(place), retry) {
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
        self.order.push_back(self.tasks.spawn(converse(stream, handler)));
    }
}

/// Answers on one connection until it ends. What goes wrong there concerns nobody else.
async fn converse(stream: TcpStream, handler: Arc<dyn Handler>) {
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
            let request = Request {
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
            // A panic ends this answer, and nothing else.
            reply.catch_unwind().await.unwrap_or_else(|panic| {
                let text = format!("the answer to {} {} failed: {}", request.method, request.path, panic_text(&*panic));
                tracing::error!("{text}");
                Reply::Whole(Answer::text(StatusCode::INTERNAL_SERVER_ERROR, text + "\n"))
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

async fn read(body: Incoming) -> Result<Bytes, Answer> {
    match timeout(BODY_TIME, Limited::new(body, BODY_SIZE).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Answer::text(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {BODY_SIZE} bytes\n")))
        }
        Ok(Err(error)) => Err(Answer::text(StatusCode::BAD_REQUEST, format!("cannot read the body: {error}\n"))),
        Err(_) => Err(Answer::text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Sends text and gives all that comes back until the other side closes; `None` if it cannot be reached.
    pub(crate) async fn say(address: SocketAddr, text: &str) -> Option<String> {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(text.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// Asks for one path over a connection of its own; `None` if the address cannot be reached.
    pub(crate) async fn get(address: SocketAddr, path: &str) -> Option<String> {
        say(address, &format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")).await
    }

    fn echo() -> Arc<dyn Handler> {
        Arc::new(|request: &Request| {
            Answer::text(StatusCode::OK, format!("{} {} {:?} {}", request.method, request.path, request.query, request.body.len()))
        })
    }

    fn start() -> (Serving, SocketAddr) {
        let listener = listen::listen(Place::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        (Serving::start(listener, echo()), address)
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
        let listener = listen::listen(Place::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let handler = |request: &Request| match request.path.as_str() {
            "/a" => Answer::text(StatusCode::OK, "a"),
            _ => panic!("index 7 of 3"),
        };
        let _serving = Serving::start(listener, Arc::new(handler));
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
    async fn who_says_nothing_keeps_nobody_out() {
        let (_serving, address) = start();
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS + 10 {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            stream.write_all(b"GET / HT").await.expect("sent");
            silent.push(stream);
        }
        assert!(get(address, "/a").await.expect("an answer").ends_with("GET /a None 0"));
        // The oldest had to go for it.
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
        let again = listen::listen(Place::tcp(address)).expect("the port is free");
        // It ends, with or without an error.
        let _ = stream.read_to_end(&mut Vec::new()).await;
        drop(again);
        assert_eq!(get(address, "/a").await, None);
    }

    #[tokio::test]
    async fn a_taken_port_is_tried_until_it_is_free() {
        let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = taken.local_addr().expect("an address");
        let error = keep_serving(Place::tcp(address), true, "failed to start".to_owned(), echo()).await.expect_err("the port is taken");
        assert!(error.to_string().starts_with(&format!("failed to start: listen tcp {address}: bind: ")), "{error}");

        let serving = tokio::spawn(keep_trying(Place::tcp(address), Some(Duration::from_millis(1)), "test".to_owned(), echo()));
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
        let request = |query: &str| Request { query: Some(query.to_owned()), ..Request::default() };
        assert!(request("verbose").asks_for("verbose") && request("a=b&verbose=0").asks_for("verbose"));
        assert!(!request("verbosely&a=verbose").asks_for("verbose") && !Request::default().asks_for("verbose"));
    }
}
