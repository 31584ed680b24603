//! Growing pauses between attempts. PURE.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// An endless series of pauses.
pub(super) type Pauses = <ExponentialBuilder as BackoffBuilder>::Backoff;

/// Pauses that start at `first` and double up to `longest`.
pub(super) fn doubling(first: Duration, longest: Duration) -> Pauses {
    ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest).with_factor(2.0).without_max_times().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses: Vec<u64> = doubling(Duration::from_secs(10), Duration::from_secs(60)).take(5).map(|pause| pause.as_secs()).collect();
        assert_eq!(pauses, [10, 20, 40, 60, 60]);
    }
}
