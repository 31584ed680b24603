//! Measures what each change of a Service waits for until its rules are in force.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::cluster::{Family, ServiceKey, ServicePortName};
use crate::kubernetes::ChangeTime;

/// The number of slowest changes that are kept.
const CAPACITY: usize = 20;

/// Only changes of this last time are kept.
const RECENT: Duration = Duration::from_secs(3600);

/// What a change waits for, in order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitCause {
    /// The API server and the network, from the time of the change in the object. Unknown if the object has no such time.
    Watch,
    /// Earlier syncs, a configured pause between syncs, and failed syncs.
    Coalesce,
    /// The CPU budget for syncs (`--sync-cpu-percent`).
    Budget,
    /// Computing rules.
    Render,
    /// Reading the live tables, if their content is not known.
    Read,
    /// Computing what to write.
    Plan,
    /// Waiting for other programs that hold the xtables lock.
    Lock,
    /// Rendering the input of iptables-restore, iptables-restore itself, and the kernel.
    Restore,
}

impl WaitCause {
    /// Its name in metrics.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Coalesce => "coalesce",
            Self::Budget => "budget",
            Self::Render => "render",
            Self::Read => "read",
            Self::Plan => "plan",
            Self::Lock => "lock",
            Self::Restore => "restore",
        }
    }
}

/// The time that each phase of a sync takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncPhases {
    /// Computing rules.
    pub render: Duration,
    /// Reading the live tables.
    pub read: Duration,
    /// Computing what to write.
    pub plan: Duration,
    /// Waiting for the xtables lock.
    pub lock: Duration,
    /// Writing, without the wait for the lock.
    pub restore: Duration,
}

impl SyncPhases {
    /// Time to compute rules and what to write.
    #[must_use]
    pub fn planning(&self) -> Duration {
        self.render + self.plan
    }

    /// Time to read and write tables.
    #[must_use]
    pub(crate) fn applying(&self) -> Duration {
        self.read + self.lock + self.restore
    }
}

/// A change of a Service or its endpoints whose rules are in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedChange {
    /// The Service.
    pub service: ServiceKey,
    /// The family of the rules.
    pub family: Family,
    /// When the rules were in force.
    pub at: Timestamp,
    /// The time from the change to its arrival at this node, if it is known.
    pub watch: Option<Duration>,
    /// The time from the arrival to the start of the sync that wrote the rules, without `budget`.
    pub coalesce: Duration,
    /// The part of that time in which the budget allowed no sync.
    pub budget: Duration,
    /// The phases of that sync.
    pub spent: SyncPhases,
}

impl AppliedChange {
    /// The causes of the wait, each with its time.
    pub fn waits(&self) -> impl Iterator<Item = (WaitCause, Duration)> {
        let SyncPhases { render, read, plan, lock, restore } = self.spent;
        let causes = [
            (WaitCause::Coalesce, self.coalesce),
            (WaitCause::Budget, self.budget),
            (WaitCause::Render, render),
            (WaitCause::Read, read),
            (WaitCause::Plan, plan),
            (WaitCause::Lock, lock),
            (WaitCause::Restore, restore),
        ];
        self.watch.map(|watch| (WaitCause::Watch, watch)).into_iter().chain(causes)
    }

    /// The time of all causes together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.waits().map(|(_, wait)| wait).sum()
    }
}

/// A change whose rules are not in force yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    received: Instant,
    watch: Option<Duration>,
}

/// Changes of one family whose rules are not in force yet. For each Service the first change is kept.
#[derive(Debug, Default)]
pub(crate) struct WaitingChanges {
    /// The first sync is complete. Before that, objects are not changes.
    first_sync_done: bool,
    waiting: HashMap<ServiceKey, Waiting>,
}

impl WaitingChanges {
    /// Adds changes of these Services.
    pub(crate) fn note(&mut self, services: &[ServiceKey], time: ChangeTime) {
        if !self.first_sync_done {
            return;
        }
        for service in services {
            self.waiting.entry(service.clone()).or_insert_with(|| Waiting { received: time.received, watch: time.watch_delay() });
        }
    }

    /// Returns the changes that a sync applied. The sync began at `start` and wrote the rules of these service ports; all other changes needed
    /// no new rules. The budget allowed no sync during `paced`.
    pub(crate) fn written(
        &mut self,
        family: Family,
        start: Instant,
        paced: Option<&Range<Instant>>,
        spent: SyncPhases,
        names: &BTreeSet<ServicePortName>,
    ) -> Vec<AppliedChange> {
        self.first_sync_done = true;
        let (at, mut waiting) = (Timestamp::now(), std::mem::take(&mut self.waiting));
        let mut applied = Vec::new();
        for name in names {
            // A Service with several ports counts once.
            let Some((service, Waiting { received, watch })) = waiting.remove_entry(&name.service) else { continue };
            let budget = paced.map_or(Duration::ZERO, |paced| paced.end.min(start).saturating_duration_since(paced.start.max(received)));
            let coalesce = start.saturating_duration_since(received).saturating_sub(budget);
            applied.push(AppliedChange { service, family, at, watch, coalesce, budget, spent });
        }
        applied
    }
}

/// The slowest recent changes.
#[derive(Debug, Default)]
pub struct SlowestChanges(Mutex<Vec<AppliedChange>>);

