//! The routes of other programs in place of ours, as the loop remembers them.

use tokio::time::Instant;

use crate::pod_network::contest::Contests;

/// The routes of other programs, as the loop remembers them.
#[derive(Debug)]
pub(super) struct ForeignRoutes {
    pub(super) contests: Contests,
    pub(super) start: Instant,
    /// When one that is left for now is to be replaced.
    pub(super) next: Option<Instant>,
}

impl ForeignRoutes {
    pub(super) fn new() -> Self {
        Self { contests: Contests::default(), start: Instant::now(), next: None }
    }
}
