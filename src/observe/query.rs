//! Sends queries to a loop, which answers them from the state that it owns.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::paging::PageQuery;
use crate::cluster::ServiceKey;

/// The most queries that wait. More are refused.
const QUEUE_LENGTH: usize = 16;

/// How long a query waits for its answer. The loop may be in a long sync.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// A query that waits for its answer.
#[derive(Debug)]
pub(crate) struct PendingQuery<Q> {
    /// The query.
    pub query: Q,
    reply: oneshot::Sender<Value>,
}

impl<Q> PendingQuery<Q> {
    /// Answers the query, if the sender still waits.
    pub(crate) fn answer(self, with: impl FnOnce(Q) -> Value) {
        if !self.reply.is_closed() {
            let _ = self.reply.send(with(self.query));
        }
    }
}

/// Why a query has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueryError {
    /// The loop does not run.
    #[error("this part of sepal does not run: it is switched off, or it restarts")]
    NotRunning,
    /// Too many queries wait.
    #[error("too many requests at once; try again")]
    Busy,
    /// The answer takes too long.
    #[error("no answer for {} s: rules are being written; try again", ANSWER_TIME.as_secs())]
    Late,
}

/// The channel of queries. Both sides share it. A restarted loop opens it again.
#[derive(Debug)]
pub struct QueryChannel<Q>(Arc<Mutex<Option<mpsc::Sender<PendingQuery<Q>>>>>);

impl<Q> Clone for QueryChannel<Q> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q> Default for QueryChannel<Q> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<Q> QueryChannel<Q> {
    /// Receives the queries from now on. An earlier receiver gets no more.
    #[must_use]
    pub(crate) fn open(&self) -> mpsc::Receiver<PendingQuery<Q>> {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Sends a query and waits for the answer.
    ///
    /// # Errors
    /// The loop does not run or does not answer in time.
    pub(crate) async fn ask(&self, query: Q) -> Result<Value, QueryError> {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(QueryError::NotRunning)?;
        let (reply, answer) = oneshot::channel();
        sender.try_send(PendingQuery { query, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => QueryError::Busy,
            mpsc::error::TrySendError::Closed(_) => QueryError::NotRunning,
        })?;
        match timeout(ANSWER_TIME, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(QueryError::NotRunning),
            Err(_) => Err(QueryError::Late),
        }
    }
}

/// A query to the service proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyQuery {
    /// A page of the list of Services.
    Services(PageQuery),
    /// One Service.
    Service(ServiceKey),
    /// The path of a packet through the rules.
    Explain {
        /// The sender.
        from: String,
        /// The destination.
        to: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_receiver_answers_queries() {
        let channel = QueryChannel::default();
        assert_eq!(channel.ask(1).await, Err(QueryError::NotRunning));
        let mut first = channel.open();
        drop(channel.open());
        assert!(first.recv().await.is_none(), "another receiver is open");
        assert_eq!(channel.ask(1).await, Err(QueryError::NotRunning), "and is dropped");

        let mut queries = channel.open();
        let answering = async { queries.recv().await.expect("a query").answer(|query: u32| (query + 1).into()) };
        assert_eq!(tokio::join!(channel.ask(1), answering).0, Ok(2.into()));
        assert_eq!(channel.ask(1).await, Err(QueryError::Late));
        // The late query still takes a place in the queue.
        let many = (0..QUEUE_LENGTH).map(|query| channel.ask(query.try_into().expect("small")));
        let answers = futures::future::join_all(many).await;
        assert_eq!(answers.iter().filter(|answer| **answer == Err(QueryError::Busy)).count(), 1);
    }
}
