//! Traffic of Services.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;

use crate::observe::service_traffic::{ServiceAddress, ServiceEndpoint, TrafficDelta, TrafficSums};

use super::text::Catalogue;

/// What is gone is shown for so long: until whoever collects metrics has seen what it came to.
const GONE: Duration = Duration::from_secs(120);

/// The metrics.
#[derive(Debug, Default)]
pub(super) struct TrafficMetrics {
    addresses: Counts<ServiceAddress>,
    endpoints: Counts<ServiceEndpoint>,
}

/// Packets and bytes by what they came by.
#[derive(Debug)]
struct Counts<L> {
    packets: Labelled<L, Counter>,
    bytes: Labelled<L, Counter>,
    /// What is shown, and when it was there last.
    known: Mutex<HashMap<L, Instant>>,
}

impl TrafficMetrics {
    pub(super) fn register(&self, catalogue: &mut Catalogue) {
        let packets =
            "Packets with which connections to a Service began, by the address they came by: each connection's first packet is counted";
        catalogue.add("sepal_service_packets", packets, self.addresses.packets.clone());
        catalogue.add("sepal_service_bytes", "Bytes of those packets", self.addresses.bytes.clone());
        let packets = "Packets with which connections to a Service began, by the endpoint they went to";
        catalogue.add("sepal_endpoint_packets", packets, self.endpoints.packets.clone());
        catalogue.add("sepal_endpoint_bytes", "Bytes of those packets", self.endpoints.bytes.clone());
    }

    /// Packets of each Service, by namespace and name, through all its addresses.
    pub(super) fn connections(&self) -> HashMap<(String, String), u64> {
        let known = self.addresses.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = HashMap::new();
        for address in known.keys() {
            let packets = self.addresses.packets.get(address).map_or(0, |packets| packets.get());
            *all.entry((address.namespace.clone(), address.service.clone())).or_default() += packets;
        }
        all
    }

    /// Packets to each endpoint of a Service.
    pub(super) fn connections_of(&self, namespace: &str, service: &str) -> BTreeMap<String, u64> {
        let known = self.endpoints.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = BTreeMap::new();
        for endpoint in known.keys().filter(|endpoint| endpoint.namespace == namespace && endpoint.service == service) {
            let packets = self.endpoints.packets.get(endpoint).map_or(0, |packets| packets.get());
            *all.entry(endpoint.endpoint.clone()).or_default() += packets;
        }
        all
    }

    /// So much has come since the last time.
    pub(super) fn add(&self, since: &TrafficDelta, now: Instant) {
        self.addresses.add(&since.addresses, now);
        self.endpoints.add(&since.endpoints, now);
    }
}

impl<L: Clone + Eq + Hash + EncodeLabelSet> Counts<L> {
    /// What is not among these is shown no more after a while; at once, if there are too many of them, or with those that are gone.
    fn add(&self, since: &TrafficSums<L>, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (labels, count) in since.counts() {
            self.packets.get_or_create(labels).inc_by(count.packets);
            self.bytes.get_or_create(labels).inc_by(count.bytes);
            known.insert(labels.clone(), now);
        }
        let patience = if !since.is_over() && since.has_room_for(known.len()) { GONE } else { Duration::ZERO };
        known.retain(|labels, seen| {
            let stays = *seen == now || now.duration_since(*seen) < patience;
            if !stays {
                self.packets.remove(labels);
                self.bytes.remove(labels);
            }
            stays
        });
    }
}

impl<L: Clone + Eq + Hash> Default for Counts<L> {
    fn default() -> Self {
        Self { packets: Labelled::default(), bytes: Labelled::default(), known: Mutex::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::traffic::counts::CounterReading as Rules;

    /// Packets of each endpoint that is shown.
    fn shown(traffic: &TrafficMetrics) -> Vec<(String, u64)> {
        traffic.connections_of("shop", "web").into_iter().collect()
    }

    /// A reading of rules that lead to these endpoints, each with one packet.
    fn reading(endpoints: &[u8], limit: usize) -> TrafficDelta {
        let mut since = TrafficDelta::new(limit);
        for endpoint in endpoints {
            let rule = format!("-p tcp -m comment --comment \"shop/web\" -m tcp -j DNAT --to-destination 10.244.0.{endpoint}:80");
            Rules::reading().line(&format!("[1:60] -A KUBE-SEP-{endpoint} {rule}"), &mut Rules::reading(), &mut since);
        }
        since
    }

    #[test]
    fn what_is_gone_is_shown_until_it_has_been_seen() {
        let (traffic, start) = (TrafficMetrics::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let of = |endpoint: u8, count: u64| (format!("10.244.0.{endpoint}:80"), count);
        traffic.add(&reading(&[1, 2], 4), at(0));
        traffic.add(&reading(&[2], 4), at(100));
        assert_eq!(shown(&traffic), [of(1, 1), of(2, 2)]);
        traffic.add(&reading(&[2], 4), at(130));
        assert_eq!(shown(&traffic), [of(2, 3)]);
        traffic.add(&reading(&[1], 4), at(140));
        assert_eq!(shown(&traffic), [of(1, 1), of(2, 3)], "what comes back begins anew");
        traffic.add(&reading(&[3, 4, 5], 4), at(150));
        assert_eq!(shown(&traffic), [of(3, 1), of(4, 1), of(5, 1)], "there is no room for more");
        traffic.add(&reading(&[1, 2, 3, 4, 5], 4), at(160));
        assert_eq!(shown(&traffic), []);
    }
}
