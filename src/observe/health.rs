//! Whether rules keep up with the cluster, and whether this node wants traffic (spec section 9.1).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::cluster::Family;

/// One moment, by two clocks: one that only ever goes on, and one to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Time since some fixed moment.
    pub elapsed: Duration,
    /// The time of day.
    pub time: Timestamp,
}

/// What health follows from. Has no clock of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    v4: OfFamily,
    v6: OfFamily,
    node_eligible: bool,
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OfFamily {
    /// When its rules were last known to be right; `None` before its loop has started.
    updated: Option<Timestamp>,
    /// A sync succeeded since the program started.
    programmed: bool,
    /// Since when a sync is due that has not succeeded.
    pending: Option<Duration>,
}

impl State {
    /// Nothing has started, and no Node was seen. A sync may be due for `timeout`.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self { v4: OfFamily::default(), v6: OfFamily::default(), node_eligible: false, timeout }
    }

    /// A sync may be due for so long from now on, what is due already included.
    pub const fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    fn of(&mut self, family: Family) -> &mut OfFamily {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// A sync is due. If one was already, that one counts.
    pub fn queued(&mut self, family: Family, now: Moment) {
        self.of(family).pending.get_or_insert(now.elapsed);
    }

    /// A family's loop has started, or its rules were looked at and are right.
    pub fn updated(&mut self, family: Family, now: Moment) {
        let of_family = self.of(family);
        (of_family.updated, of_family.pending) = (Some(now.time), None);
    }

    /// A sync of a family has succeeded.
    pub fn synced(&mut self, family: Family, now: Moment) {
        self.updated(family, now);
        self.of(family).programmed = true;
    }

    /// The Node as it is now wants traffic or not. A Node that goes away is not seen: the last one counts.
    pub const fn node_seen(&mut self, eligible: bool) {
        self.node_eligible = eligible;
    }

    /// How things are at this moment.
    #[must_use]
    pub fn at(&self, now: Moment) -> Health {
        let healthy = |family: &OfFamily| family.pending.is_none_or(|since| now.elapsed.saturating_sub(since) < self.timeout);
        let status = |family: &OfFamily| {
            let health = |last_updated| FamilyHealth { last_updated, healthy: healthy(family), programmed: family.programmed };
            family.updated.map(health)
        };
        Health { time: now.time, node_eligible: self.node_eligible, v4: status(&self.v4), v6: status(&self.v6) }
    }
}

/// How things are at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// The moment.
    pub time: Timestamp,
    /// The Node was seen and wants traffic.
    pub node_eligible: bool,
    /// IPv4, if its loop has started.
    pub v4: Option<FamilyHealth>,
    /// IPv6, if its loop has started.
    pub v6: Option<FamilyHealth>,
}

/// How one family does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyHealth {
    /// When its rules were last known to be right.
    pub last_updated: Timestamp,
    /// No sync is overdue.
    pub healthy: bool,
    /// A sync succeeded since the program started.
    pub programmed: bool,
}

impl Health {
    /// No family's sync is overdue.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.families().all(|family| family.healthy)
    }

    /// Every family has been synced since the program started. Not so before any loop has started.
    #[must_use]
    pub fn programmed(&self) -> bool {
        self.families().next().is_some() && self.families().all(|family| family.programmed)
    }

    /// When the rules of the family that did best were last known to be right.
    #[must_use]
    pub fn last_updated(&self) -> Option<Timestamp> {
        self.families().map(|family| family.last_updated).max()
    }

    fn families(&self) -> impl Iterator<Item = FamilyHealth> {
        [self.v4, self.v6].into_iter().flatten()
    }
}

/// The state as loops and servers share it, with the clock.
#[derive(Clone, Debug)]
pub struct SharedHealth {
    state: Arc<Mutex<State>>,
    start: Instant,
}

