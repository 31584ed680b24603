//! Reads and configures interfaces of containers with their addresses and routes, for the CNI plugin. [`super::kernel`] does this for the
//! pod network.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeader};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMetric, RouteProtocol, RouteScope, RouteType};
use nix::errno::Errno;
use nix::libc::{
    IFA_F_DADFAILED, IFA_F_TENTATIVE, IFA_FLAGS, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_OPERSTATE, RTM_GETADDR, RTM_GETLINK, RTM_NEWROUTE,
};

use crate::cluster::Family;
use crate::netlink::entry::Route;
use crate::netlink::link::{Link, LinkAddress};

use super::attributes::{attribute, attributes, number};
use super::decode::{self, ADDRESS_HEADER_LEN, LINK_HEADER_LEN};
use super::encode;
use super::error::Cause;
use super::kernel::check_name;
use super::message::{Request, address_family};
use super::socket::Connection;

/// `IFA_TARGET_NETNSID`: selects another network namespace for a listing of addresses, by its ID in this namespace.
const TARGET_NAMESPACE: u16 = 10;
/// `IF_OPER_UP`
const OPERATIONAL: u8 = 6;

/// An interface with the attributes that matter for containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The attributes that every link has, without the addresses.
    pub link: Link,
    /// The index of the other end, in the other end's namespace.
    pub peer: Option<u32>,
    /// The ID of the other end's namespace in this namespace; `None` if both ends are in the same namespace.
    pub peer_namespace: Option<i32>,
    /// Operational state (`IF_OPER_*`, RFC 2863).
    pub state: u8,
    /// True if the interface also receives packets for other hardware addresses.
    pub promiscuous: bool,
}

impl Device {
    /// True if the interface can pass packets.
    #[must_use]
    pub(crate) const fn operational(&self) -> bool {
        self.state == OPERATIONAL
    }

    /// The name of the operational state.
    #[must_use]
    pub(crate) const fn state_name(&self) -> &'static str {
        match self.state {
            1 => "not-present",
            2 => "down",
            3 => "lower-layer-down",
            4 => "testing",
            5 => "dormant",
            6 => "up",
            _ => "unknown",
        }
    }
}

fn device(body: &[u8]) -> Option<Device> {
    let link = decode::link(body)?;
    let mut device = Device { link, peer: None, peer_namespace: None, state: 0, promiscuous: false };
    device.promiscuous = LinkHeader::parse(body).is_ok_and(|header| header.flags.contains(LinkFlags::Promisc));
    for (kind, value) in attributes(body.get(LINK_HEADER_LEN..)?) {
        match kind {
            IFLA_LINK => device.peer = number(value),
            IFLA_LINK_NETNSID => device.peer_namespace = number(value).map(u32::cast_signed),
            IFLA_OPERSTATE => device.state = value.first().copied().unwrap_or_default(),
            _ => {}
        }
    }
    Some(device)
}

/// Finds an interface by name.
///
/// # Errors
/// The kernel refuses or does not answer.
pub fn find(connection: &mut Connection, name: &str) -> Result<Option<Device>, Cause> {
    check_name(name)?;
    let attributes = [LinkAttribute::IfName(name.to_owned()), LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    let request = Request::new(RTM_GETLINK, 0, &LinkHeader::default(), &attributes);
    match connection.get(&request, |_, body| device(body)) {
        Err(Cause::Kernel { errno: Errno::ENODEV, .. }) => Ok(None),
        found => found.map(|found| found.into_iter().next()),
    }
}

/// Lists all interfaces.
///
/// # Errors
/// The listing fails.
pub fn all(connection: &mut Connection) -> Result<Vec<Device>, Cause> {
    let attributes = [LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    connection.dump(&Request::new(RTM_GETLINK, 0, &LinkHeader::default(), &attributes), |_, body| device(body))
}

/// An address of an interface, with the state of its duplicate address detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The index of the interface.
    pub index: u32,
    /// The address.
    pub address: LinkAddress,
    /// Duplicate address detection is running, and the address cannot be used yet.
    pub tentative: bool,
    /// Another host has the same address.
    pub duplicate: bool,
}

fn interface_address(body: &[u8]) -> Option<InterfaceAddress> {
    let (index, address) = decode::address(body)?;
    let mut flags = u32::from(AddressHeader::parse(body).ok()?.flags.bits());
    // The header only has room for the first eight flags.
    if let Some(all) = attribute(body.get(ADDRESS_HEADER_LEN..)?, IFA_FLAGS) {
        flags = number(all)?;
    }
    Some(InterfaceAddress { index, address, tentative: flags & IFA_F_TENTATIVE != 0, duplicate: flags & IFA_F_DADFAILED != 0 })
}

/// Lists the addresses of one interface.
///
/// # Errors
/// The listing fails.
pub fn addresses(connection: &mut Connection, index: u32) -> Result<Vec<InterfaceAddress>, Cause> {
    let header = AddressHeader { index, ..AddressHeader::default() };
    let request = Request::new::<AddressAttribute>(RTM_GETADDR, 0, &header, &[]);
    // Kernels before 4.20 list the addresses of all interfaces.
    connection.dump(&request, |_, body| interface_address(body).filter(|found| found.index == index))
}

/// Lists all addresses of the socket's namespace, or of another namespace, selected by its ID in the socket's namespace.
///
/// # Errors
/// The listing fails.
pub(crate) fn addresses_in(connection: &mut Connection, namespace: Option<i32>) -> Result<Vec<IpAddr>, Cause> {
    let attributes: Vec<_> =
        namespace.map(|id| AddressAttribute::Other(DefaultNla::new(TARGET_NAMESPACE, id.to_ne_bytes().to_vec()))).into_iter().collect();
    let request = Request::new(RTM_GETADDR, 0, &AddressHeader::default(), &attributes);
    connection.dump(&request, |_, body| decode::address(body).map(|(_, address)| address.net.ip()))
}

/// A route in the network namespace of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRoute {
    /// The destination.
    pub destination: IpNetwork,
    /// The gateway; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The index of the interface.
    pub link: u32,
    /// MTU.
    pub mtu: Option<u32>,
    /// Maximum TCP segment size to advertise, in bytes.
    pub advmss: Option<u32>,
    /// Metric.
    pub metric: Option<u32>,
    /// Table; `None` for the main table.
    pub table: Option<u32>,
    /// Scope (`RT_SCOPE_*`).
    pub scope: u8,
}

