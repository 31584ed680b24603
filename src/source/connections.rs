//! Connections to the API server, given up when they are of no use any more.
//!
//! When an address of this node goes, connections from it stay. What is sent by them gets nowhere, and nobody says so: a request would be
//! without an answer, and a watch silent, for minutes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::watch;
use tower::{BoxError, Service};

/// All connections of a client. A clone stands for the same ones.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<watch::Sender<()>>);

impl Connections {
    /// Gives them up: requests and watches that are under way fail, and the next ones connect anew.
    pub fn renew(&self) {
        self.0.send_replace(());
    }
}

/// Why a request or a watch has failed.
#[derive(Debug, thiserror::Error)]
#[error("the connection was given up, as this node has another address now")]
struct GivenUp;

/// Passes requests on, to a service that is made anew when its connections are given up.
pub(super) struct Renewed<S, N> {
    inner: S,
    new: N,
    given_up: watch::Receiver<()>,
}

impl<S, N: Fn() -> Option<S>> Renewed<S, N> {
    /// Begins with this service. Where a new one cannot be made the old one goes on.
    pub(super) fn new(inner: S, new: N, connections: &Connections) -> Self {
        Self { inner, new, given_up: connections.0.subscribe() }
    }
}

impl<S, N, B, R> Service<Request<B>> for Renewed<S, N>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    N: Fn() -> Option<S>,
{
    type Response = Response<Until<R>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.given_up.has_changed().unwrap_or(false) {
            self.given_up.mark_unchanged();
            if let Some(new) = (self.new)() {
                self.inner = new;
            }
        }
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut given_up = until(self.given_up.clone());
        let answer = self.inner.call(request);
        let ended = async move {
            tokio::select! {
                biased;
                answer = answer => answer.map(|answer| answer.map(|body| Until { body, given_up })).map_err(Into::into),
                () = &mut given_up => Err(GivenUp.into()),
            }
        };
        ended.boxed()
    }
}

/// Ends when connections are given up; and not even then a second time.
fn until(mut given_up: watch::Receiver<()>) -> BoxFuture<'static, ()> {
    let ended = async move {
        if given_up.changed().await.is_err() {
            // Nobody is left to give them up.
            std::future::pending::<()>().await;
        }
    };
    ended.fuse().boxed()
}

/// A body that ends with an error when its connection is given up.
pub(super) struct Until<B> {
    body: B,
    given_up: BoxFuture<'static, ()>,
}

impl<B: Body<Error: Into<BoxError>> + Unpin> Body for Until<B> {
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        if self.given_up.poll_unpin(context).is_ready() {
            return Poll::Ready(Some(Err(GivenUp.into())));
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use http_body_util::{BodyExt, Empty, Full};
    use hyper::body::Bytes;
    use tokio::time::timeout;
    use tower::ServiceExt;
    use tower::service_fn;

    use super::*;

    /// A server that answers `/now` at once, begins to answer `/watch`, and says nothing else.
    async fn server(request: Request<()>) -> Result<Response<BoxBody>, BoxError> {
        match request.uri().path() {
            "/now" => Ok(Response::new(Full::new(Bytes::from_static(b"yes")).map_err(Into::into).boxed_unsync())),
            "/watch" => Ok(Response::new(Silent.boxed_unsync())),
            _ => std::future::pending().await,
        }
    }

    type BoxBody = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

    struct Silent;

    impl Body for Silent {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Poll::Pending
        }
    }

    fn request(path: &str) -> Request<()> {
        Request::builder().uri(path).body(()).expect("a request")
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_is_under_way_fails_and_the_next_goes_anew() {
        let connections = Connections::default();
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let new = move || {
            count.fetch_add(1, Ordering::Relaxed);
            Some(service_fn(server))
        };
        let mut service = Renewed::new(service_fn(server), new, &connections);
        let mut watch = service.ready().await.expect("ready").call(request("/watch")).await.expect("an answer").into_body();
        let unanswered = tokio::spawn(service.ready().await.expect("ready").call(request("/silence")));
        timeout(Duration::from_secs(60), watch.frame()).await.expect_err("nothing is said");
        assert!(!unanswered.is_finished());

        connections.renew();
        let error = unanswered.await.expect("it ends").map(drop).expect_err("it is given up").to_string();
        assert!(error.starts_with("the connection was given up"), "{error}");
        assert!(watch.frame().await.expect("an end").is_err());
        timeout(Duration::from_secs(60), watch.frame()).await.expect_err("nothing more is said");
        let answer = service.ready().await.expect("ready").call(request("/now")).await.expect("an answer");
        assert_eq!(answer.into_body().collect().await.expect("all of it").to_bytes(), "yes");
        assert_eq!(made.load(Ordering::Relaxed), 1);
        // Nobody is left who could give anything up.
        drop(connections);
        let answer = service.ready().await.expect("ready").call(request("/now")).await.expect("an answer").map(|_| Empty::<Bytes>::new());
        assert_eq!((answer.status().as_u16(), made.load(Ordering::Relaxed)), (200, 1));
    }
}
