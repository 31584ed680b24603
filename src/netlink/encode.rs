//! Encodes changes and queries as rtnetlink requests (`include/uapi/linux/rtnetlink.h`, `neighbour.h`, `if_link.h`). PURE.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeader, AddressScope};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkHeader, LinkInfo};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteHeader, RouteProtocol, RouteScope, RouteType, RouteVia};
use nix::libc::{
    RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_GETADDR, RTM_GETLINK, RTM_GETNEIGH, RTM_GETROUTE, RTM_NEWADDR, RTM_NEWLINK,
    RTM_NEWNEIGH, RTM_NEWROUTE,
};

use super::entry::{EntryChange, FdbEntry, Neighbour, Route, RouteKind};
use super::link::Vxlan;
use super::mac::Mac;
use crate::cluster::Family;

use super::message::{Request, address_family};

/// The metric that the kernel gives to IPv6 routes without one (`IP6_RT_PRIO_USER`).
pub(super) const DEFAULT_METRIC_V6: u32 = 1024;
/// The index of the loopback link in every network namespace. IPv6 routes that drop packets belong to it.
const LOOPBACK: u32 = 1;
/// Creates the entry, or replaces it.
const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;
const NO_ATTRIBUTES: [LinkAttribute; 0] = [];

/// Encodes one change of a route, a neighbour or an FDB entry.
pub(super) fn entry(change: &EntryChange) -> Request {
    match change {
        EntryChange::Route(route) => set_route(route),
        EntryChange::NoRoute(route) => delete_route(route),
        EntryChange::Neighbour(neighbour) => self::neighbour(RTM_NEWNEIGH, SET, neighbour),
        EntryChange::NoNeighbour(neighbour) => self::neighbour(RTM_DELNEIGH, 0, neighbour),
        // REPLACE without APPEND: a hardware address has one host.
        EntryChange::Fdb(entry) => fdb_entry(RTM_NEWNEIGH, SET, entry),
        EntryChange::NoFdb(entry) => fdb_entry(RTM_DELNEIGH, 0, entry),
    }
}

/// Returns the metric that a route to `destination` gets in the kernel.
pub(super) fn metric(destination: &IpNetwork, metric: u32) -> u32 {
    if metric == 0 && destination.is_ipv6() { DEFAULT_METRIC_V6 } else { metric }
}

fn set_route(route: &Route) -> Request {
    let (mut header, mut attributes) = main_table(route);
    header.protocol = RouteProtocol::from(route.protocol);
    header.kind = kind(route.kind);
    // Without a next hop, the destination is on the link.
    header.scope = if route.gateway.is_none() && route.kind == RouteKind::Unicast { RouteScope::Link } else { RouteScope::Universe };
    header.flags = if route.onlink { RouteFlags::Onlink } else { RouteFlags::empty() };
    attributes.extend(route.link.map(RouteAttribute::Oif));
    Request::new(RTM_NEWROUTE, SET, &header, &attributes)
}

const fn kind(kind: RouteKind) -> RouteType {
    match kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Prohibit => RouteType::Prohibit,
        RouteKind::Throw => RouteType::Throw,
    }
}

/// Deletes exactly this route. A route to the same destination with another next hop or another protocol stays.
fn delete_route(route: &Route) -> Request {
    let (mut header, mut attributes) = main_table(route);
    header.protocol = RouteProtocol::from(route.protocol);
    header.kind = kind(route.kind);
    header.scope = RouteScope::NoWhere;
    // To delete an IPv6 route, the kernel compares the link and not the kind.
    let link = if route.kind != RouteKind::Unicast && route.destination.is_ipv6() { Some(LOOPBACK) } else { route.link };
    attributes.extend(link.map(RouteAttribute::Oif));
    Request::new(RTM_DELROUTE, 0, &header, &attributes)
}

