//! Traffic of Services since the previous reading, per address and per endpoint.

use std::collections::HashMap;
use std::hash::Hash;

use prometheus_client::encoding::EncodeLabelSet;

/// By which address of a Service connections come.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServiceAddress {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// The port's name; empty for an unnamed one.
    pub port: String,
    /// `cluster_ip`, `external_ip`, `load_balancer` or `node_port`.
    pub kind: &'static str,
}

/// To which endpoint of a Service connections go.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServiceEndpoint {
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
pub struct PacketCount {
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

    /// What has come since the counter stood there. One that went back began anew.
    pub(crate) const fn since(self, before: Self) -> Self {
        let grown = self.packets >= before.packets && self.bytes >= before.bytes;
        if grown { Self { packets: self.packets - before.packets, bytes: self.bytes - before.bytes } } else { self }
    }
}

/// What has come, by what it came by.
#[derive(Debug)]
pub struct TrafficSums<K> {
    by: HashMap<K, PacketCount>,
    limit: usize,
}

impl<K: Hash + Eq> TrafficSums<K> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { by: HashMap::new(), limit }
    }

    pub(crate) fn add(&mut self, key: K, count: PacketCount) {
        // One more tells that there are too many.
        if self.by.len() <= self.limit || self.by.contains_key(&key) {
            self.by.entry(key).or_default().add(count);
        }
    }

    pub(crate) fn take_back(&mut self, key: &K, count: PacketCount) {
        if let Some(sum) = self.by.get_mut(key) {
            sum.packets = sum.packets.saturating_sub(count.packets);
            sum.bytes = sum.bytes.saturating_sub(count.bytes);
        }
    }

    /// Whether so many may be shown.
    #[must_use]
    pub const fn has_room_for(&self, all: usize) -> bool {
        all <= self.limit
    }

    /// Whether there are too many.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.by.len() > self.limit
    }

    /// Each, unless there are too many.
    #[must_use]
    pub fn counts(&self) -> HashMap<&K, PacketCount> {
        if self.is_over() { HashMap::new() } else { self.by.iter().map(|(key, count)| (key, *count)).collect() }
    }
}

/// What has come since the reading before.
#[derive(Debug)]
pub struct TrafficDelta {
    /// By addresses.
    pub addresses: TrafficSums<ServiceAddress>,
    /// To endpoints.
    pub endpoints: TrafficSums<ServiceEndpoint>,
}

impl TrafficDelta {
    /// Nothing has come yet. What there are more of than this is not counted.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { addresses: TrafficSums::new(limit), endpoints: TrafficSums::new(limit) }
    }
}
