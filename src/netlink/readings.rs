//! What rtnetlink messages say, as values.
//!
//! Attributes are taken one by one, and only those that matter here are looked at: whatever else a link or a route may have, and
//! whatever a newer kernel says of it, it is listed.

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

/// The gateway of a route, in another family than the route's (`include/uapi/linux/rtnetlink.h`). libc has it for glibc alone.
const RTA_VIA: u16 = 18;

const LINK_HEADER_LEN: usize = 16;
const ADDRESS_HEADER_LEN: usize = 8;
const ROUTE_HEADER_LEN: usize = 12;
const NEIGHBOUR_HEADER_LEN: usize = 12;

/// A link, without its addresses.
pub(super) fn link(body: &[u8]) -> Option<Link> {
    let header = LinkHeader::parse(body).ok()?;
    // Bridges tell of their ports in messages of their own.
    if header.interface_family == AddressFamily::Bridge {
        return None;
    }
    let (mut name, mut mac, mut mtu, mut master, mut word, mut vxlan) = (String::new(), None, 0, None, String::new(), None);
    for attribute in NlasIterator::new(body.get(LINK_HEADER_LEN..)?).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            IFLA_IFNAME => name = text(value),
            IFLA_ADDRESS => mac = value.try_into().ok().map(Mac),
            IFLA_MTU => mtu = number(value)?,
            IFLA_MASTER => master = number(value),
            IFLA_LINKINFO => {
                for part in NlasIterator::new(value).flatten() {
                    match part.kind() {
                        IFLA_INFO_KIND => word = text(part.value()),
                        IFLA_INFO_DATA if word == "vxlan" => vxlan = Some(self::vxlan(part.value())),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let kind = match (vxlan, word.as_str()) {
        (Some(vxlan), _) => LinkKind::Vxlan(vxlan),
        (None, "bridge") => LinkKind::Bridge,
        (None, "") if header.link_layer_type == LinkLayerType::Loopback => LinkKind::Loopback,
        (None, _) => LinkKind::Other(word),
    };
    Some(Link { index: header.index, name, mac, mtu, up: header.flags.contains(LinkFlags::Up), master, kind, addresses: Vec::new() })
}

fn vxlan(data: &[u8]) -> Vxlan {
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        local: None,
        underlay: None,
        learning: false,
        gbp: false,
        external: false,
        reports_misses: false,
        checksum: false,
    };
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

/// An address, and the link it is of.
pub(super) fn address(body: &[u8]) -> Option<(u32, LinkAddress)> {
    let header = AddressHeader::parse(body).ok()?;
    let (mut local, mut address, mut flags) = (None, None, u32::from(header.flags.bits()));
    for attribute in NlasIterator::new(body.get(ADDRESS_HEADER_LEN..)?).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            IFA_LOCAL => local = ip(value),
            IFA_ADDRESS => address = ip(value),
            IFA_FLAGS => flags = number(value)?,
            _ => {}
        }
    }
    // Of a link between two hosts, IFA_ADDRESS is the other one's.
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

/// A route of the main table; `None` for routes of other tables, for those with a TOS or a source prefix, and for local, broadcast and
/// multicast routes.
pub(super) fn route(body: &[u8]) -> Option<Route> {
    let header = RouteHeader::parse(body).ok()?;
    let plain = header.tos == 0 && header.source_prefix_length == 0 && !header.flags.contains(RouteFlags::Cloned);
    if !plain || route_kind(header.kind).is_none() {
        return None;
    }
    any_route(&header, body).filter(|(table, _)| *table == u32::from(RouteHeader::RT_TABLE_MAIN)).map(|(_, route)| route)
}

/// The way to a host.
pub(super) fn way(body: &[u8]) -> Option<Route> {
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

/// A route, and its table.
fn any_route(header: &RouteHeader, body: &[u8]) -> Option<(u32, Route)> {
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut to, mut gateway, mut link, mut source, mut metric, mut table) = (any, None, None, None, 0, u32::from(header.table));
    for attribute in NlasIterator::new(body.get(ROUTE_HEADER_LEN..)?).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            RTA_DST => to = ip(value)?,
            RTA_GATEWAY => gateway = ip(value),
            // A next hop of the other family, after its number.
            RTA_VIA => gateway = value.get(2..).and_then(ip),
            RTA_OIF => link = number(value),
            RTA_PREFSRC => source = ip(value),
            RTA_PRIORITY => metric = number(value)?,
            RTA_TABLE => table = number(value)?,
            _ => {}
        }
    }
    // The answer to the question for one address may be of another kind, such as local. It is a way all the same.
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

/// A neighbour whose hardware address is known. Those that the kernel makes of multicast groups are none.
pub(super) fn neighbour(body: &[u8]) -> Option<Neighbour> {
    let header = NeighbourHeader::parse(body).ok()?;
    let ip_family = matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6);
    let proxy = header.flags.contains(NeighbourFlags::Proxy);
    let found = hosts(body).filter(|_| ip_family && !proxy && header.state != NeighbourState::Noarp)?;
    Some(Neighbour { link: header.ifindex, ip: found.ip, mac: found.mac, permanent: permanent(&header) })
}

