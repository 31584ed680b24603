//! When the kernel is looked at as a whole: soon after somebody changed something, now and then in any case, and never all the time.

use std::time::Duration;

use tokio::time::Instant;

/// What changes at once is looked at together.
const GATHER: Duration = Duration::from_millis(50);
/// Looking may take one part in so many of the time.
const SHARE: u32 = 5;
/// Without any sign of a change the kernel is looked at this often.
const AUDIT: Duration = Duration::from_secs(30);
/// The kernel tells of our own changes, too: what it tells so shortly after one...
const ECHO: Duration = Duration::from_secs(1);
/// ...is looked at this long after it: in time for whoever else was at it, and once for all.
const REST: Duration = Duration::from_secs(2);

/// When there is something to do next.
#[derive(Debug)]
pub(super) struct Schedule {
    look: Instant,
    follow: bool,
    affordable: Instant,
    wrote: Option<Instant>,
}

impl Schedule {
    /// The kernel is looked at at once.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { look: now, follow: false, affordable: now, wrote: None }
    }

    /// When there is something to do.
    pub(super) fn next(&self) -> Instant {
        if self.follow { Instant::now() } else { self.look }
    }

    /// Whether the kernel is to be looked at now.
    pub(super) fn look_is_due(&self) -> bool {
        self.look <= Instant::now()
    }

    /// Whether nodes have changed since they were last looked at; from now on they have not.
    pub(super) const fn take_follow(&mut self) -> bool {
        std::mem::replace(&mut self.follow, false)
    }

    /// Other nodes have changed.
    pub(super) const fn follow(&mut self) {
        self.follow = true;
    }

    /// Something that everything hangs on has changed.
    pub(super) fn ask(&mut self) {
        self.by(Instant::now());
    }

    /// Somebody, maybe this program, has changed something in the kernel.
    pub(super) fn disturbed(&mut self) {
        let now = Instant::now();
        let soon = match self.wrote.filter(|wrote| now.duration_since(*wrote) < ECHO) {
            Some(wrote) => wrote + REST,
            None => now + GATHER,
        };
        self.by(soon.max(self.affordable));
    }

    /// The kernel is looked at by then at the latest.
    pub(super) fn by(&mut self, when: Instant) {
        self.look = self.look.min(when);
    }

    /// This program has changed something in the kernel.
    pub(super) fn wrote(&mut self) {
        self.wrote = Some(Instant::now());
    }

    /// The kernel was looked at, begun then; after a failure it is tried again after a pause.
    pub(super) fn looked(&mut self, start: Instant, pause: Option<Duration>) {
        let now = Instant::now();
        self.affordable = now + now.duration_since(start) * (SHARE - 1);
        self.look = now + pause.unwrap_or(AUDIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_disturbance_is_looked_at_soon_and_an_echo_later() {
        let mut schedule = Schedule::new();
        let start = Instant::now();
        assert!(schedule.look_is_due());
        schedule.looked(start, None);
        assert_eq!(schedule.next(), start + AUDIT);
        schedule.disturbed();
        assert_eq!(schedule.next(), start + GATHER);
        schedule.looked(start, None);
        schedule.wrote();
        tokio::time::advance(Duration::from_millis(10)).await;
        schedule.disturbed();
        assert_eq!(schedule.next(), start + REST);
        tokio::time::advance(Duration::from_millis(1500)).await;
        schedule.disturbed();
        assert_eq!(schedule.next(), Instant::now() + GATHER, "this is no echo");
    }

    #[tokio::test(start_paused = true)]
    async fn looking_does_not_take_all_the_time() {
        let mut schedule = Schedule::new();
        let start = Instant::now();
        tokio::time::advance(Duration::from_millis(100)).await;
        schedule.looked(start, None);
        schedule.disturbed();
        assert_eq!(schedule.next(), start + Duration::from_millis(500));
        schedule.looked(start, Some(Duration::from_secs(1)));
        schedule.follow();
        assert_eq!(schedule.next(), Instant::now(), "nodes do not wait");
        assert!(schedule.take_follow() && !schedule.take_follow());
    }
}
