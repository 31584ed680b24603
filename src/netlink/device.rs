//! Interfaces of containers, and their addresses and routes: asked for one by one, where [`super::kernel`] lists all.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NlasIterator};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeader};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMetric, RouteProtocol, RouteScope, RouteType};
use nix::errno::Errno;
use nix::libc::{
    IFA_F_DADFAILED, IFA_F_TENTATIVE, IFA_FLAGS, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_OPERSTATE, RTM_GETADDR, RTM_GETLINK, RTM_NEWROUTE,
};

use super::entry::Route;
use super::link::{Link, LinkAddress};

use super::error::Cause;
use super::kernel::check_name;
use super::socket::{Connection, Request};
use super::{readings, requests};

/// Asks for addresses of another namespace, by this one's number for it (`IFA_TARGET_NETNSID`).
const IN_NAMESPACE: u16 = 10;
/// `IF_OPER_UP`
const OPERATIONAL: u8 = 6;
const LINK_HEADER_LEN: usize = 16;
const ADDRESS_HEADER_LEN: usize = 8;

/// An interface, with what its kind has beside other links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What every link has; without its addresses.
    pub link: Link,
    /// The number of the other end, in the other end's namespace.
    pub peer: Option<u32>,
    /// This namespace's number for the one that the other end is in; none: they are in the same.
    pub peer_namespace: Option<i32>,
    /// Its state as the kernel puts it (`IF_OPER_*`, RFC 2863).
    pub state: u8,
    /// It takes packets that are not for it.
    pub promiscuous: bool,
}

impl Device {
    /// Whether packets pass.
    #[must_use]
    pub const fn operational(&self) -> bool {
        self.state == OPERATIONAL
    }

    /// The state in the kernel's words.
    #[must_use]
    pub const fn state_name(&self) -> &'static str {
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
    let link = readings::link(body)?;
    let mut device = Device { link, peer: None, peer_namespace: None, state: 0, promiscuous: false };
    device.promiscuous = LinkHeader::parse(body).is_ok_and(|header| header.flags.contains(LinkFlags::Promisc));
    for attribute in NlasIterator::new(body.get(LINK_HEADER_LEN..)?).flatten() {
        let number = || attribute.value().try_into().ok().map(u32::from_ne_bytes);
        match attribute.kind() {
            IFLA_LINK => device.peer = number(),
            IFLA_LINK_NETNSID => device.peer_namespace = number().map(u32::cast_signed),
            IFLA_OPERSTATE => device.state = attribute.value().first().copied().unwrap_or_default(),
            _ => {}
        }
    }
    Some(device)
}

/// Finds an interface by its name.
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

/// Lists every interface.
///
/// # Errors
/// They cannot be listed.
pub fn all(connection: &mut Connection) -> Result<Vec<Device>, Cause> {
    let attributes = [LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    connection.dump(&Request::new(RTM_GETLINK, 0, &LinkHeader::default(), &attributes), |_, body| device(body))
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The number of the interface.
    pub index: u32,
    /// The address, as with every link.
    pub address: LinkAddress,
    /// Nobody may use it yet: duplicates are still looked for.
    pub tentative: bool,
    /// Somebody else has it.
    pub duplicate: bool,
}

fn held(body: &[u8]) -> Option<Held> {
    let (index, address) = readings::address(body)?;
    let mut held = Held { index, address, tentative: false, duplicate: false };
    let mut flags = u32::from(AddressHeader::parse(body).ok()?.flags.bits());
    for attribute in NlasIterator::new(body.get(ADDRESS_HEADER_LEN..)?).flatten() {
        if attribute.kind() == IFA_FLAGS {
            flags = attribute.value().try_into().ok().map(u32::from_ne_bytes)?;
        }
    }
    (held.tentative, held.duplicate) = (flags & IFA_F_TENTATIVE != 0, flags & IFA_F_DADFAILED != 0);
    Some(held)
}

/// The addresses of one interface.
///
/// # Errors
/// They cannot be listed.
pub fn addresses(connection: &mut Connection, index: u32) -> Result<Vec<Held>, Cause> {
    let header = AddressHeader { index, ..AddressHeader::default() };
    let request = Request::new::<AddressAttribute>(RTM_GETADDR, 0, &header, &[]);
    // Kernels before 4.20 list all.
    connection.dump(&request, |_, body| held(body).filter(|held| held.index == index))
}

/// Every address of a namespace: the socket's, or another one by the number that the socket's has for it.
///
/// # Errors
/// They cannot be listed.
pub fn addresses_in(connection: &mut Connection, namespace: Option<i32>) -> Result<Vec<IpAddr>, Cause> {
    let attributes: Vec<_> =
        namespace.map(|id| AddressAttribute::Other(DefaultNla::new(IN_NAMESPACE, id.to_ne_bytes().to_vec()))).into_iter().collect();
    let request = Request::new(RTM_GETADDR, 0, &AddressHeader::default(), &attributes);
    connection.dump(&request, |_, body| readings::address(body).map(|(_, address)| address.net.ip()))
}

/// A route of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where to.
    pub destination: IpNetwork,
    /// By which gateway; none: it is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The interface, by number.
    pub link: u32,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// Largest TCP segment, in bytes.
    pub advmss: Option<u32>,
    /// Metric.
    pub metric: Option<u32>,
    /// Table; none: the main one.
    pub table: Option<u32>,
    /// Scope (`RT_SCOPE_*`).
    pub scope: u8,
}

