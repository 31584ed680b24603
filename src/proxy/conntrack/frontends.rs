//! The frontends of UDP service ports, and the serving endpoints of each. PURE.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::cluster::{Family, Protocol, ServiceKey, Snapshot, endpoints};

/// The serving endpoints of a service port. All its frontends share one set; a clone does not copy it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingEndpoints(Arc<[SocketAddr]>);

impl ServingEndpoints {
    /// A set of endpoints, from a list in any order and with duplicates.
    #[must_use]
    pub fn new(endpoints: impl IntoIterator<Item = SocketAddr>) -> Self {
        let mut endpoints: Vec<_> = endpoints.into_iter().collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        Self(endpoints.into())
    }

    /// True if the endpoint is in the set.
    #[must_use]
    pub fn contains(&self, endpoint: SocketAddr) -> bool {
        self.0.binary_search(&endpoint).is_ok()
    }

    /// True if there is no serving endpoint.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self == other
    }

    fn contains_all(&self, other: &Self) -> bool {
        self.same(other) || other.0.iter().all(|endpoint| self.contains(*endpoint))
    }

    fn union(&self, other: &Self) -> Self {
        if self.same(other) { self.clone() } else { Self::new(self.0.iter().chain(other.0.iter()).copied()) }
    }
}

/// A destination at which clients reach a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Frontend {
    /// An IP and a port. The IP is a cluster IP, load-balancer VIP or external IP.
    Address(SocketAddr),
    /// A port at the node's own addresses.
    NodePort(u16),
}

/// The frontends of one Service's UDP ports in one family, sorted, each with its serving endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceFrontends(Vec<(Frontend, ServingEndpoints)>);

impl ServiceFrontends {
    /// The frontends of a Service: cluster IP, load-balancer VIPs, external IPs if they are permitted (gate `AllowServiceExternalIPs`),
    /// node ports. Their endpoints are all *serving* ones, including terminating endpoints, endpoints on other nodes and endpoints that
    /// topology excludes [kube-proxy 8], step 2. Empty if the Service does not exist or has no UDP port in this family.
    #[must_use]
    pub fn of_service(snapshot: &Snapshot, key: &ServiceKey, family: Family, allow_external_ips: bool) -> Self {
        let mut frontends = Self::default();
        let Some((service, cluster_ip)) = snapshot.service(key).and_then(|service| Some((service, service.cluster_ip(family)?))) else {
            return frontends;
        };
        for port in service.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            // No node name is needed, because it does not matter which endpoints are local.
            let endpoints = endpoints::of_service_port(snapshot.slices(key), family, &port.name, port.protocol, "");
            let serving = endpoints.iter().filter(|endpoint| endpoint.conditions.serving);
            let serving = ServingEndpoints::new(serving.filter_map(|endpoint| endpoint.id.parse().ok()));
            let external_ips = service.external_ips(family).filter(|_| allow_external_ips);
            for ip in [cluster_ip].into_iter().chain(service.load_balancer_vips(family)).chain(external_ips) {
                frontends.add(Frontend::Address(SocketAddr::new(ip, port.port)), &serving);
            }
            if port.node_port != 0 {
                frontends.add(Frontend::NodePort(port.node_port), &serving);
            }
        }
        frontends
    }

    /// Adds a frontend. If two service ports share one, it has the endpoints of both.
    pub fn add(&mut self, frontend: Frontend, endpoints: &ServingEndpoints) {
        match self.0.binary_search_by_key(&frontend, |(frontend, _)| *frontend) {
            Ok(at) => self.0[at].1 = self.0[at].1.union(endpoints),
            Err(at) => self.0.insert(at, (frontend, endpoints.clone())),
        }
    }
}

/// Services whose frontends may have changed, with their current frontends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontendChanges {
    /// True if all other Services are deleted.
    complete: bool,
    services: HashMap<ServiceKey, ServiceFrontends>,
}

