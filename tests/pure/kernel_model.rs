//! A model of the kernel's network tables for the property tests of the pod network's plan.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use sepal::netlink::entry::{BOOT_PROTOCOL, EntryChange, LinkChange, Live, OUR_PROTOCOL, Route, RouteKind};
use sepal::netlink::link::{Link, LinkAddress, LinkKind, Scope};
use sepal::pod_network::foreign::is_connected;

/// Links, routes, neighbours and FDB entries of one host. Refuses what the real kernel refuses.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) live: Live,
    next_index: u32,
    pub(crate) offloads: BTreeMap<u32, bool>,
}

pub(crate) fn net(text: &str) -> IpNetwork {
    text.parse().expect("a CIDR")
}

pub(crate) fn address(net: IpNetwork) -> LinkAddress {
    LinkAddress { net, scope: Scope::Universe, permanent: true, temporary: false, deprecated: false }
}

impl Kernel {
    /// A host on one network, with a bridge for its pods.
    pub(crate) fn new() -> Self {
        let link = |index, name: &str, kind, addresses: &[&str]| Link {
            index,
            name: name.into(),
            mac: None,
            mtu: 1500,
            up: true,
            master: None,
            kind,
            addresses: addresses.iter().map(|text| address(net(text))).collect(),
        };
        let links = vec![
            link(1, "lo", LinkKind::Loopback, &["127.0.0.1/8", "::1/128"]),
            link(2, "eth0", LinkKind::Other(String::new()), &["192.168.0.1/24", "fd00::1/64"]),
            link(3, "cni0", LinkKind::Bridge, &["10.244.1.1/24"]),
        ];
        let mut kernel = Self { live: Live { links, ..Live::default() }, next_index: 4, offloads: BTreeMap::new() };
        kernel.live.routes = vec![
            kernel_route("0.0.0.0/0", Some("192.168.0.254"), 2, 0),
            kernel_route("192.168.0.0/24", None, 2, 0),
            kernel_route("fd00::/64", None, 2, 256),
            kernel_route("10.244.1.0/24", None, 3, 0),
            // A route that an administrator made.
            kernel_route("10.250.0.0/16", Some("192.168.0.200"), 2, 0),
        ];
        kernel
    }

    pub(crate) fn link(&mut self, index: u32) -> &mut Link {
        self.live.links.iter_mut().find(|link| link.index == index).expect("the link is there")
    }

    pub(crate) fn change_link(&mut self, change: &LinkChange) {
        match change {
            LinkChange::CreateVxlan { name, vxlan, mac, mtu } => {
                let same = |link: &Link| {
                    matches!(&link.kind, LinkKind::Vxlan(other) if (other.vni, other.port) == (vxlan.vni, vxlan.port)
                    && other.local.is_some_and(|ip| ip.is_ipv6()) == vxlan.local.is_some_and(|ip| ip.is_ipv6()))
                };
                assert!(!self.live.links.iter().any(|link| link.name == *name || same(link)), "{name} exists");
                let kind = LinkKind::Vxlan(*vxlan);
                let link = Link {
                    index: self.next_index,
                    name: name.clone(),
                    mac: Some(*mac),
                    mtu: *mtu,
                    up: false,
                    master: None,
                    kind,
                    addresses: vec![],
                };
                self.live.links.push(link);
                self.next_index += 1;
            }
            LinkChange::Delete(id) => {
                self.live.links.retain(|link| link.index != id.index);
                self.live.routes.retain(|route| route.link != Some(id.index));
                self.live.neighbours.retain(|neighbour| neighbour.link != id.index);
                self.live.fdb.retain(|entry| entry.link != id.index);
            }
            LinkChange::Mtu(id, mtu) => self.link(id.index).mtu = *mtu,
            LinkChange::Mac(id, mac) => self.link(id.index).mac = Some(*mac),
            LinkChange::Up(id) => self.link(id.index).up = true,
            LinkChange::AddAddress(id, net) => {
                let link = self.link(id.index);
                let clashes =
                    link.addresses.iter().any(|address| if net.is_ipv6() { address.net.ip() == net.ip() } else { address.net == *net });
                assert!(!clashes, "{net} exists");
                link.addresses.push(address(*net));
            }
            LinkChange::DeleteAddress(id, net) => self.link(id.index).addresses.retain(|address| address.net != *net),
            LinkChange::ChecksumOffload(id, on) => drop(self.offloads.insert(id.index, *on)),
        }
    }

    pub(crate) fn change_entry(&mut self, change: &EntryChange) {
        let live = &mut self.live;
        match change {
            EntryChange::Route(route) => {
                let same = |other: &Route| (other.destination, other.metric) == (route.destination, route.metric);
                let replaced: Vec<&Route> = live.routes.iter().filter(|other| same(other)).collect();
                assert!(!replaced.iter().any(|other| is_connected(other)), "{route:?} takes the place of {replaced:?}");
                // The kernel refuses a gateway that it reaches by a route over another link.
                let gateway_elsewhere = route.destination.is_ipv6()
                    && route.onlink
                    && live.routes.iter().any(|other| {
                        // Routes of other programs do not matter: the netlink layer works around them.
                        matches!(other.protocol, OUR_PROTOCOL | BOOT_PROTOCOL)
                            && other.destination.prefix() > 0
                            && route.gateway.is_some_and(|ip| other.destination.contains(ip))
                            && other.link != route.link
                    });
                assert!(!gateway_elsewhere, "EINVAL: {route:?}");
                // Only the first such route is replaced.
                match live.routes.iter_mut().find(|other| same(other)) {
                    Some(other) => *other = *route,
                    None => live.routes.push(*route),
                }
            }
            EntryChange::NoRoute(route) => live.routes.retain(|other| other != route),
            EntryChange::Neighbour(neighbour) => {
                live.neighbours.retain(|other| (other.link, other.ip) != (neighbour.link, neighbour.ip));
                live.neighbours.push(*neighbour);
            }
            EntryChange::NoNeighbour(neighbour) => live.neighbours.retain(|other| other != neighbour),
            EntryChange::Fdb(entry) => {
                // As in the kernel, only the first entry with this MAC address is replaced.
                match live.fdb.iter_mut().find(|other| (other.link, other.mac) == (entry.link, entry.mac)) {
                    Some(other) => *other = *entry,
                    None => live.fdb.push(*entry),
                }
            }
            EntryChange::NoFdb(entry) => live.fdb.retain(|other| other != entry),
        }
    }
}

pub(crate) fn kernel_route(destination: &str, gateway: Option<&str>, link: u32, metric: u32) -> Route {
    Route {
        destination: net(destination),
        gateway: gateway.map(|ip| ip.parse().expect("an address")),
        link: Some(link),
        onlink: false,
        kind: RouteKind::Unicast,
        source: None,
        protocol: if destination.starts_with("10.250") { 4 } else { 2 },
        metric,
    }
}
