//! Which conntrack entries lead UDP traffic astray (spec section 8, step 3). PURE.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::frontends::{Frontends, Place};

/// The protocol number of UDP in IP headers and conntrack tuples.
pub const UDP: u8 = 17;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Where its packets come from.
    pub source: SocketAddr,
    /// Where they go to.
    pub destination: SocketAddr,
}

/// One conntrack entry, as far as it takes to judge and to delete it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// What the client sent, before any translation.
    pub original: Tuple,
    /// What answers look like on the wire: their source is the backend.
    pub reply: Tuple,
    /// The conntrack zone of the reply direction; 0 unless somebody set one.
    pub zone: u16,
    /// The kernel's mark of this entry (`CTA_ID`).
    pub id: Option<u32>,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { original, reply, .. } = self;
        write!(f, "{} -> {}, answered by {}", original.source, original.destination, reply.source)
    }
}

/// The addresses at which node ports answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalAddresses(HashSet<IpAddr>);

impl LocalAddresses {
    /// Whether an address is this node's. All of loopback is, whatever part of it interfaces say they have.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.0.contains(&ip)
    }
}

impl FromIterator<IpAddr> for LocalAddresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        Self(addresses.into_iter().collect())
    }
}

/// Whether a flow leads somewhere the Service it was meant for does not, or no longer.
///
/// As kube-proxy: a UDP flow to a frontend is stale if its backend is not a serving endpoint of it. That covers flows that were never
/// translated because the rules came later. TCP and SCTP flows are never stale.
///
/// Better than kube-proxy:
/// - A frontend *without* serving endpoints, or one that is gone, leaves no translated flow alive. kube-proxy ignores those frontends;
///   traffic then goes on into the void (k/k#139628), or to whoever has the pod's IP next (k/k#141371). Flows that
///   were not translated are left alone: without endpoints there is nothing they should be translated to.
/// - A flow whose backend is a serving endpoint is never stale, whatever else is, so that a restart interrupts nothing
///   (k/k#122740). For that reason an address that is a frontend of its own is not looked at as a node port as well.
/// - A node port is one at this node's addresses. kube-proxy takes flows from anywhere to anywhere with that destination port for its
///   own, and deletes them (spec section 12.48).
#[must_use]
pub fn stale(flow: &Flow, frontends: &Frontends, local: &LocalAddresses) -> bool {
    if flow.protocol != UDP {
        return false;
    }
    let meant_for = flow.original.destination;
    let node_port = || frontends.at(Place::NodePort(meant_for.port())).filter(|_| local.contains(meant_for.ip()));
    let Some(allowed) = frontends.at(Place::Address(meant_for)).or_else(node_port) else { return false };
    let backend = flow.reply.source;
    if allowed.is_empty() { backend != meant_for } else { !allowed.contains(backend) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::proxy::conntrack::frontends::tests::change;
    use proptest::collection::{hash_map, vec};
    use proptest::prelude::*;

    pub(in crate::proxy::conntrack) fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    /// A flow from a client to a frontend, answered by a backend.
    pub(in crate::proxy::conntrack) fn flow(to: &str, backend: &str) -> Flow {
        let (client, to, backend) = (at("10.0.9.9:40000"), at(to), at(backend));
        Flow {
            protocol: UDP,
            original: Tuple { source: client, destination: to },
            reply: Tuple { source: backend, destination: client },
            zone: 0,
            id: Some(1),
        }
    }

    fn node() -> LocalAddresses {
        [IpAddr::from([192, 168, 0, 1])].into_iter().collect()
    }

    fn cluster() -> Frontends {
        let dns = [at("10.0.0.1:53"), at("10.0.0.2:53")];
        let mut frontends = Frontends::default();
        frontends.take(change("gone", &[(Place::Address(at("10.96.0.30:53")), &dns), (Place::NodePort(30055), &dns)]));
        frontends.take(change("gone", &[]));
        let addresses = ["10.96.0.10:53", "203.0.113.1:53", "192.0.2.1:53", "192.168.0.1:30054"];
        let mut places: Vec<(Place, &[SocketAddr])> = addresses.map(|address| (Place::Address(at(address)), &dns[..])).to_vec();
        places.push((Place::NodePort(30053), &dns));
        frontends.take(change("dns", &places));
        frontends.take(change("empty", &[(Place::Address(at("10.96.0.20:53")), &[]), (Place::NodePort(30054), &[])]));
        frontends
    }

    #[test]
    fn flows_are_stale_if_their_backend_is_no_serving_endpoint() {
        for (to, backend, want) in [
            ("10.96.0.10:53", "10.0.0.1:53", false),
            ("10.96.0.10:53", "10.0.0.3:53", true),
            ("10.96.0.10:53", "10.0.0.1:54", true),
            ("10.96.0.10:54", "10.0.0.3:53", false),
            ("203.0.113.1:53", "10.0.0.3:53", true),
            ("192.0.2.1:53", "10.0.0.3:53", true),
            // Never translated, because the rules came later.
            ("10.96.0.10:53", "10.96.0.10:53", true),
            // Nothing serves, or nothing is there any more: translated flows go, others may stay.
            ("10.96.0.20:53", "10.0.0.3:53", true),
            ("10.96.0.20:53", "10.96.0.20:53", false),
            ("10.96.0.30:53", "10.0.0.1:53", true),
            ("10.96.0.30:53", "10.96.0.30:53", false),
            // Node ports: at this node's addresses, loopback too; not at anybody else's.
            ("192.168.0.1:30053", "10.0.0.2:53", false),
            ("192.168.0.1:30053", "10.0.0.3:53", true),
            ("127.0.0.5:30053", "10.0.0.3:53", true),
            ("198.51.100.7:30053", "198.51.100.7:30053", false),
            ("198.51.100.7:30053", "10.0.0.3:53", false),
            ("192.168.0.1:30055", "10.0.0.1:53", true),
            // Both an external IP and a node port: the address is what the rules look at first.
            ("192.168.0.1:30054", "10.0.0.1:53", false),
            ("10.0.0.1:53", "10.0.0.1:53", false),
        ] {
            let mut flow = flow(to, backend);
            assert_eq!(stale(&flow, &cluster(), &node()), want, "{flow}");
            for protocol in [6, 132] {
                flow.protocol = protocol;
                assert!(!stale(&flow, &cluster(), &node()), "only UDP: {flow}");
            }
        }
    }

    fn some_address() -> impl Strategy<Value = SocketAddr> {
        (0..6_u8, 53..56_u16).prop_map(|(last, port)| SocketAddr::from(([10, 0, 0, last], port)))
    }

    proptest! {
        /// Whatever the cluster and the flow: a serving backend keeps its flows, and flows that are for no frontend are left alone.
        #[test]
        fn a_flow_to_an_allowed_backend_is_never_stale(
            addresses in hash_map(some_address(), vec(some_address(), 0..4), 0..6),
            node_ports in hash_map(53..56_u16, vec(some_address(), 0..4), 0..3),
            gone in vec(some_address(), 0..4),
            local in vec(some_address(), 0..3),
            (to, backend, protocol) in (some_address(), some_address(), prop_oneof![Just(UDP), Just(6), Just(132)]),
        ) {
            let mut frontends = Frontends::default();
            for address in &gone {
                frontends.take(change("a", &[(Place::Address(*address), &[])]));
            }
            let addressed = addresses.iter().map(|(address, backends)| (Place::Address(*address), &backends[..]));
            let ported = node_ports.iter().map(|(port, backends)| (Place::NodePort(*port), &backends[..]));
            frontends.take(change("a", &addressed.chain(ported).collect::<Vec<_>>()));
            let local: LocalAddresses = local.iter().map(SocketAddr::ip).collect();
            let flow = Flow { protocol, ..flow(&to.to_string(), &backend.to_string()) };
            let found = stale(&flow, &frontends, &local);

            let by_address = addresses.get(&to).or_else(|| gone.contains(&to).then_some(const { &Vec::new() }));
            let by_port = node_ports.get(&to.port()).filter(|_| local.contains(to.ip()));
            match by_address.or(by_port) {
                None => prop_assert!(!found),
                Some(allowed) => {
                    let right = allowed.contains(&backend) || (allowed.is_empty() && to == backend);
                    prop_assert_eq!(found, !right && protocol == UDP);
                }
            }
        }
    }
}
