//! Ends requests and watches whose connection can no longer be used.
//!
//! When an address of this node is removed, connections from it stay open, but packets on them are lost without an error. A request would get
//! no answer, and a watch no events, for minutes. So requests and watches are ended when the address changes. When credentials change, open
//! watches would keep using the old ones, so they are ended, too.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::watch;
use tower::BoxError;

/// Closes the connections of a client. Clones act on the same connections.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Signals>);

#[derive(Debug, Default)]
struct Signals {
    addresses: watch::Sender<()>,
    credentials: watch::Sender<()>,
}

/// Why the client itself ended a request or a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Closed {
    #[error("the connection was closed, because this node has another address now")]
    Address,
    #[error("the connection was closed, because the credentials have changed")]
    Credentials,
    #[error("the answer was not complete after {} s", .0.as_secs())]
    Late(Duration),
    #[error("the answer is larger than {} MB", .0 / 1_000_000)]
    Large(usize),
}

/// Which part of an answer has a limited size. The limit keeps a large answer from exhausting this node's memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Size {
    /// The whole answer.
    Whole,
    /// Each line, for a watch.
    Line,
}

/// The largest answer in bytes. A list has pages of at most 500 objects, and an object has at most 1.5 MB.
const LARGEST: usize = 256_000_000;
/// The longest line in bytes, as in client-go.
const LARGEST_LINE: usize = 16_000_000;

impl Connections {
    /// Ends all open requests and watches. The next ones open new connections.
    pub(crate) fn renew(&self) {
        self.0.addresses.send_replace(());
    }

    /// Ends all open watches. Other requests may still finish.
    pub(super) fn end_watches(&self) {
        self.0.credentials.send_replace(());
    }

    /// Signals each call of [`Self::renew`].
    pub(super) fn renewals(&self) -> watch::Receiver<()> {
        self.0.addresses.subscribe()
    }

    /// Resolves when a watch that begins now has to end.
    pub(super) fn until_watch_ends(&self) -> BoxFuture<'static, Closed> {
        let (addresses, credentials) = (self.0.addresses.subscribe(), self.0.credentials.subscribe());
        async move {
            tokio::select! {
                () = changed(addresses) => Closed::Address,
                () = changed(credentials) => Closed::Credentials,
            }
        }
        .boxed()
    }

    /// Resolves when a request that begins now has to end.
    pub(super) fn until_request_ends(&self, limit: Duration) -> BoxFuture<'static, Closed> {
        let addresses = self.0.addresses.subscribe();
        async move {
            tokio::select! {
                () = changed(addresses) => Closed::Address,
                () = tokio::time::sleep(limit) => Closed::Late(limit),
            }
        }
        .boxed()
    }
}

/// Resolves at the next signal; never, if the sender is gone.
async fn changed(mut signal: watch::Receiver<()>) {
    if signal.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A body that fails when its request has to end or the answer is too large.
pub(super) struct ClosedBody<B> {
    body: B,
    /// `None` once it has ended.
    closed: Option<BoxFuture<'static, Closed>>,
    size: Size,
    /// Bytes so far of the answer, or of its current line.
    bytes: usize,
}

impl<B> ClosedBody<B> {
    pub(super) fn new(body: B, size: Size, closed: BoxFuture<'static, Closed>) -> Self {
        Self { body, closed: Some(closed), size, bytes: 0 }
    }

    /// Counts bytes that were read. Fails above the limit.
    fn count(&mut self, data: &[u8]) -> Result<(), Closed> {
        let (since, largest) = match self.size {
            Size::Whole => (None, LARGEST),
            Size::Line => (data.iter().rposition(|byte| *byte == b'\n'), LARGEST_LINE),
        };
        self.bytes = since.map_or(self.bytes + data.len(), |at| data.len() - at - 1);
        if self.bytes > largest { Err(Closed::Large(largest)) } else { Ok(()) }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin> Body for ClosedBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(closed) = &mut self.closed else { return Poll::Ready(None) };
        if let Poll::Ready(why) = closed.poll_unpin(context) {
            self.closed = None;
            return Poll::Ready(Some(Err(why.into())));
        }
        let frame = Pin::new(&mut self.body).poll_frame(context).map_err(Into::into);
        if let Poll::Ready(Some(Ok(read))) = &frame
            && let Some(Err(why)) = read.data_ref().map(|data| self.count(data))
        {
            self.closed = None;
            return Poll::Ready(Some(Err(why.into())));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.closed.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::time::timeout;

    use super::*;

    struct Silent;

    impl Body for Silent {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Poll::Pending
        }
    }

    async fn end(body: &mut ClosedBody<Silent>) -> Option<String> {
        let frame = timeout(Duration::from_secs(1_000), body.frame()).await.ok()?;
        Some(frame.map_or_else(|| "end".into(), |frame| frame.map(drop).expect_err("a silent body").to_string()))
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_fail_with_the_reason_for_their_end() {
        let connections = Connections::default();
        let mut watch = ClosedBody::new(Silent, Size::Whole, connections.until_watch_ends());
        let mut list = ClosedBody::new(Silent, Size::Whole, connections.until_request_ends(Duration::from_secs(5_000)));
        assert_eq!((end(&mut watch).await, end(&mut list).await), (None, None));
        connections.end_watches();
        assert_eq!(end(&mut watch).await.as_deref(), Some("the connection was closed, because the credentials have changed"));
        assert_eq!((end(&mut watch).await.as_deref(), end(&mut list).await), (Some("end"), None));
        connections.renew();
        assert_eq!(end(&mut list).await.as_deref(), Some("the connection was closed, because this node has another address now"));
        // Earlier signals do not end later requests; a request has a time limit.
        let mut late = ClosedBody::new(Silent, Size::Whole, connections.until_request_ends(Duration::from_secs(300)));
        assert_eq!(end(&mut late).await.as_deref(), Some("the answer was not complete after 300 s"));
    }
    #[tokio::test]
    async fn bodies_that_are_too_large_fail() {
        let never = || std::future::pending().boxed();
        let part = Bytes::from(vec![b'x'; 8_000_000]);
        let line = Bytes::from([&part[1..], b"\n"].concat());
        let body = |parts: &[&Bytes]| {
            let frames: Vec<Result<Frame<Bytes>, BoxError>> = parts.iter().map(|part| Ok(Frame::data((*part).clone()))).collect();
            http_body_util::StreamBody::new(futures::stream::iter(frames))
        };
        let whole = |parts: &[&Bytes], size| ClosedBody::new(body(parts), size, never()).collect();
        whole(&[&part, &line, &part, &line], Size::Line).await.expect("each line is small enough");
        let error = whole(&[&part, &line, &part, &part, &part], Size::Line).await.map(drop).expect_err("a long line").to_string();
        assert_eq!(error, "the answer is larger than 16 MB");
        whole(&[&part, &part, &part], Size::Whole).await.expect("no lines, and not large");
        let error = whole(&vec![&part; 33], Size::Whole).await.map(drop).expect_err("a large one").to_string();
        assert_eq!(error, "the answer is larger than 256 MB");
    }
}
