//! When the API server cannot be followed: why, what is said of it, and how long to wait. The watches of all kinds share this: they mostly
//! fail together, and the first one to get through tells the others.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Zip;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use kube::core::Status;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::object::Subject;

/// The first wait, and the least one, as client-go has it. Jitter makes it up to twice as long, as it does every other.
const LEAST_WAIT: Duration = Duration::from_millis(800);
/// Where waiting stops to grow if the server does not let us, or does not know what is asked for: a permission that is given is noticed
/// within 15 s, where client-go may take a minute.
const LONGEST_WAIT: Duration = Duration::from_millis(7_500);
/// The same if there is no server, or it has troubles of its own: that passes, and rules that are behind the cluster cost more than a
/// request. With jitter one of the three watches tries every two seconds or so, and takes the others along.
const LONGEST_OUTAGE_WAIT: Duration = Duration::from_secs(3);

/// How often the same sort of failure is told.
const REPEAT: Duration = Duration::from_secs(60);

/// Why a kind cannot be followed for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The status of the answer; `None` if there was no answer, or none that can be understood.
    pub code: Option<u16>,
    /// The same in words, with the cause.
    pub why: String,
}

impl Failure {
    /// One without an answer that says why.
    pub(super) fn unanswered(why: impl Into<String>) -> Self {
        Self { code: None, why: why.into() }
    }

    /// A failure that mostly passes by itself. What is left are requests that somebody has to do something about first.
    const fn passes(&self) -> bool {
        matches!(self.code, None | Some(401 | 410 | 429 | 500..))
    }

    /// The server is there and has what it had, only no time.
    pub(super) const fn is_busy(&self) -> bool {
        matches!(self.code, Some(429))
    }

    /// The server does not know this sort of request.
    pub(super) const fn is_unknown_request(&self) -> bool {
        matches!(self.code, Some(400 | 422))
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => status.into(),
            other => Self::unanswered(causes(&other)),
        }
    }
}

impl From<Box<Status>> for Failure {
    fn from(status: Box<Status>) -> Self {
        let Status { code, reason, message, .. } = *status;
        match code {
            // kube takes an event that cannot be read for a status of nothing.
            0 => Self::unanswered("an event that cannot be read"),
            _ => Self { code: Some(code), why: format!("{message} ({code} {reason})") },
        }
    }
}

/// An error and everything behind it in one line, without repeating what an outer one says already.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// How long one watch waits after each failure: longer every time.
#[derive(Debug)]
pub(super) struct Pace(Zip<ExponentialBackoff, ExponentialBackoff>);

impl Pace {
    pub(super) fn new() -> Self {
        let growing = |longest| {
            let builder = ExponentialBuilder::new().with_min_delay(LEAST_WAIT).with_max_delay(longest).with_factor(2.0);
            builder.with_jitter().without_max_times().build()
        };
        Self(growing(LONGEST_WAIT).zip(growing(LONGEST_OUTAGE_WAIT)))
    }

    /// The next wait.
    pub(super) fn after(&mut self, failure: &Failure) -> Duration {
        let (wait, outage_wait) = self.0.next().unwrap_or((LONGEST_WAIT, LONGEST_OUTAGE_WAIT));
        if failure.passes() { outage_wait } else { wait }
    }
}

/// What the watches of all kinds have in common.
#[derive(Debug, Default)]
pub(super) struct Outages {
    answers: watch::Sender<()>,
    record: Mutex<Record>,
}

impl Outages {
    /// The server gave somebody what was asked for: others need not wait longer.
    pub(super) fn answered(&self) {
        self.answers.send_replace(());
    }

    /// A kind cannot be followed for now.
    pub(super) fn failed(&self, subject: Subject, failure: &Failure) {
        let line = self.record.lock().unwrap_or_else(PoisonError::into_inner).failed(subject, failure, Instant::now());
        if let Some(line) = line {
            tracing::warn!("{line}");
        } else {
            tracing::debug!("watch of {} failed again: {}", subject.as_str(), failure.why);
        }
    }

    /// A kind is followed: everything up to now was told, and more will be.
    pub(super) fn followed(&self, subject: Subject) {
        let line = self.record.lock().unwrap_or_else(PoisonError::into_inner).followed(subject, Instant::now());
        if let Some(line) = line {
            tracing::info!("{line}");
        }
    }

    /// Waits for a time, or until somebody gets an answer; but never so short that watches that come and go could keep each other awake.
    pub(super) async fn wait(&self, time: Duration) {
        let mut answers = self.answers.subscribe();
        sleep(time.min(LEAST_WAIT)).await;
        tokio::select! {
            () = sleep(time.saturating_sub(LEAST_WAIT)) => {}
            // The sender lives as long as this does, so this is an answer.
            _ = answers.changed() => {}
        }
    }
}