/// Returns two requests: one sets a host route to the gateway of `route` over the same link, the other one deletes it.
pub(super) fn gateway_route(route: &Route) -> [Request; 2] {
    let destination = route.gateway.map_or(route.destination, IpNetwork::from);
    let to_gateway = Route { destination, gateway: None, onlink: false, source: None, ..*route };
    [set_route(&to_gateway), delete_route(&to_gateway)]
}

/// Returns the header and the attributes that all requests about a route share. The link is not included.
fn main_table(route: &Route) -> (RouteHeader, Vec<RouteAttribute>) {
    let destination = route.destination;
    let header = RouteHeader {
        address_family: address_family(Family::of_net(destination)),
        destination_prefix_length: destination.prefix(),
        table: RouteHeader::RT_TABLE_MAIN,
        ..RouteHeader::default()
    };
    let mut attributes = Vec::with_capacity(5);
    if destination.prefix() > 0 {
        attributes.push(RouteAttribute::Destination(destination.network().into()));
    }
    attributes.extend(route.gateway.map(|gateway| match gateway {
        same if same.is_ipv4() == destination.is_ipv4() => RouteAttribute::Gateway(same.into()),
        IpAddr::V4(v4) => RouteAttribute::Via(RouteVia::Inet(v4)),
        IpAddr::V6(v6) => RouteAttribute::Via(RouteVia::Inet6(v6)),
    }));
    let metric = metric(&destination, route.metric);
    if metric != 0 {
        attributes.push(RouteAttribute::Priority(metric));
    }
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    (header, attributes)
}

fn neighbour(kind: u16, flags: u16, neighbour: &Neighbour) -> Request {
    let header = NeighbourHeader {
        family: address_family(Family::of(neighbour.ip)),
        ifindex: neighbour.link,
        state: state(neighbour.permanent),
        flags: NeighbourFlags::empty(),
        kind: RouteType::Unicast,
    };
    let attributes = [NeighbourAttribute::Destination(neighbour.ip.into()), NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec())];
    Request::new(kind, flags, &header, &attributes)
}

fn fdb_entry(kind: u16, flags: u16, entry: &FdbEntry) -> Request {
    let header = NeighbourHeader {
        family: AddressFamily::Bridge,
        ifindex: entry.link,
        state: state(entry.permanent),
        flags: NeighbourFlags::Own,
        kind: RouteType::Unspec,
    };
    let attributes = [NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()), NeighbourAttribute::Destination(entry.host.into())];
    Request::new(kind, flags, &header, &attributes)
}

const fn state(permanent: bool) -> NeighbourState {
    if permanent { NeighbourState::Permanent } else { NeighbourState::Reachable }
}

/// Deletes a link.
pub(super) fn delete_link(index: u32) -> Request {
    Request::new(RTM_DELLINK, 0, &link_header(index), &NO_ATTRIBUTES)
}

/// Sets a link's MTU.
pub(super) fn set_mtu(index: u32, mtu: u32) -> Request {
    Request::new(RTM_NEWLINK, 0, &link_header(index), &[LinkAttribute::Mtu(mtu)])
}

/// Sets a link's hardware address.
pub(super) fn set_mac(index: u32, mac: Mac) -> Request {
    Request::new(RTM_NEWLINK, 0, &link_header(index), &[LinkAttribute::Address(mac.0.to_vec())])
}

/// Sets a link up.
pub(super) fn set_up(index: u32) -> Request {
    let header = LinkHeader { flags: LinkFlags::Up, change_mask: LinkFlags::Up, ..link_header(index) };
    Request::new(RTM_NEWLINK, 0, &header, &NO_ATTRIBUTES)
}

fn link_header(index: u32) -> LinkHeader {
    LinkHeader { index, ..LinkHeader::default() }
}

