//! Where UDP services are reached, and the backends that traffic to each of those places may be on its way to. PURE.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::cluster::{Family, Protocol, Snapshot, endpoints};

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

/// What is known of one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Frontend {
    /// A service port is reached here.
    Live(Allowed),
    /// One was reached here until a while ago, and flows of that time may still be in the kernel.
    Gone,
}

/// The frontends of all UDP service ports of one family. Ports of other protocols are not in it.
///
/// Besides those there are now, it can hold *gone* ones: no backend is allowed for them, so that flows of a deleted Service, a
/// removed external IP or a former node port do not go on to a pod IP that somebody else has by now (k/k#141371).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    addresses: HashMap<SocketAddr, Frontend>,
    node_ports: HashMap<u16, Frontend>,
}

impl Frontends {
    /// The frontends of a cluster's UDP service ports in one family: cluster IP, load-balancer VIPs, external IPs if they are
    /// allowed (gate `AllowServiceExternalIPs`), node port. Allowed is every *serving* endpoint, also if it is terminating, on
    /// another node or left out by topology (spec section 8, step 2).
    #[must_use]
    pub fn of_snapshot(snapshot: &Snapshot, family: Family, allow_external_ips: bool) -> Self {
        let mut frontends = Self::default();
        for (key, service) in snapshot.services() {
            let Some(cluster_ip) = service.cluster_ip(family) else { continue };
            for port in service.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
                // Which endpoints are local makes no difference here, hence no node name.
                let endpoints = endpoints::of_service_port(snapshot.slices(key), family, &port.name, port.protocol, "");
                let serving = endpoints.iter().filter(|endpoint| endpoint.conditions.serving);
                let allowed = Allowed::new(serving.filter_map(|endpoint| endpoint.id.parse().ok()));
                let external_ips = service.external_ips(family).filter(|_| allow_external_ips);
                for ip in [cluster_ip].into_iter().chain(service.load_balancer_vips(family)).chain(external_ips) {
                    frontends.add_address(SocketAddr::new(ip, port.port), &allowed);
                }
                if port.node_port != 0 {
                    frontends.add_node_port(port.node_port, &allowed);
                }
            }
        }
        frontends
    }

    /// A service port is reached at this address. Where two are, the backends of both are allowed.
    pub fn add_address(&mut self, address: SocketAddr, allowed: &Allowed) {
        add(&mut self.addresses, address, allowed);
    }

    /// A service port is reached at this port of the node's own addresses. Where two are, the backends of both are allowed.
    pub fn add_node_port(&mut self, port: u16, allowed: &Allowed) {
        add(&mut self.node_ports, port, allowed);
    }

    /// The backends allowed for an address; none for one that is gone. `None` if it is no frontend.
    #[must_use]
    pub fn address(&self, address: SocketAddr) -> Option<&[SocketAddr]> {
        self.addresses.get(&address).map(Frontend::allowed)
    }

    /// The backends allowed for a node port; none for one that is gone. `None` if it is no frontend.
    #[must_use]
    pub fn node_port(&self, port: u16) -> Option<&[SocketAddr]> {
        self.node_ports.get(&port).map(Frontend::allowed)
    }

    /// There is no frontend, gone ones included: no flow can be stale.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.node_ports.is_empty()
    }

    /// Whether flows may be stale now that were not before: some frontend lost a backend, or went away with its backends; or one
    /// has backends for the first time, so that flows that went through untranslated have to start anew.
    #[must_use]
    pub fn may_leave_stale(&self, before: &Self) -> bool {
        may_leave_stale(&before.addresses, &self.addresses) || may_leave_stale(&before.node_ports, &self.node_ports)
    }

    /// Takes over as gone whatever was there before, or was gone before, and is not here now.
    pub fn remember_gone(&mut self, before: &Self) {
        remember_gone(&mut self.addresses, &before.addresses);
        remember_gone(&mut self.node_ports, &before.node_ports);
    }

    /// Drops the frontends that are gone.
    pub fn forget_gone(&mut self) {
        self.addresses.retain(|_, frontend| *frontend != Frontend::Gone);
        self.node_ports.retain(|_, frontend| *frontend != Frontend::Gone);
    }
}

impl Frontend {
    fn allowed(&self) -> &[SocketAddr] {
        match self {
            Self::Live(allowed) => &allowed.0,
            Self::Gone => &[],
        }
    }
}

fn add<K: Eq + Hash>(frontends: &mut HashMap<K, Frontend>, key: K, allowed: &Allowed) {
    let merged = match frontends.get(&key) {
        Some(Frontend::Live(other)) => other.union(allowed),
        Some(Frontend::Gone) | None => allowed.clone(),
    };
    frontends.insert(key, Frontend::Live(merged));
}

