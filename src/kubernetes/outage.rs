//! Failures of list and watch: their sort, their log lines, and the backoff after them. All watches share this: they mostly fail together,
//! and the first one that gets an answer ends the wait of the others.

use std::collections::BTreeMap;
use std::io;
use std::iter::Zip;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use kube::core::Status;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::object::Subject;
use crate::error_text::{error_text, status_text};

/// The first and shortest wait, as in client-go. Jitter makes every wait up to twice as long.
const LEAST_WAIT: Duration = Duration::from_millis(800);
/// The longest wait while the server refuses the request or does not know it. A new permission is noticed within 15 s; client-go may
/// take a minute.
const LONGEST_WAIT: Duration = Duration::from_millis(7_500);
/// The longest wait while the server does not answer or has internal errors. Such failures pass without an operator, and late rules cost
/// more than a request. With jitter one of the three watches tries about every two seconds, and ends the wait of the others.
const LONGEST_OUTAGE_WAIT: Duration = Duration::from_secs(3);

/// The same sort of failure is logged once in this time.
const REPEAT: Duration = Duration::from_secs(60);

/// Why a list or watch failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WatchFailure {
    /// The status of the answer; `None` if there was no answer, or no readable one.
    pub code: Option<u16>,
    /// The failure in words, with the cause.
    pub why: String,
    sort: Sort,
}

/// The sorts of failures to which the loop reacts differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    /// The connection was refused.
    Refused,
    /// No answer came.
    Unanswered,
    /// The answer cannot be read.
    Unreadable,
    /// 429.
    Busy,
    /// The resourceVersion, or a continue token, is too old or too new for the server.
    Expired,
    /// Any other status.
    Status,
}

impl WatchFailure {
    /// A failure without an answer.
    pub(super) fn unanswered(why: impl Into<String>) -> Self {
        Self { code: None, why: why.into(), sort: Sort::Unanswered }
    }

    /// An answer that cannot be read.
    pub(super) fn unreadable(why: impl Into<String>) -> Self {
        Self { code: None, why: why.into(), sort: Sort::Unreadable }
    }

    /// True if the failure mostly passes without an operator.
    const fn is_transient(&self) -> bool {
        matches!(self.code, None | Some(401 | 410 | 429 | 500..))
    }

    /// The server is reachable but overloaded.
    pub(super) const fn is_busy(&self) -> bool {
        matches!(self.sort, Sort::Busy)
    }

    /// The resourceVersion is expired or too large.
    pub(super) const fn is_expired(&self) -> bool {
        matches!(self.sort, Sort::Expired)
    }

    /// The server answered.
    pub(super) const fn is_answer(&self) -> bool {
        !matches!(self.sort, Sort::Refused | Sort::Unanswered)
    }

    /// True if an ordinary list may succeed after a streaming list failed like this.
    pub(super) const fn falls_back(&self) -> bool {
        !matches!(self.sort, Sort::Refused | Sort::Busy | Sort::Expired)
    }

    /// True if another release, or another etcd, may answer next.
    pub(super) const fn is_outage(&self) -> bool {
        !self.is_answer() || !self.is_expired() && matches!(self.code, Some(500..))
    }
}

impl From<kube::Error> for WatchFailure {
    fn from(error: kube::Error) -> Self {
        let sort = match &error {
            kube::Error::Api(_) => Sort::Status,
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) | kube::Error::LinesCodecMaxLineLengthExceeded => Sort::Unreadable,
            other if is_refused(other) => Sort::Refused,
            _ => Sort::Unanswered,
        };
        match error {
            kube::Error::Api(status) => status.into(),
            other => Self { code: None, why: error_text(&other), sort },
        }
    }
}

/// True if the connection was refused because no program listens on the port.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        next = error.source();
    }
    false
}

impl From<Box<Status>> for WatchFailure {
    fn from(status: Box<Status>) -> Self {
        const TOO_LARGE: &str = "Too large resource version";
        let why = status_text(&status);
        let Status { code, reason, message, details, .. } = *status;
        let causes = details.map(|details| details.causes).unwrap_or_default();
        let too_large = causes.iter().any(|cause| cause.reason == "ResourceVersionTooLarge" || cause.message == TOO_LARGE)
            || (code == 504 || reason == "Timeout") && message.contains(TOO_LARGE);
        let sort = match (code, reason.as_str()) {
            // kube returns an empty status for an event that it cannot parse.
            (0, "") => return Self::unreadable("a watch event that cannot be read"),
            (429, _) | (_, "TooManyRequests") => Sort::Busy,
            (410, _) | (_, "Expired" | "Gone") => Sort::Expired,
            _ if too_large => Sort::Expired,
            _ => Sort::Status,
        };
        Self { code: Some(code), why, sort }
    }
}

/// The backoff of one watch. Each failure doubles the wait.
#[derive(Debug)]
pub(super) struct Backoff(Zip<ExponentialBackoff, ExponentialBackoff>);

