//! Requests that fail because a test wants them to.

use std::future::pending;
use std::sync::Arc;

use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{HeaderValue, RETRY_AFTER};
use tokio::sync::mpsc;

use crate::connections::Link;
use crate::failure::{Failure, Form};
use crate::refusal::Refusal;

use super::route::{Call, route};
use super::watch::{Initial, error_line};
use super::{Body, Shared, refuse, respond};

/// Answers a request that is to fail. None if the connection is to break.
pub(super) fn answer(shared: &Arc<Shared>, failure: &Failure, call: Result<Call<'_>, Refusal>) -> Option<Response<Body>> {
    let started = |initial| {
        let routed = call.and_then(|call| route(shared, &Call { initial, ..call }));
        routed.unwrap_or_else(|refusal| refuse(&refusal))
    };
    Some(match failure.how() {
        Form::Status => refuse(&failure.refusal()),
        Form::Text(text) => {
            let mut response = respond(failure.code(), "text/plain; charset=utf-8", Body::whole(Bytes::from(text.clone())));
            if let Some(seconds) = failure.retry_after_seconds() {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
        Form::Event => respond(200, "application/json", event(&failure.refusal())),
        Form::TooLarge => {
            let current = shared.store().version();
            refuse(&Refusal::version_from_the_future(current + 1_000, current))
        }
        Form::Silence => respond(200, "application/json", silence()),
        Form::Ended => started(Initial::Ended),
        Form::NoBookmark => started(Initial::WithoutBookmark),
        Form::Close => return None,
    })
}

/// Breaks a connection, and never answers.
pub(super) async fn close<T>(link: &Link) -> T {
    link.close();
    pending().await
}

/// The body of a watch that ends with an event of type ERROR.
fn event(refusal: &Refusal) -> Body {
    let (pieces, body) = mpsc::channel(1);
    // There is room for one piece.
    let _ = pieces.try_send(Ok(error_line(refusal)));
    Body::stream(body)
}

/// A body that never ends and has no content.
fn silence() -> Body {
    let (pieces, body) = mpsc::channel(1);
    tokio::spawn(async move { pieces.closed().await });
    Body::stream(body)
}