/// Creates a VXLAN link [flannel 5.2]. Ageing and limits are the kernel's defaults.
pub(super) fn create_vxlan(name: &str, vxlan: &Vxlan, mac: Mac, mtu: u32) -> Request {
    let mut data = vec![InfoVxlan::Id(vxlan.vni)];
    data.extend(vxlan.underlay.map(InfoVxlan::Link));
    data.extend(vxlan.local.map(|local| match local {
        IpAddr::V4(v4) => InfoVxlan::Local(v4),
        IpAddr::V6(v6) => InfoVxlan::Local6(v6),
    }));
    data.extend([
        InfoVxlan::Ttl(0),
        InfoVxlan::Tos(0),
        InfoVxlan::Learning(vxlan.learning),
        InfoVxlan::Proxy(false),
        InfoVxlan::Rsc(false),
        InfoVxlan::L2Miss(vxlan.reports_misses),
        InfoVxlan::L3Miss(vxlan.reports_misses),
        InfoVxlan::UDPCsum(vxlan.checksum),
        InfoVxlan::UDPZeroCsumTX(false),
        InfoVxlan::UDPZeroCsumRX(false),
    ]);
    // The presence of GBP switches it on. Without a port, the kernel uses its default.
    data.extend(vxlan.gbp.then_some(InfoVxlan::Gbp));
    data.extend((vxlan.port != 0).then_some(InfoVxlan::Port(vxlan.port)));
    let attributes = [
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::TxQueueLen(0),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
    ];
    Request::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &LinkHeader::default(), &attributes)
}

/// Adds an address to a link, or replaces the same address.
pub(super) fn add_address(index: u32, net: IpNetwork) -> Request {
    let (header, mut attributes) = address(index, net);
    if let IpNetwork::V4(v4) = net
        // Networks of one or two addresses have no broadcast address.
        && v4.prefix() < 31
    {
        attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
    }
    Request::new(RTM_NEWADDR, SET, &header, &attributes)
}

/// Deletes an address of a link.
pub(super) fn delete_address(index: u32, net: IpNetwork) -> Request {
    let (header, attributes) = address(index, net);
    Request::new(RTM_DELADDR, 0, &header, &attributes)
}

fn address(index: u32, net: IpNetwork) -> (AddressHeader, Vec<AddressAttribute>) {
    let header = AddressHeader {
        family: address_family(Family::of_net(net)),
        prefix_len: net.prefix(),
        scope: AddressScope::Universe,
        index,
        ..AddressHeader::default()
    };
    (header, vec![AddressAttribute::Local(net.ip()), AddressAttribute::Address(net.ip())])
}

/// Lists all links.
pub(super) fn links() -> Request {
    Request::new(RTM_GETLINK, 0, &LinkHeader::default(), &NO_ATTRIBUTES)
}

/// Lists all addresses.
pub(super) fn addresses() -> Request {
    Request::new::<AddressAttribute>(RTM_GETADDR, 0, &AddressHeader::default(), &[])
}

/// Lists the main table of one family.
pub(super) fn routes(family: Family) -> Request {
    let header = RouteHeader { address_family: address_family(family), table: RouteHeader::RT_TABLE_MAIN, ..RouteHeader::default() };
    Request::new::<RouteAttribute>(RTM_GETROUTE, 0, &header, &[])
}

/// Lists the neighbours of a link.
pub(super) fn neighbours(link: u32) -> Request {
    Request::new(RTM_GETNEIGH, 0, &NeighbourHeader::default(), &[NeighbourAttribute::IfIndex(link)])
}

/// Lists the FDB entries of a link.
pub(super) fn fdb(link: u32) -> Request {
    let header = NeighbourHeader { family: AddressFamily::Bridge, ..NeighbourHeader::default() };
    Request::new(RTM_GETNEIGH, 0, &header, &[NeighbourAttribute::IfIndex(link)])
}

/// Looks up the route to a host.
pub(super) fn route_to(ip: IpAddr) -> Request {
    let header = RouteHeader {
        address_family: address_family(Family::of(ip)),
        destination_prefix_length: IpNetwork::from(ip).prefix(),
        ..RouteHeader::default()
    };
    Request::new(RTM_GETROUTE, 0, &header, &[RouteAttribute::Destination(ip.into())])
}
