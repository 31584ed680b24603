//! The state of the cluster at one moment, and the changes that update it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::endpoints::{Slice, SliceKey};
use super::node::Node;
use super::service::{Service, ServiceKey};

/// The cluster as this node sees it. An object that is absent here does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Boxed, because nodes of a B-tree are half empty.
    services: BTreeMap<ServiceKey, Box<Service>>,
    /// The slices of each Service, sorted by slice name. Most Services have one.
    slices: BTreeMap<ServiceKey, Vec<(Arc<str>, Slice)>>,
    /// The Service of each slice. When a slice moves to another Service, it is removed from the first one.
    owners: HashMap<SliceKey, ServiceKey>,
    /// Services with a health check node port. There are few of them, but every change needs them, so they are not searched each time.
    checked: BTreeSet<ServiceKey>,
    node: Option<Node>,
    /// Memory of all Services and slices.
    bytes: usize,
}

/// One change of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A Service as it is now; `None` if it was deleted or this proxy does not handle it.
    Service(ServiceKey, Option<Service>),
    /// An EndpointSlice as it is now; `None` if it was deleted or cannot be used.
    Slice(SliceKey, Option<Slice>),
    /// This node's Node object; `None` if it was deleted.
    Node(Option<Node>),
}

/// The objects whose rules may differ after a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AffectedObjects {
    /// Services whose rules may differ.
    pub services: Vec<ServiceKey>,
    /// The Node has changed, so the rules of every Service may differ.
    pub node: bool,
}

impl AffectedObjects {
    /// Returns true if no rule changes.
    #[must_use]
    pub(crate) fn is_nothing(&self) -> bool {
        self.services.is_empty() && !self.node
    }
}

impl Snapshot {
    /// Applies one change and returns the objects whose rules may differ.
    pub fn apply(&mut self, change: Change) -> AffectedObjects {
        let mut touched = AffectedObjects::default();
        match change {
            Change::Service(key, service) => {
                let key = self.shared(key);
                let (before, after) =
                    (self.services.get(&key).map_or(0, |known| known.bytes()), service.as_ref().map_or(0, Service::bytes));
                if service.as_ref().is_some_and(|service| service.health_check_node_port != 0) {
                    self.checked.insert(key.clone());
                } else {
                    self.checked.remove(&key);
                }
                if put(&mut self.services, key.clone(), service.map(Box::new)) {
                    self.bytes = self.bytes + after - before;
                    touched.services.push(key);
                }
            }
            Change::Slice(key, slice) => self.apply_slice(key, slice, &mut touched),
            // After its Node is deleted, this node keeps its last address and zone [kube-proxy 2].
            Change::Node(None) => {}
            Change::Node(Some(node)) => {
                touched.node = !self.node.as_ref().is_some_and(|known| known.same_rules(&node));
                self.node = Some(node);
            }
        }
        touched
    }

    /// Returns an equal key that shares its texts with keys that are already in memory, if there are such keys.
    fn shared(&self, key: ServiceKey) -> ServiceKey {
        let known = self.services.get_key_value(&key).map(|(known, _)| known);
        let Some(known) = known.or_else(|| self.slices.get_key_value(&key).map(|(known, _)| known)) else {
            let before = self.services.range(..&key).next_back().map(|(before, _)| before);
            let namespace = before.map(|before| &before.namespace).filter(|namespace| **namespace == key.namespace);
            return ServiceKey { namespace: namespace.unwrap_or(&key.namespace).clone(), name: key.name };
        };
        known.clone()
    }

