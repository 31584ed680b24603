//! kube-proxy's health: whether the rules keep up with the cluster, and whether this node is eligible for traffic [kube-proxy 9.1].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::cluster::Family;

/// One moment on two clocks: a monotonic one to measure, and the time of day to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockReading {
    /// Time since a fixed moment, on the monotonic clock.
    pub elapsed: Duration,
    /// The time of day.
    pub time: Timestamp,
}

/// The state that health is computed from. Callers pass the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HealthState {
    v4: FamilyState,
    v6: FamilyState,
    node_eligible: bool,
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct FamilyState {
    /// When its rules were last confirmed; `None` before its loop has started.
    updated: Option<Timestamp>,
    /// A sync succeeded since the program started.
    programmed: bool,
    /// Since when a sync is due without a successful one.
    pending: Option<Duration>,
}

impl HealthState {
    /// The state before any loop has started and before the Node was seen. A sync may be due for `timeout`.
    #[must_use]
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { v4: FamilyState::default(), v6: FamilyState::default(), node_eligible: false, timeout }
    }

    /// Sets how long a sync may be due. This also applies to a sync that is due now.
    pub(crate) const fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    fn of(&mut self, family: Family) -> &mut FamilyState {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// A sync is due. If one was due before, its time stays.
    pub(crate) fn queued(&mut self, family: Family, now: ClockReading) {
        self.of(family).pending.get_or_insert(now.elapsed);
    }

    /// A family's loop has started, or its live rules were read and need no change.
    pub(crate) fn updated(&mut self, family: Family, now: ClockReading) {
        let of_family = self.of(family);
        (of_family.updated, of_family.pending) = (Some(now.time), None);
    }

    /// A sync of a family has succeeded.
    pub(crate) fn synced(&mut self, family: Family, now: ClockReading) {
        self.updated(family, now);
        self.of(family).programmed = true;
    }

    /// Sets whether the Node is eligible for traffic. A deleted Node keeps its last value.
    pub(crate) const fn node_seen(&mut self, eligible: bool) {
        self.node_eligible = eligible;
    }

    /// The health at a moment.
    #[must_use]
    pub(crate) fn at(&self, now: ClockReading) -> Health {
        let healthy = |family: &FamilyState| family.pending.is_none_or(|since| now.elapsed.saturating_sub(since) < self.timeout);
        let status = |family: &FamilyState| {
            let health = |last_updated| FamilyHealth { last_updated, healthy: healthy(family), programmed: family.programmed };
            family.updated.map(health)
        };
        Health { time: now.time, node_eligible: self.node_eligible, v4: status(&self.v4), v6: status(&self.v6) }
    }
}

/// The health at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// The time of day.
    pub time: Timestamp,
    /// The Node was seen and is eligible for traffic.
    pub node_eligible: bool,
    /// IPv4, if its loop has started.
    pub v4: Option<FamilyHealth>,
    /// IPv6, if its loop has started.
    pub v6: Option<FamilyHealth>,
}

/// The health of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyHealth {
    /// When its rules were last confirmed.
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

    /// True if every family has been synced since the program started. False before any loop has started.
    #[must_use]
    pub fn programmed(&self) -> bool {
        self.families().next().is_some() && self.families().all(|family| family.programmed)
    }

    /// The latest confirmation of any family's rules.
    #[must_use]
    pub(crate) fn last_updated(&self) -> Option<Timestamp> {
        self.families().map(|family| family.last_updated).max()
    }

    fn families(&self) -> impl Iterator<Item = FamilyHealth> {
        [self.v4, self.v6].into_iter().flatten()
    }
}

/// The state with a clock. Loops and servers share it.
#[derive(Clone, Debug)]
pub struct SharedHealth {
    state: Arc<Mutex<HealthState>>,
    start: Instant,
}

impl SharedHealth {
    /// The state for a sync period. A sync may be due for twice that time [kube-proxy 9.1].
    #[must_use]
    pub fn new(sync_period: Duration) -> Self {
        Self { state: Arc::new(Mutex::new(HealthState::new(sync_period * 2))), start: Instant::now() }
    }

    /// Sets the sync period.
    pub(crate) fn set_sync_period(&self, sync_period: Duration) {
        self.state().set_timeout(sync_period * 2);
    }

    /// See [`HealthState::queued`].
    pub fn queued(&self, family: Family) {
        let now = self.read_clock();
        self.state().queued(family, now);
    }

    /// See [`HealthState::updated`].
    pub fn updated(&self, family: Family) {
        let now = self.read_clock();
        self.state().updated(family, now);
    }

    /// See [`HealthState::synced`].
    pub fn synced(&self, family: Family) {
        let now = self.read_clock();
        self.state().synced(family, now);
    }

    /// See [`HealthState::node_seen`].
    pub(crate) fn node_seen(&self, eligible: bool) {
        self.state().node_seen(eligible);
    }

    /// The health now.
    #[must_use]
    pub fn now(&self) -> Health {
        let now = self.read_clock();
        self.state().at(now)
    }

    fn read_clock(&self) -> ClockReading {
        ClockReading { elapsed: self.start.elapsed(), time: Timestamp::now() }
    }

    /// A panic cannot leave the state half changed, because every change is one assignment.
    fn state(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> ClockReading {
        let time = Timestamp::from_second(1_000_000 + i64::try_from(seconds).expect("few")).expect("a time");
        ClockReading { elapsed: Duration::from_secs(seconds), time }
    }

    fn started() -> HealthState {
        let mut state = HealthState::new(TIMEOUT);
        for family in Family::ALL {
            state.updated(family, at(0));
        }
        state
    }

    #[test]
    fn before_any_loop_starts_only_the_node_is_missing() {
        let health = HealthState::new(TIMEOUT).at(at(1000));
        assert!(health.healthy() && !health.node_eligible);
        assert_eq!((health.v4, health.v6, health.last_updated()), (None, None, None));
        let mut queued = HealthState::new(TIMEOUT);
        queued.queued(Family::V4, at(0));
        assert!(queued.at(at(1000)).healthy(), "its loop has not started");
    }

    #[test]
    fn rules_are_programmed_once_every_family_has_synced() {
        assert!(!HealthState::new(TIMEOUT).at(at(0)).programmed());
        let mut state = started();
        assert!(!state.at(at(0)).programmed(), "loops that have started have programmed nothing yet");
        state.synced(Family::V4, at(1));
        assert!(!state.at(at(1)).programmed());
        state.synced(Family::V6, at(1));
        assert!(state.at(at(1)).programmed());
        // The rules of a failed loop stay in the kernel.
        state.updated(Family::V4, at(2));
        assert!(state.at(at(2)).programmed());
    }

    #[test]
    fn an_idle_proxy_stays_healthy() {
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
    fn every_late_family_must_recover() {
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
    fn eligibility_of_the_node_does_not_change_health() {
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
