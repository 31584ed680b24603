//! Where UDP services are reached, and the backends that traffic to each of those places may be on its way to. PURE.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::cluster::{Family, Protocol, ServiceKey, Snapshot, endpoints};

/// The backends traffic may be on its way to. All frontends of a service port share one; a clone costs no memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed(Arc<[SocketAddr]>);

impl Allowed {
    /// A set of backends, in whatever order and however often each is named.
    #[must_use]
    pub fn new(backends: impl IntoIterator<Item = SocketAddr>) -> Self {
        let mut backends: Vec<_> = backends.into_iter().collect();
        backends.sort_unstable();
        backends.dedup();
        Self(backends.into())
    }

    /// Whether traffic may be on its way to this backend.
    #[must_use]
    pub fn contains(&self, backend: SocketAddr) -> bool {
        self.0.binary_search(&backend).is_ok()
    }

    /// Nothing serves here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self == other
    }

    fn has_all_of(&self, other: &Self) -> bool {
        self.same(other) || other.0.iter().all(|backend| self.contains(*backend))
    }

    fn union(&self, other: &Self) -> Self {
        if self.same(other) { self.clone() } else { Self::new(self.0.iter().chain(other.0.iter()).copied()) }
    }
}

/// A place where service ports are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// This address.
    Address(SocketAddr),
    /// This port of the node's own addresses.
    NodePort(u16),
}

/// The places where the UDP ports of one Service are reached in one family, sorted, each with its backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached(Vec<(Place, Allowed)>);

impl Reached {
    /// One Service's places: cluster IP, load-balancer VIPs, external IPs if they are allowed (gate `AllowServiceExternalIPs`), node
    /// port. Allowed is every *serving* endpoint, also if it is terminating, on another node or left out by topology (spec section 8,
    /// step 2). None if there is no such Service, or it has no UDP port in this family.
    #[must_use]
    pub fn of_service(snapshot: &Snapshot, key: &ServiceKey, family: Family, allow_external_ips: bool) -> Self {
        let mut reached = Self::default();
        let Some((service, cluster_ip)) = snapshot.service(key).and_then(|service| Some((service, service.cluster_ip(family)?))) else {
            return reached;
        };
        for port in service.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            // Which endpoints are local makes no difference here, hence no node name.
            let endpoints = endpoints::of_service_port(snapshot.slices(key), family, &port.name, port.protocol, "");
            let serving = endpoints.iter().filter(|endpoint| endpoint.conditions.serving);
            let allowed = Allowed::new(serving.filter_map(|endpoint| endpoint.id.parse().ok()));
            let external_ips = service.external_ips(family).filter(|_| allow_external_ips);
            for ip in [cluster_ip].into_iter().chain(service.load_balancer_vips(family)).chain(external_ips) {
                reached.add(Place::Address(SocketAddr::new(ip, port.port)), &allowed);
            }
            if port.node_port != 0 {
                reached.add(Place::NodePort(port.node_port), &allowed);
            }
        }
        reached
    }

    /// A service port is reached here. Where two are, the backends of both are allowed.
    pub fn add(&mut self, place: Place, allowed: &Allowed) {
        match self.0.binary_search_by_key(&place, |(place, _)| *place) {
            Ok(at) => self.0[at].1 = self.0[at].1.union(allowed),
            Err(at) => self.0.insert(at, (place, allowed.clone())),
        }
    }
}

/// Services whose places may be others now, with the places they have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services that are not named here have none.
    whole: bool,
    services: HashMap<ServiceKey, Reached>,
}

impl Changes {
    /// Everything there is in a cluster: whatever was known before and is not in it is gone.
    #[must_use]
    pub fn whole(snapshot: &Snapshot, family: Family, allow_external_ips: bool) -> Self {
        let of_service = |key: &ServiceKey| Reached::of_service(snapshot, key, family, allow_external_ips);
        let all = snapshot.services().map(|(key, _)| (key.clone(), of_service(key)));
        Self { whole: true, services: all.filter(|(_, reached)| !reached.0.is_empty()).collect() }
    }

    /// What these Services have; nothing is said of others.
    #[must_use]
    pub fn of(services: impl IntoIterator<Item = (ServiceKey, Reached)>) -> Self {
        Self { whole: false, services: services.into_iter().collect() }
    }

    /// Takes later changes on top.
    pub fn add(&mut self, later: Self) {
        if later.whole {
            *self = later;
        } else {
            self.services.extend(later.services);
        }
    }
}

/// The frontends of all UDP service ports of one family. Ports of other protocols are not in it.
///
/// Besides those there are now, it can hold *gone* ones: no backend is allowed for them, so that flows of a deleted Service, a
/// removed external IP or a former node port do not go on to a pod IP that somebody else has by now (k/k#141371).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    /// The Services that are reached at a place, sorted, each with its backends. Hardly ever more than one.
    live: HashMap<Place, Vec<(ServiceKey, Allowed)>>,
    /// Where each Service is reached.
    services: HashMap<ServiceKey, Box<[Place]>>,
    /// Service ports were reached here until a while ago, and flows of that time may still be in the kernel.
    gone: HashSet<Place>,
}

