//! Creates and configures veth pairs between a container and a bridge, and the bridge (`include/uapi/linux/if_link.h`). Each function
//! sends one request or one datagram through the caller's socket, and works in that socket's network namespace.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkHeader, LinkInfo, LinkMessage,
};
use nix::errno::Errno;
use nix::libc::{RTM_DELLINK, RTM_NEWLINK, RTM_SETLINK};

use super::mac::Mac;

use super::encode;
use super::error::Cause;
use super::kernel::check_name;
use super::socket::{Connection, Request};

/// The VLAN that a new bridge port is in.
const DEFAULT_VLAN: u16 = 1;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const NO_ATTRIBUTES: [LinkAttribute; 0] = [];

/// A veth pair. One end is a port of a bridge, the other end is in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Name of the bridge port.
    pub port: &'a str,
    /// Hardware address of the bridge port.
    pub port_mac: Mac,
    /// Index of the bridge.
    pub bridge: u32,
    /// Name of the end in the container.
    pub inner: &'a str,
    /// Hardware address of the end in the container; `None` for a random one.
    pub inner_mac: Option<Mac>,
    /// MTU of both ends; 0 for the kernel's default.
    pub mtu: u32,
}

/// The settings of a bridge port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Packets may leave through the port through which they came in.
    pub hairpin: bool,
    /// No packets pass between this port and other isolated ports.
    pub isolated: bool,
    /// The VLAN of untagged packets; 0 for none.
    pub vlan: u16,
    /// The port stays in the default VLAN.
    pub keep_default_vlan: bool,
}

fn named(name: &str) -> Vec<LinkAttribute> {
    vec![LinkAttribute::IfName(name.to_owned())]
}

/// Creates a pair: the bridge port in the socket's namespace, the other end in `inner_namespace`. Both are down.
///
/// # Errors
/// The kernel refuses; with `EEXIST` if an interface of either name exists.
pub fn create(connection: &mut Connection, pair: &Pair<'_>, inner_namespace: impl AsFd) -> Result<(), Cause> {
    check_name(pair.port)?;
    check_name(pair.inner)?;
    let mtu = (pair.mtu > 0).then_some(LinkAttribute::Mtu(pair.mtu));
    let mut inner = LinkMessage::default();
    inner.attributes = named(pair.inner);
    inner.attributes.extend([LinkAttribute::NetNsFd(inner_namespace.as_fd().as_raw_fd()), LinkAttribute::TxQueueLen(0)]);
    inner.attributes.extend(mtu.clone());
    inner.attributes.extend(pair.inner_mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    let mut port = named(pair.port);
    port.extend([LinkAttribute::Address(pair.port_mac.0.to_vec()), LinkAttribute::Controller(pair.bridge), LinkAttribute::TxQueueLen(0)]);
    port.extend(mtu);
    port.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inner)))]));
    connection.request(&Request::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &LinkHeader::default(), &port))
}

/// Applies the settings of a bridge port, and sets it up.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn set_port(connection: &mut Connection, name: &str, index: u32, port: Port) -> Result<(), Cause> {
    let mut attributes = named(name);
    let data = vec![InfoBridgePort::HairpinMode(port.hairpin), InfoBridgePort::Isolated(port.isolated)];
    let data = LinkInfo::PortData(InfoPortData::BridgePort(data));
    attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(InfoPortKind::Bridge), data]));
    let header = LinkHeader { flags: LinkFlags::Up, change_mask: LinkFlags::Up, ..LinkHeader::default() };
    let mut requests = vec![Request::new(RTM_NEWLINK, 0, &header, &attributes)];
    if port.vlan > 0 {
        let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        requests.push(vlan(RTM_SETLINK, index, port.vlan, flags));
        if !port.keep_default_vlan {
            requests.push(vlan(RTM_DELLINK, index, DEFAULT_VLAN, flags));
        }
    }
    connection.batch(requests).into_iter().collect()
}

fn vlan(kind: u16, index: u32, vid: u16, flags: BridgeVlanInfoFlags) -> Request {
    let header = LinkHeader { interface_family: AddressFamily::Bridge, index, ..LinkHeader::default() };
    // `struct bridge_vlan_info`
    let [flags, vid] = [flags.bits(), vid].map(u16::to_ne_bytes);
    let info = AfSpecBridge::Other(DefaultNla::new(IFLA_BRIDGE_VLAN_INFO, [flags, vid].concat()));
    Request::new(kind, 0, &header, &[LinkAttribute::AfSpecBridge(vec![info])])
}

/// Deletes an interface by name, and with it the other end of a pair. Returns false if there is no such interface.
///
/// # Errors
/// The kernel refuses.
pub fn delete(connection: &mut Connection, name: &str) -> Result<bool, Cause> {
    check_name(name)?;
    match connection.request(&Request::new(RTM_DELLINK, 0, &LinkHeader::default(), &named(name))) {
        Err(Cause::Kernel { errno: Errno::ENODEV, .. }) => Ok(false),
        outcome => outcome.map(|()| true),
    }
}

/// Creates a bridge, which is down. It is no error if the bridge exists already.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn create_bridge(connection: &mut Connection, name: &str, mtu: u32, vlans: bool) -> Result<(), Cause> {
    check_name(name)?;
    let mut attributes = named(name);
    attributes.extend((mtu > 0).then_some(LinkAttribute::Mtu(mtu)));
    let mut info = vec![LinkInfo::Kind(InfoKind::Bridge)];
    info.extend(vlans.then(|| LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)]))));
    attributes.push(LinkAttribute::LinkInfo(info));
    match connection.request(&Request::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &LinkHeader::default(), &attributes)) {
        Err(Cause::Kernel { errno: Errno::EEXIST, .. }) => Ok(()),
        outcome => outcome,
    }
}

/// Switches on the VLAN filter of a bridge.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn filter_vlans(connection: &mut Connection, bridge: u32) -> Result<(), Cause> {
    let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)]))];
    let header = LinkHeader { index: bridge, ..LinkHeader::default() };
    connection.request(&Request::new(RTM_NEWLINK, 0, &header, &[LinkAttribute::LinkInfo(info)]))
}

/// Sets an interface up. With `promiscuous`, it also receives packets for other hardware addresses.
///
/// # Errors
/// The kernel refuses.
pub fn set_up(connection: &mut Connection, index: u32, promiscuous: bool) -> Result<(), Cause> {
    let flags = if promiscuous { LinkFlags::Up | LinkFlags::Promisc } else { LinkFlags::Up };
    let header = LinkHeader { index, flags, change_mask: flags, ..LinkHeader::default() };
    connection.request(&Request::new(RTM_NEWLINK, 0, &header, &NO_ATTRIBUTES))
}

/// Sets an interface down.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn set_down(connection: &mut Connection, index: u32) -> Result<(), Cause> {
    let header = LinkHeader { index, change_mask: LinkFlags::Up, ..LinkHeader::default() };
    connection.request(&Request::new(RTM_NEWLINK, 0, &header, &NO_ATTRIBUTES))
}

/// Sets an interface's MTU.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn set_mtu(connection: &mut Connection, index: u32, mtu: u32) -> Result<(), Cause> {
    connection.request(&encode::set_mtu(index, mtu))
}

/// Sets an interface's hardware address. A bridge then keeps it when its ports change.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn set_mac(connection: &mut Connection, index: u32, mac: Mac) -> Result<(), Cause> {
    connection.request(&encode::set_mac(index, mac))
}
