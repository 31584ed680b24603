//! Log lines about syncs. A node makes thousands of syncs a day, so most are only logged with `-v=2` and counted in a summary line.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::Family;

use crate::observe::sync_result::SyncResult;

/// The target of log lines that are logged with `-v=2` and above. Their level is `debug`.
pub(crate) const V2: &str = "sepal::v2";

/// A sync that takes longer is always logged.
const SLOW: Duration = Duration::from_secs(1);
/// The time between two summary lines.
const SUMMARY: Duration = Duration::from_secs(300);

/// Logs syncs, and counts them for the next summary.
#[derive(Debug, Default)]
pub(super) struct SyncLog(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// The time of the first sync that the next summary counts.
    since: Option<Instant>,
    /// By family.
    v4: Count,
    v6: Count,
}

/// Syncs of one family that wrote something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    syncs: usize,
    /// The syncs without a line of their own.
    unlogged: usize,
    chains: usize,
    deleted: usize,
    slowest: Duration,
}

impl SyncLog {
    /// Logs a successful sync: always if it was full or slow, else with `-v=2`.
    pub(super) fn synced(&self, family: Family, synced: &SyncResult, full: bool) {
        let took = synced.spent.planning() + synced.spent.applying();
        let always = full || synced.read || took >= SLOW;
        if synced.extent.transactions > 0 {
            self.count(family, synced, took, always);
        }
        let Some(line) = line(family, synced, full, took) else { return };
        if always {
            tracing::info!("{line}");
        } else {
            tracing::debug!(target: V2, "{line}");
        }
    }

    fn count(&self, family: Family, synced: &SyncResult, took: Duration, logged: bool) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.since.get_or_insert_with(Instant::now);
        let count = if family == Family::V4 { &mut counts.v4 } else { &mut counts.v6 };
        count.syncs += 1;
        count.unlogged += usize::from(!logged);
        count.chains += synced.extent.chains;
        count.deleted += synced.extent.deleted;
        count.slowest = count.slowest.max(took);
    }

    /// Every [`SUMMARY`], logs a line for each family that had syncs without a line of their own.
    pub(super) fn summarize(&self) {
        let counts = {
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if counts.since.is_none_or(|since| since.elapsed() < SUMMARY) {
                return;
            }
            std::mem::take(&mut *counts)
        };
        let seconds = counts.since.map_or(0, |since| since.elapsed().as_secs());
        for (family, count) in [(Family::V4, counts.v4), (Family::V6, counts.v6)].into_iter().filter(|(_, count)| count.unlogged > 0) {
            let Count { syncs, chains, deleted, slowest, .. } = count;
            let slowest = slowest.as_millis();
            tracing::info!(
                "{family}: {syncs} syncs in {seconds} s: {chains} chains written, {deleted} deleted, the slowest took {slowest} ms"
            );
        }
    }
}

/// Returns the log line about a sync. `None` if a partial sync neither read nor wrote anything and was not slow.
fn line(family: Family, synced: &SyncResult, full: bool, took: Duration) -> Option<String> {
    let (extent, milliseconds, ports) = (synced.extent, took.as_millis(), synced.service_ports);
    Some(if extent.transactions > 0 {
        let after = if synced.read { ", after reading the live tables" } else { "" };
        format!("{}; {ports} service ports{after}", written(family, synced))
    } else if synced.read {
        format!("{family}: the live tables match the desired rules, {milliseconds} ms; {ports} service ports")
    } else if full || took >= SLOW {
        format!("{family}: nothing to write, {milliseconds} ms; {ports} service ports")
    } else {
        return None;
    })
}

/// Summarizes the writes of a sync.
pub(super) fn written(family: Family, synced: &SyncResult) -> String {
    let (extent, milliseconds) = (synced.extent, (synced.spent.planning() + synced.spent.applying()).as_millis());
    format!(
        "{family}: {} chains written, {} deleted, {} lines edited in {} transactions, {milliseconds} ms",
        extent.chains, extent.deleted, extent.edits, extent.transactions,
    )
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::captured_log::CapturedLog;
    use crate::observe::latency::SyncPhases;
    use crate::table::plan::Extent;

    fn synced(chains: usize, milliseconds: u64) -> SyncResult {
        let extent = Extent { chains, transactions: chains.min(1), ..Extent::default() };
        let spent = SyncPhases { restore: Duration::from_millis(milliseconds), ..SyncPhases::default() };
        SyncResult { extent, spent, service_ports: 7, ..SyncResult::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn single_syncs_are_summed_up_every_five_minutes() {
        let written = CapturedLog::default();
        let lines = tracing_subscriber::fmt::layer().with_writer(written.clone()).without_time().with_target(false).with_ansi(false);
        let _guard = tracing::subscriber::set_default(
            tracing_subscriber::registry().with(tracing_subscriber::filter::LevelFilter::INFO).with(lines),
        );
        let log = SyncLog::default();
        log.synced(Family::V4, &synced(90, 12), true);
        assert_eq!(written.take(), ["INFO ipv4: 90 chains written, 0 deleted, 0 lines edited in 1 transactions, 12 ms; 7 service ports"]);
        // The full sync had its own line, so there is nothing to sum up.
        advance(SUMMARY).await;
        log.summarize();
        assert_eq!(written.take(), Vec::<String>::new());

        for (chains, milliseconds) in [(3, 20), (4, 80), (0, 5)] {
            log.synced(Family::V4, &synced(chains, milliseconds), false);
        }
        advance(SUMMARY.saturating_sub(Duration::from_secs(1))).await;
        log.summarize();
        assert_eq!(written.take(), Vec::<String>::new());
        log.synced(Family::V4, &synced(5, 1_500), false);
        assert_eq!(written.take(), ["INFO ipv4: 5 chains written, 0 deleted, 0 lines edited in 1 transactions, 1500 ms; 7 service ports"]);
        advance(Duration::from_secs(1)).await;
        log.summarize();
        assert_eq!(written.take(), ["INFO ipv4: 3 syncs in 300 s: 12 chains written, 0 deleted, the slowest took 1500 ms"]);
        advance(SUMMARY).await;
        log.summarize();
        assert_eq!(written.take(), Vec::<String>::new(), "no sync wrote anything since");
        log.synced(Family::V6, &SyncResult { read: true, ..synced(0, 9) }, true);
        assert_eq!(written.take(), ["INFO ipv6: the live tables match the desired rules, 9 ms; 7 service ports"]);
    }
}
