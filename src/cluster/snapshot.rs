//! Everything known about the cluster at one moment, and the changes that move it on.

use std::collections::{BTreeMap, HashMap};

use super::endpoints::{Slice, SliceKey};
use super::node::Node;
use super::service::{Service, ServiceKey};

/// The cluster as this node sees it. What is absent here does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    services: BTreeMap<ServiceKey, Service>,
    slices: BTreeMap<ServiceKey, BTreeMap<String, Slice>>,
    /// Under which Service each slice is filed, so that a slice that moves to another Service leaves the first one.
    filed: HashMap<SliceKey, ServiceKey>,
    node: Option<Node>,
}

/// One step of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A Service as it is now; `None` if it is gone or no longer ours to proxy.
    Service(ServiceKey, Option<Service>),
    /// An EndpointSlice as it is now; `None` if it is gone or useless.
    Slice(SliceKey, Option<Slice>),
    /// This node's Node object; `None` if it is gone.
    Node(Option<Node>),
}

static NO_SLICES: BTreeMap<String, Slice> = BTreeMap::new();

impl Snapshot {
    /// Takes one step; says whether anything that rules may depend on is different now.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Service(key, service) => put(&mut self.services, key, service),
            Change::Slice(key, slice) => self.apply_slice(key, slice),
            // A deleted Node keeps its last address and zone: the node itself is evidently still here (spec section 2).
            Change::Node(None) => false,
            Change::Node(node) => {
                let changed = self.node != node;
                self.node = node;
                changed
            }
        }
    }

    fn apply_slice(&mut self, key: SliceKey, slice: Option<Slice>) -> bool {
        let service = slice.as_ref().map(|s| ServiceKey { namespace: key.namespace.clone(), name: s.service.clone() });
        let mut changed = false;
        if let Some(old) = self.filed.get(&key).filter(|old| Some(*old) != service.as_ref()).cloned() {
            self.filed.remove(&key);
            if let Some(of_service) = self.slices.get_mut(&old) {
                changed |= of_service.remove(&key.name).is_some();
                if of_service.is_empty() {
                    self.slices.remove(&old);
                }
            }
        }
        if let (Some(service), Some(slice)) = (service, slice) {
            self.filed.insert(key.clone(), service.clone());
            changed |= put(self.slices.entry(service).or_default(), key.name, Some(slice));
        }
        changed
    }

    /// All Services, sorted by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceKey, &Service)> {
        self.services.iter()
    }

    /// The slices of one Service, by slice name.
    #[must_use]
    pub fn slices(&self, service: &ServiceKey) -> &BTreeMap<String, Slice> {
        self.slices.get(service).unwrap_or(&NO_SLICES)
    }

    /// How many EndpointSlices are known.
    #[must_use]
    pub fn slice_count(&self) -> usize {
        self.filed.len()
    }

    /// How many Services are known.
    #[must_use]
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// This node, if its Node object has been seen.
    #[must_use]
    pub const fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }
}

fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        None => map.remove(&key).is_some(),
        Some(value) => match map.get_mut(&key) {
            Some(old) if *old == value => false,
            Some(old) => {
                *old = value;
                true
            }
            None => {
                map.insert(key, value);
                true
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Family;

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "ns".into(), name: name.into() }
    }

    fn slice(service: &str) -> Slice {
        Slice { service: service.into(), family: Family::V4, ports: vec![], endpoints: vec![] }
    }

    #[test]
    fn only_real_changes_count() {
        let mut snapshot = Snapshot::default();
        assert!(snapshot.apply(Change::Service(key("a"), Some(Service::default()))));
        assert!(!snapshot.apply(Change::Service(key("a"), Some(Service::default()))));
        assert!(snapshot.apply(Change::Service(key("a"), None)));
        assert!(!snapshot.apply(Change::Service(key("a"), None)));
        assert!(snapshot.apply(Change::Node(Some(Node::default()))));
        assert!(!snapshot.apply(Change::Node(None)), "a deleted Node keeps its last facts");
    }

    #[test]
    fn a_slice_that_changes_its_service_leaves_the_first() {
        let mut snapshot = Snapshot::default();
        let slice_key = SliceKey { namespace: "ns".into(), name: "s".into() };
        assert!(snapshot.apply(Change::Slice(slice_key.clone(), Some(slice("a")))));
        assert!(snapshot.apply(Change::Slice(slice_key.clone(), Some(slice("b")))));
        assert!(snapshot.slices(&key("a")).is_empty());
        assert_eq!(snapshot.slices(&key("b")).len(), 1);
        assert!(snapshot.apply(Change::Slice(slice_key, None)));
        assert_eq!(snapshot, Snapshot::default());
    }
}