impl FrontendChanges {
    /// All Services of a cluster. Services that are not in it are deleted.
    #[must_use]
    pub fn all(snapshot: &Snapshot, family: Family, allow_external_ips: bool) -> Self {
        let of_service = |key: &ServiceKey| ServiceFrontends::of_service(snapshot, key, family, allow_external_ips);
        let all = snapshot.services().map(|(key, _)| (key.clone(), of_service(key)));
        Self { complete: true, services: all.filter(|(_, frontends)| !frontends.0.is_empty()).collect() }
    }

    /// These Services. Other Services have not changed.
    #[must_use]
    pub fn of(services: impl IntoIterator<Item = (ServiceKey, ServiceFrontends)>) -> Self {
        Self { complete: false, services: services.into_iter().collect() }
    }

    /// Adds later changes.
    pub fn add(&mut self, later: Self) {
        if later.complete {
            *self = later;
        } else {
            self.services.extend(later.services);
        }
    }
}

/// The frontends of all UDP service ports of one family. Service ports of other protocols are not included.
///
/// *Deleted* frontends, which have no endpoints, are included. Without them, flows of a deleted Service, of a removed external IP or of a
/// former node port would continue to a pod IP that another pod may have by now (k/k#141371).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    /// The Services of each frontend, sorted, each with its endpoints. There is rarely more than one Service.
    live: HashMap<Frontend, Vec<(ServiceKey, ServingEndpoints)>>,
    /// The frontends of each Service.
    services: HashMap<ServiceKey, Box<[Frontend]>>,
    /// Frontends that were deleted. The kernel may still have flows to them.
    deleted: HashSet<Frontend>,
}

/// The endpoints of one frontend, from all Services that share it. A deleted frontend has none.
#[derive(Clone, Copy, Debug)]
pub struct FrontendEndpoints<'a>(&'a [(ServiceKey, ServingEndpoints)]);

impl FrontendEndpoints<'_> {
    /// True if the endpoint serves at this frontend.
    #[must_use]
    pub fn contains(&self, endpoint: SocketAddr) -> bool {
        self.0.iter().any(|(_, endpoints)| endpoints.contains(endpoint))
    }

    /// True if there is no serving endpoint.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|(_, endpoints)| endpoints.is_empty())
    }

    fn union(&self) -> Option<ServingEndpoints> {
        let mut all = self.0.iter().map(|(_, endpoints)| endpoints);
        let first = all.next()?.clone();
        Some(all.fold(first, |union, endpoints| union.union(endpoints)))
    }
}

impl Frontends {
    /// Applies changes. A frontend that no Service has any more becomes a deleted one. Returns true if flows may have become stale: a
    /// frontend lost an endpoint, a frontend with endpoints was deleted, or a frontend got its first endpoint, so that untranslated flows
    /// to it have to start again.
    pub fn apply(&mut self, changes: FrontendChanges) -> bool {
        let FrontendChanges { complete, mut services } = changes;
        if complete {
            let missing: Vec<ServiceKey> = self.services.keys().filter(|key| !services.contains_key(*key)).cloned().collect();
            services.extend(missing.into_iter().map(|key| (key, ServiceFrontends::default())));
        }
        // Compare with the state before all changes, because one Service may take over a frontend that another Service loses.
        let mut before = HashMap::new();
        for (key, frontends) in services {
            self.put(&key, frontends, &mut before);
        }
        let mut may_be_stale = false;
        for (frontend, before) in before {
            let now = self.live.get(&frontend).and_then(|services| FrontendEndpoints(services).union());
            may_be_stale |= may_leave_stale(before.as_ref(), now.as_ref());
            if now.is_some() {
                self.deleted.remove(&frontend);
            } else {
                self.deleted.insert(frontend);
            }
        }
        may_be_stale
    }

