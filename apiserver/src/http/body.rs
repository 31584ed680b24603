//! Reads request bodies up to a limit, and holds response bodies.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;

use crate::request_log::{BytesSent, RequestLog};
use crate::status_error::StatusError;

/// A body over its limit is still read up to this size. A client that is still sending would not read the response.
const MAX_DISCARDED: usize = 64 * 1024 * 1024;

/// Reads a body to its end. Fails if it is longer than `limit`.
pub(super) async fn read(mut body: Incoming, limit: usize) -> Result<Bytes, StatusError> {
    let mut bytes = Vec::new();
    let mut length = 0;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| StatusError::bad_request(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= limit {
            bytes.extend_from_slice(&data);
        } else {
            bytes = Vec::new();
            if length > MAX_DISCARDED.max(limit) {
                break;
            }
        }
    }
    if length > limit { Err(StatusError::body_too_large(limit)) } else { Ok(bytes.into()) }
}

/// The body of a response.
#[derive(Debug)]
pub(super) struct Body {
    content: Content,
    counter: Option<ByteCounter>,
}

#[derive(Debug)]
enum Content {
    /// The whole body; `None` after it was sent.
    Whole(Option<Bytes>),
    /// Pieces that a task sends. An error breaks the connection.
    Stream(mpsc::Receiver<io::Result<Bytes>>),
}

/// Counts the bytes of a body for one kind of request.
#[derive(Debug)]
struct ByteCounter {
    request_log: Arc<RequestLog>,
    kind: String,
    /// The length before compression; `None` after it was counted, and for streams, which are never compressed.
    plain: Option<u64>,
}

impl Body {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self { content: Content::Whole((!bytes.is_empty()).then_some(bytes)), counter: None }
    }

    pub(super) fn stream(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { content: Content::Stream(pieces), counter: None }
    }

    /// The length of a whole body; `None` for a stream.
    pub(super) fn length(&self) -> Option<u64> {
        self.size_hint().exact()
    }

    /// The bytes of a whole body; `None` for a stream and for an empty body.
    pub(super) fn bytes(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Whole(bytes) => bytes.as_ref(),
            Content::Stream(_) => None,
        }
    }

    /// Counts the bytes when they are sent.
    pub(super) fn counted(self, request_log: Arc<RequestLog>, kind: String, plain: Option<u64>) -> Self {
        Self { counter: Some(ByteCounter { request_log, kind, plain }), ..self }
    }
}

impl ByteCounter {
    fn add(&mut self, length: usize) {
        let sent = length as u64;
        self.request_log.add_sent(&self.kind, BytesSent { plain: self.plain.take().unwrap_or(sent), sent });
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = match &mut self.content {
            Content::Whole(bytes) => bytes.take().map(Ok),
            Content::Stream(pieces) => ready!(pieces.poll_recv(context)),
        };
        if let (Some(Ok(bytes)), Some(counter)) = (&piece, &mut self.counter) {
            counter.add(bytes.len());
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Content::Stream(_) => SizeHint::default(),
        }
    }
}
