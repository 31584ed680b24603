//! Requests to the API server, told to whoever counts them.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::time::Instant;
use tower::Service;

/// A request that got its answer, or got none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered<'a> {
    /// The API server: its address, with the port where the URL has one.
    pub host: &'a str,
    /// The method, like `GET`.
    pub method: &'a str,
    /// The status of the answer; `None` if there was none.
    pub code: Option<u16>,
    /// Time until the answer began; `None` for a watch, which says nothing of how fast the server is.
    pub took: Option<Duration>,
}

/// Whoever is told of requests.
pub trait Observer: Send + Sync + 'static {
    /// A request got its answer, or got none.
    fn answered(&self, request: &Answered<'_>);
}

/// Passes requests on and tells of them.
pub(super) struct Observed<S> {
    inner: S,
    host: Arc<str>,
    observer: Arc<dyn Observer>,
}

impl<S> Observed<S> {
    pub(super) const fn new(inner: S, host: Arc<str>, observer: Arc<dyn Observer>) -> Self {
        Self { inner, host, observer }
    }
}

impl<S, B, R> Service<Request<B>> for Observed<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (host, observer, method) = (Arc::clone(&self.host), Arc::clone(&self.observer), request.method().clone());
        let watch = request.uri().query().is_some_and(|query| query.split('&').any(|part| matches!(part, "watch=true" | "watch=1")));
        let start = Instant::now();
        let tell = move |answer: &Result<Response<R>, S::Error>| {
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            let took = (!watch).then(|| start.elapsed());
            observer.answered(&Answered { host: &host, method: method.as_str(), code, took });
        };
        self.inner.call(request).inspect(tell).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<(String, Option<u16>, bool)>>);

    impl Observer for Told {
        fn answered(&self, request: &Answered<'_>) {
            let told = (format!("{} {}", request.method, request.host), request.code, request.took.is_some());
            self.0.lock().expect("nobody panics").push(told);
        }
    }

    #[test]
    fn every_request_is_told_with_its_end() {
        let told = Arc::new(Told::default());
        let inner = tower::service_fn(|request: Request<()>| async move {
            if request.uri().path() == "/gone" {
                Err("no answer")
            } else {
                Ok(Response::builder().status(201).body(()).expect("an answer"))
            }
        });
        let mut service = Observed::new(inner, "server:6443".into(), Arc::clone(&told) as Arc<dyn Observer>);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        for (method, uri) in [("POST", "/events"), ("GET", "/services?labelSelector=x&watch=true"), ("GET", "/gone?watch=false")] {
            let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
            let _ = runtime.block_on(service.call(request));
        }
        let wanted = [("POST server:6443", Some(201), true), ("GET server:6443", Some(201), false), ("GET server:6443", None, true)];
        assert_eq!(*told.0.lock().expect("nobody panics"), wanted.map(|(request, code, timed)| (request.to_owned(), code, timed)));
    }
}