    fn apply_slice(&mut self, mut key: SliceKey, mut slice: Option<Slice>, touched: &mut AffectedObjects) {
        let service = slice.as_mut().map(|slice| {
            let service = self.shared(ServiceKey { namespace: key.namespace.clone(), name: slice.service.clone() });
            slice.service = service.name.clone();
            key.namespace = service.namespace.clone();
            service
        });
        if let Some(old) = self.owners.get(&key).filter(|old| Some(*old) != service.as_ref()).cloned() {
            self.owners.remove(&key);
            if let Some(of_service) = self.slices.get_mut(&old) {
                if let Ok(at) = of_service.binary_search_by(|(name, _)| name.cmp(&key.name)) {
                    self.bytes -= of_service.remove(at).1.bytes();
                }
                if of_service.is_empty() {
                    self.slices.remove(&old);
                }
            }
            touched.services.push(old);
        }
        let (Some(service), Some(slice)) = (service, slice) else { return };
        let of_service = self.slices.entry(service.clone()).or_default();
        match of_service.binary_search_by(|(name, _)| name.cmp(&key.name)) {
            Ok(at) if of_service[at].1 == slice => return,
            Ok(at) => {
                self.bytes = self.bytes + slice.bytes() - of_service[at].1.bytes();
                of_service[at].1 = slice;
            }
            Err(at) => {
                self.bytes += slice.bytes();
                // Reserve one: most Services have one slice.
                of_service.reserve_exact(1);
                of_service.insert(at, (key.name.clone(), slice));
            }
        }
        self.owners.insert(key, service.clone());
        touched.services.push(service);
    }

    /// Removes every Service that is not in the set. Returns the removed Services.
    pub(crate) fn retain_services(&mut self, known: &HashSet<ServiceKey>) -> AffectedObjects {
        let removed: Vec<ServiceKey> = self.services.keys().filter(|key| !known.contains(key)).cloned().collect();
        for key in &removed {
            self.bytes -= self.services.remove(key).map_or(0, |service| service.bytes());
            self.checked.remove(key);
        }
        AffectedObjects { services: removed, node: false }
    }

    /// Removes every slice that is not in the set. Returns the Services of the removed slices.
    pub(crate) fn retain_slices(&mut self, known: &HashSet<SliceKey>) -> AffectedObjects {
        let removed: Vec<SliceKey> = self.owners.keys().filter(|key| !known.contains(key)).cloned().collect();
        let mut touched = AffectedObjects::default();
        for key in removed {
            self.apply_slice(key, None, &mut touched);
        }
        touched
    }

