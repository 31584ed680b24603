//! The pod network's metrics, under `sepal_network_*`. They are exported only where the pod network is on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

use crate::cluster::Family;

use super::declare::metrics;
use super::labels::{Count, FamilyLabel, Seconds};
use super::text::Catalogue;

/// The label of the number of peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabel {
    /// `desired` or `programmed`.
    state: &'static str,
}

/// The label of refused nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    reason: &'static str,
}

/// The label of repairs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabel {
    kind: &'static str,
}

/// The label of failed netlink calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallLabel {
    call: &'static str,
}

/// The label of links.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LinkLabel {
    link: String,
}

metrics! {
    /// The exported metrics of the pod network.
    NetworkSeries {
        peers: Labelled<StateLabel, Count>,
            "sepal_network_peers", "Other nodes of the pod network: those that should have entries in the kernel, and those that have them";
        refused: Labelled<ReasonLabel, Count>,
            "sepal_network_peers_refused", "Nodes, or single families of nodes, that are not programmed, by reason";
        repairs: Labelled<KindLabel, Counter>,
            "sepal_network_repairs", "Links, addresses, entries and files that another program changed and sepal repaired, by kind";
        errors: Labelled<CallLabel, Counter>,
            "sepal_network_netlink_errors", "Netlink requests that the kernel refused, by call";
        mtu: Labelled<LinkLabel, Count>,
            "sepal_network_mtu_bytes", "MTU of a link of the pod network";
        programming: Histogram = Histogram::new(PROGRAMMING),
            "sepal_network_peer_programming_duration_seconds", "Time from the arrival of a Node's change to the kernel's acknowledgement of its entries";
        renewals: Labelled<FamilyLabel, Counter>,
            "sepal_network_lease_renewals", "Renewals of this node's leases";
        lease_age: Labelled<FamilyLabel, Seconds>,
            "sepal_network_lease_age_seconds", "Time since this node's lease was taken or last renewed";
    }
}

/// In seconds: 1 ms to 10 s, in three steps for each power of ten.
const PROGRAMMING: [f64; 13] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Records the pod network's metrics. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct NetworkMetrics {
    series: NetworkSeries,
    /// All reasons for which nodes were refused so far. Those without a node now are exported as 0.
    reasons: Arc<Mutex<BTreeSet<&'static str>>>,
    /// When this node's leases were last acquired or renewed.
    granted: Arc<Mutex<BTreeMap<Family, Instant>>>,
}

impl NetworkMetrics {
    /// Sets the number of peers that should have entries in the kernel, and of those that have them.
    pub fn peers(&self, desired: usize, programmed: usize) {
        for (state, count) in [("desired", desired), ("programmed", programmed)] {
            self.series.peers.get_or_create(&StateLabel { state }).set(count as u64);
        }
    }

    /// Sets the number of refused nodes per reason ([`crate::pod_network::refusal::RefusalReason::as_str`]). Other reasons get 0.
    pub fn refused(&self, counts: &BTreeMap<&'static str, usize>) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.extend(counts.keys());
        for reason in reasons.iter() {
            self.series.refused.get_or_create(&ReasonLabel { reason }).set(counts.get(reason).map_or(0, |count| *count as u64));
        }
    }

    /// Counts repairs of what another program changed: `link`, `address`, `mtu`, `route` and so on.
    pub fn repaired(&self, kind: &'static str, count: usize) {
        self.series.repairs.get_or_create(&KindLabel { kind }).inc_by(count as u64);
    }

    /// Counts a netlink call that failed ([`crate::netlink::error::NetlinkError::call`]).
    pub fn failed(&self, call: &'static str) {
        self.series.errors.get_or_create(&CallLabel { call }).inc();
    }

    /// Sets the MTU of a link.
    pub fn mtu(&self, link: &str, bytes: u32) {
        self.series.mtu.get_or_create(&LinkLabel { link: link.to_owned() }).set(bytes.into());
    }

    /// Drops the MTU of a link that sepal no longer owns.
    pub(crate) fn no_link(&self, link: &str) {
        self.series.mtu.remove(&LinkLabel { link: link.to_owned() });
    }

    /// Records the time from the API's event to the kernel's acknowledgement of a peer's entries.
    pub(crate) fn programmed_after(&self, took: Duration) {
        self.series.programming.observe(took.as_secs_f64());
    }

    /// This node acquired the lease of a subnet.
    pub fn leased(&self, family: Family) {
        self.granted().insert(family, Instant::now());
        drop(self.series.renewals.get_or_create(&FamilyLabel::new(family)));
    }

    /// This node renewed the lease of a family.
    pub fn renewed(&self, family: Family) {
        self.leased(family);
        self.series.renewals.get_or_create(&FamilyLabel::new(family)).inc();
    }

    /// This node lost the lease of a family.
    pub(crate) fn lease_lost(&self, family: Family) {
        self.granted().remove(&family);
        self.series.lease_age.remove(&FamilyLabel::new(family));
    }