impl Backoff {
    pub(super) fn new() -> Self {
        let growing = |longest| {
            let builder = ExponentialBuilder::new().with_min_delay(LEAST_WAIT).with_max_delay(longest).with_factor(2.0);
            builder.with_jitter().without_max_times().build()
        };
        Self(growing(LONGEST_WAIT).zip(growing(LONGEST_OUTAGE_WAIT)))
    }

    /// The wait after this failure.
    pub(super) fn after(&mut self, failure: &WatchFailure) -> Duration {
        let (wait, outage_wait) = self.0.next().unwrap_or((LONGEST_WAIT, LONGEST_OUTAGE_WAIT));
        if failure.is_transient() { outage_wait } else { wait }
    }
}

/// State that all watches share: answers of the server, and the failures so far.
#[derive(Debug, Default)]
pub(super) struct Outages {
    answers: watch::Sender<()>,
    record: Mutex<Record>,
}

impl Outages {
    /// The server answered a request. This ends the wait of all watches.
    pub(super) fn answered(&self) {
        self.answers.send_replace(());
    }

    /// Logs a failed list or watch. The next attempt comes after `wait`. `listed`: an earlier list was complete.
    pub(super) fn failed(&self, subject: Subject, failure: &WatchFailure, wait: Duration, listed: bool) {
        let failed = FailedAttempt { subject, failure, wait, listed };
        let line = self.record.lock().unwrap_or_else(PoisonError::into_inner).failed(&failed, Instant::now());
        if let Some(line) = line {
            tracing::warn!("{line}");
        } else {
            tracing::debug!("list and watch of {} failed again: {}", subject.as_str(), failure.why);
        }
    }

    /// Logs the end of an outage: a list is complete and a watch is open.
    pub(super) fn recovered(&self, subject: Subject) {
        let line = self.record.lock().unwrap_or_else(PoisonError::into_inner).recovered(subject, Instant::now());
        if let Some(line) = line {
            tracing::info!("{line}");
        }
    }

    /// Waits for a time, or until another watch gets an answer. It waits at least [`LEAST_WAIT`], because watches that end at once would wake
    /// each other forever.
    pub(super) async fn wait(&self, time: Duration) {
        let mut answers = self.answers.subscribe();
        sleep(time.min(LEAST_WAIT)).await;
        tokio::select! {
            () = sleep(time.saturating_sub(LEAST_WAIT)) => {}
            // The sender lives as long as `self`, so this is never an error.
            _ = answers.changed() => {}
        }
    }
}

/// A failed attempt.
struct FailedAttempt<'a> {
    subject: Subject,
    failure: &'a WatchFailure,
    wait: Duration,
    listed: bool,
}

/// Decides which failures are logged.
#[derive(Debug, Default)]
struct Record {
    /// The failing watches, each with whether an earlier list was complete.
    failing: BTreeMap<Subject, bool>,
    /// The time of the first failure.
    since: Option<Instant>,
    /// When a failure was last logged, by status and by whether an earlier list was complete.
    logged: BTreeMap<(Option<u16>, bool), Instant>,
    /// A failure was logged, and the recovery is not logged yet.
    open: bool,
}

impl Record {
    fn failed(&mut self, failed: &FailedAttempt<'_>, now: Instant) -> Option<String> {
        let FailedAttempt { subject, failure, wait, listed } = *failed;
        self.failing.insert(subject, listed);
        let since = *self.since.get_or_insert(now);
        let key = (failure.code, listed);
        if self.logged.get(&key).is_some_and(|logged| now.duration_since(*logged) < REPEAT) {
            return None;
        }
        self.logged.insert(key, now);
        self.open = true;
        let hint = if failure.code == Some(403) { subject.permission_hint() } else { "" };
        let mut kinds: Vec<&str> = self.failing.iter().filter(|(_, other)| **other == listed).map(|(kind, _)| kind.as_str()).collect();
        // Both the service proxy and the pod network may watch Nodes.
        kinds.dedup();
        let kinds = kinds.join(", ");
        let why = &failure.why;
        let next = format!("next attempt in {} s", wait.as_secs_f64().ceil());
        let seconds = now.duration_since(since).as_secs();
        let duration = if seconds == 0 { String::new() } else { format!(" for {seconds} s") };
        Some(if listed {
            format!("watch of {kinds} interrupted{duration}{hint}: {why}, {next}; rules and routes stay as they are")
        } else {
            format!("no {kinds} are known yet{hint}: {why}, {next}")
        })
    }