    /// All Services, sorted by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceKey, &Service)> {
        self.services.iter().map(|(key, service)| (key, &**service))
    }

    /// The Services with a health check node port, sorted.
    pub(crate) fn health_checked(&self) -> impl Iterator<Item = (&ServiceKey, &Service)> {
        self.checked.iter().filter_map(|key| Some((key, self.service(key)?)))
    }

    /// One Service.
    #[must_use]
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key).map(|service| &**service)
    }

    /// The slices of one Service, by slice name.
    pub fn slices(&self, service: &ServiceKey) -> impl Iterator<Item = &Slice> {
        self.slices.get(service).into_iter().flatten().map(|(_, slice)| slice)
    }

    /// One EndpointSlice.
    #[must_use]
    pub fn slice(&self, key: &SliceKey) -> Option<&Slice> {
        let of_service = self.slices.get(self.owners.get(key)?)?;
        of_service.binary_search_by(|(name, _)| name.cmp(&key.name)).ok().map(|at| &of_service[at].1)
    }

    /// Memory of all Services and slices in bytes, estimated from the lengths of their fields. Names, maps and the allocator's overhead are
    /// not included.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of EndpointSlices.
    #[must_use]
    pub(crate) fn slice_count(&self) -> usize {
        self.owners.len()
    }

    /// Number of Services.
    #[must_use]
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// This node's Node; `None` until the API server has sent it.
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

    fn of(services: &[&str]) -> AffectedObjects {
        AffectedObjects { services: services.iter().map(|name| key(name)).collect(), node: false }
    }

    #[test]
    fn an_equal_object_changes_no_rules() {
        let mut snapshot = Snapshot::default();
        assert_eq!(snapshot.apply(Change::Service(key("a"), Some(Service::default()))), of(&["a"]));
        assert!(snapshot.apply(Change::Service(key("a"), Some(Service::default()))).is_nothing());
        assert_eq!(snapshot.apply(Change::Service(key("a"), None)), of(&["a"]));
        assert!(snapshot.apply(Change::Service(key("a"), None)).is_nothing());
        assert!(snapshot.apply(Change::Node(Some(Node::default()))).node);
        assert!(snapshot.apply(Change::Node(None)).is_nothing(), "a deleted Node keeps its last facts");
        assert!(snapshot.apply(Change::Node(Some(Node { leaving: true, ..Node::default() }))).is_nothing(), "no rule depends on it");
        assert!(snapshot.node().is_some_and(|node| node.leaving));
    }

    #[test]
    fn a_slice_that_moves_to_another_service_leaves_the_first() {
        let mut snapshot = Snapshot::default();
        let slice_key = SliceKey { namespace: "ns".into(), name: "s".into() };
        assert_eq!(snapshot.apply(Change::Slice(slice_key.clone(), Some(slice("a")))), of(&["a"]));
        assert!(snapshot.apply(Change::Slice(slice_key.clone(), Some(slice("a")))).is_nothing());
        assert_eq!(snapshot.apply(Change::Slice(slice_key.clone(), Some(slice("b")))), of(&["a", "b"]));
        assert_eq!((snapshot.slices(&key("a")).count(), snapshot.slices(&key("b")).count()), (0, 1));
        assert_eq!(snapshot.apply(Change::Slice(slice_key, None)), of(&["b"]));
        assert_eq!(snapshot, Snapshot::default());
    }

    #[test]
    fn health_checked_services_are_those_with_a_port() {
        let mut snapshot = Snapshot::default();
        let with = |health_check_node_port| Some(Service { health_check_node_port, ..Service::default() });
        let mut names = |key: &str, service| {
            snapshot.apply(Change::Service(self::key(key), service));
            snapshot.health_checked().map(|(key, _)| key.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names("b", with(31000)), ["b"]);
        assert_eq!(names("c", with(0)), ["b"]);
        assert_eq!(names("a", with(31001)), ["a", "b"]);
        assert_eq!(names("b", with(0)), ["a"]);
        assert_eq!(names("a", None), [""; 0]);
        names("a", with(31001));
        snapshot.retain_services(&HashSet::new());
        assert_eq!(snapshot, Snapshot::default());
    }

    #[test]
    fn equal_names_share_memory() {
        let mut snapshot = Snapshot::default();
        let apply = |snapshot: &mut Snapshot, name: &str| {
            snapshot.apply(Change::Service(key(name), Some(Service::default())));
            snapshot.apply(Change::Slice(SliceKey { namespace: "ns".into(), name: name.into() }, Some(slice(name))));
        };
        apply(&mut snapshot, "a");
        apply(&mut snapshot, "b");
        let keys: Vec<&ServiceKey> = snapshot.services.keys().chain(snapshot.slices.keys()).chain(snapshot.owners.values()).collect();
        assert!(keys.iter().all(|key| Arc::ptr_eq(&key.namespace, &keys[0].namespace)));
        assert!(snapshot.owners.keys().all(|slice| Arc::ptr_eq(&slice.namespace, &keys[0].namespace)));
        for name in ["a", "b"] {
            let of_name: Vec<_> = keys.iter().filter(|key| &*key.name == name).collect();
            assert_eq!(of_name.len(), 3);
            assert!(of_name.iter().all(|key| Arc::ptr_eq(&key.name, &of_name[0].name)));
        }
    }

    #[test]
    fn objects_that_a_full_list_lacks_are_removed() {
        let mut snapshot = Snapshot::default();
        let empty = snapshot.bytes();
        for name in ["a", "b"] {
            snapshot.apply(Change::Service(key(name), Some(Service::default())));
            snapshot.apply(Change::Slice(SliceKey { namespace: "ns".into(), name: name.into() }, Some(slice(name))));
        }
        assert_eq!(snapshot.retain_services(&HashSet::from([key("b")])), of(&["a"]));
        assert_eq!(snapshot.retain_slices(&HashSet::new()).services.len(), 2);
        assert_eq!((snapshot.service_count(), snapshot.slice_count()), (1, 0));
        assert_eq!(snapshot.bytes() - empty, Service::default().bytes());
        assert_eq!(snapshot.slice(&SliceKey { namespace: "ns".into(), name: "a".into() }), None);
    }
}