/// The backends allowed at one place, of all Services that are reached there; none at one that is gone.
#[derive(Clone, Copy, Debug)]
pub struct Backends<'a>(&'a [(ServiceKey, Allowed)]);

impl Backends<'_> {
    /// Whether traffic may be on its way to this backend.
    #[must_use]
    pub fn contains(&self, backend: SocketAddr) -> bool {
        self.0.iter().any(|(_, allowed)| allowed.contains(backend))
    }

    /// Nothing serves here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|(_, allowed)| allowed.is_empty())
    }

    fn together(&self) -> Option<Allowed> {
        let mut all = self.0.iter().map(|(_, allowed)| allowed);
        let first = all.next()?.clone();
        Some(all.fold(first, |together, allowed| together.union(allowed)))
    }
}

impl Frontends {
    /// Takes what changed; places that no Service is reached at any more count as gone from here on. Says whether flows may be stale now
    /// that were not before: some place lost a backend, or went away with its backends; or one has backends for the first time, so that
    /// flows that went through untranslated have to start anew.
    pub fn take(&mut self, changes: Changes) -> bool {
        let Changes { whole, mut services } = changes;
        if whole {
            let left_out: Vec<ServiceKey> = self.services.keys().filter(|key| !services.contains_key(*key)).cloned().collect();
            services.extend(left_out.into_iter().map(|key| (key, Reached::default())));
        }
        // As it was before all of the changes: what one Service loses, another may have taken over.
        let mut before = HashMap::new();
        for (key, reached) in services {
            self.put(&key, reached, &mut before);
        }
        let mut may_be_stale = false;
        for (place, before) in before {
            let now = self.live.get(&place).and_then(|services| Backends(services).together());
            may_be_stale |= may_leave_stale(before.as_ref(), now.as_ref());
            if now.is_some() {
                self.gone.remove(&place);
            } else {
                self.gone.insert(place);
            }
        }
        may_be_stale
    }

    fn put(&mut self, key: &ServiceKey, reached: Reached, before: &mut HashMap<Place, Option<Allowed>>) {
        let places: Box<[Place]> = reached.0.iter().map(|(place, _)| *place).collect();
        let former =
            if places.is_empty() { self.services.remove(key) } else { self.services.insert(key.clone(), places) }.unwrap_or_default();
        for place in former {
            let Some(services) = self.live.get_mut(&place) else { continue };
            before.entry(place).or_insert_with(|| Backends(services).together());
            services.retain(|(service, _)| service != key);
            if services.is_empty() {
                self.live.remove(&place);
            }
        }
        for (place, allowed) in reached.0 {
            let services = self.live.entry(place).or_default();
            before.entry(place).or_insert_with(|| Backends(services).together());
            let at = services.partition_point(|(service, _)| service < key);
            services.insert(at, (key.clone(), allowed));
        }
    }

    /// The backends allowed at a place; none at one that is gone. `None` if it is no frontend.
    #[must_use]
    pub fn at(&self, place: Place) -> Option<Backends<'_>> {
        let live = self.live.get(&place).map(|services| Backends(services));
        live.or_else(|| self.gone.contains(&place).then_some(Backends(&[])))
    }

    /// There is no frontend, gone ones included: no flow can be stale.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.gone.is_empty()
    }

    /// Drops the frontends that are gone.
    pub fn forget_gone(&mut self) {
        self.gone = HashSet::new();
    }
}

