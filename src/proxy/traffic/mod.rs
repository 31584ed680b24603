//! Counts the traffic of Services from the counters of their rules.
//!
//! The counters are read at a pace that costs little. A sync that removes rules saves their final counters. The nat table sees only the first
//! packet of each connection, so the counts are the packets and bytes with which connections begin. They start at zero with the first reading.

pub mod counts;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until};

use crate::cluster::Family;
use crate::iptables::exec::Exec;
use crate::table::final_counters::CounterSelection;

use crate::observe::metrics::Metrics;
use crate::observe::service_traffic::TrafficDelta;
use counts::CounterReading;

/// Reading may take one part in this many of the time.
const SHARE: u32 = 200;
/// No more often than this, however quick it is.
const PERIOD: Duration = Duration::from_secs(10);
/// With more addresses than this none is counted unless that is asked for, and so with endpoints: each costs whoever scrapes a few lines.
pub const LIMIT: usize = 2_000;

/// Where those who write rules leave what counters said that they ended, for who reads the others. A writer holds it while he writes, so
/// whoever takes what is there knows of every rule that is gone.
#[derive(Clone, Debug, Default)]
pub struct FinalCounters(Rc<Mutex<PendingCounters>>);

impl FinalCounters {
    /// Waits until nobody writes.
    pub(super) async fn hold(&self) -> MutexGuard<'_, PendingCounters> {
        self.0.lock().await
    }
}

/// What is left there.
#[derive(Debug, Default)]
pub(super) struct PendingCounters {
    /// What is wanted.
    counted: CounterSelection,
    /// Rules that ended since the last reading, as `iptables-save -c` would print them.
    ended: Vec<(Family, String)>,
}

impl PendingCounters {
    /// Which counters are wanted before they end.
    pub(super) const fn wanted(&self) -> CounterSelection {
        self.counted
    }

    /// Leaves what rules of a family said when they ended, each as `iptables-save -c` would print it.
    pub(super) fn put(&mut self, family: Family, ended: Vec<String>) {
        self.ended.extend(ended.into_iter().map(|line| (family, line)));
    }

    /// They could not be listed, or the others not be read: none are wanted before the next reading.
    pub(super) fn pause(&mut self) {
        self.counted = CounterSelection::default();
    }
}

/// What has been read of the families' counters, and how.
struct Counting {
    exec: Exec,
    families: Vec<(Family, CounterReading)>,
    final_counters: FinalCounters,
    /// Whether it is known that rules can be listed by who ends them.
    can_list: bool,
}

/// Reads the counters of these families for good. Of more than [`LIMIT`] addresses, or endpoints, it counts none, unless `any_size`.
pub async fn run(exec: Exec, families: Vec<Family>, final_counters: FinalCounters, metrics: Arc<Metrics>, any_size: bool) {
    let limit = if any_size { usize::MAX } else { LIMIT };
    let mut next = Instant::now() + PERIOD;
    let mut told = false;
    let families = families.into_iter().map(|family| (family, CounterReading::default())).collect();
    let mut counting = Counting { exec, families, final_counters, can_list: false };
    loop {
        sleep_until(next).await;
        let start = Instant::now();
        let mut since = TrafficDelta::new(limit);
        if counting.read(&mut since).await {
            if (since.addresses.is_over() || since.endpoints.is_over()) && !std::mem::replace(&mut told, true) {
                let what = if since.addresses.is_over() { "addresses of Services" } else { "endpoints" };
                tracing::info!("there are more than {LIMIT} {what}: their traffic is not counted, but with --service-traffic=on");
            }
            metrics.service_traffic(&since);
        }
        next = Instant::now() + PERIOD.max(start.elapsed() * SHARE);
    }
}

impl Counting {
    /// Reads all counters; says whether it could. What it could not read is part of the next reading.
    async fn read(&mut self, since: &mut TrafficDelta) -> bool {
        let mut all = Vec::new();
        for (family, before) in &self.families {
            let mut now = CounterReading::reading();
            if let Err(error) = self.exec.save_counted(*family, &mut |line| before.line(line, &mut now, since)).await {
                tracing::debug!("{family}: the counters of rules were not read: {error}");
                // Nothing is collected that nobody may ever take.
                self.final_counters.hold().await.pause();
                return false;
            }
            all.push(now);
        }
        let is_some_wanted = !(since.addresses.is_over() && since.endpoints.is_over());
        if is_some_wanted && !self.can_list {
            self.can_list = self.try_list().await;
        }
        let mut pending = self.final_counters.hold().await;
        for (family, line) in pending.ended.drain(..) {
            for ((_, before), now) in self.families.iter_mut().zip(&mut all).filter(|((of, _), _)| *of == family) {
                before.ended(&line, now, since);
            }
        }
        pending.counted = CounterSelection {
            addresses: self.can_list && !since.addresses.is_over(),
            endpoints: self.can_list && !since.endpoints.is_over(),
        };
        self.families.iter_mut().zip(all).for_each(|((_, before), now)| *before = now);
        true
    }

    /// Asks the programs of all families. One that cannot answer now, for somebody holds the lock, is asked again.
    async fn try_list(&self) -> bool {
        for (family, _) in &self.families {
            if !self.exec.can_list(*family).await {
                return false;
            }
        }
        true
    }
}
