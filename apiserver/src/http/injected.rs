//! Responses of requests that a test made fail.

use std::future::pending;
use std::sync::Arc;

use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{HeaderValue, RETRY_AFTER};
use tokio::sync::mpsc;

use crate::connections::ConnectionHandle;
use crate::failure::{FailureForm, InjectedFailure};
use crate::state::ServerState;
use crate::status_error::StatusError;

use super::body::Body;
use super::request::{ApiRequest, InitialEvents};
use super::response::{JSON, TEXT, response, status_error};
use super::route::route;
use super::watch::error_event;

/// The response of a failed request; `None` if the connection must break instead.
pub(super) fn respond(
    state: &Arc<ServerState>,
    failure: &InjectedFailure,
    request: Result<ApiRequest<'_>, StatusError>,
) -> Option<Response<Body>> {
    let watch = |initial_events| {
        let routed = request.and_then(|request| route(state, &ApiRequest { initial_events, ..request }));
        routed.unwrap_or_else(|error| status_error(&error))
    };
    Some(match failure.form() {
        FailureForm::Status => status_error(&failure.status_error()),
        FailureForm::Text(text) => {
            let mut response = response(failure.code(), TEXT, Body::whole(Bytes::from(text.clone())));
            if let Some(seconds) = failure.retry_after_seconds() {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
        FailureForm::ErrorEvent => response(200, JSON, error_event_body(&failure.status_error())),
        FailureForm::VersionTooLarge => {
            let current = state.store().version();
            status_error(&StatusError::version_too_large(current + 1_000, current))
        }
        FailureForm::Silent => response(200, JSON, silent_body()),
        FailureForm::Ended => watch(InitialEvents::Ended),
        FailureForm::WithoutBookmark => watch(InitialEvents::WithoutBookmark),
        FailureForm::Closed => return None,
    })
}

/// Breaks the connection. Never returns.
pub(super) async fn close<T>(connection: &ConnectionHandle) -> T {
    connection.close();
    pending().await
}

/// The body of a watch that ends with an event of type ERROR.
fn error_event_body(error: &StatusError) -> Body {
    let (pieces, body) = mpsc::channel(1);
    // The channel has room for one piece.
    let _ = pieces.try_send(Ok(error_event(error)));
    Body::stream(body)
}

/// A body without content that never ends.
fn silent_body() -> Body {
    let (pieces, body) = mpsc::channel(1);
    tokio::spawn(async move { pieces.closed().await });
    Body::stream(body)
}
