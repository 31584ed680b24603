//! Traffic of Services.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;

use crate::agent::service_traffic::{Door, Since, Sums, Target};

use super::text::Catalogue;

/// The metrics.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    doors: Counts<Door>,
    targets: Counts<Target>,
}

/// Packets and bytes by what they came by.
#[derive(Debug)]
struct Counts<L> {
    packets: Labelled<L, Counter>,
    bytes: Labelled<L, Counter>,
    /// What there was at the last reading.
    known: Mutex<HashSet<L>>,
}

impl Traffic {
    pub(super) fn register(&self, catalogue: &mut Catalogue) {
        let packets =
            "Packets with which connections to a Service began, by the door they came by: each connection's first packet is counted";
        catalogue.add("sepal_service_packets", packets, self.doors.packets.clone());
        catalogue.add("sepal_service_bytes", "Bytes of those packets", self.doors.bytes.clone());
        let packets = "Packets with which connections to a Service began, by the endpoint they went to";
        catalogue.add("sepal_endpoint_packets", packets, self.targets.packets.clone());
        catalogue.add("sepal_endpoint_bytes", "Bytes of those packets", self.targets.bytes.clone());
    }

    /// Packets of each Service, by namespace and name, through all its doors.
    pub(super) fn connections(&self) -> HashMap<(String, String), u64> {
        let known = self.doors.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = HashMap::new();
        for door in &*known {
            let packets = self.doors.packets.get(door).map_or(0, |packets| packets.get());
            *all.entry((door.namespace.clone(), door.service.clone())).or_default() += packets;
        }
        all
    }

    /// Packets to each endpoint of a Service.
    pub(super) fn connections_of(&self, namespace: &str, service: &str) -> BTreeMap<String, u64> {
        let known = self.targets.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = BTreeMap::new();
        for target in known.iter().filter(|target| target.namespace == namespace && target.service == service) {
            let packets = self.targets.packets.get(target).map_or(0, |packets| packets.get());
            *all.entry(target.endpoint.clone()).or_default() += packets;
        }
        all
    }

    /// So much has come since the last time.
    pub(super) fn add(&self, since: &Since) {
        self.doors.add(&since.doors);
        self.targets.add(&since.targets);
    }
}

impl<L: Clone + Eq + Hash + EncodeLabelSet> Counts<L> {
    /// What is not among these is shown no more.
    fn add(&self, since: &Sums<L>) {
        let since = since.counts();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.iter().filter(|known| !since.contains_key(known)) {
            self.packets.remove(gone);
            self.bytes.remove(gone);
        }
        for (labels, count) in &since {
            self.packets.get_or_create(labels).inc_by(count.packets);
            self.bytes.get_or_create(labels).inc_by(count.bytes);
        }
        *known = since.into_keys().cloned().collect();
    }
}

impl<L: Clone + Eq + Hash> Default for Counts<L> {
    fn default() -> Self {
        Self { packets: Labelled::default(), bytes: Labelled::default(), known: Mutex::default() }
    }
}