    fn put(&mut self, key: &ServiceKey, current: ServiceFrontends, before: &mut HashMap<Frontend, Option<ServingEndpoints>>) {
        let frontends: Box<[Frontend]> = current.0.iter().map(|(frontend, _)| *frontend).collect();
        let former =
            if frontends.is_empty() { self.services.remove(key) } else { self.services.insert(key.clone(), frontends) }.unwrap_or_default();
        for frontend in former {
            let Some(services) = self.live.get_mut(&frontend) else { continue };
            before.entry(frontend).or_insert_with(|| FrontendEndpoints(services).union());
            services.retain(|(service, _)| service != key);
            if services.is_empty() {
                self.live.remove(&frontend);
            }
        }
        for (frontend, endpoints) in current.0 {
            let services = self.live.entry(frontend).or_default();
            before.entry(frontend).or_insert_with(|| FrontendEndpoints(services).union());
            let at = services.partition_point(|(service, _)| service < key);
            services.insert(at, (key.clone(), endpoints));
        }
    }

    /// The endpoints of a frontend; a deleted frontend has none. `None` if there is no such frontend.
    #[must_use]
    pub fn get(&self, frontend: Frontend) -> Option<FrontendEndpoints<'_>> {
        let live = self.live.get(&frontend).map(|services| FrontendEndpoints(services));
        live.or_else(|| self.deleted.contains(&frontend).then_some(FrontendEndpoints(&[])))
    }

    /// True if there is no frontend, not even a deleted one. No flow can be stale then.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.deleted.is_empty()
    }

    /// Drops the deleted frontends.
    pub(crate) fn forget_deleted(&mut self) {
        self.deleted = HashSet::new();
    }
}

