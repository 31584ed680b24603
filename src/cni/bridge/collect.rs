//! GC: what is of no valid attachment goes: interfaces, addresses and rules.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cni::config::Config;
use crate::cni::failure::{Failure, Failures};
use crate::cni::ipam::store::{Holder, Reservation};
use crate::cni::protocol::{Attachment, Call, Verb};
use crate::cni::{exec, ipam};
use crate::netlink::socket::Connection;
use crate::netlink::{Cause, device, device::Device, veth};

use super::config::BridgeConfig;
use super::host::cannot;
use super::masquerade;
use super::port::{PortName, is_ours};
use crate::cni::ipam::HOST_LOCAL;

pub(super) fn collect(config: &Config, call: &Call) -> Result<(), Failure> {
    let bridge = BridgeConfig::read(config, call)?;
    let valid = config.valid()?;
    let kind = ipam::kind(config)?;
    let reservations = match kind.as_str() {
        HOST_LOCAL => ipam::store(config)?.lock_existing()?.map_or(Ok(Vec::new()), |locked| locked.all())?,
        _ => Vec::new(),
    };
    // An interface that stays keeps its address.
    let mut with_gateway = valid.clone();
    with_gateway.insert(bridge.gateway_attachment());
    collect_ports(&config.name, &bridge.bridge, &with_gateway, &reservations)?;
    let mut failures = Failures::default();
    failures.note(match kind.as_str() {
        "" => Ok(()),
        HOST_LOCAL => ipam::collect(&ipam::store(config)?, &valid),
        other => exec::run(other, Verb::Gc, call, &config.json()).map(|_| ()),
    });
    if bridge.masquerade {
        failures.note(masquerade::collect(&config.name, &valid));
    }
    failures.outcome()
}

fn collect_ports(network: &str, bridge: &str, valid: &BTreeSet<Attachment>, reservations: &[Reservation]) -> Result<(), Failure> {
    let list = |host: &mut Connection| -> Result<Vec<_>, Cause> {
        let Some(bridge) = device::find(host, bridge)? else { return Ok(Vec::new()) };
        let ports = device::all(host)?.into_iter().filter(|port| port.link.master == Some(bridge.link.index));
        let with_addresses = ports.filter(|port| is_veth_name(&port.link.name)).collect::<Vec<_>>().into_iter().map(|port| {
            // A namespace that cannot be asked has nothing by which its interface could be known.
            let inside = port.peer_namespace.map(|id| device::addresses_in(host, Some(id)).unwrap_or_default());
            (port, inside.unwrap_or_default())
        });
        Ok(with_addresses.collect())
    };
    let mut host = Connection::route().map_err(cannot("open a socket for bridge", bridge))?;
    let ports: Vec<(Device, Vec<IpAddr>)> = list(&mut host).map_err(cannot("list the ports of bridge", bridge))?;
    let names: BTreeSet<String> = valid.iter().flat_map(|valid| PortName::all(network, valid)).map(|port| port.name).collect();
    let mut failures = Failures::default();
    for (port, inside) in ports {
        let holders: Vec<&Holder> = reservations.iter().filter(|found| inside.contains(&found.ip)).map(|found| &found.holder).collect();
        if is_stale(network, &port, &names, &holders, valid) {
            failures.note(veth::delete(&mut host, &port.link.name).map_err(cannot("delete interface", &port.link.name)));
        }
    }
    failures.outcome()
}

/// Whether a port is of an attachment of the network that is not valid: one of this plugin's making by its name, any other one by the
/// address that its container has. What is neither is not known, and stays.
fn is_stale(network: &str, port: &Device, valid_names: &BTreeSet<String>, holders: &[&Holder], valid: &BTreeSet<Attachment>) -> bool {
    if valid_names.contains(&port.link.name) || holders.iter().any(|holder| valid.iter().any(|valid| holder.is(valid))) {
        return false;
    }
    is_ours(network, &port.link.name, port.link.mac) || !holders.is_empty()
}

/// `veth` and eight hexadecimal digits.
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
    fn only_what_is_known_to_be_of_nobody_goes() {
        let valid = BTreeSet::from([attachment("alive")]);
        let names: BTreeSet<String> = PortName::all("cbr0", &attachment("alive")).map(|port| port.name).collect();
        let holder = |container: &str| Holder { container: container.into(), interface: Some("eth0".into()) };
        let (alive, dead) = (holder("alive"), holder("dead"));
        let of = |container: &str| {
            let name = PortName::new("cbr0", &attachment(container), 0);
            port(&name.name, name.mac)
        };
        let foreign = port("veth0a1b2c3d", Mac([2, 0, 0, 0, 0, 1]));
        let stale = |port: &Device, holders: &[&Holder]| is_stale("cbr0", port, &names, holders, &valid);
        assert!(!stale(&of("alive"), &[]) && !stale(&of("alive"), &[&alive]));
        assert!(stale(&of("dead"), &[]) && stale(&of("dead"), &[&dead]));
        assert!(!stale(&foreign, &[]), "nobody knows whose it is");
        assert!(!stale(&foreign, &[&alive]) && stale(&foreign, &[&dead]));
        assert!(!is_stale("other", &of("dead"), &BTreeSet::new(), &[], &valid), "it is another network's");
        assert!(is_veth_name("veth0a1b2c3d") && !is_veth_name("veth0") && !is_veth_name("eth0"));
    }
}
