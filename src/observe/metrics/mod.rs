//! What is counted: kube-proxy's own metrics under their names, what all programs of Kubernetes show, and sepal's own.

mod kubeproxy;
mod network;
mod parts;
mod process;
mod sepal;
mod shared;
mod text;
mod traffic;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::cluster::{Family, Snapshot};
use crate::iptables::detect::Found;
use crate::netlink::nfacct::{PacketCounters, Packets};
use crate::table::Table;
use crate::table::rule_counts::RuleTotals;

use crate::observe::latency::{Followed, Slowest};
use crate::observe::readiness::Readiness;
use crate::observe::service_traffic::TrafficDelta;
use crate::observe::sync_result::{Attempt, Synced};
use kubeproxy::{AtScrape, KubeProxy};
use network::OnDemand;
use parts::Parts;
use process::Process;
use sepal::Own;
use shared::Shared;
use text::Catalogue;
use traffic::TrafficMetrics;

pub use network::NetworkMetrics;
pub use text::Format;

/// Labels of what is counted per IP family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFamily {
    ip_family: &'static str,
}

impl OfFamily {
    const fn new(family: Family) -> Self {
        Self {
            ip_family: match family {
                Family::V4 => "IPv4",
                Family::V6 => "IPv6",
            },
        }
    }
}

/// Labels of what is counted per table of an IP family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTable {
    ip_family: &'static str,
    table: &'static str,
}

impl OfTable {
    const fn new(family: Family, table: Table) -> Self {
        Self { ip_family: OfFamily::new(family).ip_family, table: table.as_str() }
    }
}

/// A gauge of how many there are.
type Count = Gauge<u64, AtomicU64>;

/// Histograms by label.
type Durations<L = OfFamily> = Labelled<L, Histogram, fn() -> Histogram>;

/// All metrics but those of health checks, which have a page of their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    kubeproxy: KubeProxy,
    shared: Shared,
    own: Own,
    network: OnDemand,
    parts: Parts,
    traffic: TrafficMetrics,
    slowest: Slowest,
}

impl Default for Metrics {
    /// Without packet counters.
    fn default() -> Self {
        Self::new(Packets::default())
    }
}

