//! Decodes rtnetlink messages into links, addresses, routes, neighbours and FDB entries. PURE.
//!
//! Only the attributes that sepal uses are read. Unknown attributes of other links and of newer kernels are skipped, so that every link
//! and every route is listed.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NlasIterator, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressHeader;
use netlink_packet_route::link::{InfoVxlan, LinkFlags, LinkHeader, LinkLayerType};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourHeader, NeighbourState};
use netlink_packet_route::route::{RouteFlags, RouteHeader, RouteType};
use nix::libc::{
    IFA_ADDRESS, IFA_F_DEPRECATED, IFA_F_PERMANENT, IFA_F_TEMPORARY, IFA_FLAGS, IFA_LOCAL, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA,
    IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU, NDA_DST, NDA_IFINDEX, NDA_LLADDR, NDA_PORT, NDA_VNI, NUD_PERMANENT, RTA_DST,
    RTA_GATEWAY, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY, RTA_TABLE,
};

use super::entry::{FdbEntry, Neighbour, Route, RouteKind};
use super::link::{Link, LinkAddress, LinkKind, Scope, Vxlan};
use super::mac::Mac;

use super::attributes::{attributes, ip, number, text};

/// The attribute for a gateway of another family than the route (`include/uapi/linux/rtnetlink.h`). libc defines it only for glibc.
const RTA_VIA: u16 = 18;

pub(super) const LINK_HEADER_LEN: usize = 16;
pub(super) const ADDRESS_HEADER_LEN: usize = 8;
const ROUTE_HEADER_LEN: usize = 12;
const NEIGHBOUR_HEADER_LEN: usize = 12;

