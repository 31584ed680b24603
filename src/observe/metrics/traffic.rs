//! The metrics of Service traffic.

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

/// How long the counters of a removed address or endpoint are still shown, so that a scrape collects their final values.
const SHOWN_AFTER_REMOVAL: Duration = Duration::from_secs(120);

/// The metrics of Service traffic.
#[derive(Debug, Default)]
pub(super) struct TrafficMetrics {
    addresses: LabelledCounters<ServiceAddress>,
    endpoints: LabelledCounters<ServiceEndpoint>,
}

/// Packet and byte counters by address or by endpoint.
#[derive(Debug)]
struct LabelledCounters<L> {
    packets: Labelled<L, Counter>,
    bytes: Labelled<L, Counter>,
    /// The labels that are shown, each with the time of its last reading.
    shown: Mutex<HashMap<L, Instant>>,
}

impl TrafficMetrics {
    pub(super) fn register(&self, catalogue: &mut Catalogue) {
        let packets = "First packets of connections to a Service, by the address of the Service";
        catalogue.add("sepal_service_packets", packets, self.addresses.packets.clone());
        catalogue.add(
            "sepal_service_bytes",
            "Bytes of the first packets of connections to a Service, by the address of the Service",
            self.addresses.bytes.clone(),
        );
        let packets = "First packets of connections to a Service, by endpoint";
        catalogue.add("sepal_endpoint_packets", packets, self.endpoints.packets.clone());
        catalogue.add(
            "sepal_endpoint_bytes",
            "Bytes of the first packets of connections to a Service, by endpoint",
            self.endpoints.bytes.clone(),
        );
    }

    /// Returns the packets to each Service, by namespace and name, over all its addresses.
    pub(super) fn connections(&self) -> HashMap<(String, String), u64> {
        let shown = self.addresses.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = HashMap::new();
        for address in shown.keys() {
            let packets = self.addresses.packets.get(address).map_or(0, |packets| packets.get());
            *all.entry((address.namespace.clone(), address.service.clone())).or_default() += packets;
        }
        all
    }

    /// Returns the packets to each endpoint of a Service.
    pub(super) fn connections_of(&self, namespace: &str, service: &str) -> BTreeMap<String, u64> {
        let shown = self.endpoints.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = BTreeMap::new();
        for endpoint in shown.keys().filter(|endpoint| endpoint.namespace == namespace && endpoint.service == service) {
            let packets = self.endpoints.packets.get(endpoint).map_or(0, |packets| packets.get());
            *all.entry(endpoint.endpoint.clone()).or_default() += packets;
        }
        all
    }

    /// Adds the traffic since the last reading.
    pub(super) fn add(&self, delta: &TrafficDelta, now: Instant) {
        self.addresses.add(&delta.addresses, now);
        self.endpoints.add(&delta.endpoints, now);
    }
}

impl<L: Clone + Eq + Hash + EncodeLabelSet> LabelledCounters<L> {
    /// Adds the traffic since the last reading. Labels without a rule are hidden after [`SHOWN_AFTER_REMOVAL`], or at once if there are more
    /// labels than the limit.
    fn add(&self, delta: &TrafficSums<L>, now: Instant) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for (labels, count) in delta.counts() {
            self.packets.get_or_create(labels).inc_by(count.packets);
            self.bytes.get_or_create(labels).inc_by(count.bytes);
            shown.insert(labels.clone(), now);
        }
        let shown_for = if !delta.is_over() && delta.has_room_for(shown.len()) { SHOWN_AFTER_REMOVAL } else { Duration::ZERO };
        shown.retain(|labels, seen| {
            let stays = *seen == now || now.duration_since(*seen) < shown_for;
            if !stays {
                self.packets.remove(labels);
                self.bytes.remove(labels);
            }
            stays
        });
    }
}

impl<L: Clone + Eq + Hash> Default for LabelledCounters<L> {
    fn default() -> Self {
        Self { packets: Labelled::default(), bytes: Labelled::default(), shown: Mutex::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::service_traffic::PacketCount;

    /// The packets of each endpoint that is shown.
    fn shown(traffic: &TrafficMetrics) -> Vec<(String, u64)> {
        traffic.connections_of("shop", "web").into_iter().collect()
    }

    /// The traffic of a reading in which each of these endpoints got one packet.
    fn reading(endpoints: &[u8], limit: usize) -> TrafficDelta {
        let mut delta = TrafficDelta::new(limit);
        for endpoint in endpoints {
            let endpoint = ServiceEndpoint {
                namespace: "shop".to_owned(),
                service: "web".to_owned(),
                port: String::new(),
                endpoint: format!("10.244.0.{endpoint}:80"),
            };
            delta.endpoints.add(endpoint, PacketCount { packets: 1, bytes: 60 });
        }
        delta
    }

    #[test]
    fn removed_endpoints_are_shown_for_two_minutes() {
        let (traffic, start) = (TrafficMetrics::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let of = |endpoint: u8, count: u64| (format!("10.244.0.{endpoint}:80"), count);
        traffic.add(&reading(&[1, 2], 4), at(0));
        traffic.add(&reading(&[2], 4), at(100));
        assert_eq!(shown(&traffic), [of(1, 1), of(2, 2)]);
        traffic.add(&reading(&[2], 4), at(130));
        assert_eq!(shown(&traffic), [of(2, 3)]);
        traffic.add(&reading(&[1], 4), at(140));
        assert_eq!(shown(&traffic), [of(1, 1), of(2, 3)], "an endpoint that returns starts at zero");
        traffic.add(&reading(&[3, 4, 5], 4), at(150));
        assert_eq!(shown(&traffic), [of(3, 1), of(4, 1), of(5, 1)], "there is no room for removed endpoints");
        traffic.add(&reading(&[1, 2, 3, 4, 5], 4), at(160));
        assert_eq!(shown(&traffic), []);
    }
}