/// Returns true if this change may have made flows to a frontend stale. A deleted frontend cannot lose an endpoint: a reconciliation is
/// already pending for it.
fn may_leave_stale(before: Option<&ServingEndpoints>, now: Option<&ServingEndpoints>) -> bool {
    let served = |endpoints: Option<&ServingEndpoints>| endpoints.is_some_and(|endpoints| !endpoints.is_empty());
    let lost = match (before, now) {
        (Some(before), Some(now)) => !now.contains_all(before),
        (before, None) => served(before),
        (None, Some(_)) => false,
    };
    lost || (served(now) && !served(before))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cluster::{Change, Conditions, Hints, Service, ServicePort, Slice, SliceEndpoint, SliceKey, SlicePort};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    pub(in crate::proxy::conntrack) fn service(name: &str) -> ServiceKey {
        ServiceKey { namespace: "ns".into(), name: name.into() }
    }

    /// The current frontends of one Service.
    pub(in crate::proxy::conntrack) fn change(name: &str, current: &[(Frontend, &[SocketAddr])]) -> FrontendChanges {
        let mut frontends = ServiceFrontends::default();
        for (frontend, endpoints) in current {
            frontends.add(*frontend, &ServingEndpoints::new(endpoints.iter().copied()));
        }
        FrontendChanges::of([(service(name), frontends)])
    }

    fn endpoints(frontends: &Frontends, frontend: Frontend) -> Option<ServingEndpoints> {
        frontends.live.get(&frontend).and_then(|services| FrontendEndpoints(services).union())
    }

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        let port = |name: &str, protocol, node_port| ServicePort { name: name.into(), protocol, port: 53, node_port };
        let service = Service {
            cluster_ip_v4: Some([10, 96, 0, 10].into()),
            ports: vec![port("dns", Protocol::Udp, 30053), port("dns-tcp", Protocol::Tcp, 30054), port("", Protocol::Udp, 0)],
            external_ips: vec![[192, 0, 2, 1].into()],
            load_balancer_vips: vec![[203, 0, 113, 1].into(), "2001:db8::1".parse().expect("an address")],
            ..Service::default()
        };
        let key = ServiceKey { namespace: "kube-system".into(), name: "dns".into() };
        snapshot.apply(Change::Service(key, Some(service)));
        let endpoint = |last, ready, serving, terminating| SliceEndpoint {
            ip: [10, 0, 0, last].into(),
            conditions: Conditions { ready, serving, terminating },
            node: "".into(),
            hints: Some(Box::new(Hints { zones: vec!["elsewhere".into()], nodes: vec![] })),
        };
        let slice = Slice {
            service: "dns".into(),
            family: Family::V4,
            ports: vec![
                SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: 5353 },
                SlicePort { name: "dns-tcp".into(), protocol: Protocol::Tcp, port: 5353 },
            ],
            endpoints: vec![endpoint(1, true, true, false), endpoint(2, false, true, true), endpoint(3, false, false, true)],
        };
        snapshot.apply(Change::Slice(SliceKey { namespace: "kube-system".into(), name: "dns-1".into() }, Some(slice)));
        snapshot
    }

    #[test]
    fn udp_frontends_have_their_serving_endpoints() {
        let frontends_of = |family, external_ips| {
            let mut frontends = Frontends::default();
            frontends.apply(FrontendChanges::all(&snapshot(), family, external_ips));
            frontends
        };
        // The unnamed port has no endpoints, and shares its addresses with port dns.
        let serving = ServingEndpoints::new([at("10.0.0.1:5353"), at("10.0.0.2:5353")]);
        let found = frontends_of(Family::V4, true);
        for frontend in [
            Frontend::Address(at("10.96.0.10:53")),
            Frontend::Address(at("203.0.113.1:53")),
            Frontend::Address(at("192.0.2.1:53")),
            Frontend::NodePort(30053),
        ] {
            assert_eq!(endpoints(&found, frontend).as_ref(), Some(&serving), "{frontend:?}");
        }
        assert_eq!(found.live.len(), 4);
        assert!(frontends_of(Family::V4, false).get(Frontend::Address(at("192.0.2.1:53"))).is_none());
        assert!(frontends_of(Family::V6, true).is_empty(), "no cluster IP of that family");
    }

    #[test]
    fn only_lost_and_first_endpoints_may_leave_stale_flows() {
        let (one, two) = (at("10.0.0.1:53"), at("10.0.0.2:53"));
        for frontend in [Frontend::Address(at("10.96.0.10:53")), Frontend::NodePort(30053)] {
            let with = |endpoints: &[SocketAddr]| change("a", &[(frontend, endpoints)]);
            let without = || change("a", &[]);
            for (before, now, want) in [
                (with(&[one]), with(&[one]), false),
                (with(&[one]), with(&[two, one]), false),
                (with(&[two, one]), with(&[one]), true),
                (with(&[one]), with(&[]), true),
                (with(&[]), with(&[one]), true),
                (without(), with(&[one]), true),
                (without(), with(&[]), false),
                (with(&[one]), without(), true),
                (with(&[]), without(), false),
                (with(&[one]), FrontendChanges { complete: true, ..FrontendChanges::default() }, true),
            ] {
                let mut frontends = Frontends::default();
                frontends.apply(before.clone());
                assert_eq!(frontends.apply(now.clone()), want, "{before:?} -> {now:?}");
            }
            let mut frontends = Frontends::default();
            frontends.apply(with(&[one]));
            frontends.apply(without());
            assert!(frontends.apply(with(&[one])), "it has endpoints again");
        }
    }

    #[test]
    fn a_frontend_that_another_service_takes_over_loses_no_endpoint() {
        let (frontend, one, two) = (Frontend::NodePort(30053), at("10.0.0.1:53"), at("10.0.0.2:53"));
        let mut frontends = Frontends::default();
        frontends.apply(change("a", &[(frontend, &[one])]));
        let mut both = change("a", &[]);
        both.add(change("b", &[(frontend, &[one])]));
        assert!(!frontends.apply(both));
        assert!(!frontends.apply(change("c", &[(frontend, &[two])])), "it has the endpoints of both");
        assert!(frontends.get(frontend).is_some_and(|endpoints| endpoints.contains(one) && endpoints.contains(two)));
        assert!(frontends.apply(change("b", &[])));
        assert!(frontends.get(frontend).is_some_and(|endpoints| !endpoints.contains(one) && endpoints.contains(two)));
    }

    #[test]
    fn a_deleted_frontend_has_no_endpoints_until_it_is_back_or_forgotten() {
        let (frontend, one) = (Frontend::Address(at("10.96.0.10:53")), at("10.0.0.1:53"));
        let deleted = |frontends: &Frontends| frontends.get(frontend).is_some_and(|endpoints| endpoints.is_empty());
        let mut frontends = Frontends::default();
        frontends.apply(change("a", &[(frontend, &[one])]));
        frontends.apply(change("a", &[]));
        assert!(deleted(&frontends));
        frontends.apply(change("b", &[]));
        assert!(deleted(&frontends), "it stays deleted");
        frontends.apply(change("b", &[(frontend, &[one])]));
        assert!(frontends.deleted.is_empty() && !deleted(&frontends), "it is back");
        frontends.apply(change("b", &[]));
        frontends.forget_deleted();
        assert!(frontends.is_empty());
    }

    /// A change of a small cluster, in which Services share external IPs and node ports.
    fn some_change() -> impl Strategy<Value = Change> {
        let name = || prop_oneof![Just("a"), Just("b"), Just("c")];
        let protocol = prop_oneof![3 => Just(Protocol::Udp), 1 => Just(Protocol::Tcp)];
        let port = (prop_oneof![Just(""), Just("x")], protocol, 53..55_u16, prop_oneof![Just(0), Just(30053), Just(30054)]);
        let some_service = (1..4_u8, vec(1..3_u8, 0..2), vec(port, 0..3)).prop_map(|(ip, external, ports)| Service {
            cluster_ip_v4: Some([10, 96, 0, ip].into()),
            external_ips: external.into_iter().map(|last| [192, 0, 2, last].into()).collect(),
            ports: ports
                .into_iter()
                .map(|(name, protocol, port, node_port)| ServicePort { name: name.into(), protocol, port, node_port })
                .collect(),
            ..Service::default()
        });
        let endpoint = (1..5_u8, any::<bool>()).prop_map(|(last, serving)| SliceEndpoint {
            ip: [10, 0, 0, last].into(),
            conditions: Conditions { ready: serving, serving, terminating: !serving },
            node: "".into(),
            hints: None,
        });
        let slice = (name(), prop_oneof![Just(""), Just("x")], vec(endpoint, 0..3)).prop_map(|(service, port, endpoints)| Slice {
            service: service.into(),
            family: Family::V4,
            ports: vec![SlicePort { name: port.into(), protocol: Protocol::Udp, port: 5353 }],
            endpoints,
        });
        prop_oneof![
            (name(), proptest::option::weighted(0.8, some_service)).prop_map(|(name, value)| Change::Service(service(name), value)),
            (name(), proptest::option::weighted(0.8, slice))
                .prop_map(|(name, value)| Change::Slice(SliceKey { namespace: "ns".into(), name: name.into() }, value)),
        ]
    }

    proptest! {
        /// After any batches of changes, the frontends equal those of a full computation. So does the answer whether flows may be stale.
        #[test]
        fn incremental_changes_equal_a_full_computation(batches in vec(vec(some_change(), 1..4), 1..12)) {
            let mut snapshot = Snapshot::default();
            let mut frontends = Frontends::default();
            for batch in batches {
                let before = frontends.clone();
                let mut changes = FrontendChanges::default();
                for change in batch {
                    for key in snapshot.apply(change).services {
                        let frontends = ServiceFrontends::of_service(&snapshot, &key, Family::V4, true);
                        changes.add(FrontendChanges::of([(key, frontends)]));
                    }
                }
                let may_be_stale = frontends.apply(changes);

                let mut rebuilt = Frontends::default();
                rebuilt.apply(FrontendChanges::all(&snapshot, Family::V4, true));
                prop_assert_eq!((&frontends.live, &frontends.services), (&rebuilt.live, &rebuilt.services));
                let mut updated = before.clone();
                prop_assert_eq!(updated.apply(FrontendChanges::all(&snapshot, Family::V4, true)), may_be_stale);
                prop_assert_eq!(&updated, &frontends);
                let all: HashSet<Frontend> = before.live.keys().chain(frontends.live.keys()).copied().collect();
                let found = all.iter().any(|frontend| {
                    may_leave_stale(endpoints(&before, *frontend).as_ref(), endpoints(&frontends, *frontend).as_ref())
                });
                prop_assert_eq!(found, may_be_stale);
                for frontend in before.live.keys().chain(&before.deleted) {
                    prop_assert!(frontends.get(*frontend).is_some(), "kept until it is forgotten");
                }
            }
        }
    }
}
