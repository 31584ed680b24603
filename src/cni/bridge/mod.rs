//! The plugin `bridge`: connects a container to a bridge of the host [flannel 10.3]. It creates the same kernel objects as the reference
//! plugin, except for the names and MAC addresses of the host's ends.

mod check;
mod config;
mod container_side;
mod gc;
mod host_side;
mod masquerade;
mod port;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use serde::Deserialize;

use crate::cluster::Family;
use crate::cluster::ip::first_host;
use crate::netlink::mac::Mac;
use crate::netlink::socket::Connection;
use crate::netlink::{Cause, device, device::Device, veth};

use super::error::{CniError, CniErrors};
use super::ipam::HOST_LOCAL;
use super::netns::{NamespaceError, NetworkNamespace};
use super::network_config::NetworkConfig;
use super::request::{Attachment, CniRequest, Verb};
use super::result::{CniDns, CniInterface, CniResult, CniRoute};
use super::{exec, ipam, used_addresses};
use config::BridgeConfig;
use host_side::cannot;
use port::PortIdentity;

/// The longest wait until a port forwards packets.
const OPERATIONAL: Duration = Duration::from_millis(2550);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// What an ADD created so far. It is undone if this plugin or a later one fails.
#[derive(Debug, Default)]
pub struct CreatedObjects {
    port: Option<String>,
    /// Addresses that host-local reserved.
    addresses: Vec<IpAddr>,
    /// Another IPAM plugin was run.
    other_ipam: bool,
    masquerade: bool,
}

impl CreatedObjects {
    /// Undoes everything.
    ///
    /// # Errors
    /// Something could not be undone. All steps were tried. If an interface stays, its address stays reserved.
    pub fn undo(&self, config: &NetworkConfig, request: &CniRequest) -> Result<(), CniError> {
        let mut errors = CniErrors::default();
        if self.masquerade {
            errors.note(masquerade::del(&config.name, &request.attachment.container));
        }
        if let Some(port) = &self.port {
            let deleted = Connection::route().and_then(|mut host| veth::delete(&mut host, port)).map_err(cannot("delete interface", port));
            if errors.note(deleted).is_none() {
                return errors.into_result();
            }
        }
        if self.other_ipam {
            errors.note(other_ipam(config, request, Verb::Del));
        }
        if !self.addresses.is_empty() {
            errors.note(ipam::store(config).and_then(|store| ipam::free(&store, &self.addresses)));
        }
        errors.into_result()
    }
}

fn other_ipam(config: &NetworkConfig, request: &CniRequest, verb: Verb) -> Result<Option<CniResult>, CniError> {
    exec::run(&ipam::kind(config)?, verb, request, &config.json())
}

/// Runs a verb.
///
/// # Errors
/// The verb fails.
pub fn run(config: &NetworkConfig, request: &CniRequest) -> Result<Option<CniResult>, CniError> {
    match request.verb {
        Verb::Add => add(config, request).map(|(result, _)| Some(result)),
        Verb::Del => del(config, request).map(|()| None),
        Verb::Check => check::check(config, request).map(|()| None),
        Verb::Gc => gc::gc(config, request).map(|()| None),
        Verb::Status => status(config, request).map(|()| None),
        Verb::Version => Ok(None),
    }
}

fn status(config: &NetworkConfig, request: &CniRequest) -> Result<(), CniError> {
    BridgeConfig::read(config, request)?;
    match ipam::kind(config)?.as_str() {
        "" => Ok(()),
        HOST_LOCAL => ipam::run(config, request).map(|_| ()),
        other => exec::run(other, Verb::Status, request, &config.json()).map(|_| ()),
    }
}

/// Connects a container, completely or not at all.
///
/// # Errors
/// The container is not connected. The error also names what could not be undone.
pub fn add(config: &NetworkConfig, request: &CniRequest) -> Result<(CniResult, CreatedObjects), CniError> {
    let bridge = BridgeConfig::read(config, request)?;
    let pod = NetworkNamespace::open(&request.netns)
        .map_err(|error| CniError::other(format!("failed to open netns {:?}: {}", request.netns, error.cause())))?;
    let mut made = CreatedObjects::default();
    match connect(&bridge, config, request, &pod, &mut made) {
        Ok(result) => Ok((result, made)),
        Err(error) => Err(error.and(made.undo(config, request))),
    }
}