fn may_leave_stale<K: Eq + Hash>(before: &HashMap<K, Frontend>, now: &HashMap<K, Frontend>) -> bool {
    let lost = before.iter().any(|(key, before)| match (before, now.get(key)) {
        (Frontend::Live(before), Some(Frontend::Live(now))) => !now.has_all_of(before),
        (Frontend::Live(before), _) => !before.is_empty(),
        // Whoever remembers it owes a round already.
        (Frontend::Gone, _) => false,
    });
    let served = |frontend: Option<&Frontend>| frontend.is_some_and(|frontend| !frontend.allowed().is_empty());
    lost || now.iter().any(|(key, now)| served(Some(now)) && !served(before.get(key)))
}

fn remember_gone<K: Eq + Hash + Copy>(now: &mut HashMap<K, Frontend>, before: &HashMap<K, Frontend>) {
    for key in before.keys() {
        now.entry(*key).or_insert(Frontend::Gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Change, Conditions, Service, ServiceKey, ServicePort, Slice, SliceEndpoint, SliceKey, SlicePort};

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn frontends(entries: &[(&str, &[&str])]) -> Frontends {
        let mut frontends = Frontends::default();
        for (address, backends) in entries {
            frontends.add_address(at(address), &Allowed::new(backends.iter().map(|backend| at(backend))));
        }
        frontends
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
            zone_hints: vec!["elsewhere".into()],
            node_hints: vec![],
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
        // The unnamed port has no endpoints, and shares its addresses with port dns: what is allowed for one is for both.
        let serving = Allowed::new([at("10.0.0.1:5353"), at("10.0.0.2:5353")]);
        let mut want = Frontends::default();
        for address in ["10.96.0.10:53", "203.0.113.1:53", "192.0.2.1:53"] {
            want.add_address(at(address), &serving);
        }
        want.add_node_port(30053, &serving);
        assert_eq!(Frontends::of_snapshot(&snapshot(), Family::V4, true), want);
        assert_eq!(Frontends::of_snapshot(&snapshot(), Family::V4, false).address(at("192.0.2.1:53")), None);
        assert!(Frontends::of_snapshot(&snapshot(), Family::V6, true).is_empty(), "no cluster IP of that family");
    }

    #[test]
    fn only_losses_and_first_backends_may_leave_stale_flows() {
        let (one, two) = ("10.0.0.1:53", "10.0.0.2:53");
        let service = "10.96.0.10:53";
        for (before, now, want) in [
            (frontends(&[(service, &[one])]), frontends(&[(service, &[one])]), false),
            (frontends(&[(service, &[one])]), frontends(&[(service, &[two, one])]), false),
            (frontends(&[(service, &[two, one])]), frontends(&[(service, &[one])]), true),
            (frontends(&[(service, &[one])]), frontends(&[(service, &[])]), true),
            (frontends(&[(service, &[])]), frontends(&[(service, &[one])]), true),
            (frontends(&[]), frontends(&[(service, &[one])]), true),
            (frontends(&[]), frontends(&[(service, &[])]), false),
            (frontends(&[(service, &[one])]), frontends(&[]), true),
            (frontends(&[(service, &[])]), frontends(&[]), false),
        ] {
            assert_eq!(now.may_leave_stale(&before), want, "{before:?} -> {now:?}");
        }
        let (mut without, mut with) = (Frontends::default(), Frontends::default());
        with.add_node_port(30053, &Allowed::new([at(one)]));
        assert!(with.may_leave_stale(&without) && without.may_leave_stale(&with));
        without.remember_gone(&with);
        assert!(with.may_leave_stale(&without), "it has backends again");
    }

    #[test]
    fn what_is_gone_allows_nothing_until_it_is_back_or_forgotten() {
        let service = "10.96.0.10:53";
        let before = frontends(&[(service, &["10.0.0.1:53"])]);
        let mut now = Frontends::default();
        now.remember_gone(&before);
        assert_eq!(now.address(at(service)), Some(&[][..]));
        let mut later = Frontends::default();
        later.remember_gone(&now);
        assert_eq!(later, now, "it stays gone");
        later.add_address(at(service), &Allowed::new([at("10.0.0.2:53")]));
        later.remember_gone(&before);
        assert_eq!(later, frontends(&[(service, &["10.0.0.2:53"])]), "it is back");
        now.forget_gone();
        assert!(now.is_empty());
    }
}
