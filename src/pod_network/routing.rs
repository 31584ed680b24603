//! Finds the route of a packet in a dump of the main table, as `ip route get` does. PURE.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::cluster::Family;

use crate::netlink::entry::{OUR_PROTOCOL, Route, RouteKind};

/// The main table without our own routes, indexed for lookups.
#[derive(Clone, Debug, Default)]
pub struct RoutingTable {
    /// The best route to each destination, by prefix length.
    by_length: BTreeMap<(Family, u8), HashMap<IpAddr, Route>>,
}

impl RoutingTable {
    /// Indexes every route without our protocol. If several have one destination, the one with the lowest metric is used.
    #[must_use]
    pub fn new(routes: &[Route]) -> Self {
        let mut table = Self::default();
        for route in routes.iter().filter(|route| route.protocol != OUR_PROTOCOL) {
            let length = (Family::of_net(route.destination), route.destination.prefix());
            let best = table.by_length.entry(length).or_default().entry(route.destination.network()).or_insert(*route);
            if route.metric < best.metric {
                *best = *route;
            }
        }
        table
    }

    /// The route with the longest prefix that contains an address.
    #[must_use]
    pub fn route(&self, to: IpAddr) -> Option<&Route> {
        let family = Family::of(to);
        self.by_length.range((family, 0)..=(family, 128)).rev().find_map(|((_, length), routes)| {
            let network = IpNetwork::new(to, *length).ok()?.network();
            routes.get(&network)
        })
    }

    /// The link of the route to an address, if the address is on the network of that link (no gateway).
    #[must_use]
    pub(crate) fn neighbour_link(&self, to: IpAddr) -> Option<u32> {
        self.route(to).filter(|route| route.gateway.is_none() && route.kind == RouteKind::Unicast)?.link
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::netlink::entry::BOOT_PROTOCOL;

    /// Parses a route from a text like `10.0.0.0/24 via 10.1.1.1 dev 2 metric 5`.
    pub(in crate::pod_network) fn route(text: &str) -> Route {
        let mut words = text.split(' ');
        let destination = words.next().and_then(|word| word.parse().ok()).expect("a destination");
        let mut route = Route {
            destination,
            gateway: None,
            link: None,
            onlink: false,
            kind: RouteKind::Unicast,
            source: None,
            protocol: BOOT_PROTOCOL,
            metric: if destination.is_ipv4() { 0 } else { 1024 },
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().expect("a value");
            match word {
                "via" => route.gateway = value().parse().ok(),
                "dev" => route.link = value().parse().ok(),
                "src" => route.source = value().parse().ok(),
                "proto" => route.protocol = value().parse().expect("a number"),
                "metric" => route.metric = value().parse().expect("a number"),
                "onlink" => route.onlink = true,
                "blackhole" => route.kind = RouteKind::Blackhole,
                "unreachable" => route.kind = RouteKind::Unreachable,
                word => panic!("unknown word {word}"),
            }
        }
        route
    }

    #[test]
    fn the_longest_prefix_wins_and_our_routes_are_ignored() {
        let routes = [
            "0.0.0.0/0 via 10.1.0.1 dev 2",
            "10.1.0.0/24 dev 3 metric 100",
            "10.1.0.0/24 dev 2",
            "10.1.0.128/25 via 10.1.0.1 dev 2",
            "10.1.0.7/32 blackhole",
            "10.1.0.8/32 dev 9 proto 83",
            "::/0 via fe80::1 dev 2",
            "fd00::/64 dev 2 metric 256",
        ];
        let table = RoutingTable::new(&routes.map(route));
        let link = |ip: &str| table.neighbour_link(ip.parse().expect("an address"));
        assert_eq!((link("10.1.0.2"), link("10.1.0.8"), link("fd00::9")), (Some(2), Some(2), Some(2)));
        assert_eq!((link("10.1.0.200"), link("10.1.0.7"), link("8.8.8.8"), link("2001:db8::1")), (None, None, None, None));
        assert_eq!(table.route([8, 8, 8, 8].into()).and_then(|route| route.link), Some(2));
        assert!(RoutingTable::default().route([8, 8, 8, 8].into()).is_none());
    }
}
