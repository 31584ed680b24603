//! Bodies: read with a limit, written whole or as they come.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;

use crate::journal::{Journal, Sent};
use crate::refusal::Refusal;

/// How much of a body that is too large is read nevertheless: a client that is still sending does not see the answer.
const PATIENCE: usize = 64 * 1024 * 1024;

/// Reads a body to its end.
pub(super) async fn read(mut body: Incoming, limit: usize) -> Result<Bytes, Refusal> {
    let mut bytes = Vec::new();
    let mut length = 0;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| Refusal::bad_request(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= limit {
            bytes.extend_from_slice(&data);
        } else {
            bytes = Vec::new();
            if length > PATIENCE.max(limit) {
                break;
            }
        }
    }
    if length > limit { Err(Refusal::body_too_large(limit)) } else { Ok(bytes.into()) }
}

/// The body of an answer.
#[derive(Debug)]
pub(crate) struct Body {
    content: Content,
    counted: Option<Counted>,
}

#[derive(Debug)]
enum Content {
    /// All of it, until it is sent.
    Whole(Option<Bytes>),
    /// Pieces as they come. An error breaks the connection.
    Stream(mpsc::Receiver<io::Result<Bytes>>),
}

/// Where the bytes of a body are counted.
#[derive(Debug)]
struct Counted {
    journal: Arc<Journal>,
    sort: String,
    /// The length before compression, until it was counted. Streams are never compressed.
    plain: Option<u64>,
}

impl Body {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self { content: Content::Whole((!bytes.is_empty()).then_some(bytes)), counted: None }
    }

    pub(super) fn stream(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { content: Content::Stream(pieces), counted: None }
    }

    /// The length of a whole body.
    pub(super) fn length(&self) -> Option<u64> {
        self.size_hint().exact()
    }

    /// A whole body's bytes.
    pub(super) fn bytes(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Whole(bytes) => bytes.as_ref(),
            Content::Stream(_) => None,
        }
    }

    /// Counts the bytes as they are sent.
    pub(super) fn counted(self, journal: Arc<Journal>, sort: String, plain: Option<u64>) -> Self {
        Self { counted: Some(Counted { journal, sort, plain }), ..self }
    }
}

impl Counted {
    fn add(&mut self, length: usize) {
        let sent = length as u64;
        self.journal.add_sent(&self.sort, Sent { plain: self.plain.take().unwrap_or(sent), sent });
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
        if let (Some(Ok(bytes)), Some(counted)) = (&piece, &mut self.counted) {
            counted.add(bytes.len());
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
