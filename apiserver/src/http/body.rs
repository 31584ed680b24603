//! Bodies: read with a limit, written whole or as they come.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;

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
pub(crate) enum Body {
    /// All of it, until it is sent.
    Whole(Option<Bytes>),
    /// Pieces as they come. An error breaks the connection.
    Stream(mpsc::Receiver<io::Result<Bytes>>),
}

impl Body {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self::Whole((!bytes.is_empty()).then_some(bytes))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(pieces) => pieces.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
