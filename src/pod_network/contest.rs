//! Decides when a route of another program is replaced. PURE: the clock is passed in.
//!
//! The first few times the route is replaced at once. If the program keeps writing it, the pause before the next replacement doubles, so
//! that the two programs do not overwrite each other all the time.

use std::collections::HashMap;
use std::time::Duration;

use super::backoff::doubling;
use crate::netlink::entry::Route;

/// A route is replaced at once this many times.
const IMMEDIATE: u32 = 3;
/// The first pause after that. Each following pause is twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A route that was not written again for this long after the last pause is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// The decision about a route of another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Replace it.
    Replace,
    /// Do not change it yet.
    Leave {
        /// When it is replaced, on the clock that was passed in.
        until: Duration,
        /// The length of the whole pause.
        pause: Duration,
        /// How many times it was replaced before.
        times: u32,
    },
}

#[derive(Clone, Copy, Debug)]
struct Contest {
    times: u32,
    last: Duration,
    /// The route exists and is not replaced yet.
    is_left: bool,
}

impl Contest {
    fn pause(&self) -> Duration {
        let Some(more) = self.times.checked_sub(IMMEDIATE) else { return Duration::ZERO };
        // All pauses after the tenth are the longest.
        doubling(FIRST_PAUSE, LONGEST_PAUSE).nth(more.min(10) as usize).unwrap_or(LONGEST_PAUSE)
    }

    fn is_over(&self, now: Duration) -> bool {
        !self.is_left && now > self.last + self.pause() + FORGET_AFTER
    }
}

/// The routes of other programs that were replaced recently.
#[derive(Clone, Debug, Default)]
pub struct Contests(HashMap<Route, Contest>);

impl Contests {
    /// Decides about all routes of other programs that exist now, in their order.
    pub(crate) fn judge(&mut self, found: &[Route], now: Duration) -> Vec<Verdict> {
        for (route, contest) in &mut self.0 {
            contest.is_left &= found.contains(route);
        }
        self.0.retain(|_, contest| !contest.is_over(now));
        found.iter().map(|route| self.judge_one(route, now)).collect()
    }

    fn judge_one(&mut self, route: &Route, now: Duration) -> Verdict {
        let contest = self.0.entry(*route).or_insert(Contest { times: 0, last: now, is_left: false });
        let (pause, until) = (contest.pause(), contest.last + contest.pause());
        if now < until {
            contest.is_left = true;
            return Verdict::Leave { until, pause, times: contest.times };
        }
        *contest = Contest { times: contest.times.saturating_add(1), last: now, is_left: false };
        Verdict::Replace
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_network::routing::tests::route;

    #[test]
    fn pauses_grow_while_a_program_writes_and_end_when_it_stops() {
        let theirs = [route("10.244.2.0/24 via 10.0.0.1 dev 2")];
        let mut contests = Contests::default();
        let (mut now, mut replaced) = (Duration::from_secs(100), Vec::new());
        // The other program writes the route every second.
        for _ in 0..1200 {
            if contests.judge(&theirs, now) == [Verdict::Replace] {
                replaced.push(now.as_secs() - 100);
            }
            now += Duration::from_secs(1);
        }
        assert_eq!(replaced, [0, 1, 2, 12, 32, 72, 152, 312, 612, 912]);
        let left = contests.judge(&theirs, now);
        assert!(
            matches!(left[0], Verdict::Leave { until, pause: LONGEST_PAUSE, times: 10 } if until == Duration::from_secs(1312)),
            "{left:?}"
        );
        // Another route of the same program is decided independently.
        assert_eq!(contests.judge(&[route("10.244.3.0/24 via 10.0.0.1 dev 2")], now), [Verdict::Replace]);
        // The route was deleted, and the last replacement was long ago.
        now += LONGEST_PAUSE + FORGET_AFTER;
        assert_eq!(contests.judge(&[], now), []);
        assert_eq!(contests.judge(&theirs, now), [Verdict::Replace]);
        assert_eq!(contests.judge(&theirs, now), [Verdict::Replace], "the route counts as new");
    }
}