impl SlowestChanges {
    /// Keeps a change if it is among the slowest ones.
    pub fn note(&self, change: &AppliedChange) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| is_recent(kept, change.at));
        let place = kept.partition_point(|kept| kept.total() >= change.total());
        if place < CAPACITY {
            kept.insert(place, change.clone());
            kept.truncate(CAPACITY);
        }
    }

    /// The slowest recent changes, slowest first.
    #[must_use]
    pub fn list(&self, now: Timestamp) -> Vec<AppliedChange> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().filter(|kept| is_recent(kept, now)).cloned().collect()
    }

    /// The slowest recent changes as text, one line each, with times in milliseconds.
    #[must_use]
    pub fn text(&self, now: Timestamp) -> String {
        let mut text = String::from("The slowest changes of Services in the last hour, and what they waited for, in ms\n");
        for change in self.list(now) {
            let waits: Vec<String> = change.waits().map(|(cause, wait)| format!("{} {}", cause.as_str(), milliseconds(wait))).collect();
            let (total, at) = (milliseconds(change.total()), change.at.strftime("%FT%TZ"));
            let _ = writeln!(text, "{total:>9}  {at}  {}  {}: {}", change.family, change.service, waits.join(", "));
        }
        text
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

fn is_recent(change: &AppliedChange, now: Timestamp) -> bool {
    Duration::try_from(now.duration_since(change.at)).is_ok_and(|age| age < RECENT) || now < change.at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Protocol;

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "ns".into(), name: name.into() }
    }

    fn ports(names: &[(&str, &str)]) -> BTreeSet<ServicePortName> {
        names.iter().map(|(name, port)| ServicePortName { service: key(name), port: (*port).into(), protocol: Protocol::Tcp }).collect()
    }

    const MS: Duration = Duration::from_millis(1);

    fn applied_change(name: &str, at: Timestamp, coalesce: Duration) -> AppliedChange {
        AppliedChange {
            service: key(name),
            family: Family::V4,
            at,
            watch: None,
            coalesce,
            budget: Duration::ZERO,
            spent: SyncPhases::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_waits_from_its_arrival_until_its_sync_begins() {
        let mut pending = WaitingChanges::default();
        let spent = SyncPhases { render: MS, lock: 7 * MS, restore: 2 * MS, ..SyncPhases::default() };
        // Objects of the first sync are not changes.
        pending.note(&[key("a")], ChangeTime::now(None));
        assert_eq!(pending.written(Family::V4, Instant::now(), None, spent, &ports(&[("a", "")])), []);

        let start = Instant::now();
        pending.note(&[key("a"), key("b")], ChangeTime::now(Some(Timestamp::now() - Duration::from_secs(3))));
        tokio::time::advance(30 * MS).await;
        // The first of several changes counts.
        pending.note(&[key("a")], ChangeTime::now(None));
        tokio::time::advance(20 * MS).await;
        // The budget allowed no sync from 10 ms before the changes until 15 ms before the sync.
        let paced = start - 10 * MS..start + 35 * MS;
        let written = pending.written(Family::V4, Instant::now(), Some(&paced), spent, &ports(&[("a", "http"), ("a", "https"), ("c", "")]));
        let [change] = written.as_slice() else { panic!("{written:?}") };
        assert_eq!((&change.service, change.coalesce, change.budget), (&key("a"), 15 * MS, 35 * MS));
        let watch = change.watch.expect("it said when it happened");
        assert!((Duration::from_secs(3)..Duration::from_secs(60)).contains(&watch), "{watch:?}");
        assert_eq!(change.total(), watch + 60 * MS);
        let waits: Vec<_> = change.waits().map(|(cause, wait)| (cause.as_str(), wait)).skip(1).collect();
        let [render, lock, restore] = [("render", MS), ("lock", 7 * MS), ("restore", 2 * MS)];
        assert_eq!(
            waits,
            [("coalesce", 15 * MS), ("budget", 35 * MS), render, ("read", Duration::ZERO), ("plan", Duration::ZERO), lock, restore]
        );

        // A change that needed no new rules of this family no longer waits.
        assert_eq!(pending.written(Family::V4, Instant::now(), None, spent, &ports(&[("b", "")])), []);
    }

    #[tokio::test]
    async fn a_change_time_in_the_future_gives_no_delay() {
        let moment = ChangeTime::now(Some(Timestamp::now() + Duration::from_secs(3600)));
        assert_eq!(moment.watch_delay(), Some(Duration::ZERO));
        assert_eq!(ChangeTime::now(None).watch_delay(), None);
    }

    #[test]
    fn the_slowest_changes_are_kept_for_an_hour() {
        let slowest = SlowestChanges::default();
        let start = Timestamp::now();
        for number in 0..50 {
            slowest.note(&applied_change(&number.to_string(), start, MS * ((number * 7) % 50)));
        }
        let list = slowest.list(start);
        let times: Vec<u128> = list.iter().map(|change| change.total().as_millis()).collect();
        assert_eq!(times, (30..50).rev().collect::<Vec<u128>>());

        let later = start + RECENT;
        assert_eq!(slowest.list(later), []);
        let late = applied_change("late", later, MS);
        slowest.note(&late);
        assert_eq!(slowest.list(later), [late]);
        let text = slowest.text(later);
        let (_, line) = text.trim_end().split_once('\n').expect("a headline and a line");
        assert!(line.trim_start().starts_with("1.0  "), "{line}");
        assert!(
            line.ends_with("Z  ipv4  ns/late: coalesce 1.0, budget 0.0, render 0.0, read 0.0, plan 0.0, lock 0.0, restore 0.0"),
            "{line}"
        );
    }
}