/// The requests that give an interface addresses, set it up, and make routes by it, in this order.
#[must_use]
pub fn configuration(index: u32, addresses: &[IpNetwork]) -> Vec<Request> {
    let addresses = addresses.iter().map(|net| requests::add_address(index, *net));
    addresses.chain([requests::set_up(index)]).collect()
}

/// The request that makes a route, for which there must not be one yet.
#[must_use]
pub fn add_route(way: &Way) -> Request {
    let destination = way.destination;
    let header = RouteHeader {
        address_family: if destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
        destination_prefix_length: destination.prefix(),
        table: way.table.and_then(|table| u8::try_from(table).ok()).unwrap_or(RouteHeader::RT_TABLE_MAIN),
        protocol: RouteProtocol::Boot,
        kind: RouteType::Unicast,
        scope: RouteScope::from(way.scope),
        ..RouteHeader::default()
    };
    let mut attributes = Vec::with_capacity(6);
    if destination.prefix() > 0 {
        attributes.push(RouteAttribute::Destination(destination.network().into()));
    }
    attributes.extend(way.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    attributes.push(RouteAttribute::Oif(way.link));
    attributes.extend(way.metric.map(RouteAttribute::Priority));
    attributes.extend(way.table.filter(|table| *table > 255).map(RouteAttribute::Table));
    let metrics: Vec<RouteMetric> = way.mtu.map(RouteMetric::Mtu).into_iter().chain(way.advmss.map(RouteMetric::Advmss)).collect();
    attributes.extend((!metrics.is_empty()).then_some(RouteAttribute::Metrics(metrics)));
    Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &header, &attributes)
}

/// Adds an address to an interface, or confirms it. Of IPv4 it gets a broadcast address.
///
/// # Errors
/// The kernel refuses.
pub fn add_address(connection: &mut Connection, index: u32, net: IpNetwork) -> Result<(), Cause> {
    connection.request(&requests::add_address(index, net))
}

/// Takes an address from an interface. One that is not there has gone.
///
/// # Errors
/// The kernel refuses.
pub fn delete_address(connection: &mut Connection, index: u32, net: IpNetwork) -> Result<(), Cause> {
    match connection.request(&requests::delete_address(index, net)) {
        Err(Cause::Kernel { errno: Errno::EADDRNOTAVAIL, .. }) => Ok(()),
        outcome => outcome,
    }
}

/// Every route of the main table.
///
/// # Errors
/// They cannot be listed.
pub fn routes(connection: &mut Connection) -> Result<Vec<Route>, Cause> {
    let mut found = Vec::new();
    for family in crate::cluster::Family::ALL {
        match connection.dump(&requests::routes(family), |_, body| readings::route(body)) {
            // A table that nothing was ever put in does not exist yet.
            Err(Cause::Kernel { errno: Errno::ENOENT, .. }) => {}
            routes => found.extend(routes?),
        }
    }
    Ok(found)
}

/// The interface that packets to a host leave by, by number.
///
/// # Errors
/// There is no way.
pub fn way_to(connection: &mut Connection, ip: IpAddr) -> Result<Option<u32>, Cause> {
    Ok(connection.get(&requests::route_to(ip), |_, body| readings::way(body))?.into_iter().find_map(|route| route.link))
}
