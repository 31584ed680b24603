//! The faults that a test injects: pauses, delays, failures and denied verbs.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::failure::InjectedFailure;
use crate::resource::Resource;
use crate::status_error::{StatusError, USER};

/// The faults of a server.
#[derive(Debug)]
pub(crate) struct Faults {
    paused_until: watch::Sender<Instant>,
    injected: Mutex<InjectedFaults>,
}

#[derive(Debug, Default)]
struct InjectedFaults {
    /// Failures and the times when they end.
    failures: Vec<(InjectedFailure, Instant)>,
    delay: Duration,
    /// Verbs and resources. A resource may include a subresource: `nodes/status`.
    denied: BTreeSet<(String, String)>,
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self { paused_until: watch::Sender::new(Instant::now()), injected: Mutex::default() }
    }

    fn injected(&self) -> MutexGuard<'_, InjectedFaults> {
        self.injected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pause(&self, time: Duration) {
        self.paused_until.send_replace(after(time));
    }

    pub(crate) fn fail(&self, failure: InjectedFailure) {
        let until = after(failure.time);
        self.injected().failures = vec![(failure, until)];
    }

    pub(crate) fn fail_also(&self, failure: InjectedFailure) {
        let until = after(failure.time);
        self.injected().failures.push((failure, until));
    }

    pub(crate) fn stop_failing(&self) {
        self.injected().failures.clear();
    }

    pub(crate) fn delay(&self, time: Duration) {
        self.injected().delay = time;
    }

    pub(crate) fn deny(&self, verb: &str, resource: &str) {
        self.injected().denied.insert((verb.to_owned(), resource.to_owned()));
    }

    pub(crate) fn allow_all(&self) {
        self.injected().denied.clear();
    }

    /// Waits until the pause is over, and then for the delay.
    pub(crate) async fn wait(&self) {
        let mut paused_until = self.paused_until.subscribe();
        loop {
            let until = *paused_until.borrow_and_update();
            if until <= Instant::now() {
                break;
            }
            // Returns when the pause is over, or when a test changes it. The loop checks again in both cases.
            let _ = timeout_at(until, paused_until.changed()).await;
        }
        let delay = self.injected().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
    }

    /// The first failure that applies to a request. Reduces the failure's count by one.
    pub(crate) fn take_failure(&self, path: &str, is_watch: bool, is_streaming_list: bool) -> Option<InjectedFailure> {
        let now = Instant::now();
        let mut injected = self.injected();
        let mut active = injected.failures.iter_mut().filter(|(failure, until)| failure.count > 0 || *until > now);
        let (failure, _) = active.find(|(failure, _)| failure.matches(path, is_watch, is_streaming_list))?;
        failure.count = failure.count.saturating_sub(1);
        Some(failure.clone())
    }

    /// True if a test denied a verb on a resource, such as `nodes` or `nodes/status`.
    pub(crate) fn denies(&self, verb: &str, resource: &str) -> bool {
        let matches = |pattern: &str, text: &str| pattern == "*" || pattern == text;
        self.injected().denied.iter().any(|denied| matches(&denied.0, verb) && matches(&denied.1, resource))
    }

    /// Refuses a request if a test denied its verb. `attempt` is verb and resource.
    pub(crate) fn check_denied(&self, resource: Resource, object: &str, namespace: &str, attempt: (&str, &str)) -> Result<(), StatusError> {
        if self.denies(attempt.0, attempt.1) { Err(StatusError::forbidden(USER, resource, object, namespace, attempt)) } else { Ok(()) }
    }
}

/// The time after a duration. Durations over a year count as a year, so that the sum cannot overflow.
fn after(time: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    Instant::now() + time.min(YEAR)
}