impl Metrics {
    /// Nothing has been counted yet. The packet counters are read whenever [`Self::text`] is asked for.
    #[must_use]
    pub fn new(counters: impl PacketCounters) -> Self {
        let (kubeproxy, shared, own) = (KubeProxy::default(), Shared::default(), Own::default());
        let traffic = TrafficMetrics::default();
        let mut catalogue = Catalogue::default();
        traffic.register(&mut catalogue);
        kubeproxy.register(&mut catalogue);
        shared.register(&mut catalogue);
        own.register(&mut catalogue);
        let (network, parts) = (OnDemand::default(), Parts::default());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(catalogue));
        registry.register_collector(Box::new(network.clone()));
        registry.register_collector(Box::new(parts.clone()));
        registry.register_collector(Box::new(AtScrape(counters)));
        registry.register_collector(Box::new(Process));
        Self { registry, kubeproxy, shared, own, network, parts, traffic, slowest: Slowest::default() }
    }

    /// The text, and what the header `Content-Type` says of it.
    #[must_use]
    pub fn text(&self, format: Format) -> (&'static str, String) {
        (format.content_type(), format.write(&self.registry))
    }

    /// A sync of a family ended, well or not, after so long.
    pub fn attempted(&self, family: Family, attempt: &Attempt, totals: &RuleTotals, took: Duration) {
        self.kubeproxy.attempted(family, attempt, totals, took);
        self.own.attempted(family, attempt, totals);
    }

    /// A sync wrote this; if nothing, nothing had to be written.
    pub fn synced(&self, family: Family, synced: &Synced, totals: &RuleTotals) {
        self.kubeproxy.synced(family, totals);
        self.own.synced(family, synced, totals);
    }

    /// A change of a Service is in force.
    pub fn followed(&self, change: &Followed) {
        self.own.followed(change);
        self.slowest.note(change);
    }

    /// The changes that took longest to get into force.
    #[must_use]
    pub const fn slowest(&self) -> &Slowest {
        &self.slowest
    }

    /// A sync failed.
    pub fn failed(&self, family: Family) {
        self.own.outcome(family, "failed");
    }

    /// A sync of a family was asked for.
    pub fn queued(&self, family: Family) {
        self.kubeproxy.queued(family);
    }

    /// A family's rules were looked at and are as they should be.
    pub fn confirmed(&self, family: Family) {
        self.kubeproxy.confirmed(family);
    }

    /// Rules follow what happened in the cluster so many seconds ago.
    pub fn programmed(&self, family: Family, seconds: f64) {
        self.kubeproxy.programmed(family, seconds);
    }

    /// So many times a family was told of a Service, and so many Services wait for the next sync.
    pub fn service_events(&self, events: usize, pending: usize) {
        self.kubeproxy.service_events(events, pending);
    }

    /// So many times a family was told of an `EndpointSlice`, and so many of them brought something new.
    pub fn slice_events(&self, events: usize, accepted: usize) {
        self.kubeproxy.slice_events(events, accepted);
    }

    /// A sync has begun, so no change waits for it any more.
    pub fn checked_out(&self) {
        self.kubeproxy.checked_out();
    }

    /// `/healthz` of the health server was answered with this HTTP status.
    pub fn healthz(&self, code: u16) {
        self.kubeproxy.healthz(code);
    }

    /// `/livez` of the health server was answered with this HTTP status.
    pub fn livez(&self, code: u16) {
        self.kubeproxy.livez(code);
    }

    /// A look through conntrack took so long, and so many flows were deleted.
    pub fn flows_cleaned(&self, family: Family, took: Duration, deleted: usize) {
        self.kubeproxy.flows_cleaned(family, took, deleted);
    }

    /// A feature gate is on or off; its stage is `ALPHA`, `BETA`, `DEPRECATED`, or nothing for one that is generally available.
    pub fn feature(&self, name: &str, stage: &str, enabled: bool) {
        self.shared.feature(name, stage, enabled);
    }

    /// Another program held the xtables lock for all the seconds that were waited for it.
    pub fn locked_out(&self, family: Family, seconds: u64) {
        self.own.locked_out(family, seconds);
    }

    /// A look at the live tables found so many things of a kind changed by somebody else; they are about to be put right.
    pub fn audited(&self, family: Family, kind: &'static str, count: usize) {
        self.own.audited(family, kind, count);
    }

    /// So many service ports are in quarantine.
    pub fn quarantined(&self, family: Family, count: usize) {
        self.own.quarantined(family, count);
    }

    /// So many updates wait to be taken.
    pub fn waiting(&self, updates: usize) {
        self.own.waiting(updates);
    }

    /// This is known of the cluster.
    pub fn knows(&self, snapshot: &Snapshot) {
        self.own.knows(snapshot);
    }

    /// So much has come to Services since the last time, by doors and endpoints; others are shown for a while still.
    pub fn service_traffic(&self, since: &TrafficDelta) {
        self.traffic.add(since, Instant::now());
    }

    /// Packets with which connections to Services began, by namespace and name, where that is counted.
    #[must_use]
    pub fn connections(&self) -> HashMap<(String, String), u64> {
        self.traffic.connections()
    }

    /// The same of one Service, by the endpoint they went to.
    #[must_use]
    pub fn connections_of(&self, namespace: &str, service: &str) -> BTreeMap<String, u64> {
        self.traffic.connections_of(namespace, service)
    }

    /// The pod network's metrics, which are shown from now on.
    #[must_use]
    pub fn network(&self) -> &NetworkMetrics {
        self.network.get()
    }

    /// Shows from now on which of these parts do their work.
    pub fn parts(&self, readiness: &Readiness) {
        self.parts.show(readiness);
    }

    /// This iptables is used.
    pub fn iptables(&self, found: &Found) {
        self.own.iptables(found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_is_counted() {
        let metrics = Metrics::default();
        let totals = RuleTotals { chains: 10, ..RuleTotals::default() };
        let mut synced = Synced::default();
        metrics.synced(Family::V4, &synced, &totals);
        synced.extent.chains = 3;
        synced.extent.transactions = 1;
        metrics.synced(Family::V4, &synced, &totals);
        metrics.audited(Family::V6, "jump", 2);
        metrics.audited(Family::V6, "jump", 1);
        metrics.quarantined(Family::V4, 1);
        metrics.locked_out(Family::V4, 5);
        metrics.waiting(4);
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