/// Decodes a link, without its addresses.
pub(super) fn link(body: &[u8]) -> Option<Link> {
    let header = LinkHeader::parse(body).ok()?;
    // A bridge also reports each of its ports in a message of this family.
    if header.interface_family == AddressFamily::Bridge {
        return None;
    }
    let (mut name, mut mac, mut mtu, mut master, mut kind, mut vxlan) = (String::new(), None, 0, None, String::new(), None);
    for (attribute, value) in attributes(body.get(LINK_HEADER_LEN..)?) {
        match attribute {
            IFLA_IFNAME => name = text(value),
            IFLA_ADDRESS => mac = value.try_into().ok().map(Mac),
            IFLA_MTU => mtu = number(value)?,
            IFLA_MASTER => master = number(value),
            IFLA_LINKINFO => {
                for (part, value) in attributes(value) {
                    match part {
                        IFLA_INFO_KIND => kind = text(value),
                        IFLA_INFO_DATA if kind == "vxlan" => vxlan = Some(self::vxlan(value)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let kind = match (vxlan, kind.as_str()) {
        (Some(vxlan), _) => LinkKind::Vxlan(vxlan),
        (None, "bridge") => LinkKind::Bridge,
        (None, "") if header.link_layer_type == LinkLayerType::Loopback => LinkKind::Loopback,
        (None, _) => LinkKind::Other(kind),
    };
    Some(Link { index: header.index, name, mac, mtu, up: header.flags.contains(LinkFlags::Up), master, kind, addresses: Vec::new() })
}

fn vxlan(data: &[u8]) -> Vxlan {
    let mut vxlan = Vxlan { checksum: false, ..Vxlan::new(0, 0) };
    for attribute in NlasIterator::new(data).flatten().filter_map(|attribute| InfoVxlan::parse(&attribute).ok()) {
        match attribute {
            InfoVxlan::Id(vni) => vxlan.vni = vni,
            InfoVxlan::Port(port) => vxlan.port = port,
            InfoVxlan::Local(v4) => vxlan.local = Some(v4.into()),
            InfoVxlan::Local6(v6) => vxlan.local = Some(v6.into()),
            InfoVxlan::Link(link) => vxlan.underlay = Some(link).filter(|link| *link != 0),
            InfoVxlan::Learning(learning) => vxlan.learning = learning,
            InfoVxlan::Gbp => vxlan.gbp = true,
            InfoVxlan::CollectMetadata(external) => vxlan.external = external,
            InfoVxlan::L2Miss(misses) | InfoVxlan::L3Miss(misses) => vxlan.reports_misses |= misses,
            InfoVxlan::UDPCsum(checksum) => vxlan.checksum = checksum,
            _ => {}
        }
    }
    vxlan
}

/// Decodes an address. Returns it with the index of its link.
pub(super) fn address(body: &[u8]) -> Option<(u32, LinkAddress)> {
    let header = AddressHeader::parse(body).ok()?;
    let (mut local, mut address, mut flags) = (None, None, u32::from(header.flags.bits()));
    for (kind, value) in attributes(body.get(ADDRESS_HEADER_LEN..)?) {
        match kind {
            IFA_LOCAL => local = ip(value),
            IFA_ADDRESS => address = ip(value),
            IFA_FLAGS => flags = number(value)?,
            _ => {}
        }
    }
    // On a point-to-point link, IFA_ADDRESS is the peer's address.
    let ip = local.or(address)?;
    let net = IpNetwork::new(ip, header.prefix_len).ok()?;
    let scope = match u8::from(header.scope) {
        0 => Scope::Universe,
        253 => Scope::Link,
        254 => Scope::Host,
        other => Scope::Other(other),
    };
    let temporary = ip.is_ipv6() && flags & IFA_F_TEMPORARY != 0;
    let [permanent, deprecated] = [IFA_F_PERMANENT, IFA_F_DEPRECATED].map(|flag| flags & flag != 0);
    Some((header.index, LinkAddress { net, scope, permanent, temporary, deprecated }))
}

/// Decodes a route of the main table. `None` for routes of other tables, for routes with a TOS or a source prefix, and for local, broadcast
/// and multicast routes.
pub(super) fn route(body: &[u8]) -> Option<Route> {
    let header = RouteHeader::parse(body).ok()?;
    let plain = header.tos == 0 && header.source_prefix_length == 0 && !header.flags.contains(RouteFlags::Cloned);
    if !plain || route_kind(header.kind).is_none() {
        return None;
    }
    any_route(&header, body).filter(|(table, _)| *table == u32::from(RouteHeader::RT_TABLE_MAIN)).map(|(_, route)| route)
}

/// Decodes the answer to a route lookup ([`super::encode::route_to`]).
pub(super) fn resolved_route(body: &[u8]) -> Option<Route> {
    let header = RouteHeader::parse(body).ok()?;
    any_route(&header, body).map(|(_, route)| route)
}

fn route_kind(kind: RouteType) -> Option<RouteKind> {
    match kind {
        RouteType::Unicast => Some(RouteKind::Unicast),
        RouteType::BlackHole => Some(RouteKind::Blackhole),
        RouteType::Unreachable => Some(RouteKind::Unreachable),
        RouteType::Prohibit => Some(RouteKind::Prohibit),
        RouteType::Throw => Some(RouteKind::Throw),
        _ => None,
    }
}

/// Decodes a route. Returns it with its table.
fn any_route(header: &RouteHeader, body: &[u8]) -> Option<(u32, Route)> {
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut to, mut gateway, mut link, mut source, mut metric, mut table) = (any, None, None, None, 0, u32::from(header.table));
    for (kind, value) in attributes(body.get(ROUTE_HEADER_LEN..)?) {
        match kind {
            RTA_DST => to = ip(value)?,
            RTA_GATEWAY => gateway = ip(value),
            // The value is a next hop of the other family: two bytes for the family, then the address.
            RTA_VIA => gateway = value.get(2..).and_then(ip),
            RTA_OIF => link = number(value),
            RTA_PREFSRC => source = ip(value),
            RTA_PRIORITY => metric = number(value)?,
            RTA_TABLE => table = number(value)?,
            _ => {}
        }
    }
    // A lookup may return a route of another kind, such as local. It is reported as unicast.
    let kind = route_kind(header.kind).unwrap_or_default();
    let route = Route {
        destination: IpNetwork::new(to, header.destination_prefix_length).ok()?,
        gateway,
        link: link.filter(|_| kind == RouteKind::Unicast),
        onlink: header.flags.contains(RouteFlags::Onlink),
        kind,
        source,
        protocol: header.protocol.into(),
        metric,
    };
    Some((table, route))
}

/// Decodes a neighbour. `None` if its hardware address is not known, or if the kernel derived the entry from a multicast group
/// (`NUD_NOARP`).
pub(super) fn neighbour(body: &[u8]) -> Option<Neighbour> {
    let header = NeighbourHeader::parse(body).ok()?;
    let ip_family = matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6);
    let proxy = header.flags.contains(NeighbourFlags::Proxy);
    let found = destination(body).filter(|_| ip_family && !proxy && header.state != NeighbourState::Noarp)?;
    Some(Neighbour { link: header.ifindex, ip: found.ip, mac: found.mac, permanent: permanent(&header) })
}

/// Decodes an FDB entry of a VXLAN link. `None` for entries with their own port, VNI or link. The desired entry replaces such an entry when
/// it is set.
pub(super) fn fdb_entry(body: &[u8]) -> Option<FdbEntry> {
    let header = NeighbourHeader::parse(body).ok()?;
    let of_a_port = header.flags.contains(NeighbourFlags::Controller);
    let found = destination(body).filter(|found| header.family == AddressFamily::Bridge && !of_a_port && !found.own_tunnel)?;
    Some(FdbEntry { link: header.ifindex, mac: found.mac, host: found.ip, permanent: permanent(&header) })
}

/// Returns the index of the link of a neighbour or an FDB entry, and true if it is an FDB entry.
pub(super) fn neighbour_link(body: &[u8]) -> Option<(u32, bool)> {
    let header = NeighbourHeader::parse(body).ok()?;
    Some((header.ifindex, header.family == AddressFamily::Bridge))
}

/// Returns true if an entry is permanent. Only this bit is tested, because other programs set more: `bridge fdb add` also sets `NUD_NOARP`.
fn permanent(header: &NeighbourHeader) -> bool {
    u16::from(header.state) & NUD_PERMANENT != 0
}

/// The attributes of a neighbour or an FDB entry.
struct Destination {
    ip: IpAddr,
    mac: Mac,
    /// The entry has its own port, VNI or link.
    own_tunnel: bool,
}

fn destination(body: &[u8]) -> Option<Destination> {
    let (mut host, mut mac, mut own_tunnel) = (None, None, false);
    for (kind, value) in attributes(body.get(NEIGHBOUR_HEADER_LEN..)?) {
        match kind {
            NDA_DST => host = ip(value),
            NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            NDA_PORT | NDA_VNI | NDA_IFINDEX => own_tunnel = true,
            _ => {}
        }
    }
    Some(Destination { ip: host?, mac: mac?, own_tunnel })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::encode;
    use crate::netlink::entry::EntryChange;
    use nix::libc::NUD_NOARP;
    use proptest::prelude::*;

    const VXLAN: Vxlan = Vxlan { underlay: Some(2), learning: true, gbp: true, checksum: false, ..Vxlan::new(4096, 8472) };
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn routes() -> Vec<Route> {
        let route = |destination: &str, gateway: Option<&str>, kind: RouteKind| Route {
            destination: destination.parse().expect("a network"),
            gateway: gateway.map(|ip| ip.parse().expect("an address")),
            link: (kind == RouteKind::Unicast).then_some(7),
            onlink: gateway.is_some(),
            kind,
            source: None,
            protocol: 83,
            metric: 5,
        };
        vec![
            route("10.244.2.0/24", Some("10.244.2.0"), RouteKind::Unicast),
            route("10.244.2.0/24", Some("fe80::1"), RouteKind::Unicast),
            route("0.0.0.0/0", None, RouteKind::Unicast),
            route("fd00:2::/64", Some("fd00:2::"), RouteKind::Unicast),
            route("::/0", None, RouteKind::Blackhole),
            route("10.244.3.0/24", None, RouteKind::Unreachable),
            route("fd00:3::/64", None, RouteKind::Prohibit),
            route("10.244.4.0/24", None, RouteKind::Throw),
        ]
    }

    /// Answers have the layout of requests, so each request decodes to the value that it was made of.
    #[test]
    fn requests_decode_to_their_values() {
        for route in routes() {
            assert_eq!(super::route(&encode::entry(&EntryChange::Route(route)).body), Some(route));
        }
        let neighbour = Neighbour { link: 7, ip: "fd00::9".parse().expect("an address"), mac: MAC, permanent: true };
        assert_eq!(super::neighbour(&encode::entry(&EntryChange::Neighbour(neighbour)).body), Some(neighbour));
        let entry = FdbEntry { link: 7, mac: MAC, host: "192.168.0.9".parse().expect("an address"), permanent: false };
        let body = encode::entry(&EntryChange::Fdb(entry)).body;
        assert_eq!((fdb_entry(&body), super::neighbour(&body)), (Some(entry), None));
        let mut body = body;
        body[8] = (NUD_PERMANENT | NUD_NOARP) as u8;
        assert_eq!(fdb_entry(&body), Some(FdbEntry { permanent: true, ..entry }), "as bridge fdb add makes it");
        for local in ["192.168.0.1", "fd00::1"] {
            let vxlan = Vxlan { local: local.parse().ok(), ..VXLAN };
            let link = link(&encode::create_vxlan("flannel.4096", &vxlan, MAC, 1450).body).expect("a link");
            assert_eq!((link.name.as_str(), link.mac, link.mtu, link.kind), ("flannel.4096", Some(MAC), 1450, LinkKind::Vxlan(vxlan)));
        }
        let net = "10.244.0.0/32".parse().expect("a network");
        let (index, address) = address(&encode::add_address(3, net).body).expect("an address");
        assert_eq!((index, address.net, address.scope), (3, net, Scope::Universe));
    }

    #[test]
    fn only_networks_of_several_hosts_have_a_broadcast_address() {
        for (net, length) in [("10.244.0.1/32", 24), ("10.244.0.1/31", 24), ("10.244.0.1/30", 32), ("fd00::1/64", 48)] {
            assert_eq!(encode::add_address(3, net.parse().expect("a network")).body.len(), length, "{net}");
        }
    }

    proptest! {
        /// Random bytes, and messages that are cut off or damaged, are skipped without a panic.
        #[test]
        fn malformed_bytes_do_not_panic(noise in proptest::collection::vec(any::<u8>(), 0..100), cut in 0..200_usize, at in 0..200_usize) {
            let mut damaged = encode::create_vxlan("flannel.1", &VXLAN, MAC, 1450).body;
            if let (Some(byte), Some(with)) = (damaged.get_mut(at), noise.first()) {
                *byte = *with;
            }
            damaged.truncate(cut);
            for body in [noise, damaged] {
                let _ = (link(&body), address(&body), route(&body), resolved_route(&body));
                let _ = (neighbour(&body), fdb_entry(&body), neighbour_link(&body));
            }
        }
    }
}