/// Whether flows through a place may be stale after this step. At one that was gone before nothing is lost: whoever remembers it owes a
/// round already.
fn may_leave_stale(before: Option<&Allowed>, now: Option<&Allowed>) -> bool {
    let served = |allowed: Option<&Allowed>| allowed.is_some_and(|allowed| !allowed.is_empty());
    let lost = match (before, now) {
        (Some(before), Some(now)) => !now.has_all_of(before),
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

    /// What one Service has now.
    pub(in crate::proxy::conntrack) fn change(name: &str, places: &[(Place, &[SocketAddr])]) -> Changes {
        let mut reached = Reached::default();
        for (place, backends) in places {
            reached.add(*place, &Allowed::new(backends.iter().copied()));
        }
        Changes::of([(service(name), reached)])
    }

    fn backends(frontends: &Frontends, place: Place) -> Option<Allowed> {
        frontends.live.get(&place).and_then(|services| Backends(services).together())
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
    fn a_cluster_is_udp_frontends_with_their_serving_endpoints() {
        let taken = |family, external_ips| {
            let mut frontends = Frontends::default();
            frontends.take(Changes::whole(&snapshot(), family, external_ips));
            frontends
        };
        // The unnamed port has no endpoints, and shares its addresses with port dns: what is allowed for one is for both.
        let serving = Allowed::new([at("10.0.0.1:5353"), at("10.0.0.2:5353")]);
        let found = taken(Family::V4, true);
        for place in [
            Place::Address(at("10.96.0.10:53")),
            Place::Address(at("203.0.113.1:53")),
            Place::Address(at("192.0.2.1:53")),
            Place::NodePort(30053),
        ] {
            assert_eq!(backends(&found, place).as_ref(), Some(&serving), "{place:?}");
        }
        assert_eq!(found.live.len(), 4);
        assert!(taken(Family::V4, false).at(Place::Address(at("192.0.2.1:53"))).is_none());
        assert!(taken(Family::V6, true).is_empty(), "no cluster IP of that family");
    }

    #[test]
    fn only_losses_and_first_backends_may_leave_stale_flows() {
        let (one, two) = (at("10.0.0.1:53"), at("10.0.0.2:53"));
        for place in [Place::Address(at("10.96.0.10:53")), Place::NodePort(30053)] {
            let with = |backends: &[SocketAddr]| change("a", &[(place, backends)]);
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
                (with(&[one]), Changes { whole: true, ..Changes::default() }, true),
            ] {
                let mut frontends = Frontends::default();
                frontends.take(before.clone());
                assert_eq!(frontends.take(now.clone()), want, "{before:?} -> {now:?}");
            }
            let mut frontends = Frontends::default();
            frontends.take(with(&[one]));
            frontends.take(without());
            assert!(frontends.take(with(&[one])), "it has backends again");
        }
    }

    #[test]
    fn a_place_that_another_service_takes_over_loses_nothing() {
        let (place, one, two) = (Place::NodePort(30053), at("10.0.0.1:53"), at("10.0.0.2:53"));
        let mut frontends = Frontends::default();
        frontends.take(change("a", &[(place, &[one])]));
        let mut both = change("a", &[]);
        both.add(change("b", &[(place, &[one])]));
        assert!(!frontends.take(both));
        assert!(!frontends.take(change("c", &[(place, &[two])])), "the backends of both are allowed");
        assert!(frontends.at(place).is_some_and(|backends| backends.contains(one) && backends.contains(two)));
        assert!(frontends.take(change("b", &[])));
        assert!(frontends.at(place).is_some_and(|backends| !backends.contains(one) && backends.contains(two)));
    }

    #[test]
    fn what_is_gone_allows_nothing_until_it_is_back_or_forgotten() {
        let (place, one) = (Place::Address(at("10.96.0.10:53")), at("10.0.0.1:53"));
        let gone = |frontends: &Frontends| frontends.at(place).is_some_and(|backends| backends.is_empty());
        let mut frontends = Frontends::default();
        frontends.take(change("a", &[(place, &[one])]));
        frontends.take(change("a", &[]));
        assert!(gone(&frontends));
        frontends.take(change("b", &[]));
        assert!(gone(&frontends), "it stays gone");
        frontends.take(change("b", &[(place, &[one])]));
        assert!(frontends.gone.is_empty() && !gone(&frontends), "it is back");
        frontends.take(change("b", &[]));
        frontends.forget_gone();
        assert!(frontends.is_empty());
    }

    /// A step of a small cluster, in which Services share external IPs and node ports.
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
        /// Whatever happens, and however many steps come together: what was changed piece by piece is what is built anew, and it is known
        /// when flows may have gone stale.
        #[test]
        fn piece_by_piece_is_as_built_anew(batches in vec(vec(some_change(), 1..4), 1..12)) {
            let mut snapshot = Snapshot::default();
            let mut frontends = Frontends::default();
            for batch in batches {
                let before = frontends.clone();
                let mut changes = Changes::default();
                for change in batch {
                    for key in snapshot.apply(change).services {
                        let reached = Reached::of_service(&snapshot, &key, Family::V4, true);
                        changes.add(Changes::of([(key, reached)]));
                    }
                }
                let may_be_stale = frontends.take(changes);

                let mut anew = Frontends::default();
                anew.take(Changes::whole(&snapshot, Family::V4, true));
                prop_assert_eq!((&frontends.live, &frontends.services), (&anew.live, &anew.services));
                let mut whole = before.clone();
                prop_assert_eq!(whole.take(Changes::whole(&snapshot, Family::V4, true)), may_be_stale);
                prop_assert_eq!(&whole, &frontends);
                let places: HashSet<Place> = before.live.keys().chain(frontends.live.keys()).copied().collect();
                let found = places.iter().any(|place| may_leave_stale(backends(&before, *place).as_ref(), backends(&frontends, *place).as_ref()));
                prop_assert_eq!(found, may_be_stale);
                for place in before.live.keys().chain(&before.gone) {
                    prop_assert!(frontends.at(*place).is_some(), "remembered until it is forgotten");
                }
            }
        }
    }
}
