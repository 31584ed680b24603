//! Decides whether a conntrack entry is stale [kube-proxy 8], step 3. PURE.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::frontends::{Frontend, Frontends};

/// The protocol number of UDP in IP headers and conntrack tuples.
pub const UDP: u8 = 17;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The source of its packets.
    pub source: SocketAddr,
    /// The destination of its packets.
    pub destination: SocketAddr,
}

/// A conntrack entry, with the fields that decide whether it is stale and that identify it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// The client's packets, before any translation.
    pub original: Tuple,
    /// The answers, before any translation. Their source is the endpoint.
    pub reply: Tuple,
    /// The conntrack zone of the reply direction; 0 by default.
    pub zone: u16,
    /// The kernel's ID of the entry (`CTA_ID`).
    pub id: Option<u32>,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { original, reply, .. } = self;
        write!(f, "{} -> {}, answered by {}", original.source, original.destination, reply.source)
    }
}

/// The addresses of this node, at which node ports are reachable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalAddresses(HashSet<IpAddr>);

impl LocalAddresses {
    /// Returns true for an address of this node. All loopback addresses count, even if no interface has them.
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

/// Returns true if a flow goes to an endpoint that its Service does not have, or does not have any more.
///
/// As in kube-proxy, a UDP flow to a frontend is stale if the source of its answers is not a serving endpoint of that frontend. This
/// includes flows that were never translated because the rules were written later. TCP and SCTP flows are never stale.
///
/// Unlike kube-proxy:
/// - A translated flow to a frontend without serving endpoints, or to a deleted frontend, is stale. kube-proxy ignores those frontends, so
///   that traffic is lost (k/k#139628) or goes to the pod that gets the IP next (k/k#141371). Flows that were not translated are not
///   stale, because there is no endpoint to translate them to.
/// - A flow to a serving endpoint is never stale, so that a restart interrupts nothing (k/k#122740). For the same reason, an address that
///   is a frontend itself is not also treated as a node port.
/// - A node port exists only at this node's addresses. kube-proxy deletes flows between any two addresses with that destination port
///   [kube-proxy 12.48].
#[must_use]
pub(crate) fn is_stale(flow: &Flow, frontends: &Frontends, local: &LocalAddresses) -> bool {
    if flow.protocol != UDP {
        return false;
    }
    let frontend = flow.original.destination;
    let node_port = || frontends.get(Frontend::NodePort(frontend.port())).filter(|_| local.contains(frontend.ip()));
    let Some(endpoints) = frontends.get(Frontend::Address(frontend)).or_else(node_port) else { return false };
    let endpoint = flow.reply.source;
    if endpoints.is_empty() { endpoint != frontend } else { !endpoints.contains(endpoint) }
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

    /// A flow from a client to a frontend, answered by an endpoint.
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
        frontends.apply(change("deleted", &[(Frontend::Address(at("10.96.0.30:53")), &dns), (Frontend::NodePort(30055), &dns)]));
        frontends.apply(change("deleted", &[]));
        let addresses = ["10.96.0.10:53", "203.0.113.1:53", "192.0.2.1:53", "192.168.0.1:30054"];
        let mut of_dns: Vec<(Frontend, &[SocketAddr])> = addresses.map(|address| (Frontend::Address(at(address)), &dns[..])).to_vec();
        of_dns.push((Frontend::NodePort(30053), &dns));
        frontends.apply(change("dns", &of_dns));
        frontends.apply(change("empty", &[(Frontend::Address(at("10.96.0.20:53")), &[]), (Frontend::NodePort(30054), &[])]));
        frontends
    }

    #[test]
    fn flows_are_stale_unless_a_serving_endpoint_answers() {
        for (to, backend, want) in [
            ("10.96.0.10:53", "10.0.0.1:53", false),
            ("10.96.0.10:53", "10.0.0.3:53", true),
            ("10.96.0.10:53", "10.0.0.1:54", true),
            ("10.96.0.10:54", "10.0.0.3:53", false),
            ("203.0.113.1:53", "10.0.0.3:53", true),
            ("192.0.2.1:53", "10.0.0.3:53", true),
            // Never translated, because the rules were written later.
            ("10.96.0.10:53", "10.96.0.10:53", true),
            // Without serving endpoints, or deleted: translated flows are stale, others are not.
            ("10.96.0.20:53", "10.0.0.3:53", true),
            ("10.96.0.20:53", "10.96.0.20:53", false),
            ("10.96.0.30:53", "10.0.0.1:53", true),
            ("10.96.0.30:53", "10.96.0.30:53", false),
            // Node ports exist at this node's addresses and at loopback, and not at other addresses.
            ("192.168.0.1:30053", "10.0.0.2:53", false),
            ("192.168.0.1:30053", "10.0.0.3:53", true),
            ("127.0.0.5:30053", "10.0.0.3:53", true),
            ("198.51.100.7:30053", "198.51.100.7:30053", false),
            ("198.51.100.7:30053", "10.0.0.3:53", false),
            ("192.168.0.1:30055", "10.0.0.1:53", true),
            // Both an external IP and a node port: the rules compare the address first.
            ("192.168.0.1:30054", "10.0.0.1:53", false),
            ("10.0.0.1:53", "10.0.0.1:53", false),
        ] {
            let mut flow = flow(to, backend);
            assert_eq!(is_stale(&flow, &cluster(), &node()), want, "{flow}");
            for protocol in [6, 132] {
                flow.protocol = protocol;
                assert!(!is_stale(&flow, &cluster(), &node()), "only UDP: {flow}");
            }
        }
    }

    fn some_address() -> impl Strategy<Value = SocketAddr> {
        (0..6_u8, 53..56_u16).prop_map(|(last, port)| SocketAddr::from(([10, 0, 0, last], port)))
    }

    proptest! {
        /// In any cluster, flows of a serving endpoint and flows to no frontend are not stale.
        #[test]
        fn a_flow_to_a_serving_endpoint_is_never_stale(
            addresses in hash_map(some_address(), vec(some_address(), 0..4), 0..6),
            node_ports in hash_map(53..56_u16, vec(some_address(), 0..4), 0..3),
            deleted in vec(some_address(), 0..4),
            local in vec(some_address(), 0..3),
            (to, backend, protocol) in (some_address(), some_address(), prop_oneof![Just(UDP), Just(6), Just(132)]),
        ) {
            let mut frontends = Frontends::default();
            for address in &deleted {
                frontends.apply(change("a", &[(Frontend::Address(*address), &[])]));
            }
            let addressed = addresses.iter().map(|(address, backends)| (Frontend::Address(*address), &backends[..]));
            let ported = node_ports.iter().map(|(port, backends)| (Frontend::NodePort(*port), &backends[..]));
            frontends.apply(change("a", &addressed.chain(ported).collect::<Vec<_>>()));
            let local: LocalAddresses = local.iter().map(SocketAddr::ip).collect();
            let flow = Flow { protocol, ..flow(&to.to_string(), &backend.to_string()) };
            let found = is_stale(&flow, &frontends, &local);

            let by_address = addresses.get(&to).or_else(|| deleted.contains(&to).then_some(const { &Vec::new() }));
            let by_port = node_ports.get(&to.port()).filter(|_| local.contains(to.ip()));
            match by_address.or(by_port) {
                None => prop_assert!(!found),
                Some(endpoints) => {
                    let right = endpoints.contains(&backend) || (endpoints.is_empty() && to == backend);
                    prop_assert_eq!(found, !right && protocol == UDP);
                }
            }
        }
    }
}
