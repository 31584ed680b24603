//! All metrics: kube-proxy's own under their names, those of every Kubernetes component, and sepal's.
//!
//! A metric is declared in one entry of the macro `metrics!` (`declare`), in the file of its group, and recorded by a method of [`Metrics`].

mod component;
mod declare;
mod kubeproxy;
mod labels;
mod network;
mod parts;
mod process;
mod sepal;
mod text;
mod traffic;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;

use crate::cluster::{Family, Snapshot};
use crate::iptables::detect::Found;
use crate::kubernetes::requests::{AnsweredRequest, RequestObserver};
use crate::netlink::nfacct::{PacketCounters, Packets};
use crate::observe::latency::{AppliedChange, SlowestChanges};
use crate::observe::readiness::Readiness;
use crate::observe::service_traffic::TrafficDelta;
use crate::observe::sync_result::{SyncAttempt, SyncResult};
use crate::table::rule_counts::RuleTotals;

use component::ComponentMetrics;
use kubeproxy::{KubeProxyMetrics, PacketCounterCollector};
use network::NetworkCollector;
use parts::PartsCollector;
use process::ProcessCollector;
use sepal::SepalMetrics;
use text::Catalogue;
use traffic::TrafficMetrics;

pub use network::NetworkMetrics;
pub use text::Format;

/// Records and exports all metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    kubeproxy: KubeProxyMetrics,
    component: ComponentMetrics,
    sepal: SepalMetrics,
    network: NetworkCollector,
    parts: PartsCollector,
    traffic: TrafficMetrics,
    slowest: SlowestChanges,
}

impl Default for Metrics {
    /// Metrics without packet counters.
    fn default() -> Self {
        Self::new(Packets::default())
    }
}

impl Metrics {
    /// Metrics with their first values. The packet counters are read at each scrape.
    #[must_use]
    pub fn new(counters: impl PacketCounters) -> Self {
        let (kubeproxy, component, sepal) = (KubeProxyMetrics::default(), ComponentMetrics::default(), SepalMetrics::default());
        let (network, parts, traffic) = (NetworkCollector::default(), PartsCollector::default(), TrafficMetrics::default());
        let mut catalogue = Catalogue::default();
        traffic.register(&mut catalogue);
        kubeproxy.register(&mut catalogue);
        component.register(&mut catalogue);
        sepal.register(&mut catalogue);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(catalogue));
        registry.register_collector(Box::new(network.clone()));
        registry.register_collector(Box::new(parts.clone()));
        registry.register_collector(Box::new(PacketCounterCollector(counters)));
        registry.register_collector(Box::new(ProcessCollector));
        Self { registry, kubeproxy, component, sepal, network, parts, traffic, slowest: SlowestChanges::default() }
    }

    /// The value of the header `Content-Type`, and all metrics as text.
    #[must_use]
    pub fn text(&self, format: Format) -> (&'static str, String) {
        (format.content_type(), format.write(&self.registry))
    }

    /// A sync of a family succeeded or failed after this time.
    pub(crate) fn attempted(&self, family: Family, attempt: &SyncAttempt, totals: &RuleTotals, took: Duration) {
        self.kubeproxy.attempted(family, attempt, totals, took);
        self.sepal.attempted(family, attempt, totals);
    }

    /// A sync of a family succeeded. It may have had nothing to write.
    pub fn synced(&self, family: Family, synced: &SyncResult, totals: &RuleTotals) {
        self.kubeproxy.synced(family, totals);
        self.sepal.synced(family, synced, totals);
    }

    /// The rules of a changed Service are in force.
    pub(crate) fn change_applied(&self, change: &AppliedChange) {
        self.sepal.change_applied(change);
        self.slowest.note(change);
    }

    /// The recent changes that took longest until their rules were in force.
    #[must_use]
    pub const fn slowest(&self) -> &SlowestChanges {
        &self.slowest
    }

    /// A sync of a family failed.
    pub fn failed(&self, family: Family) {
        self.sepal.outcome(family, "failed");
    }

    /// A sync of a family was requested.
    pub fn queued(&self, family: Family) {
        self.kubeproxy.queued(family);
    }

    /// The live rules of a family were read and need no change.
    pub(crate) fn confirmed(&self, family: Family) {
        self.kubeproxy.confirmed(family);
    }

    /// The rules of a family follow a change that happened in the cluster this many seconds ago.
    pub fn programmed(&self, family: Family, seconds: f64) {
        self.kubeproxy.programmed(family, seconds);
    }

    /// Service events arrived, counted per family; `pending` Services wait for the next sync.
    pub(crate) fn service_events(&self, events: usize, pending: usize) {
        self.kubeproxy.service_changes.inc_by(events as u64);
        self.kubeproxy.service_changes_pending.set(pending as u64);
    }

    /// EndpointSlice events arrived, counted per family; `accepted` of them changed something.
    pub(crate) fn slice_events(&self, events: usize, accepted: usize) {
        self.kubeproxy.endpoint_changes.inc_by(events as u64);
        self.kubeproxy.endpoint_changes_pending.inc_by(accepted as u64);
    }

    /// A sync began and took all pending changes.
    pub(crate) fn sync_began(&self) {
        self.kubeproxy.service_changes_pending.set(0);
        self.kubeproxy.endpoint_changes_pending.set(0);
    }

    /// The run time in seconds that syncs can still use; `None` if there is no budget.
    pub(crate) fn sync_budget(&self, seconds: Option<f64>) {
        self.sepal.sync_budget.set(seconds.unwrap_or_default());
    }

    /// The health server answered `/healthz` with this HTTP status.
    pub fn healthz(&self, code: u16) {
        self.kubeproxy.healthz(code);
    }

    /// The health server answered `/livez` with this HTTP status.
    pub fn livez(&self, code: u16) {
        self.kubeproxy.livez(code);
    }

    /// The conntrack table of a family was searched, and stale flows were deleted.
    pub(crate) fn flows_cleaned(&self, family: Family, took: Duration, deleted: usize) {
        self.kubeproxy.flows_cleaned(family, took, deleted);
    }

    /// A feature gate is on or off. Its stage is `ALPHA`, `BETA`, `DEPRECATED`, or empty if it is generally available.
    pub fn feature(&self, name: &str, stage: &str, enabled: bool) {
        self.component.feature(name, stage, enabled);
    }

    /// A sync waited this many seconds for the xtables lock and did not get it.
    pub(crate) fn lock_timed_out(&self, family: Family, seconds: u64) {
        self.sepal.lock_timed_out(family, seconds);
    }

    /// An audit of the live tables found this many changes of one kind by another program. The next sync repairs them.
    pub(crate) fn audited(&self, family: Family, kind: &'static str, count: usize) {
        self.sepal.audited(family, kind, count);
    }

    /// This many service ports are in quarantine.
    pub fn quarantined(&self, family: Family, count: usize) {
        self.sepal.quarantined(family, count);
    }

    /// This many updates wait for the loop.
    pub(crate) fn updates_waiting(&self, updates: usize) {
        self.sepal.waiting.set(updates as u64);
    }

    /// The snapshot of the cluster has changed.
    pub(crate) fn snapshot_changed(&self, snapshot: &Snapshot) {
        self.sepal.services.set(snapshot.service_count() as u64);
        self.sepal.slices.set(snapshot.slice_count() as u64);
        self.sepal.snapshot_bytes.set(snapshot.bytes() as u64);
    }

    /// Adds the traffic of Services since the last reading. Addresses and endpoints that are gone stay exported for a while.
    pub(crate) fn service_traffic(&self, since: &TrafficDelta) {
        self.traffic.add(since, Instant::now());
    }

    /// The number of connections per Service, by namespace and name, where they are counted.
    #[must_use]
    pub fn connections(&self) -> HashMap<(String, String), u64> {
        self.traffic.connections()
    }

    /// The number of connections to one Service, per endpoint.
    #[must_use]
    pub(crate) fn connections_of(&self, namespace: &str, service: &str) -> BTreeMap<String, u64> {
        self.traffic.connections_of(namespace, service)
    }

    /// The pod network's metrics. The first call starts their export.
    #[must_use]
    pub fn network(&self) -> &NetworkMetrics {
        self.network.get()
    }

    /// Exports the readiness of these parts from now on.
    pub fn show_parts(&self, readiness: &Readiness) {
        self.parts.show(readiness);
    }

    /// This iptables is in use.
    pub fn iptables(&self, found: &Found) {
        self.sepal.iptables_in_use(found);
    }
}

