//! Builds responses of each content type.

use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::Value;

use crate::status_error::StatusError;

use super::body::Body;

pub(super) const JSON: &str = "application/json";
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// A response with any body.
pub(super) fn response(code: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A response whose body is already encoded as JSON.
pub(super) fn json_bytes(code: u16, bytes: impl Into<Bytes>) -> Response<Body> {
    response(code, JSON, Body::whole(bytes.into()))
}

/// A response whose body is a JSON value.
pub(super) fn json_value(code: u16, value: &Value) -> Response<Body> {
    json_bytes(code, value.to_string())
}

/// A plain text response.
pub(super) fn plain_text(code: u16, text: &'static str) -> Response<Body> {
    response(code, TEXT, Body::whole(Bytes::from_static(text.as_bytes())))
}

/// A `Status` response, with `Retry-After` if the error has it.
pub(super) fn status_error(error: &StatusError) -> Response<Body> {
    let mut response = json_value(error.code(), &error.status());
    if let Some(seconds) = error.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
