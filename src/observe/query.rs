//! Where one loop answers what others ask of the things that it owns.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::paging::Part;
use crate::cluster::ServiceKey;

/// Questions that may wait; one more is refused.
const WAITING: usize = 16;

/// An answer is waited for this long: the loop may be in the middle of a long sync.
const PATIENCE: Duration = Duration::from_secs(10);

/// A question, and where its answer goes.
#[derive(Debug)]
pub struct Asked<Q> {
    /// The question.
    pub question: Q,
    reply: oneshot::Sender<Value>,
}

impl<Q> Asked<Q> {
    /// Answers it. That nobody waits any more is no trouble.
    pub fn answer(self, with: impl FnOnce(Q) -> Value) {
        if !self.reply.is_closed() {
            let _ = self.reply.send(with(self.question));
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// Nobody is there.
    #[error("this part of the program is not at work: it is switched off, or about to be started again")]
    Nobody,
    /// Too many ask.
    #[error("too many ask at once; try again")]
    Busy,
    /// It takes too long.
    #[error("no answer for {} s: rules are being written; try again", PATIENCE.as_secs())]
    Late,
}

/// The place itself, as both sides share it. A loop that is started again opens it anew.
#[derive(Debug)]
pub struct Desk<Q>(Arc<Mutex<Option<mpsc::Sender<Asked<Q>>>>>);

impl<Q> Clone for Desk<Q> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q> Default for Desk<Q> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<Q> Desk<Q> {
    /// Questions come out here from now on.
    #[must_use]
    pub fn open(&self) -> mpsc::Receiver<Asked<Q>> {
        let (sender, receiver) = mpsc::channel(WAITING);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// Nobody answers in time.
    pub async fn ask(&self, question: Q) -> Result<Value, Unanswered> {
        let desk = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Unanswered::Nobody)?;
        let (reply, answer) = oneshot::channel();
        desk.try_send(Asked { question, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unanswered::Busy,
            mpsc::error::TrySendError::Closed(_) => Unanswered::Nobody,
        })?;
        match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Unanswered::Nobody),
            Err(_) => Err(Unanswered::Late),
        }
    }
}

/// A question to the service proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// A page of the Services.
    Services(Part),
    /// One Service.
    Service(ServiceKey),
    /// The path of a packet.
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
    async fn questions_are_answered_by_whoever_sits_there() {
        let desk = Desk::default();
        assert_eq!(desk.ask(1).await, Err(Unanswered::Nobody));
        let mut first = desk.open();
        drop(desk.open());
        assert!(first.recv().await.is_none(), "another sits there");
        assert_eq!(desk.ask(1).await, Err(Unanswered::Nobody), "and has left");

        let mut questions = desk.open();
        let answering = async { questions.recv().await.expect("a question").answer(|question: u32| (question + 1).into()) };
        assert_eq!(tokio::join!(desk.ask(1), answering).0, Ok(2.into()));
        assert_eq!(desk.ask(1).await, Err(Unanswered::Late));
        // Nobody waits for that one any more; it is still in the way.
        let many = (0..WAITING).map(|question| desk.ask(question.try_into().expect("small")));
        let answers = futures::future::join_all(many).await;
        assert_eq!(answers.iter().filter(|answer| **answer == Err(Unanswered::Busy)).count(), 1);
    }
}
