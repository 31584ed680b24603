//! Where the time goes between a change in the cluster and the rules that follow it: what each change of a Service had to wait for.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::cluster::{Family, ServiceKey, ServicePortName};
use crate::kubernetes::Moment;

/// So many of the slowest changes are kept.
const KEPT: usize = 20;

/// Changes are recent for so long.
const RECENT: Duration = Duration::from_secs(3600);

/// What a change waits for, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The API server and the way from there, since what happened by the object's own words; unknown where it says nothing of that.
    Watch,
    /// Other changes that are being written, pauses between syncs, and syncs that fail.
    Coalesce,
    /// Computing rules.
    Render,
    /// Reading the live tables, where what they hold is not known.
    Read,
    /// Finding what to write.
    Plan,
    /// Other programs that hold the xtables lock.
    Lock,
    /// iptables-restore, and the kernel; and spelling out rules for it on the way.
    Restore,
}

impl Cause {
    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Coalesce => "coalesce",
            Self::Render => "render",
            Self::Read => "read",
            Self::Plan => "plan",
            Self::Lock => "lock",
            Self::Restore => "restore",
        }
    }
}

/// What a sync spends its time with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Computing rules.
    pub render: Duration,
    /// Reading the live tables.
    pub read: Duration,
    /// Finding what to write.
    pub plan: Duration,
    /// Waiting for the xtables lock.
    pub lock: Duration,
    /// Writing, without that.
    pub restore: Duration,
}

impl Spent {
    /// Time for computing.
    #[must_use]
    pub fn planning(&self) -> Duration {
        self.render + self.plan
    }

    /// Time for reading and writing tables.
    #[must_use]
    pub fn applying(&self) -> Duration {
        self.read + self.lock + self.restore
    }
}

/// A change of a Service or its endpoints that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The Service.
    pub service: ServiceKey,
    /// Whose rules.
    pub family: Family,
    /// When they were in force.
    pub at: Timestamp,
    /// The time between what happened and its coming to this node, where that is known.
    pub watch: Option<Duration>,
    /// The time until the sync that wrote it began.
    pub coalesce: Duration,
    /// What that sync spent its time with.
    pub spent: Spent,
}

impl Followed {
    /// What it waited for, each so long.
    pub fn waits(&self) -> impl Iterator<Item = (Cause, Duration)> {
        let Spent { render, read, plan, lock, restore } = self.spent;
        let known = [
            (Cause::Coalesce, self.coalesce),
            (Cause::Render, render),
            (Cause::Read, read),
            (Cause::Plan, plan),
            (Cause::Lock, lock),
            (Cause::Restore, restore),
        ];
        self.watch.map(|watch| (Cause::Watch, watch)).into_iter().chain(known)
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.waits().map(|(_, wait)| wait).sum()
    }
}

/// A change that is not in force yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    received: Instant,
    watch: Option<Duration>,
}

/// Changes of one family that are not in force yet, by Service: of several the first.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Before the first sync is over, everything is new and nothing a change.
    begun: bool,
    waiting: HashMap<ServiceKey, Waiting>,
}

impl Pending {
    /// These Services changed.
    pub(crate) fn note(&mut self, services: &[ServiceKey], moment: Moment) {
        if !self.begun {
            return;
        }
        for service in services {
            self.waiting.entry(service.clone()).or_insert_with(|| Waiting { received: moment.received, watch: moment.on_its_way() });
        }
    }

    /// A sync that began then wrote the rules of these service ports, and everything else needs no writing. Gives the changes that are in
    /// force by that.
    pub(crate) fn written(&mut self, family: Family, start: Instant, spent: Spent, names: &BTreeSet<ServicePortName>) -> Vec<Followed> {
        self.begun = true;
        let (at, mut waiting) = (Timestamp::now(), std::mem::take(&mut self.waiting));
        let mut followed = Vec::new();
        for name in names {
            // A Service with several ports is there once.
            let Some((service, Waiting { received, watch })) = waiting.remove_entry(&name.service) else { continue };
            followed.push(Followed { service, family, at, watch, coalesce: start.saturating_duration_since(received), spent });
        }
        followed
    }
}

