//! When a route of another program is replaced. PURE: the clock is passed in.
//!
//! The first times it is replaced at once. A program that writes it again and again would make both work all the time, so from then on
//! each pause is twice as long as the one before.

use std::collections::HashMap;
use std::time::Duration;

use crate::netlink::entry::Route;

/// So often a route is replaced at once.
const AT_ONCE: u32 = 3;
/// The first pause after that; each one that follows is twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A route that did not come back for this long behind the last pause is new when it comes.
const CALM: Duration = Duration::from_secs(60);

/// What to do about a route of another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Replace it.
    Replace,
    /// Leave it until this moment.
    Leave {
        /// The moment, on the clock that was passed in.
        until: Duration,
        /// The whole pause.
        pause: Duration,
        /// How often it was replaced before.
        times: u32,
    },
}

#[derive(Clone, Copy, Debug)]
struct Contest {
    times: u32,
    last: Duration,
    /// It is there, and is left there.
    is_left: bool,
}

impl Contest {
    fn pause(&self) -> Duration {
        match self.times.checked_sub(AT_ONCE) {
            Some(more) => FIRST_PAUSE.saturating_mul(1 << more.min(10)).min(LONGEST_PAUSE),
            None => Duration::ZERO,
        }
    }

    fn is_over(&self, now: Duration) -> bool {
        !self.is_left && now > self.last + self.pause() + CALM
    }
}

/// The routes of other programs that were replaced lately.
#[derive(Clone, Debug, Default)]
pub struct Contests(HashMap<Route, Contest>);

impl Contests {
    /// Judges all routes of other programs that are there now, in their order.
    pub fn judge(&mut self, found: &[Route], now: Duration) -> Vec<Verdict> {
        for (route, contest) in &mut self.0 {
            contest.is_left &= found.contains(route);
        }
        self.0.retain(|_, contest| !contest.is_over(now));
        found.iter().map(|route| self.one(route, now)).collect()
    }

    fn one(&mut self, route: &Route, now: Duration) -> Verdict {
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
    fn pauses_grow_while_a_program_goes_on_and_end_when_it_stops() {
        let theirs = [route("10.244.2.0/24 via 10.0.0.1 dev 2")];
        let mut contests = Contests::default();
        let (mut now, mut replaced) = (Duration::from_secs(100), Vec::new());
        // It writes the route again every second.
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
        // Another route of the same program is not concerned.
        assert_eq!(contests.judge(&[route("10.244.3.0/24 via 10.0.0.1 dev 2")], now), [Verdict::Replace]);
        // It went by itself, and the last time is long ago.
        now += LONGEST_PAUSE + CALM;
        assert_eq!(contests.judge(&[], now), []);
        assert_eq!(contests.judge(&theirs, now), [Verdict::Replace]);
        assert_eq!(contests.judge(&theirs, now), [Verdict::Replace], "it is new");
    }
}
