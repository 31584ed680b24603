//! Traffic of Services since the previous reading, per address and per endpoint.

use std::collections::HashMap;
use std::hash::Hash;

use prometheus_client::encoding::EncodeLabelSet;

/// An address of a service port, by its kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ServiceAddress {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// The port's name; empty for an unnamed one.
    pub port: String,
    /// `cluster_ip`, `external_ip`, `load_balancer` or `node_port`.
    pub kind: &'static str,
}

/// An endpoint of a service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ServiceEndpoint {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// The port's name; empty for an unnamed one.
    pub port: String,
    /// Address and port, like `10.244.0.5:8080`.
    pub endpoint: String,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PacketCount {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl PacketCount {
    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }

    /// Returns the difference to an earlier count. If the count is smaller, the counter was reset, and all of it is new.
    pub(crate) const fn since(self, before: Self) -> Self {
        let grown = self.packets >= before.packets && self.bytes >= before.bytes;
        if grown { Self { packets: self.packets - before.packets, bytes: self.bytes - before.bytes } } else { self }
    }
}

/// Packet counts by address or by endpoint. Above the limit nothing is shown.
#[derive(Debug)]
pub(crate) struct TrafficSums<K> {
    by: HashMap<K, PacketCount>,
    limit: usize,
}

impl<K: Hash + Eq> TrafficSums<K> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { by: HashMap::new(), limit }
    }

    pub(crate) fn add(&mut self, key: K, count: PacketCount) {
        // One key more than the limit is stored, which shows that there are too many.
        if self.by.len() <= self.limit || self.by.contains_key(&key) {
            self.by.entry(key).or_default().add(count);
        }
    }

    pub(crate) fn subtract(&mut self, key: &K, count: PacketCount) {
        if let Some(sum) = self.by.get_mut(key) {
            sum.packets = sum.packets.saturating_sub(count.packets);
            sum.bytes = sum.bytes.saturating_sub(count.bytes);
        }
    }

    /// Returns true if this number of keys is within the limit.
    #[must_use]
    pub(crate) const fn has_room_for(&self, all: usize) -> bool {
        all <= self.limit
    }

    /// Returns true if there are more keys than the limit.
    #[must_use]
    pub(crate) fn is_over(&self) -> bool {
        self.by.len() > self.limit
    }

    /// Returns all counts, or none if there are more keys than the limit.
    #[must_use]
    pub(crate) fn counts(&self) -> HashMap<&K, PacketCount> {
        if self.is_over() { HashMap::new() } else { self.by.iter().map(|(key, count)| (key, *count)).collect() }
    }
}

/// The traffic since the reading before.
#[derive(Debug)]
pub(crate) struct TrafficDelta {
    /// By Service address.
    pub addresses: TrafficSums<ServiceAddress>,
    /// By endpoint.
    pub endpoints: TrafficSums<ServiceEndpoint>,
}

impl TrafficDelta {
    /// No traffic yet. Addresses and endpoints are each counted up to this limit.
    #[must_use]
    pub(crate) fn new(limit: usize) -> Self {
        Self { addresses: TrafficSums::new(limit), endpoints: TrafficSums::new(limit) }
    }
}
