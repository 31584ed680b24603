//! Traffic of Services.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;

use crate::agent::service_traffic::{Count, Door};

use super::text::Catalogue;

/// Labels of a door of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDoor {
    namespace: String,
    service: String,
    port: String,
    kind: &'static str,
}

/// The metrics.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    packets: Labelled<OfDoor, Counter>,
    bytes: Labelled<OfDoor, Counter>,
    /// The doors that there were at the last reading.
    known: Mutex<HashSet<Door>>,
}

impl Traffic {
    pub(super) fn register(&self, catalogue: &mut Catalogue) {
        let packets =
            "Packets with which connections to a Service began, by the door they came by: each connection's first packet is counted";
        catalogue.add("sepal_service_packets", packets, self.packets.clone());
        catalogue.add("sepal_service_bytes", "Bytes of those packets", self.bytes.clone());
    }

    /// So much has come by these doors since the last time. Others are shown no more.
    pub(super) fn add(&self, since: &HashMap<Door, Count>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for door in known.iter().filter(|door| !since.contains_key(*door)) {
            let labels = OfDoor::new(door);
            self.packets.remove(&labels);
            self.bytes.remove(&labels);
        }
        for (door, count) in since {
            let labels = OfDoor::new(door);
            self.packets.get_or_create(&labels).inc_by(count.packets);
            self.bytes.get_or_create(&labels).inc_by(count.bytes);
        }
        *known = since.keys().cloned().collect();
    }
}

impl OfDoor {
    fn new(door: &Door) -> Self {
        let Door { namespace, service, port, kind } = door.clone();
        Self { namespace, service, port, kind }
    }
}