/// Returns the requests that add addresses to an interface and set it up, in this order.
#[must_use]
pub fn configuration(index: u32, addresses: &[IpNetwork]) -> Vec<Request> {
    let addresses = addresses.iter().map(|net| encode::add_address(index, *net));
    addresses.chain([encode::set_up(index)]).collect()
}

/// Returns the request that adds a route. It fails if the route exists.
#[must_use]
pub(crate) fn add_route(route: &PodRoute) -> Request {
    let destination = route.destination;
    let header = RouteHeader {
        address_family: address_family(Family::of_net(destination)),
        destination_prefix_length: destination.prefix(),
        table: route.table.and_then(|table| u8::try_from(table).ok()).unwrap_or(RouteHeader::RT_TABLE_MAIN),
        protocol: RouteProtocol::Boot,
        kind: RouteType::Unicast,
        scope: RouteScope::from(route.scope),
        ..RouteHeader::default()
    };
    let mut attributes = Vec::with_capacity(6);
    if destination.prefix() > 0 {
        attributes.push(RouteAttribute::Destination(destination.network().into()));
    }
    attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    attributes.push(RouteAttribute::Oif(route.link));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    attributes.extend(route.table.filter(|table| *table > 255).map(RouteAttribute::Table));
    let metrics: Vec<RouteMetric> = route.mtu.map(RouteMetric::Mtu).into_iter().chain(route.advmss.map(RouteMetric::Advmss)).collect();
    attributes.extend((!metrics.is_empty()).then_some(RouteAttribute::Metrics(metrics)));
    Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &header, &attributes)
}

/// Adds an address to an interface, or replaces the same address. An IPv4 address gets a broadcast address.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn add_address(connection: &mut Connection, index: u32, net: IpNetwork) -> Result<(), Cause> {
    connection.request(&encode::add_address(index, net))
}

/// Deletes an address of an interface. An address that does not exist is no error.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn delete_address(connection: &mut Connection, index: u32, net: IpNetwork) -> Result<(), Cause> {
    match connection.request(&encode::delete_address(index, net)) {
        Err(Cause::Kernel { errno: Errno::EADDRNOTAVAIL, .. }) => Ok(()),
        outcome => outcome,
    }
}

/// Lists all routes of the main table, of both families.
///
/// # Errors
/// The listing fails.
pub fn routes(connection: &mut Connection) -> Result<Vec<Route>, Cause> {
    let mut found = Vec::new();
    for family in Family::ALL {
        match connection.dump(&encode::routes(family), |_, body| decode::route(body)) {
            // A table without routes may not exist.
            Err(Cause::Kernel { errno: Errno::ENOENT, .. }) => {}
            routes => found.extend(routes?),
        }
    }
    Ok(found)
}

/// Returns the index of the outgoing interface for packets to a host.
///
/// # Errors
/// There is no route to the host.
pub(crate) fn outgoing_link(connection: &mut Connection, ip: IpAddr) -> Result<Option<u32>, Cause> {
    Ok(connection.get(&encode::route_to(ip), |_, body| decode::resolved_route(body))?.into_iter().find_map(|route| route.link))
}