/// An FDB entry of a VXLAN link that leads to a host by the link's own port and identifier. One that does not counts as none: setting
/// the right one puts it right.
pub(super) fn fdb_entry(body: &[u8]) -> Option<FdbEntry> {
    let header = NeighbourHeader::parse(body).ok()?;
    let of_a_port = header.flags.contains(NeighbourFlags::Controller);
    let found = hosts(body).filter(|found| header.family == AddressFamily::Bridge && !of_a_port && !found.elsewhere)?;
    Some(FdbEntry { link: header.ifindex, mac: found.mac, host: found.ip, permanent: permanent(&header) })
}

/// Which link a neighbour or an FDB entry is of, and whether it is the latter.
pub(super) fn neighbour_link(body: &[u8]) -> Option<(u32, bool)> {
    let header = NeighbourHeader::parse(body).ok()?;
    Some((header.ifindex, header.family == AddressFamily::Bridge))
}

/// Tools set further bits beside the one that says so: `bridge fdb add` has `NUD_NOARP`, too.
fn permanent(header: &NeighbourHeader) -> bool {
    u16::from(header.state) & NUD_PERMANENT != 0
}

struct Found {
    ip: IpAddr,
    mac: Mac,
    /// It has a port, an identifier or a link of its own.
    elsewhere: bool,
}

fn hosts(body: &[u8]) -> Option<Found> {
    let (mut host, mut mac, mut elsewhere) = (None, None, false);
    for attribute in NlasIterator::new(body.get(NEIGHBOUR_HEADER_LEN..)?).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            NDA_DST => host = ip(value),
            NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            NDA_PORT | NDA_VNI | NDA_IFINDEX => elsewhere = true,
            _ => {}
        }
    }
    Some(Found { ip: host?, mac: mac?, elsewhere })
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::entry::EntryChange;
    use crate::netlink::requests;
    use nix::libc::NUD_NOARP;
    use proptest::prelude::*;

    const VXLAN: Vxlan = Vxlan {
        vni: 4096,
        port: 8472,
        local: None,
        underlay: Some(2),
        learning: true,
        gbp: true,
        external: false,
        reports_misses: false,
        checksum: false,
    };
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

    /// What is asked for reads like what is there.
    #[test]
    fn requests_read_like_answers() {
        for route in routes() {
            assert_eq!(super::route(&requests::entry(&EntryChange::Route(route)).body), Some(route));
        }
        let neighbour = Neighbour { link: 7, ip: "fd00::9".parse().expect("an address"), mac: MAC, permanent: true };
        assert_eq!(super::neighbour(&requests::entry(&EntryChange::Neighbour(neighbour)).body), Some(neighbour));
        let entry = FdbEntry { link: 7, mac: MAC, host: "192.168.0.9".parse().expect("an address"), permanent: false };
        let body = requests::entry(&EntryChange::Fdb(entry)).body;
        assert_eq!((fdb_entry(&body), super::neighbour(&body)), (Some(entry), None));
        let mut body = body;
        body[8] = (NUD_PERMANENT | NUD_NOARP) as u8;
        assert_eq!(fdb_entry(&body), Some(FdbEntry { permanent: true, ..entry }), "as bridge fdb add makes it");
        for local in ["192.168.0.1", "fd00::1"] {
            let vxlan = Vxlan { local: local.parse().ok(), ..VXLAN };
            let link = link(&requests::create_vxlan("flannel.4096", &vxlan, MAC, 1450).body).expect("a link");
            assert_eq!((link.name.as_str(), link.mac, link.mtu, link.kind), ("flannel.4096", Some(MAC), 1450, LinkKind::Vxlan(vxlan)));
        }
        let net = "10.244.0.0/32".parse().expect("a network");
        let (index, address) = address(&requests::add_address(3, net).body).expect("an address");
        assert_eq!((index, address.net, address.scope), (3, net, Scope::Universe));
    }

    #[test]
    fn only_networks_of_several_hosts_have_a_broadcast_address() {
        for (net, length) in [("10.244.0.1/32", 24), ("10.244.0.1/31", 24), ("10.244.0.1/30", 32), ("fd00::1/64", 48)] {
            assert_eq!(requests::add_address(3, net.parse().expect("a network")).body.len(), length, "{net}");
        }
    }

    proptest! {
        /// Bytes that make no sense, and sense that is cut off or bent, end quietly.
        #[test]
        fn nothing_that_comes_in_panics(noise in proptest::collection::vec(any::<u8>(), 0..100), cut in 0..200_usize, at in 0..200_usize) {
            let mut bent = requests::create_vxlan("flannel.1", &VXLAN, MAC, 1450).body;
            if let (Some(byte), Some(with)) = (bent.get_mut(at), noise.first()) {
                *byte = *with;
            }
            bent.truncate(cut);
            for body in [noise, bent] {
                let _ = (link(&body), address(&body), route(&body), way(&body), neighbour(&body), fdb_entry(&body), neighbour_link(&body));
            }
        }
    }
}
