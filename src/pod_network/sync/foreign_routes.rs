//! The loop's memory of routes of other programs that displace ours.

use tokio::time::Instant;

use crate::pod_network::contest::Contests;

/// The history of replaced routes.
#[derive(Debug)]
pub(super) struct ForeignRoutes {
    pub(super) contests: Contests,
    pub(super) start: Instant,
    /// When the next waiting route is replaced.
    pub(super) next: Option<Instant>,
}

impl ForeignRoutes {
    pub(super) fn new() -> Self {
        Self { contests: Contests::default(), start: Instant::now(), next: None }
    }
}