fn connect(
    bridge: &BridgeConfig,
    config: &NetworkConfig,
    request: &CniRequest,
    pod: &NetworkNamespace,
    made: &mut CreatedObjects,
) -> Result<CniResult, CniError> {
    let mut host = Connection::route().map_err(cannot("open a socket for", &bridge.bridge))?;
    let found = host_side::ensure_bridge(&mut host, bridge)?;
    let port = make_port(&mut host, &found, bridge, config, request, pod)?;
    made.port = Some(port.clone());

    let mut result = addresses(config, request, made)?;
    let mut extra = Vec::new();
    let inner = if bridge.bare {
        container_side::find(pod, &request.attachment.interface)?
    } else {
        gateways(&mut result, bridge);
        container_side::configure(pod, &request.attachment.interface, &result, bridge.detect_duplicates)?
    };
    if bridge.gateway && !result.ips.is_empty() {
        let gateways = gateway_networks(&result)?;
        let holder = gateway_holder(&mut host, &found, bridge, config)?;
        host_side::ensure_gateways(&mut host, &holder, &gateways, bridge.force_address)?;
        host_side::forward(&gateways)?;
        if bridge.vlan > 0 {
            extra.push(interface_of(&holder, ""));
        }
    }
    if bridge.masquerade {
        made.masquerade = true;
        let addresses: Vec<IpNetwork> = result.ips.iter().map(|ip| ip.address).collect();
        masquerade::add(&config.name, &request.attachment.container, &addresses)?;
    }
    let port = if bridge.bare { find(&mut host, &port)? } else { wait_for(&mut host, &port)? };
    if !bridge.named {
        // The MTU may have changed since the bridge was read.
        let now = find(&mut host, &bridge.bridge)?;
        host_side::ensure_mtu(&mut host, &now, bridge.mtu)?;
    }
    result.interfaces = vec![interface_of(&found, ""), interface_of(&port, ""), interface_of(&inner, &request.netns)];
    result.interfaces.extend(extra);
    if bridge.dns != CniDns::default() {
        result.dns = bridge.dns.clone();
    }
    Ok(result)
}

fn find(host: &mut Connection, name: &str) -> Result<Device, CniError> {
    device::find(host, name).and_then(|found| found.ok_or(Cause::Other("it is gone"))).map_err(cannot("find interface", name))
}

fn interface_of(device: &Device, sandbox: &str) -> CniInterface {
    let mac = device.link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    CniInterface { name: device.link.name.clone(), mac, sandbox: sandbox.to_owned(), ..CniInterface::default() }
}

/// Creates the veth pair and makes the host's end a port of the bridge. Returns the name of the host's end.
fn make_port(
    host: &mut Connection,
    bridge: &Device,
    wanted: &BridgeConfig,
    config: &NetworkConfig,
    request: &CniRequest,
    pod: &NetworkNamespace,
) -> Result<String, CniError> {
    let names = PortIdentity::all(&config.name, &request.attachment);
    let kind =
        veth::Port { hairpin: wanted.hairpin, isolated: wanted.isolated, vlan: wanted.vlan, keep_default_vlan: wanted.keep_default_vlan };
    pair(host, bridge, names, &request.attachment.interface, (wanted.mac, wanted.mtu), pod, kind)
}

#[allow(clippy::too_many_arguments, reason = "two callers, and a struct of them would be read once")]
fn pair(
    host: &mut Connection,
    bridge: &Device,
    names: impl Iterator<Item = PortIdentity>,
    inner: &str,
    (inner_mac, mtu): (Option<Mac>, u32),
    namespace: &NetworkNamespace,
    kind: veth::Port,
) -> Result<String, CniError> {
    let mut last = String::new();
    for port in names {
        let pair = veth::Pair { port: &port.name, port_mac: port.mac, bridge: bridge.link.index, inner, inner_mac, mtu };
        match veth::create(host, &pair, namespace) {
            Ok(()) => {
                let set = set_port(host, &port.name, kind);
                if set.is_err() {
                    let _ = veth::delete(host, &port.name);
                }
                return set.map(|()| port.name);
            }
            Err(Cause::Kernel { errno: Errno::EEXIST, .. }) => {
                // The kernel does not say which of the two names exists.
                let taken = device::find(host, &port.name).map_err(cannot("find interface", &port.name))?.is_some();
                last = port.name;
                let inside = namespace.within(|| device::find(&mut Connection::route()?, inner));
                if !taken || matches!(inside, Ok(Ok(Some(_)))) {
                    break;
                }
            }
            Err(cause) => return Err(cannot(&format!("make interface {inner:?} of the container, and its peer"), &port.name)(cause)),
        }
    }
    Err(CniError::other(format!("container veth name ({inner:?}) peer provided ({last:?}) already exists")))
}