    fn granted(&self) -> impl std::ops::DerefMut<Target = BTreeMap<Family, Instant>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the ages of leases to now.
    fn set_lease_ages(&self) {
        for (family, granted) in self.granted().iter() {
            self.series.lease_age.get_or_create(&FamilyLabel::new(*family)).set(granted.elapsed().as_secs_f64());
        }
    }
}

/// Exports the metrics once the pod network has asked for them.
#[derive(Clone, Debug, Default)]
pub(super) struct NetworkCollector(Arc<OnceLock<(NetworkMetrics, Catalogue)>>);

impl NetworkCollector {
    /// The metrics. The first call starts their export.
    pub(super) fn get(&self) -> &NetworkMetrics {
        let (metrics, _) = self.0.get_or_init(|| {
            let (metrics, mut catalogue) = (NetworkMetrics::default(), Catalogue::default());
            metrics.series.register(&mut catalogue);
            (metrics, catalogue)
        });
        metrics
    }
}

impl Collector for NetworkCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some((metrics, catalogue)) = self.0.get() else { return Ok(()) };
        metrics.set_lease_ages();
        catalogue.encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::{Format, Metrics};

    /// The exported lines of the pod network.
    fn shown(metrics: &Metrics) -> String {
        let text = metrics.text(Format::Classic).1;
        text.lines().filter(|line| line.contains("sepal_network_")).map(|line| format!("{line}\n")).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn metrics_are_exported_once_the_pod_network_is_on() {
        let metrics = Metrics::default();
        assert_eq!(shown(&metrics), "");
        let network = metrics.network().clone();
        network.peers(3, 2);
        network.refused(&[("overlap", 1), ("public_ip", 2)].into());
        network.refused(&[("overlap", 4)].into());
        network.repaired("route", 2);
        network.repaired("route", 1);
        network.repaired("link", 1);
        network.failed("set route");
        network.mtu("flannel.1", 1450);
        network.mtu("flannel.2", 1450);
        network.no_link("flannel.2");
        network.programmed_after(Duration::from_micros(1500));
        network.programmed_after(Duration::from_secs(11));
        network.leased(Family::V4);
        network.leased(Family::V6);
        tokio::time::advance(Duration::from_secs(30)).await;
        network.renewed(Family::V6);
        tokio::time::advance(Duration::from_millis(1500)).await;
        let text = shown(&metrics);
        // The library exports the series of one metric in random order.
        let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "sepal_network_lease_age_seconds{ip_family=\"IPv4\"} 31.5",
                "sepal_network_lease_age_seconds{ip_family=\"IPv6\"} 1.5",
                "sepal_network_lease_renewals_total{ip_family=\"IPv4\"} 0",
                "sepal_network_lease_renewals_total{ip_family=\"IPv6\"} 1",
                "sepal_network_mtu_bytes{link=\"flannel.1\"} 1450",
                "sepal_network_netlink_errors_total{call=\"set route\"} 1",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"+Inf\"} 2",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"0.001\"} 0",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"0.002\"} 1",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"0.005\"} 1",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"0.01\"} 1",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"0.02\"} 1",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"0.05\"} 1",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"0.1\"} 1",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"0.2\"} 1",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"0.5\"} 1",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"1\"} 1",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"10\"} 1",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"2\"} 1",
                "sepal_network_peer_programming_duration_seconds_bucket{le=\"5\"} 1",
                "sepal_network_peer_programming_duration_seconds_count 2",
                "sepal_network_peer_programming_duration_seconds_sum 11.0015",
                "sepal_network_peers_refused{reason=\"overlap\"} 4",
                "sepal_network_peers_refused{reason=\"public_ip\"} 0",
                "sepal_network_peers{state=\"desired\"} 3",
                "sepal_network_peers{state=\"programmed\"} 2",
                "sepal_network_repairs_total{kind=\"link\"} 1",
                "sepal_network_repairs_total{kind=\"route\"} 3",
            ],
            "{text}"
        );
        for kind in [
            "sepal_network_peers gauge",
            "sepal_network_peers_refused gauge",
            "sepal_network_repairs_total counter",
            "sepal_network_netlink_errors_total counter",
            "sepal_network_mtu_bytes gauge",
            "sepal_network_peer_programming_duration_seconds histogram",
            "sepal_network_lease_renewals_total counter",
            "sepal_network_lease_age_seconds gauge",
        ] {
            assert!(text.contains(&format!("# TYPE {kind}\n")), "no {kind} in\n{text}");
        }
        network.lease_lost(Family::V4);
        let text = shown(&metrics);
        assert!(!text.contains("sepal_network_lease_age_seconds{ip_family=\"IPv4\"}"), "{text}");
        assert!(text.contains("sepal_network_lease_age_seconds{ip_family=\"IPv6\"} 1.5\n"), "{text}");
    }
}
