//! What goes wrong on demand.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::failure::Failure;
use crate::refusal::{Refusal, USER};
use crate::resource::Resource;

/// The faults of a server.
#[derive(Debug)]
pub(crate) struct Faults {
    paused_until: watch::Sender<Instant>,
    ordered: Mutex<Ordered>,
}

#[derive(Debug, Default)]
struct Ordered {
    /// Each with the time when it ends.
    failures: Vec<(Failure, Instant)>,
    delay: Duration,
    /// Verb and resource, the latter as `nodes/status`.
    denied: BTreeSet<(String, String)>,
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self { paused_until: watch::Sender::new(Instant::now()), ordered: Mutex::default() }
    }

    fn ordered(&self) -> MutexGuard<'_, Ordered> {
        self.ordered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pause(&self, time: Duration) {
        self.paused_until.send_replace(later(time));
    }

    pub(crate) fn fail(&self, failure: Failure) {
        let until = later(failure.time);
        self.ordered().failures = vec![(failure, until)];
    }

    pub(crate) fn fail_also(&self, failure: Failure) {
        let until = later(failure.time);
        self.ordered().failures.push((failure, until));
    }

    pub(crate) fn stop_failing(&self) {
        self.ordered().failures.clear();
    }

    pub(crate) fn delay(&self, time: Duration) {
        self.ordered().delay = time;
    }

    pub(crate) fn deny(&self, verb: &str, resource: &str) {
        self.ordered().denied.insert((verb.to_owned(), resource.to_owned()));
    }

    pub(crate) fn allow_all(&self) {
        self.ordered().denied.clear();
    }

    /// Waits while the server is paused, and then as long as every request has to.
    pub(crate) async fn hold(&self) {
        let mut paused_until = self.paused_until.subscribe();
        loop {
            let until = *paused_until.borrow_and_update();
            if until <= Instant::now() {
                break;
            }
            // The pause may also be changed while it lasts; either way it is looked at again.
            let _ = timeout_at(until, paused_until.changed()).await;
        }
        let delay = self.ordered().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
    }

    /// The failure of a request, if it is to fail: the first that fits.
    pub(crate) fn failure(&self, path: &str, is_watch: bool, is_streaming: bool) -> Option<Failure> {
        let now = Instant::now();
        let mut ordered = self.ordered();
        let mut ongoing = ordered.failures.iter_mut().filter(|(failure, until)| failure.count > 0 || *until > now);
        let (failure, _) = ongoing.find(|(failure, _)| failure.fits(path, is_watch, is_streaming))?;
        failure.count = failure.count.saturating_sub(1);
        Some(failure.clone())
    }

    /// True if a verb is denied; `what` is the plural, with the subresource if there is one.
    pub(crate) fn denies(&self, verb: &str, what: &str) -> bool {
        let fits = |order: &str, text: &str| order == "*" || order == text;
        self.ordered().denied.iter().any(|(one, other)| fits(one, verb) && fits(other, what))
    }

    /// Refuses a denied request.
    pub(crate) fn check(&self, resource: Resource, object: &str, namespace: &str, attempt: (&str, &str)) -> Result<(), Refusal> {
        let (verb, what) = attempt;
        if self.denies(verb, what) { Err(Refusal::forbidden(USER, resource, object, namespace, attempt)) } else { Ok(()) }
    }
}

/// A time from now. One that no clock can tell is a year away.
fn later(time: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    Instant::now() + time.min(YEAR)
}