impl SharedHealth {
    /// For this sync period (spec section 9.1: a sync may be due for twice that).
    #[must_use]
    pub fn new(sync_period: Duration) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(sync_period * 2))), start: Instant::now() }
    }

    /// From now on this is the sync period.
    pub fn set_sync_period(&self, sync_period: Duration) {
        self.state().set_timeout(sync_period * 2);
    }

    /// See [`State::queued`].
    pub fn queued(&self, family: Family) {
        let now = self.moment();
        self.state().queued(family, now);
    }

    /// See [`State::updated`].
    pub fn updated(&self, family: Family) {
        let now = self.moment();
        self.state().updated(family, now);
    }

    /// See [`State::synced`].
    pub fn synced(&self, family: Family) {
        let now = self.moment();
        self.state().synced(family, now);
    }

    /// See [`State::node_seen`].
    pub fn node_seen(&self, eligible: bool) {
        self.state().node_seen(eligible);
    }

    /// How things are now.
    #[must_use]
    pub fn now(&self) -> Health {
        let now = self.moment();
        self.state().at(now)
    }

    fn moment(&self) -> Moment {
        Moment { elapsed: self.start.elapsed(), time: Timestamp::now() }
    }

    /// What somebody who panicked left behind is as good as any: every change is one assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Moment {
        let time = Timestamp::from_second(1_000_000 + i64::try_from(seconds).expect("few")).expect("a time");
        Moment { elapsed: Duration::from_secs(seconds), time }
    }

    fn started() -> State {
        let mut state = State::new(TIMEOUT);
        for family in Family::ALL {
            state.updated(family, at(0));
        }
        state
    }

    #[test]
    fn before_any_loop_starts_all_is_well_but_the_node() {
        let health = State::new(TIMEOUT).at(at(1000));
        assert!(health.healthy() && !health.node_eligible);
        assert_eq!((health.v4, health.v6, health.last_updated()), (None, None, None));
        let mut queued = State::new(TIMEOUT);
        queued.queued(Family::V4, at(0));
        assert!(queued.at(at(1000)).healthy(), "its loop has not started");
    }

    #[test]
    fn rules_are_programmed_once_every_family_has_synced() {
        assert!(!State::new(TIMEOUT).at(at(0)).programmed());
        let mut state = started();
        assert!(!state.at(at(0)).programmed(), "loops that have started have programmed nothing yet");
        state.synced(Family::V4, at(1));
        assert!(!state.at(at(1)).programmed());
        state.synced(Family::V6, at(1));
        assert!(state.at(at(1)).programmed());
        // The rules of a loop that failed stay in the kernel.
        state.updated(Family::V4, at(2));
        assert!(state.at(at(2)).programmed());
    }

    #[test]
    fn idling_is_healthy_for_ever() {
        assert!(started().at(at(1_000_000)).healthy());
    }

    #[test]
    fn a_sync_may_be_due_until_the_timeout() {
        for family in Family::ALL {
            let mut state = started();
            state.queued(family, at(5));
            state.queued(family, at(14));
            assert!(state.at(at(14)).healthy());
            assert!(!state.at(at(15)).healthy(), "the first request counts, and the timeout itself is too late");
            assert!(!state.at(at(30)).healthy());
            let health = state.at(at(30));
            assert_eq!(health.v4.map(|v4| v4.healthy), Some(family != Family::V4));
            assert_eq!(health.v6.map(|v6| v6.healthy), Some(family != Family::V6));
            state.updated(family, at(31));
            assert!(state.at(at(1000)).healthy());
            assert_eq!(state.at(at(1000)).last_updated(), Some(at(31).time));
        }
    }

    #[test]
    fn every_late_family_has_to_recover() {
        let mut state = started();
        for family in Family::ALL {
            state.queued(family, at(0));
        }
        assert!(!state.at(at(25)).healthy());
        state.updated(Family::V4, at(25));
        assert!(!state.at(at(25)).healthy());
        state.updated(Family::V6, at(25));
        assert!(state.at(at(25)).healthy());
    }

    #[test]
    fn the_timeout_can_change_while_a_sync_is_due() {
        let mut state = started();
        state.queued(Family::V4, at(0));
        assert!(!state.at(at(15)).healthy());
        state.set_timeout(Duration::from_secs(20));
        assert!(state.at(at(15)).healthy() && !state.at(at(20)).healthy());
    }

    #[test]
    fn a_node_about_to_go_wants_no_traffic() {
        let mut state = started();
        for eligible in [true, false, true] {
            state.node_seen(eligible);
            assert_eq!((state.at(at(0)).node_eligible, state.at(at(0)).healthy()), (eligible, true));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn loops_and_servers_share_it() {
        let health = SharedHealth::new(Duration::from_secs(30));
        let seen = health.clone();
        health.updated(Family::V4);
        health.node_seen(true);
        health.queued(Family::V4);
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(seen.now().healthy() && seen.now().node_eligible);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!seen.now().healthy());
        health.set_sync_period(Duration::from_secs(60));
        assert!(seen.now().healthy());
    }
}
