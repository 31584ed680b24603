//! Counts the traffic of Services from the packet counters of their rules. The counters are read at intervals. When a sync removes rules,
//! it saves their final counters.
//!
//! The nat table sees the first packet of each connection, so these are the packets and bytes with which connections begin. Packets that
//! rules counted before the first reading are left out.

pub mod counts;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until};

use crate::cluster::Family;
use crate::duty_cycle::DutyCycle;
use crate::iptables::exec::Exec;
use crate::observe::metrics::Metrics;
use crate::observe::service_traffic::TrafficDelta;
use crate::table::final_counters::CounterSelection;

use counts::CounterReading;

/// The shortest time between two readings.
const PERIOD: Duration = Duration::from_secs(10);
/// A reading rests for 200 times its own duration, so reading takes at most 0.5 % of the time.
const CYCLE: DutyCycle = DutyCycle::new(200, PERIOD);
/// The largest number of addresses, and of endpoints, that are counted unless the operator asks for more. Each costs a few lines in every
/// scrape of the metrics.
pub(crate) const LIMIT: usize = 2_000;

/// The final counters of rules that syncs removed. A sync holds the lock while it writes, so a reader that has the lock sees every
/// removed rule.
#[derive(Clone, Debug, Default)]
pub struct FinalCounters(Rc<Mutex<PendingCounters>>);

impl FinalCounters {
    /// Waits until no sync is writing.
    pub(super) async fn lock(&self) -> MutexGuard<'_, PendingCounters> {
        self.0.lock().await
    }
}

/// The final counters since the last reading.
#[derive(Debug, Default)]
pub(super) struct PendingCounters {
    /// The rules whose final counters a sync has to save.
    selection: CounterSelection,
    /// Removed rules, each in the format of `iptables-save -c`.
    ended: Vec<(Family, String)>,
}

impl PendingCounters {
    /// The rules whose final counters a sync has to save.
    pub(super) const fn selection(&self) -> CounterSelection {
        self.selection
    }

    /// Adds removed rules of a family, each in the format of `iptables-save -c`.
    pub(super) fn add(&mut self, family: Family, ended: Vec<String>) {
        self.ended.extend(ended.into_iter().map(|line| (family, line)));
    }

    /// Stops saving final counters until the next successful reading. Called if iptables-restore could not list rules, or if a reading
    /// failed.
    pub(super) fn pause(&mut self) {
        self.selection = CounterSelection::default();
    }
}

/// Reads the counters of each family and stores the last reading.
struct TrafficReader {
    exec: Exec,
    families: Vec<(Family, CounterReading)>,
    final_counters: FinalCounters,
    /// True once iptables-restore was found to print rules with counters.
    can_list: bool,
}

/// Reads the counters of these families at intervals, forever. If there are more than [`LIMIT`] addresses, or endpoints, it counts none of
/// them, unless `any_size` is true.
pub async fn run(exec: Exec, families: Vec<Family>, final_counters: FinalCounters, metrics: Arc<Metrics>, any_size: bool) {
    let limit = if any_size { usize::MAX } else { LIMIT };
    let mut next = Instant::now() + PERIOD;
    let mut limit_logged = false;
    let families = families.into_iter().map(|family| (family, CounterReading::default())).collect();
    let mut reader = TrafficReader { exec, families, final_counters, can_list: false };
    loop {
        sleep_until(next).await;
        let start = Instant::now();
        let mut delta = TrafficDelta::new(limit);
        if reader.read(&mut delta).await {
            if (delta.addresses.is_over() || delta.endpoints.is_over()) && !std::mem::replace(&mut limit_logged, true) {
                let what = if delta.addresses.is_over() { "addresses of Services" } else { "endpoints" };
                tracing::info!(
                    "there are more than {LIMIT} {what}: their traffic is not counted. Use --service-traffic=on to count it anyway"
                );
            }
            metrics.service_traffic(&delta);
        }
        next = Instant::now() + CYCLE.rest(start.elapsed());
    }
}

impl TrafficReader {
    /// Reads all counters. Returns false if that failed. The next reading then covers the traffic since the last successful one.
    async fn read(&mut self, delta: &mut TrafficDelta) -> bool {
        let mut readings = Vec::new();
        for (family, before) in &self.families {
            let mut now = CounterReading::empty();
            if let Err(error) = self.exec.save_counted(*family, &mut |line| before.compare_line(line, &mut now, delta)).await {
                tracing::debug!("{family}: cannot read the counters of rules: {error}");
                // Without readings, final counters would collect without a limit.
                self.final_counters.lock().await.pause();
                return false;
            }
            readings.push(now);
        }
        let counts_any = !(delta.addresses.is_over() && delta.endpoints.is_over());
        if counts_any && !self.can_list {
            self.can_list = self.try_list().await;
        }
        let mut pending = self.final_counters.lock().await;
        for (family, line) in pending.ended.drain(..) {
            for ((_, before), now) in self.families.iter_mut().zip(&mut readings).filter(|((of, _), _)| *of == family) {
                before.end_line(&line, now, delta);
            }
        }
        pending.selection = CounterSelection {
            addresses: self.can_list && !delta.addresses.is_over(),
            endpoints: self.can_list && !delta.endpoints.is_over(),
        };
        self.families.iter_mut().zip(readings).for_each(|((_, before), now)| *before = now);
        true
    }

    /// Returns true if iptables-restore of every family can list rules. If it cannot answer because another program holds the lock, the
    /// next reading asks again.
    async fn try_list(&self) -> bool {
        for (family, _) in &self.families {
            if !self.exec.can_list(*family).await {
                return false;
            }
        }
        true
    }
}