impl RequestObserver for Metrics {
    fn answered(&self, request: &AnsweredRequest<'_>) {
        self.component.answered(request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_audits_and_lock_timeouts_are_counted() {
        let metrics = Metrics::default();
        let totals = RuleTotals { chains: 10, ..RuleTotals::default() };
        let mut synced = SyncResult::default();
        metrics.synced(Family::V4, &synced, &totals);
        synced.extent.chains = 3;
        synced.extent.transactions = 1;
        metrics.synced(Family::V4, &synced, &totals);
        metrics.audited(Family::V6, "jump", 2);
        metrics.audited(Family::V6, "jump", 1);
        metrics.quarantined(Family::V4, 1);
        metrics.lock_timed_out(Family::V4, 5);
        metrics.updates_waiting(4);
        let text = metrics.text(Format::Classic).1;
        for line in [
            "sepal_chains_written_total{ip_family=\"IPv4\"} 3",
            "sepal_chains_skipped_total{ip_family=\"IPv4\"} 17",
            "sepal_syncs_total{ip_family=\"IPv4\",outcome=\"nothing\"} 1",
            "sepal_syncs_total{ip_family=\"IPv4\",outcome=\"written\"} 1",
            "sepal_drift_repairs_total{ip_family=\"IPv6\",kind=\"jump\"} 3",
            "sepal_live_difference{ip_family=\"IPv6\",kind=\"jump\"} 1",
            "sepal_quarantined_service_ports{ip_family=\"IPv4\"} 1",
            "sepal_apply_duration_seconds_count{ip_family=\"IPv4\"} 2",
            "sepal_xtables_lock_timeouts_total{ip_family=\"IPv4\"} 1",
            "sepal_xtables_lock_wait_seconds_total{ip_family=\"IPv4\"} 5.0",
            "sepal_updates_waiting 4",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
    }
}
