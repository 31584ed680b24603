//! Routes of other programs that divert packets from a peer.
//!
//! A route with the same destination and metric as one of ours is replaced: it exists by mistake, and it does not lead to the peer's pods. A
//! route that the kernel prefers for another reason is reported and not changed: it has a lower metric or a more specific destination, or
//! a link has an address in the peer's subnet.

use crate::netlink::entry::{KERNEL_PROTOCOL, Route, RouteKind};
use crate::netlink::link::LinkNames;

/// A route of another program, and our route that it displaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRoute {
    /// The peer that our route leads to; `None` for the route of this node's own subnet.
    pub node: Option<Box<str>>,
    /// Our route.
    pub desired: Route,
    /// The other program's route.
    pub found: Route,
}

/// Returns true if the kernel created the route for an address of a link.
#[must_use]
pub fn is_connected(route: &Route) -> bool {
    route.protocol == KERNEL_PROTOCOL && route.gateway.is_none() && route.kind == RouteKind::Unicast
}

/// The name of a route protocol, as `ip route` prints it.
#[must_use]
pub(crate) fn protocol_name(protocol: u8) -> String {
    let name = match protocol {
        2 => "kernel",
        3 => "boot",
        4 => "static",
        9 => "ra",
        11 => "zebra",
        12 => "bird",
        16 => "dhcp",
        18 => "keepalived",
        42 => "babel",
        84 => "ovn",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        number => return number.to_string(),
    };
    name.to_owned()
}

impl ForeignRoute {
    /// The text of the other program's route with its protocol.
    #[must_use]
    pub(crate) fn found_text(&self, names: &LinkNames) -> String {
        format!("{} proto {}", self.found.text(names), protocol_name(self.found.protocol))
    }

    /// The text of our route's destination.
    fn target(&self) -> String {
        let destination = self.desired.destination;
        match &self.node {
            Some(node) => format!("{destination} (pods of node {node})"),
            None => format!("{destination} (this node's subnet)"),
        }
    }

    /// The message that the route is replaced.
    #[must_use]
    pub(crate) fn replaced_text(&self, names: &LinkNames) -> String {
        let found = self.found_text(names);
        format!(
            "another program changed the route to {}: `{found}` is replaced. Find the program; it must leave this route alone",
            self.target()
        )
    }

    /// The message that another program keeps writing the route.
    #[must_use]
    pub(crate) fn contested_text(&self, names: &LinkNames, times: u32, pause: u64) -> String {
        let (target, found) = (self.target(), self.found_text(names));
        format!(
            "another program writes the route to {target} again and again: `{found}` was replaced {times} times, and is left there for {pause} s \
             now. Packets to {} are lost meanwhile. Find the program; it must leave this route alone",
            self.desired.destination
        )
    }

    /// The message why the kernel prefers the other route, and that it is not changed.
    #[must_use]
    pub(crate) fn in_the_way_text(&self, names: &LinkNames) -> String {
        let (target, found) = (self.target(), self.found_text(names));
        if is_connected(&self.found) {
            let link = self.found.link.map_or_else(|| "a link".into(), |link| format!("link {}", names.name(link)));
            return format!(
                "{link} has an address in {target}, so its route `{found}` takes the place of ours. Give the link another address, or choose \
                 another Network in net-conf.json"
            );
        }
        let why = if self.found.destination == self.desired.destination { "it has a lower metric" } else { "it is more specific" };
        let ip = if self.found.destination.is_ipv6() { "ip -6" } else { "ip" };
        format!(
            "the kernel prefers the route `{found}` of another program to ours to {target}, because {why}. It stays. If it is not needed: \
             {ip} route delete {}",
            self.found.text(names)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::entry::OUR_PROTOCOL;
    use crate::netlink::link::{Link, LinkKind};
    use crate::pod_network::routing::tests::route;

    #[test]
    fn messages_name_node_link_protocol_and_cure() {
        let link = Link {
            index: 2,
            name: "eth0".to_owned(),
            mac: None,
            mtu: 1500,
            up: true,
            master: None,
            kind: LinkKind::Other("veth".to_owned()),
            addresses: Vec::new(),
        };
        let names = LinkNames::new(&[link]);
        let foreign = |found: &str, ours: &str| ForeignRoute {
            node: Some("n2".into()),
            desired: Route { protocol: OUR_PROTOCOL, ..route(ours) },
            found: route(found),
        };
        let v4 = foreign("10.244.2.0/24 via 10.0.0.1 dev 2 proto 4", "10.244.2.0/24 via 10.244.2.0 dev 7 onlink");
        assert_eq!(
            v4.replaced_text(&names),
            "another program changed the route to 10.244.2.0/24 (pods of node n2): `10.244.2.0/24 via 10.0.0.1 dev eth0 proto static` is \
             replaced. Find the program; it must leave this route alone"
        );
        let text = v4.contested_text(&names, 3, 10);
        assert!(text.contains("again and again") && text.contains("replaced 3 times, and is left there for 10 s"), "{text}");
        let v6 = foreign("fd10::/64 via fd00::9 dev 2 metric 100", "fd10::/64 via fd10:: dev 7");
        let text = v6.in_the_way_text(&names);
        assert!(text.contains("lower metric") && text.ends_with("ip -6 route delete fd10::/64 via fd00::9 dev eth0 metric 100"), "{text}");
        let part = foreign("10.244.2.128/25 unreachable", "10.244.2.0/24 via 10.244.2.0 dev 7");
        let text = part.in_the_way_text(&names);
        assert!(text.contains("more specific") && text.ends_with("ip route delete unreachable 10.244.2.128/25"), "{text}");
        let connected = foreign("10.244.2.0/24 dev 2 proto 2", "10.244.2.0/24 via 10.244.2.0 dev 7");
        let text = connected.in_the_way_text(&names);
        assert!(text.starts_with("link eth0 has an address in 10.244.2.0/24 (pods of node n2)"), "{text}");
    }
}