fn set_port(host: &mut Connection, name: &str, kind: veth::Port) -> Result<(), CniError> {
    crate::netlink::sysctl::refuse_router_advertisements(name);
    let index = if kind.vlan > 0 { find(host, name)?.link.index } else { 0 };
    veth::set_port(host, name, index, kind).map_err(cannot("set up bridge port", name))
}

/// Gets addresses from the IPAM plugin.
fn addresses(config: &NetworkConfig, request: &CniRequest, made: &mut CreatedObjects) -> Result<CniResult, CniError> {
    let result = match ipam::kind(config)?.as_str() {
        "" => return Ok(CniResult::default()),
        HOST_LOCAL => {
            let result = ipam::HostLocal::read(config, request)?.add(&request.attachment, &used_addresses::addresses)?;
            made.addresses = result.ips.iter().map(|ip| ip.address.ip()).collect();
            result
        }
        _ => {
            // A plugin may have reserved addresses even if its result is invalid.
            made.other_ipam = true;
            other_ipam(config, request, Verb::Add)?.unwrap_or_default()
        }
    };
    if result.ips.is_empty() {
        return Err(CniError::other("IPAM plugin returned missing IP config"));
    }
    Ok(result)
}

/// Sets the interface and the gateways of the addresses, and adds the default routes.
fn gateways(result: &mut CniResult, bridge: &BridgeConfig) {
    for ip in &mut result.ips {
        ip.interface = Some(2);
        if bridge.gateway && ip.gateway.is_none() {
            ip.gateway = Some(first_host(ip.address));
        }
    }
    if !bridge.default_gateway {
        return;
    }
    for family in Family::ALL {
        let Some(first) = result.ips.iter().find(|ip| Family::of_net(ip.address) == family) else { continue };
        let Ok(everywhere) = IpNetwork::new(any(family), 0) else { continue };
        if !result.routes.iter().any(|route| route.dst == everywhere && route.gw.is_some()) {
            result.routes.push(CniRoute::new(everywhere, first.gateway));
        }
    }
}

const fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

/// Returns the gateway addresses with the prefix lengths of their networks.
fn gateway_networks(result: &CniResult) -> Result<Vec<IpNetwork>, CniError> {
    let mut networks = Vec::new();
    for (ip, gateway) in result.ips.iter().filter_map(|ip| Some((ip, ip.gateway?))) {
        let net = IpNetwork::new(gateway, ip.address.prefix()).map_err(|error| CniError::other(format!("gateway {gateway}: {error}")))?;
        if !networks.contains(&net) {
            networks.push(net);
        }
    }
    Ok(networks)
}

/// Returns the interface that has the gateway addresses: the bridge, or with a VLAN an interface of the host in that VLAN.
fn gateway_holder(host: &mut Connection, bridge: &Device, wanted: &BridgeConfig, config: &NetworkConfig) -> Result<Device, CniError> {
    if wanted.vlan == 0 {
        return Ok(bridge.clone());
    }
    let name = format!("{}.{}", wanted.bridge, wanted.vlan);
    if device::find(host, &name).map_err(cannot("find interface", &name))?.is_none() {
        let own = NetworkNamespace::open("/proc/thread-self/ns/net").map_err(|error| container_side::no_namespace(&error))?;
        let attachment = wanted.gateway_attachment();
        let kind = veth::Port { hairpin: false, isolated: false, vlan: wanted.vlan, keep_default_vlan: wanted.keep_default_vlan };
        pair(host, bridge, PortIdentity::all(&config.name, &attachment), &name, (None, wanted.mtu), &own, kind)?;
    }
    let found = find(host, &name)?;
    if !found.link.up {
        veth::set_up(host, found.link.index, false).map_err(cannot("set up interface", &name))?;
    }
    find(host, &name)
}

