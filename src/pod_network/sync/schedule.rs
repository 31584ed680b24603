//! Decides when the next full reconcile runs: soon after a change in the kernel, at a fixed interval, and with a limited share of the time.

use std::time::Duration;

use tokio::time::Instant;

use crate::duty_cycle::DutyCycle;

/// Changes within this time are handled together.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// After changes in the kernel, reconciles take at most 1/5 of the time.
const CYCLE: DutyCycle = DutyCycle::new(4, Duration::ZERO);
/// Interval of reconciles without any change.
const AUDIT_INTERVAL: Duration = Duration::from_secs(30);
/// The kernel reports our own changes, too. An event within this time after a write of ours may be such a report...
const ECHO: Duration = Duration::from_secs(1);
/// ...so the reconcile runs this long after the write: once for all these events, and soon enough if another program caused one.
const ECHO_DELAY: Duration = Duration::from_secs(2);

/// The times of the next work.
#[derive(Debug)]
pub(super) struct Schedule {
    /// When the next full reconcile is due.
    reconcile: Instant,
    /// Other nodes have changed.
    has_peer_changes: bool,
    /// Before this time, a reconcile after a kernel event would exceed the share.
    affordable: Instant,
    /// When this program last changed the kernel.
    wrote: Option<Instant>,
}

impl Schedule {
    /// A schedule whose first reconcile is due at once.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { reconcile: now, has_peer_changes: false, affordable: now, wrote: None }
    }

    /// When the next work is due.
    pub(super) fn next(&self) -> Instant {
        if self.has_peer_changes { Instant::now() } else { self.reconcile }
    }

    /// Returns true if a full reconcile is due.
    pub(super) fn reconcile_is_due(&self) -> bool {
        self.reconcile <= Instant::now()
    }

    /// Returns true if other nodes have changed, and resets that.
    pub(super) const fn take_peer_changes(&mut self) -> bool {
        std::mem::replace(&mut self.has_peer_changes, false)
    }

    /// Records that other nodes have changed.
    pub(super) const fn peers_changed(&mut self) {
        self.has_peer_changes = true;
    }

    /// Makes a full reconcile due now, because an input of all entries has changed.
    pub(super) fn reconcile_now(&mut self) {
        self.reconcile_by(Instant::now());
    }

    /// Records a change in the kernel, which this program may have caused itself.
    pub(super) fn kernel_changed(&mut self) {
        let now = Instant::now();
        let soon = match self.wrote.filter(|wrote| now.duration_since(*wrote) < ECHO) {
            Some(wrote) => wrote + ECHO_DELAY,
            None => now + DEBOUNCE,
        };
        self.reconcile_by(soon.max(self.affordable));
    }

    /// Makes a full reconcile due at this time at the latest.
    pub(super) fn reconcile_by(&mut self, when: Instant) {
        self.reconcile = self.reconcile.min(when);
    }

    /// Records that this program has changed the kernel.
    pub(super) fn wrote(&mut self) {
        self.wrote = Some(Instant::now());
    }

    /// Records the end of a full reconcile that began at `start`. `pause` is the time until the next one after an error.
    pub(super) fn reconciled(&mut self, start: Instant, pause: Option<Duration>) {
        let now = Instant::now();
        self.affordable = now + CYCLE.rest(now.duration_since(start));
        self.reconcile = now + pause.unwrap_or(AUDIT_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_is_reconciled_soon_and_an_echo_later() {
        let mut schedule = Schedule::new();
        let start = Instant::now();
        assert!(schedule.reconcile_is_due());
        schedule.reconciled(start, None);
        assert_eq!(schedule.next(), start + AUDIT_INTERVAL);
        schedule.kernel_changed();
        assert_eq!(schedule.next(), start + DEBOUNCE);
        schedule.reconciled(start, None);
        schedule.wrote();
        tokio::time::advance(Duration::from_millis(10)).await;
        schedule.kernel_changed();
        assert_eq!(schedule.next(), start + ECHO_DELAY);
        tokio::time::advance(Duration::from_millis(1500)).await;
        schedule.kernel_changed();
        assert_eq!(schedule.next(), Instant::now() + DEBOUNCE, "this is not an echo");
    }

    #[tokio::test(start_paused = true)]
    async fn reconciles_take_a_limited_share_of_the_time() {
        let mut schedule = Schedule::new();
        let start = Instant::now();
        tokio::time::advance(Duration::from_millis(100)).await;
        schedule.reconciled(start, None);
        schedule.kernel_changed();
        assert_eq!(schedule.next(), start + Duration::from_millis(500));
        schedule.reconciled(start, Some(Duration::from_secs(1)));
        schedule.peers_changed();
        assert_eq!(schedule.next(), Instant::now(), "nodes do not wait");
        assert!(schedule.take_peer_changes() && !schedule.take_peer_changes());
    }
}
