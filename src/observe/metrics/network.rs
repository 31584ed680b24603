//! What the pod network counts of its own doings, under `sepal_network_*`. Nothing of it is shown where the pod network is off.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

use crate::cluster::Family;

use super::text::Catalogue;
use super::{Count, OfFamily};

/// Labels of peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    /// `desired` or `programmed`.
    state: &'static str,
}

/// Labels of nodes that are not programmed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

/// Labels of repairs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

/// Labels of what the kernel did not do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCall {
    call: &'static str,
}

/// Labels of links.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLink {
    link: String,
}

/// The pod network's metrics. A clone counts for the same ones.
#[derive(Clone, Debug)]
pub struct NetworkMetrics {
    peers: Labelled<OfState, Count>,
    refused: Labelled<OfReason, Count>,
    repairs: Labelled<OfKind, Counter>,
    errors: Labelled<OfCall, Counter>,
    mtu: Labelled<OfLink, Count>,
    programming: Histogram,
    renewals: Labelled<OfFamily, Counter>,
    lease_age: Labelled<OfFamily, Gauge<f64, AtomicU64>>,
    /// Reasons that there have been.
    reasons: Arc<Mutex<BTreeSet<&'static str>>>,
    /// When the leases that are held were last taken or renewed.
    granted: Arc<Mutex<BTreeMap<Family, Instant>>>,
}

/// In seconds: 1 ms to 10 s, in three steps for each power of ten.
const PROGRAMMING: [f64; 13] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

impl Default for NetworkMetrics {
    /// Nothing has been counted yet.
    fn default() -> Self {
        Self {
            peers: Labelled::default(),
            refused: Labelled::default(),
            repairs: Labelled::default(),
            errors: Labelled::default(),
            mtu: Labelled::default(),
            programming: Histogram::new(PROGRAMMING),
            renewals: Labelled::default(),
            lease_age: Labelled::default(),
            reasons: Arc::default(),
            granted: Arc::default(),
        }
    }
}

impl NetworkMetrics {
    #[rustfmt::skip]
    fn register(&self, catalogue: &mut Catalogue) {
        catalogue.add("sepal_network_peers", "Other nodes of the pod network: those that should have entries in the kernel, and those that have them", self.peers.clone());
        catalogue.add("sepal_network_peers_refused", "Nodes, or families of nodes, that are not programmed, by reason", self.refused.clone());
        catalogue.add("sepal_network_repairs", "Links, addresses, entries and files that somebody else had changed, by what they are", self.repairs.clone());
        catalogue.add("sepal_network_netlink_errors", "Requests that the kernel did not fulfil, by what was asked for", self.errors.clone());
        catalogue.add("sepal_network_mtu_bytes", "Largest packet that a link of the pod network takes", self.mtu.clone());
        catalogue.add("sepal_network_peer_programming_duration_seconds", "Time from the arrival of a change of a Node to the kernel's acknowledgement of its entries", self.programming.clone());
        catalogue.add("sepal_network_lease_renewals", "Renewals of this node's leases", self.renewals.clone());
        catalogue.add("sepal_network_lease_age_seconds", "Time since this node's lease was taken or last renewed", self.lease_age.clone());
    }

    /// So many peers should have entries in the kernel, and so many have them.
    pub fn peers(&self, desired: usize, programmed: usize) {
        for (state, count) in [("desired", desired), ("programmed", programmed)] {
            self.peers.get_or_create(&OfState { state }).set(count as u64);
        }
    }

    /// So many nodes are refused for these reasons, and none for others ([`crate::pod_network::refusal::RefusalReason::as_str`]).
    pub fn refused(&self, counts: &BTreeMap<&'static str, usize>) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.extend(counts.keys());
        for reason in reasons.iter() {
            self.refused.get_or_create(&OfReason { reason }).set(counts.get(reason).map_or(0, |count| *count as u64));
        }
    }

    /// So many things of a kind were put right that somebody else had changed: `link`, `address`, `mtu`, `route` and so on.
    pub fn repaired(&self, kind: &'static str, count: usize) {
        self.repairs.get_or_create(&OfKind { kind }).inc_by(count as u64);
    }

    /// The kernel did not do what it was asked for ([`crate::netlink::error::NetlinkError::call`]).
    pub fn failed(&self, call: &'static str) {
        self.errors.get_or_create(&OfCall { call }).inc();
    }

    /// A link takes packets of so many bytes.
    pub fn mtu(&self, link: &str, bytes: u32) {
        self.mtu.get_or_create(&OfLink { link: link.to_owned() }).set(bytes.into());
    }

    /// A link is not ours any more.
    pub fn no_link(&self, link: &str) {
        self.mtu.remove(&OfLink { link: link.to_owned() });
    }

    /// The kernel has acknowledged a peer's entries so long after the API's event came.
    pub fn programmed_after(&self, took: Duration) {
        self.programming.observe(took.as_secs_f64());
    }

    /// A subnet of a family was leased to this node.
    pub fn leased(&self, family: Family) {
        self.granted().insert(family, Instant::now());
        drop(self.renewals.get_or_create(&OfFamily::new(family)));
    }

    /// The lease of a family was renewed.
    pub fn renewed(&self, family: Family) {
        self.leased(family);
        self.renewals.get_or_create(&OfFamily::new(family)).inc();
    }

    /// This node has no lease of a family any more.
    pub fn lease_lost(&self, family: Family) {
        self.granted().remove(&family);
        self.lease_age.remove(&OfFamily::new(family));
    }

    fn granted(&self) -> impl std::ops::DerefMut<Target = BTreeMap<Family, Instant>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what depends on the time of day.
    fn tell_ages(&self) {
        for (family, granted) in self.granted().iter() {
            self.lease_age.get_or_create(&OfFamily::new(*family)).set(granted.elapsed().as_secs_f64());
        }
    }
}

/// The metrics from the moment that somebody counts for them.
#[derive(Clone, Debug, Default)]
pub(super) struct OnDemand(Arc<OnceLock<(NetworkMetrics, Catalogue)>>);

impl OnDemand {
    /// The metrics; from now on they are shown.
    pub(super) fn get(&self) -> &NetworkMetrics {
        let (metrics, _) = self.0.get_or_init(|| {
            let (metrics, mut catalogue) = (NetworkMetrics::default(), Catalogue::default());
            metrics.register(&mut catalogue);
            (metrics, catalogue)
        });
        metrics
    }
}

impl Collector for OnDemand {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some((metrics, catalogue)) = self.0.get() else { return Ok(()) };
        metrics.tell_ages();
        catalogue.encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::{Format, Metrics};

    /// What is shown of the pod network.
    fn shown(metrics: &Metrics) -> String {
        let text = metrics.text(Format::Classic).1;
        text.lines().filter(|line| line.contains("sepal_network_")).map(|line| format!("{line}\n")).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_is_counted_once_the_pod_network_is_on() {
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
        // Of one metric with several labels the library's order is by chance.
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
