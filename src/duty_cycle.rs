//! Limits the share of time that a repeated task takes.

use std::time::Duration;

/// The length of the rest (the pause) after each run of a repeated task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DutyCycle {
    /// The rest, as a multiple of the run's duration.
    factor: u32,
    /// The shortest rest.
    least: Duration,
}

impl DutyCycle {
    /// Creates the cycle of a task that rests for `factor` times its own duration, and at least for `least`.
    pub(crate) const fn new(factor: u32, least: Duration) -> Self {
        Self { factor, least }
    }

    /// Returns the rest after a run that took this long.
    pub(crate) fn rest(&self, took: Duration) -> Duration {
        self.least.max(took * self.factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_has_a_long_rest() {
        let cycle = DutyCycle::new(4, Duration::from_secs(1));
        assert_eq!(cycle.rest(Duration::from_millis(2)), Duration::from_secs(1));
        assert_eq!(cycle.rest(Duration::from_secs(2)), Duration::from_secs(8));
    }
}
