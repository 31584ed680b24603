//! CHECK: compares a container's connection with its result [flannel 10.3].

use ipnetwork::IpNetwork;

use crate::cni::error::{CniError, ErrorCode};
use crate::cni::netns::NetworkNamespace;
use crate::cni::network_config::NetworkConfig;
use crate::cni::request::{CniRequest, Verb};
use crate::cni::result::{CniInterface, CniResult};
use crate::cni::{exec, ipam};
use crate::netlink::entry::Route;
use crate::netlink::link::LinkKind;
use crate::netlink::socket::Connection;
use crate::netlink::{Cause, device, device::Device};

use super::config::BridgeConfig;
use super::container_side;
use super::host_side::cannot;
use crate::cni::ipam::HOST_LOCAL;

/// The links and addresses in the container's namespace.
struct Inside {
    device: Option<Device>,
    addresses: Vec<IpNetwork>,
    routes: Vec<Route>,
}

pub(super) fn check(config: &NetworkConfig, request: &CniRequest) -> Result<(), CniError> {
    let wanted = BridgeConfig::read(config, request)?;
    match ipam::kind(config)?.as_str() {
        "" => {}
        HOST_LOCAL => ipam::check(&ipam::store(config)?, &request.attachment)?,
        other => exec::run(other, Verb::Check, request, &config.json()).map(|_| ())?,
    }
    let result = config.previous()?.ok_or_else(|| CniError::new(ErrorCode::BAD_CONFIG, "Required prevResult missing"))?;
    let name = request.attachment.interface.as_str();
    let pod = NetworkNamespace::open(&request.netns)
        .map_err(|error| CniError::other(format!("failed to open netns {:?}: {}", request.netns, error.cause())))?;
    let inside =
        pod.within(|| look(name)).map_err(|error| container_side::no_namespace(&error))?.map_err(cannot("look at interface", name))?;

    let mut host = Connection::route().map_err(cannot("open a socket for", &wanted.bridge))?;
    let bridge = found(device::find(&mut host, &wanted.bridge), &wanted.bridge, "bridge")?;
    if bridge.link.kind != LinkKind::Bridge {
        return wrong(format!("interface {} is not a bridge", wanted.bridge));
    }
    if let Some(said) = said(&result, &wanted.bridge, false) {
        same_mac(&bridge, said)?;
    }
    if wanted.promiscuous && !bridge.promiscuous {
        return wrong(format!("bridge {} is not promiscuous", wanted.bridge));
    }
    let Some(own) = inside.device else { return wrong(format!("interface {name} of the container is missing")) };
    let Some(said_own) = said(&result, name, true) else { return wrong(format!("the result has no interface {name} of the container")) };
    same_mac(&own, said_own)?;
    check_port(&mut host, &result, &bridge, &own)?;
    if !wanted.bare {
        check_addresses(&result, &inside.addresses, &inside.routes, &own)?;
    }
    Ok(())
}

fn look(name: &str) -> Result<Inside, Cause> {
    let mut connection = Connection::route()?;
    let device = device::find(&mut connection, name)?;
    let addresses = match &device {
        Some(device) => device::addresses(&mut connection, device.link.index)?.into_iter().map(|held| held.address.net).collect(),
        None => Vec::new(),
    };
    Ok(Inside { device, addresses, routes: device::routes(&mut connection)? })
}

fn wrong<T>(message: String) -> Result<T, CniError> {
    Err(CniError::other(message))
}

fn found(device: Result<Option<Device>, Cause>, name: &str, what: &str) -> Result<Device, CniError> {
    device.map_err(cannot("find", name))?.ok_or_else(|| CniError::other(format!("{what} {name} is missing")))
}

/// The interface in the result.
fn said<'r>(result: &'r CniResult, name: &str, of_container: bool) -> Option<&'r CniInterface> {
    result.interfaces.iter().find(|interface| interface.name == name && interface.sandbox.is_empty() != of_container)
}

fn same_mac(device: &Device, said: &CniInterface) -> Result<(), CniError> {
    let now = device.link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if said.mac.is_empty() || said.mac.eq_ignore_ascii_case(&now) {
        return Ok(());
    }
    wrong(format!("interface {} has hardware address {now}, the result says {}", said.name, said.mac))
}

/// Checks that the host's end exists, is the peer of the container's end, and is a port of the bridge.
fn check_port(host: &mut Connection, result: &CniResult, bridge: &Device, own: &Device) -> Result<(), CniError> {
    let names = result.interfaces.iter().filter(|interface| interface.sandbox.is_empty() && interface.name != bridge.link.name);
    let mut seen = None;
    for said in names {
        let port = found(device::find(host, &said.name), &said.name, "interface")?;
        if Some(port.link.index) == own.peer && port.peer == Some(own.link.index) {
            same_mac(&port, said)?;
            seen = Some(port);
        }
    }
    let Some(port) = seen else { return wrong(format!("interface {} does not lead to an interface of the result", own.link.name)) };
    if port.link.master == Some(bridge.link.index) {
        return Ok(());
    }
    wrong(format!("interface {} is not a port of bridge {}", port.link.name, bridge.link.name))
}

fn check_addresses(result: &CniResult, addresses: &[IpNetwork], routes: &[Route], own: &Device) -> Result<(), CniError> {
    let name = &own.link.name;
    for ip in &result.ips {
        let of_other = ip.interface.and_then(|at| result.interfaces.get(at)).is_some_and(|of| of.name != *name || of.sandbox.is_empty());
        if of_other {
            continue;
        }
        if !addresses.contains(&ip.address) {
            return wrong(format!("Failed to find {} on {name}", ip.address));
        }
        let connected =
            |route: &Route| route.gateway.is_none() && route.destination.contains(ip.address.ip()) && route.link == Some(own.link.index);
        if !routes.iter().any(connected) {
            return wrong(format!("the network of {} has no route on {name}", ip.address));
        }
    }
    for said in &result.routes {
        // Routes in other tables are not checked.
        let is = |route: &Route| same_network(route.destination, said.dst) && said.gw.is_none_or(|gateway| route.gateway == Some(gateway));
        if said.table.is_none_or(|table| table == MAIN) && !routes.iter().any(is) {
            return wrong(format!("Expected Route {} was not found in routing table", said.dst));
        }
    }
    Ok(())
}

/// `RT_TABLE_MAIN`
const MAIN: u32 = 254;

fn same_network(one: IpNetwork, other: IpNetwork) -> bool {
    (one.network(), one.prefix()) == (other.network(), other.prefix())
}