    fn recovered(&mut self, subject: Subject, now: Instant) -> Option<String> {
        self.failing.remove(&subject);
        if !self.failing.is_empty() {
            return None;
        }
        let since = self.since.take()?;
        let open = std::mem::take(&mut self.open);
        open.then(|| format!("list and watch work again, {:.1} s after the first failure", now.duration_since(since).as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kubernetes::Kind;

    fn status(code: u16) -> WatchFailure {
        WatchFailure { code: Some(code), why: "no".into(), sort: Sort::Status }
    }

    #[test]
    fn waits_are_shorter_in_an_outage() {
        let no_server = WatchFailure::unanswered("refused");
        for (failure, longest) in [(no_server, LONGEST_OUTAGE_WAIT), (status(401), LONGEST_OUTAGE_WAIT), (status(403), LONGEST_WAIT)] {
            let mut pace = Backoff::new();
            let first = pace.after(&failure);
            assert!((LEAST_WAIT..=LEAST_WAIT * 2).contains(&first), "{first:?}");
            let last = (0..10).map(|_| pace.after(&failure)).last().expect("ten");
            assert!((longest..=longest * 2).contains(&last), "{failure:?}: {last:?}");
        }
    }

    fn failed(record: &mut Record, subject: Subject, failure: &WatchFailure, listed: bool, now: Instant) -> Option<String> {
        record.failed(&FailedAttempt { subject, failure, wait: Duration::from_millis(2_400), listed }, now)
    }

    const KINDS: [Subject; 3] = [Subject::Proxy(Kind::Service), Subject::Proxy(Kind::EndpointSlice), Subject::Proxy(Kind::Node)];

    #[test]
    fn an_outage_is_logged_once_a_minute_and_at_its_end() {
        let mut record = Record::default();
        let start = Instant::now();
        let mut lines = Vec::new();
        for second in 0..130 {
            for kind in KINDS {
                let failure = WatchFailure::unanswered("connection refused");
                lines.extend(failed(&mut record, kind, &failure, true, start + Duration::from_secs(second)));
            }
        }
        let end = start + Duration::from_millis(130_500);
        lines.extend(KINDS.into_iter().filter_map(|kind| record.recovered(kind, end)));
        let rest = "connection refused, next attempt in 3 s; rules and routes stay as they are";
        assert_eq!(
            lines,
            [
                format!("watch of Services interrupted: {rest}"),
                format!("watch of Services, EndpointSlices, Nodes interrupted for 60 s: {rest}"),
                format!("watch of Services, EndpointSlices, Nodes interrupted for 120 s: {rest}"),
                "list and watch work again, 130.5 s after the first failure".to_owned(),
            ]
        );
        // A failure within the minute is not logged, and neither is its recovery.
        assert_eq!(failed(&mut record, KINDS[2], &WatchFailure::unanswered("again"), true, end), None);
        assert_eq!(record.recovered(KINDS[2], end), None);
        // Another sort of failure is logged.
        let line = failed(&mut record, KINDS[2], &status(403), true, end).expect("news");
        assert!(line.starts_with("watch of Nodes interrupted (needs the verbs get, list and watch;"), "{line}");
    }

    #[test]
    fn failures_before_the_first_list_say_what_is_unknown() {
        let mut record = Record::default();
        let now = Instant::now();
        let refused = WatchFailure::unanswered("connection refused");
        let lines: Vec<_> = (0..62)
            .flat_map(|second| KINDS.map(|kind| (kind, now + Duration::from_secs(second))))
            .filter_map(|(kind, now)| failed(&mut record, kind, &refused, false, now))
            .collect();
        assert_eq!(
            lines,
            [
                "no Services are known yet: connection refused, next attempt in 3 s",
                "no Services, EndpointSlices, Nodes are known yet: connection refused, next attempt in 3 s",
            ]
        );
        // Only Services are listed now. The failure of their watch is another sort.
        let line = failed(&mut record, KINDS[0], &refused, true, now).expect("news");
        assert_eq!(line, "watch of Services interrupted: connection refused, next attempt in 3 s; rules and routes stay as they are");
        let line = failed(&mut record, KINDS[1], &status(403), false, now).expect("news");
        assert!(line.starts_with("no EndpointSlices, Nodes are known yet (needs the verbs list and watch;"), "{line}");
    }

    #[test]
    fn refused_connections_and_versions_are_recognized() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let nested = kube::Error::Service(Box::new(kube::Error::Service(Box::new(refused()))));
        for (error, falls_back) in [
            (kube::Error::Service(Box::new(refused())), false),
            (nested, false),
            (kube::Error::Service(io::Error::from(io::ErrorKind::ConnectionReset).into()), true),
        ] {
            assert_eq!(WatchFailure::from(error).falls_back(), falls_back);
        }
        let read = |text: &str| WatchFailure::from(Box::new(serde_json::from_str::<Status>(text).expect("a status")));
        for text in [
            r#"{"code":410,"reason":"Expired"}"#,
            r#"{"code":410,"reason":"Gone"}"#,
            r#"{"code":504,"reason":"Timeout","details":{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}]}}"#,
            r#"{"code":504,"reason":"Timeout","message":"Too large resource version: 5, current: 4"}"#,
        ] {
            let failure = read(text);
            assert!(failure.is_expired() && !failure.falls_back(), "{failure:?}");
        }
        let failure = read(r#"{"code":504,"reason":"Timeout","message":"etcd is slow"}"#);
        assert!(!failure.is_expired() && failure.falls_back() && failure.is_outage(), "{failure:?}");
        assert!(read(r#"{"code":429,"reason":"TooManyRequests"}"#).is_busy());
        assert_eq!(read("{}").code, None);
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
