//! The host's side: the bridge with the gateway addresses, and forwarding.

use crate::cni::netns::set_sysctl;
use std::fs;
use std::path::Path;

use ipnetwork::IpNetwork;

use crate::cni::error::CniError;
use crate::netlink::link::{LinkKind, Scope};
use crate::netlink::mac::Mac;
use crate::netlink::socket::Connection;
use crate::netlink::{Cause, device, device::Device, veth};

use super::config::BridgeConfig;

/// Makes an error that names the request and the object that the kernel refused.
pub(super) fn cannot(request: &str, object: &str) -> impl Fn(Cause) -> CniError {
    move |cause| CniError::other(format!("cannot {request} {object}: {cause}"))
}

/// Finds or creates the bridge, and changes it where it differs from the configuration.
pub(super) fn ensure_bridge(host: &mut Connection, config: &BridgeConfig) -> Result<Device, CniError> {
    let name = config.bridge.as_str();
    let find = |host: &mut Connection| device::find(host, name).map_err(cannot("find bridge", name));
    let mut found = find(host)?;
    if found.is_none() {
        veth::create_bridge(host, name, config.mtu, config.vlan > 0).map_err(cannot("make bridge", name))?;
        found = find(host)?;
    }
    let bridge = found.ok_or_else(|| CniError::other(format!("bridge {name} was made and is gone again")))?;
    if bridge.link.kind != LinkKind::Bridge {
        return Err(CniError::other(format!("{name:?} already exists but is not a bridge")));
    }
    keep_mac(host, &bridge)?;
    // The plugin that created the bridge may have been killed before it set this.
    crate::netlink::sysctl::refuse_router_advertisements(name);
    if config.vlan > 0 {
        veth::filter_vlans(host, bridge.link.index).map_err(cannot("filter VLANs of bridge", name))?;
    }
    if !bridge.link.up || config.promiscuous && !bridge.promiscuous {
        veth::set_up(host, bridge.link.index, config.promiscuous).map_err(cannot("set up bridge", name))?;
    }
    Ok(bridge)
}

/// Makes the kernel keep the MAC address of the bridge. Without this, a bridge has the smallest address of its ports, and changes it when
/// ports come and go. This runs before the first port is added, so that the address never changes.
fn keep_mac(host: &mut Connection, bridge: &Device) -> Result<(), CniError> {
    let Some(mac) = bridge.link.mac else { return Ok(()) };
    if is_kept(&bridge.link.name, mac) {
        return Ok(());
    }
    veth::set_mac(host, bridge.link.index, mac).map_err(cannot("keep the hardware address of bridge", &bridge.link.name))
}

/// Returns true if the MAC address is already fixed. Only sysfs shows it. The address there is compared, because sysfs may be mounted for
/// another network namespace. Setting the address again would make the kernel forget the neighbours of the bridge.
fn is_kept(name: &str, mac: Mac) -> bool {
    /// `NET_ADDR_SET`
    const SET: &str = "3";
    let read = |file: &str| fs::read_to_string(Path::new("/sys/class/net").join(name).join(file)).unwrap_or_default();
    read("addr_assign_type").trim() == SET && read("address").trim() == mac.to_string()
}

/// Sets the MTU of the bridge. The kernel uses the smallest MTU of the ports until the MTU is set once, so this runs after the port is
/// added.
pub(super) fn ensure_mtu(host: &mut Connection, bridge: &Device, mtu: u32) -> Result<(), CniError> {
    if mtu == 0 || bridge.link.mtu == mtu {
        return Ok(());
    }
    veth::set_mtu(host, bridge.link.index, mtu).map_err(cannot("set the MTU of bridge", &bridge.link.name))
}

/// Gives an interface these gateway addresses. Conflicting addresses are every other IPv4 address, and IPv6 addresses whose networks
/// overlap. With `force` they are removed. Without it nothing changes, because they may be the host's own.
pub(super) fn ensure_gateways(host: &mut Connection, gateway: &Device, wanted: &[IpNetwork], force: bool) -> Result<(), CniError> {
    let (name, index) = (gateway.link.name.as_str(), gateway.link.index);
    let present = device::addresses(host, index).map_err(cannot("list the addresses of", name))?;
    for net in wanted {
        if present.iter().any(|held| held.address.net == *net) {
            continue;
        }
        let in_the_way = present.iter().map(|held| held.address).filter(|held| match net {
            IpNetwork::V4(_) => held.net.is_ipv4() && !wanted.contains(&held.net),
            IpNetwork::V6(_) => held.net.is_ipv6() && held.scope == Scope::Universe && crate::cluster::ip::overlap(held.net, *net),
        });
        for held in in_the_way {
            if !force {
                return Err(CniError::other(format!("failed to set bridge addr: {name:?} already has an IP address different from {net}")));
            }
            device::delete_address(host, index, held.net).map_err(cannot("take an address that is another network's from", name))?;
        }
        device::add_address(host, index, *net).map_err(cannot(&format!("add address {net} to"), name))?;
    }
    Ok(())
}

/// Enables forwarding on the host for the families of these addresses.
pub(super) fn forward(addresses: &[IpNetwork]) -> Result<(), CniError> {
    for (v4, path) in [(true, "/proc/sys/net/ipv4/ip_forward"), (false, "/proc/sys/net/ipv6/conf/all/forwarding")] {
        if addresses.iter().any(|net| net.is_ipv4() == v4) {
            set_sysctl(path, "1")?;
        }
    }
    Ok(())
}
