//! Detects parts of the daemon that do not run. `/livez` reports them, so that the kubelet restarts the container.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The part that writes the rules.
pub(crate) const SERVICE_PROXY: &str = "service proxy";
/// The part that makes links, routes and leases.
pub(crate) const POD_NETWORK: &str = "pod network";

/// The longest time for one step of a loop. The time limits of a sync are shorter.
const STEP: Duration = Duration::from_secs(600);

/// The state of the parts. The parts and the health server share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Liveness(Arc<Mutex<BTreeMap<&'static str, PartLife>>>);

#[derive(Debug, Default)]
struct PartLife {
    /// Why it failed; `None` once it works again.
    failed: Option<Arc<str>>,
    /// The start of the current step.
    busy_since: Option<Instant>,
}

impl Liveness {
    /// Marks a part as failed.
    pub(crate) fn failed(&self, name: &'static str, why: &str) {
        let mut parts = self.parts();
        let life = parts.entry(name).or_default();
        life.failed = Some(why.into());
    }

    /// Marks a part as working.
    pub(crate) fn works(&self, name: &'static str) {
        if let Some(life) = self.parts().get_mut(name) {
            life.failed = None;
        }
    }

    /// Marks the start of a step, which ends when the result is dropped.
    #[must_use]
    pub(crate) fn busy(&self, name: &'static str) -> RunningStep {
        self.parts().entry(name).or_default().busy_since = Some(Instant::now());
        RunningStep { liveness: self.clone(), name }
    }

    /// The problem of a part; `None` if it runs.
    #[must_use]
    pub(crate) fn problem(&self, name: &str) -> Option<String> {
        self.parts().get(name).and_then(|life| life.problem(name))
    }

    /// The problems of all parts that do not run.
    #[must_use]
    pub(crate) fn problems(&self) -> Vec<String> {
        self.parts().iter().filter_map(|(name, life)| life.problem(name)).collect()
    }

    /// A panic cannot leave the state half changed, because every change is one assignment.
    fn parts(&self) -> MutexGuard<'_, BTreeMap<&'static str, PartLife>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartLife {
    fn problem(&self, name: &str) -> Option<String> {
        let busy = self.busy_since.map(|since| since.elapsed()).filter(|busy| *busy >= STEP);
        match (&self.failed, busy) {
            (Some(why), _) => Some(why.to_string()),
            (None, Some(busy)) => Some(format!("{name} makes no progress: one step takes {} s already", busy.as_secs())),
            (None, None) => None,
        }
    }
}

/// A step of a part. Dropping it ends the step.
#[derive(Debug)]
pub struct RunningStep {
    liveness: Liveness,
    name: &'static str,
}

impl Drop for RunningStep {
    fn drop(&mut self) {
        if let Some(life) = self.liveness.parts().get_mut(self.name) {
            life.busy_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn parts_that_fail_or_make_no_progress_are_problems() {
        let liveness = Liveness::default();
        liveness.works(POD_NETWORK);
        assert_eq!(liveness.problems(), Vec::<String>::new());
        liveness.failed(POD_NETWORK, "pod network failed: no");
        assert_eq!(liveness.problems(), ["pod network failed: no"]);
        assert_eq!((liveness.problem(POD_NETWORK).is_some(), liveness.problem(SERVICE_PROXY)), (true, None));
        liveness.works(POD_NETWORK);
        let busy = liveness.busy(SERVICE_PROXY);
        tokio::time::advance(STEP.saturating_sub(Duration::from_secs(1))).await;
        assert_eq!(liveness.problems(), Vec::<String>::new());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(liveness.problems(), ["service proxy makes no progress: one step takes 600 s already"]);
        drop(busy);
        assert_eq!(liveness.problems(), Vec::<String>::new());
    }
}