/// The slowest recent changes.
#[derive(Debug, Default)]
pub struct Slowest(Mutex<Vec<Followed>>);

impl Slowest {
    /// Takes note of a change, if it is among the slowest ones.
    pub fn note(&self, change: &Followed) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| is_recent(kept, change.at));
        let place = kept.partition_point(|kept| kept.total() >= change.total());
        if place < KEPT {
            kept.insert(place, change.clone());
            kept.truncate(KEPT);
        }
    }

    /// Those that are recent now, the slowest first.
    #[must_use]
    pub fn list(&self, now: Timestamp) -> Vec<Followed> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().filter(|kept| is_recent(kept, now)).cloned().collect()
    }

    /// The same for people, a line each, times in milliseconds.
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

fn is_recent(change: &Followed, now: Timestamp) -> bool {
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

    fn followed(name: &str, at: Timestamp, coalesce: Duration) -> Followed {
        Followed { service: key(name), family: Family::V4, at, watch: None, coalesce, spent: Spent::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_waits_from_when_it_came_until_its_sync_begins() {
        let mut pending = Pending::default();
        let spent = Spent { render: MS, lock: 7 * MS, restore: 2 * MS, ..Spent::default() };
        // What is there at the start is no change.
        pending.note(&[key("a")], Moment::now(None));
        assert_eq!(pending.written(Family::V4, Instant::now(), spent, &ports(&[("a", "")])), []);

        pending.note(&[key("a"), key("b")], Moment::now(Some(Timestamp::now() - Duration::from_secs(3))));
        tokio::time::advance(30 * MS).await;
        // Of several changes, the first one counts.
        pending.note(&[key("a")], Moment::now(None));
        tokio::time::advance(20 * MS).await;
        let written = pending.written(Family::V4, Instant::now(), spent, &ports(&[("a", "http"), ("a", "https"), ("c", "")]));
        let [change] = written.as_slice() else { panic!("{written:?}") };
        assert_eq!((&change.service, change.coalesce), (&key("a"), 50 * MS));
        let watch = change.watch.expect("it said when it happened");
        assert!((Duration::from_secs(3)..Duration::from_secs(60)).contains(&watch), "{watch:?}");
        assert_eq!(change.total(), watch + 60 * MS);
        let waits: Vec<_> = change.waits().map(|(cause, wait)| (cause.as_str(), wait)).skip(1).collect();
        let [render, lock, restore] = [("render", MS), ("lock", 7 * MS), ("restore", 2 * MS)];
        assert_eq!(waits, [("coalesce", 50 * MS), render, ("read", Duration::ZERO), ("plan", Duration::ZERO), lock, restore]);

        // What made no difference to this family's rules waits no longer.
        assert_eq!(pending.written(Family::V4, Instant::now(), spent, &ports(&[("b", "")])), []);
    }

    #[tokio::test]
    async fn what_happens_in_the_future_has_come_at_once() {
        let moment = Moment::now(Some(Timestamp::now() + Duration::from_secs(3600)));
        assert_eq!(moment.on_its_way(), Some(Duration::ZERO));
        assert_eq!(Moment::now(None).on_its_way(), None);
    }

    #[test]
    fn the_slowest_are_kept_for_a_while() {
        let slowest = Slowest::default();
        let start = Timestamp::now();
        for number in 0..50 {
            slowest.note(&followed(&number.to_string(), start, MS * ((number * 7) % 50)));
        }
        let list = slowest.list(start);
        let times: Vec<u128> = list.iter().map(|change| change.total().as_millis()).collect();
        assert_eq!(times, (30..50).rev().collect::<Vec<u128>>());

        let later = start + RECENT;
        assert_eq!(slowest.list(later), []);
        let late = followed("late", later, MS);
        slowest.note(&late);
        assert_eq!(slowest.list(later), [late]);
        let text = slowest.text(later);
        let (_, line) = text.trim_end().split_once('\n').expect("a headline and a line");
        assert!(line.trim_start().starts_with("1.0  "), "{line}");
        assert!(line.ends_with("Z  ipv4  ns/late: coalesce 1.0, render 0.0, read 0.0, plan 0.0, lock 0.0, restore 0.0"), "{line}");
    }
}
