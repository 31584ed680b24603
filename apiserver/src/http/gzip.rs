//! Compresses large responses, as kube-apiserver does.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::Response;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue, VARY};

use super::body::Body;

/// Bodies up to this size are not compressed.
const THRESHOLD: usize = 128 * 1024;

/// True if an `Accept-Encoding` header names gzip. Quality values are not supported, as in kube-apiserver.
pub(super) fn is_accepted(header: &str) -> bool {
    header.split(',').any(|encoding| encoding.trim() == "gzip")
}

/// Compresses the body if it is large. Streams are not compressed.
pub(super) fn compress(mut response: Response<Body>) -> Response<Body> {
    let Some(bytes) = response.body().bytes().filter(|bytes| bytes.len() > THRESHOLD) else { return response };
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(1));
    // Writing to memory does not fail. If it did, the response would be sent without compression.
    let Ok(compressed) = encoder.write_all(bytes).and_then(|()| encoder.finish()) else { return response };
    *response.body_mut() = Body::whole(compressed.into());
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(VARY, HeaderValue::from_name(ACCEPT_ENCODING));
    response
}