/// Waits until a port forwards packets.
fn wait_for(host: &mut Connection, name: &str) -> Result<Device, CniError> {
    let limit = Instant::now() + OPERATIONAL;
    let mut pause = Duration::from_micros(50);
    loop {
        let port = find(host, name)?;
        if port.operational() {
            return Ok(port);
        }
        if Instant::now() > limit {
            return Err(CniError::other(format!("bridge port in error state: {}", port.state_name())));
        }
        container_side::nap(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Disconnects a container as far as it is connected.
///
/// # Errors
/// Something could not be removed. If an interface stays, its address stays reserved.
pub fn del(config: &NetworkConfig, request: &CniRequest) -> Result<(), CniError> {
    remove_interface(config, request)?;
    let mut errors = CniErrors::default();
    errors.note(match ipam::kind(config)?.as_str() {
        "" => Ok(()),
        HOST_LOCAL => ipam::store(config).and_then(|store| ipam::del(&store, &request.attachment)).map(|_| ()),
        _ => other_ipam(config, request, Verb::Del).map(|_| ()),
    });
    if is_masqueraded(config) {
        errors.note(masquerade::del(&config.name, &request.attachment.container));
    }
    errors.into_result()
}

/// Returns true if the configuration asks for masquerading. DEL does not depend on the other keys.
fn is_masqueraded(config: &NetworkConfig) -> bool {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Keys {
        ip_masq: bool,
    }
    config.parse::<Keys>().is_ok_and(|keys| keys.ip_masq)
}

/// Deletes the container's interface: by the name of the host's end, or, if this plugin did not create it, by its own name in the namespace
/// of the path.
fn remove_interface(config: &NetworkConfig, request: &CniRequest) -> Result<(), CniError> {
    let name = request.attachment.interface.as_str();
    let mut host = Connection::route().map_err(cannot("open a socket for interface", name))?;
    let removed = remove_ports(&mut host, config, &request.attachment).map_err(cannot("delete the host's end of interface", name))?;
    if removed || request.netns.is_empty() {
        return Ok(());
    }
    let remove = || {
        let mut inside = Connection::route()?;
        let Some(found) = device::find(&mut inside, name)? else { return Ok(()) };
        if is_of_other(&mut host, config, &request.attachment, &found)? { Ok(()) } else { veth::delete(&mut inside, name).map(|_| ()) }
    };
    match NetworkNamespace::open(&request.netns).and_then(|pod| pod.within(remove)) {
        Ok(removed) => removed.map_err(cannot("delete the container's interface", name)),
        Err(NamespaceError::Missing(_)) => Ok(()),
        Err(NamespaceError::Other(cause)) => Err(CniError::other(format!("failed to open netns {:?}: {cause}", request.netns))),
    }
}

/// Deletes the host's ends of an attachment, and with them the container's ends. Returns true if there were any. The names are tried in
/// order; few are in use.
fn remove_ports(host: &mut Connection, config: &NetworkConfig, attachment: &Attachment) -> Result<bool, Cause> {
    let mut removed = false;
    for port in PortIdentity::all(&config.name, attachment) {
        match device::find(host, &port.name)? {
            Some(found) if found.link.mac == Some(port.mac) => removed |= veth::delete(host, &port.name)?,
            Some(_) => {}
            None => break,
        }
    }
    Ok(removed)
}

/// Returns true if the peer of a container's interface is a port that this plugin created for another attachment. Then the namespace's path
/// belongs to another container now.
fn is_of_other(host: &mut Connection, config: &NetworkConfig, attachment: &Attachment, inside: &Device) -> Result<bool, Cause> {
    let leads_here = |port: &Device| Some(port.link.index) == inside.peer && port.peer == Some(inside.link.index);
    let port = device::all(host)?.into_iter().find(leads_here);
    Ok(port.is_some_and(|port| {
        port::is_ours(&config.name, &port.link.name, port.link.mac)
            && PortIdentity::all(&config.name, attachment).all(|own| own.name != port.link.name)
    }))
}
