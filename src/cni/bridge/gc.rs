//! GC: removes interfaces, addresses and rules that belong to no valid attachment.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::error::{CniError, CniErrors};
use crate::cni::ipam::store::{Reservation, ReservationOwner};
use crate::cni::network_config::NetworkConfig;
use crate::cni::request::{Attachment, CniRequest, Verb};
use crate::cni::{exec, ipam};
use crate::netlink::socket::Connection;
use crate::netlink::{Cause, device, device::Device, veth};

use super::config::BridgeConfig;
use super::host_side::cannot;
use super::masquerade;
use super::port::{PortIdentity, is_ours};
use crate::cni::ipam::HOST_LOCAL;

pub(super) fn gc(config: &NetworkConfig, request: &CniRequest) -> Result<(), CniError> {
    let bridge = BridgeConfig::read(config, request)?;
    let valid = config.valid()?;
    let kind = ipam::kind(config)?;
    let reservations = match kind.as_str() {
        HOST_LOCAL => ipam::store(config)?.lock_existing()?.map_or(Ok(Vec::new()), |locked| locked.all())?,
        _ => Vec::new(),
    };
    // The address of an interface that could not be removed stays reserved.
    let mut with_gateway = valid.clone();
    with_gateway.insert(bridge.gateway_attachment());
    collect_ports(&config.name, &bridge.bridge, &with_gateway, &reservations)?;
    let mut errors = CniErrors::default();
    errors.note(match kind.as_str() {
        "" => Ok(()),
        HOST_LOCAL => ipam::collect(&ipam::store(config)?, &valid),
        other => exec::run(other, Verb::Gc, request, &config.json()).map(|_| ()),
    });
    if bridge.masquerade {
        errors.note(masquerade::collect(&config.name, &valid));
    }
    errors.into_result()
}

fn collect_ports(network: &str, bridge: &str, valid: &BTreeSet<Attachment>, reservations: &[Reservation]) -> Result<(), CniError> {
    let list = |host: &mut Connection| -> Result<Vec<_>, Cause> {
        let Some(bridge) = device::find(host, bridge)? else { return Ok(Vec::new()) };
        let ports = device::all(host)?.into_iter().filter(|port| port.link.master == Some(bridge.link.index));
        let with_addresses = ports.filter(|port| is_veth_name(&port.link.name)).collect::<Vec<_>>().into_iter().map(|port| {
            // If a namespace cannot be read, its interface cannot be identified.
            let inside = port.peer_namespace.map(|id| device::addresses_in(host, Some(id)).unwrap_or_default());
            (port, inside.unwrap_or_default())
        });
        Ok(with_addresses.collect())
    };
    let mut host = Connection::route().map_err(cannot("open a socket for bridge", bridge))?;
    let ports: Vec<(Device, Vec<IpAddr>)> = list(&mut host).map_err(cannot("list the ports of bridge", bridge))?;
    let names: BTreeSet<String> = valid.iter().flat_map(|valid| PortIdentity::all(network, valid)).map(|port| port.name).collect();
    let mut errors = CniErrors::default();
    for (port, inside) in ports {
        let owners: Vec<&ReservationOwner> =
            reservations.iter().filter(|found| inside.contains(&found.ip)).map(|found| &found.owner).collect();
        if is_stale(network, &port, &names, &owners, valid) {
            errors.note(veth::delete(&mut host, &port.link.name).map_err(cannot("delete interface", &port.link.name)));
        }
    }
    errors.into_result()
}

/// Returns true if a port belongs to an attachment of this network that is not valid. A port that this plugin made is known by its name,
/// any other one by the address of its container. A port that is known by neither stays.
fn is_stale(
    network: &str,
    port: &Device,
    valid_names: &BTreeSet<String>,
    owners: &[&ReservationOwner],
    valid: &BTreeSet<Attachment>,
) -> bool {
    if valid_names.contains(&port.link.name) || owners.iter().any(|owner| valid.iter().any(|valid| owner.is(valid))) {
        return false;
    }
    is_ours(network, &port.link.name, port.link.mac) || !owners.is_empty()
}

/// Returns true for `veth` and eight hexadecimal digits.
fn is_veth_name(name: &str) -> bool {
    name.strip_prefix("veth").is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::link::{Link, LinkKind};
    use crate::netlink::mac::Mac;

    fn attachment(container: &str) -> Attachment {
        Attachment { container: container.into(), interface: "eth0".into() }
    }

    fn port(name: &str, mac: Mac) -> Device {
        let kind = LinkKind::Other("veth".into());
        let link = Link { index: 9, name: name.into(), mac: Some(mac), mtu: 1450, up: true, master: Some(2), kind, addresses: Vec::new() };
        Device { link, peer: Some(2), peer_namespace: Some(0), state: 6, promiscuous: false }
    }

    #[test]
    fn only_ports_of_known_invalid_attachments_are_removed() {
        let valid = BTreeSet::from([attachment("alive")]);
        let names: BTreeSet<String> = PortIdentity::all("cbr0", &attachment("alive")).map(|port| port.name).collect();
        let owner = |container: &str| ReservationOwner { container: container.into(), interface: Some("eth0".into()) };
        let (alive, dead) = (owner("alive"), owner("dead"));
        let of = |container: &str| {
            let name = PortIdentity::new("cbr0", &attachment(container), 0);
            port(&name.name, name.mac)
        };
        let foreign = port("veth0a1b2c3d", Mac([2, 0, 0, 0, 0, 1]));
        let stale = |port: &Device, owners: &[&ReservationOwner]| is_stale("cbr0", port, &names, owners, &valid);
        assert!(!stale(&of("alive"), &[]) && !stale(&of("alive"), &[&alive]));
        assert!(stale(&of("dead"), &[]) && stale(&of("dead"), &[&dead]));
        assert!(!stale(&foreign, &[]), "its owner is unknown");
        assert!(!stale(&foreign, &[&alive]) && stale(&foreign, &[&dead]));
        assert!(!is_stale("other", &of("dead"), &BTreeSet::new(), &[], &valid), "it is another network's");
        assert!(is_veth_name("veth0a1b2c3d") && !is_veth_name("veth0") && !is_veth_name("eth0"));
    }
}