/// What there is to tell.
#[derive(Debug, Default)]
struct Record {
    /// Kinds that are not followed.
    failing: BTreeSet<Subject>,
    /// Since when there are any.
    since: Option<Instant>,
    /// When each sort of failure, that is each status, was told last.
    told: BTreeMap<Option<u16>, Instant>,
    /// Something was told, and its end was not.
    open: bool,
}

impl Record {
    fn failed(&mut self, subject: Subject, failure: &Failure, now: Instant) -> Option<String> {
        self.failing.insert(subject);
        let since = *self.since.get_or_insert(now);
        if self.told.get(&failure.code).is_some_and(|told| now.duration_since(*told) < REPEAT) {
            return None;
        }
        self.told.insert(failure.code, now);
        self.open = true;
        let hint = if failure.code == Some(403) { subject.permission_hint() } else { "" };
        let seconds = now.duration_since(since).as_secs();
        let duration = if seconds == 0 { String::new() } else { format!(" for {seconds} s now") };
        let kinds: Vec<&str> = self.failing.iter().map(|subject| subject.as_str()).collect();
        Some(format!("watch of {} interrupted{duration}{hint}: {}; what was known before holds", kinds.join(", "), failure.why))
    }

    fn followed(&mut self, subject: Subject, now: Instant) -> Option<String> {
        self.failing.remove(&subject);
        if !self.failing.is_empty() {
            return None;
        }
        let since = self.since.take()?;
        let told = std::mem::take(&mut self.open);
        told.then(|| format!("the API server is followed, after {:.1} s without it", now.duration_since(since).as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Kind;
    use super::*;

    fn status(code: u16) -> Failure {
        Failure { code: Some(code), why: "no".into() }
    }

    #[test]
    fn waits_grow_and_end_sooner_where_a_server_is_awaited() {
        let no_server = Failure::unanswered("refused");
        for (failure, longest) in [(no_server, LONGEST_OUTAGE_WAIT), (status(401), LONGEST_OUTAGE_WAIT), (status(403), LONGEST_WAIT)] {
            let mut pace = Pace::new();
            let first = pace.after(&failure);
            assert!((LEAST_WAIT..=LEAST_WAIT * 2).contains(&first), "{first:?}");
            let last = (0..10).map(|_| pace.after(&failure)).last().expect("ten");
            assert!((longest..=longest * 2).contains(&last), "{failure:?}: {last:?}");
        }
    }

    #[test]
    fn an_outage_is_told_once_a_minute_and_at_its_end() {
        let mut record = Record::default();
        let start = Instant::now();
        let mut lines = Vec::new();
        for second in 0..130 {
            for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node].map(Subject::Proxy) {
                let failure = Failure::unanswered("connection refused");
                lines.extend(record.failed(kind, &failure, start + Duration::from_secs(second)));
            }
        }
        let end = start + Duration::from_millis(130_500);
        lines.extend(
            [Kind::Node, Kind::Service, Kind::EndpointSlice].into_iter().filter_map(|kind| record.followed(Subject::Proxy(kind), end)),
        );
        assert_eq!(
            lines,
            [
                "watch of Services interrupted: connection refused; what was known before holds",
                "watch of Services, EndpointSlices, Nodes interrupted for 60 s now: connection refused; what was known before holds",
                "watch of Services, EndpointSlices, Nodes interrupted for 120 s now: connection refused; what was known before holds",
                "the API server is followed, after 130.5 s without it",
            ]
        );
        // The next one within the minute is not told, and neither is its end.
        assert_eq!(record.failed(Subject::Proxy(Kind::Node), &Failure::unanswered("again"), end), None);
        assert_eq!(record.followed(Subject::Proxy(Kind::Node), end), None);
        // Another sort of failure is news.
        let line = record.failed(Subject::Proxy(Kind::Node), &status(403), end).expect("news");
        assert!(line.starts_with("watch of Nodes interrupted (needs the verbs get, list and watch;"), "{line}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_answer_ends_the_waiting_of_all() {
        let outages = Arc::new(Outages::default());
        let start = Instant::now();
        let waiting = {
            let outages = Arc::clone(&outages);
            tokio::spawn(async move { outages.wait(Duration::from_secs(30)).await })
        };
        sleep(Duration::from_millis(100)).await;
        outages.answered();
        waiting.await.expect("it ends");
        assert_eq!(start.elapsed(), LEAST_WAIT);
    }
}
