//! Reports each request to the API server to an observer, which counts them.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::time::Instant;
use tower::Service;

/// A request that was answered or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnsweredRequest<'a> {
    /// The API server's host, with the port if the URL has one.
    pub host: &'a str,
    /// The method, like `GET`.
    pub method: &'a str,
    /// The status of the answer; `None` without an answer.
    pub code: Option<u16>,
    /// Time until the answer began; `None` for a watch, whose duration does not depend on the server's speed.
    pub took: Option<Duration>,
}

/// Receives a report of each request.
pub trait RequestObserver: Send + Sync + 'static {
    /// A request was answered or failed.
    fn answered(&self, request: &AnsweredRequest<'_>);
}

/// Forwards requests and reports them to an observer.
pub(super) struct ObservedService<S> {
    inner: S,
    host: Arc<str>,
    observer: Arc<dyn RequestObserver>,
}

impl<S> ObservedService<S> {
    pub(super) const fn new(inner: S, host: Arc<str>, observer: Arc<dyn RequestObserver>) -> Self {
        Self { inner, host, observer }
    }
}

impl<S, B, R> Service<Request<B>> for ObservedService<S>
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
        let report = move |answer: &Result<Response<R>, S::Error>| {
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            let took = (!watch).then(|| start.elapsed());
            observer.answered(&AnsweredRequest { host: &host, method: method.as_str(), code, took });
        };
        self.inner.call(request).inspect(report).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(String, Option<u16>, bool)>>);

    impl RequestObserver for Recorder {
        fn answered(&self, request: &AnsweredRequest<'_>) {
            let request = (format!("{} {}", request.method, request.host), request.code, request.took.is_some());
            self.0.lock().expect("no other holder panics").push(request);
        }
    }

    #[test]
    fn every_request_is_reported() {
        let recorder = Arc::new(Recorder::default());
        let inner = tower::service_fn(|request: Request<()>| async move {
            if request.uri().path() == "/gone" {
                Err("no answer")
            } else {
                Ok(Response::builder().status(201).body(()).expect("an answer"))
            }
        });
        let mut service = ObservedService::new(inner, "server:6443".into(), Arc::clone(&recorder) as Arc<dyn RequestObserver>);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        for (method, uri) in [("POST", "/events"), ("GET", "/services?labelSelector=x&watch=true"), ("GET", "/gone?watch=false")] {
            let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
            let _ = runtime.block_on(service.call(request));
        }
        let wanted = [("POST server:6443", Some(201), true), ("GET server:6443", Some(201), false), ("GET server:6443", None, true)];
        assert_eq!(
            *recorder.0.lock().expect("no other holder panics"),
            wanted.map(|(request, code, timed)| (request.to_owned(), code, timed))
        );
    }
}
