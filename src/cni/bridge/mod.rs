//! A container's interface on a bridge of the host, as the plugin `bridge` makes it (spec section 10.3): the same kernel objects, but for
//! the names and hardware addresses of the host's ends.

mod check;
mod collect;
mod config;
mod host;
mod inside;
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

use super::config::Config;
use super::failure::{Failure, Failures};
use super::ipam::HOST_LOCAL;
use super::netns::{Namespace, NoNamespace};
use super::protocol::{Attachment, Call, Verb};
use super::result::{Dns, Interface, Outcome, Route};
use super::{exec, in_use, ipam};
use config::BridgeConfig;
use host::cannot;
use port::PortName;

/// How long a port may take until packets pass.
const OPERATIONAL: Duration = Duration::from_millis(2550);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// What an ADD has made so far: what is to be undone should it, or a plugin after it, fail.
#[derive(Debug, Default)]
pub struct Made {
    port: Option<String>,
    /// Addresses of host-local.
    addresses: Vec<IpAddr>,
    /// Another IPAM plugin was asked for addresses.
    other_ipam: bool,
    masquerade: bool,
}

impl Made {
    /// Undoes all of it.
    ///
    /// # Errors
    /// Something stays; everything has been tried. An address whose interface stays is not freed.
    pub fn undo(&self, config: &Config, call: &Call) -> Result<(), Failure> {
        let mut failures = Failures::default();
        if self.masquerade {
            failures.note(masquerade::del(&config.name, &call.attachment.container));
        }
        if let Some(port) = &self.port {
            let deleted = Connection::route().and_then(|mut host| veth::delete(&mut host, port)).map_err(cannot("delete interface", port));
            if failures.note(deleted).is_none() {
                return failures.outcome();
            }
        }
        if self.other_ipam {
            failures.note(other_ipam(config, call, Verb::Del));
        }
        if !self.addresses.is_empty() {
            failures.note(ipam::store(config).and_then(|store| ipam::free(&store, &self.addresses)));
        }
        failures.outcome()
    }
}

fn other_ipam(config: &Config, call: &Call, verb: Verb) -> Result<Option<Outcome>, Failure> {
    exec::run(&ipam::kind(config)?, verb, call, &config.json())
}

/// Carries out a verb.
///
/// # Errors
/// It was not carried out.
pub fn run(config: &Config, call: &Call) -> Result<Option<Outcome>, Failure> {
    match call.verb {
        Verb::Add => add(config, call).map(|(outcome, _)| Some(outcome)),
        Verb::Del => del(config, call).map(|()| None),
        Verb::Check => check::check(config, call).map(|()| None),
        Verb::Gc => collect::collect(config, call).map(|()| None),
        Verb::Status => status(config, call).map(|()| None),
        Verb::Version => Ok(None),
    }
}

fn status(config: &Config, call: &Call) -> Result<(), Failure> {
    BridgeConfig::read(config, call)?;
    match ipam::kind(config)?.as_str() {
        "" => Ok(()),
        HOST_LOCAL => ipam::run(config, call).map(|_| ()),
        other => exec::run(other, Verb::Status, call, &config.json()).map(|_| ()),
    }
}

/// Connects a container. All of it is made, or nothing.
///
/// # Errors
/// It is not connected. What could not be undone is told, too.
pub fn add(config: &Config, call: &Call) -> Result<(Outcome, Made), Failure> {
    let bridge = BridgeConfig::read(config, call)?;
    let pod = Namespace::open(&call.netns)
        .map_err(|error| Failure::other(format!("failed to open netns {:?}: {}", call.netns, error.cause())))?;
    let mut made = Made::default();
    match connect(&bridge, config, call, &pod, &mut made) {
        Ok(outcome) => Ok((outcome, made)),
        Err(failure) => Err(failure.and(made.undo(config, call))),
    }
}

fn connect(bridge: &BridgeConfig, config: &Config, call: &Call, pod: &Namespace, made: &mut Made) -> Result<Outcome, Failure> {
    let mut host = Connection::route().map_err(cannot("open a socket for", &bridge.bridge))?;
    let found = host::ensure_bridge(&mut host, bridge)?;
    let port = make_port(&mut host, &found, bridge, config, call, pod)?;
    made.port = Some(port.clone());

    let mut outcome = addresses(config, call, made)?;
    let mut extra = Vec::new();
    let inner = if bridge.bare {
        inside::find(pod, &call.attachment.interface)?
    } else {
        gateways(&mut outcome, bridge);
        inside::configure(pod, &call.attachment.interface, &outcome, bridge.detect_duplicates)?
    };
    if bridge.gateway && !outcome.ips.is_empty() {
        let gateways = gateway_networks(&outcome)?;
        let holder = gateway_holder(&mut host, &found, bridge, config)?;
        host::ensure_gateways(&mut host, &holder, &gateways, bridge.force_address)?;
        host::forward(&gateways)?;
        if bridge.vlan > 0 {
            extra.push(interface_of(&holder, ""));
        }
    }
    if bridge.masquerade {
        made.masquerade = true;
        let addresses: Vec<IpNetwork> = outcome.ips.iter().map(|ip| ip.address).collect();
        masquerade::add(&config.name, &call.attachment.container, &addresses)?;
    }
    let port = if bridge.bare { find(&mut host, &port)? } else { wait_for(&mut host, &port)? };
    if !bridge.named {
        // The MTU may have changed since the bridge was looked at.
        let now = find(&mut host, &bridge.bridge)?;
        host::ensure_mtu(&mut host, &now, bridge.mtu)?;
    }
    outcome.interfaces = vec![interface_of(&found, ""), interface_of(&port, ""), interface_of(&inner, &call.netns)];
    outcome.interfaces.extend(extra);
    if bridge.dns != Dns::default() {
        outcome.dns = bridge.dns.clone();
    }
    Ok(outcome)
}

fn find(host: &mut Connection, name: &str) -> Result<Device, Failure> {
    device::find(host, name).and_then(|found| found.ok_or(Cause::Unfit("it is gone"))).map_err(cannot("find interface", name))
}

fn interface_of(device: &Device, sandbox: &str) -> Interface {
    let mac = device.link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    Interface { name: device.link.name.clone(), mac, sandbox: sandbox.to_owned(), ..Interface::default() }
}

/// Makes the pair of interfaces and sets the host's end up as a port of the bridge; gives its name.
fn make_port(
    host: &mut Connection,
    bridge: &Device,
    wanted: &BridgeConfig,
    config: &Config,
    call: &Call,
    pod: &Namespace,
) -> Result<String, Failure> {
    let names = PortName::all(&config.name, &call.attachment);
    let kind =
        veth::Port { hairpin: wanted.hairpin, isolated: wanted.isolated, vlan: wanted.vlan, keep_default_vlan: wanted.keep_default_vlan };
    pair(host, bridge, names, &call.attachment.interface, (wanted.mac, wanted.mtu), pod, kind)
}

#[allow(clippy::too_many_arguments, reason = "two callers, and a struct of them would be read once")]
fn pair(
    host: &mut Connection,
    bridge: &Device,
    names: impl Iterator<Item = PortName>,
    inner: &str,
    (inner_mac, mtu): (Option<Mac>, u32),
    namespace: &Namespace,
    kind: veth::Port,
) -> Result<String, Failure> {
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
                // Whose name it was that exists, the kernel does not say.
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
    Err(Failure::other(format!("container veth name ({inner:?}) peer provided ({last:?}) already exists")))
}

fn set_port(host: &mut Connection, name: &str, kind: veth::Port) -> Result<(), Failure> {
    crate::netlink::sysctl::refuse_router_advertisements(name);
    let index = if kind.vlan > 0 { find(host, name)?.link.index } else { 0 };
    veth::set_port(host, name, index, kind).map_err(cannot("set up bridge port", name))
}

/// Gets addresses from whatever plugin gives them.
fn addresses(config: &Config, call: &Call, made: &mut Made) -> Result<Outcome, Failure> {
    let outcome = match ipam::kind(config)?.as_str() {
        "" => return Ok(Outcome::default()),
        HOST_LOCAL => {
            let outcome = ipam::Ipam::read(config, call)?.add(&call.attachment, &in_use::addresses)?;
            made.addresses = outcome.ips.iter().map(|ip| ip.address.ip()).collect();
            outcome
        }
        _ => {
            // It may have given some also where its answer makes no sense.
            made.other_ipam = true;
            other_ipam(config, call, Verb::Add)?.unwrap_or_default()
        }
    };
    if outcome.ips.is_empty() {
        return Err(Failure::other("IPAM plugin returned missing IP config"));
    }
    Ok(outcome)
}

/// Says which interface has the addresses, by which gateways, and adds the default routes.
fn gateways(outcome: &mut Outcome, bridge: &BridgeConfig) {
    for ip in &mut outcome.ips {
        ip.interface = Some(2);
        if bridge.gateway && ip.gateway.is_none() {
            ip.gateway = Some(first_host(ip.address));
        }
    }
    if !bridge.default_gateway {
        return;
    }
    for family in Family::ALL {
        let Some(first) = outcome.ips.iter().find(|ip| Family::of_net(ip.address) == family) else { continue };
        let Ok(everywhere) = IpNetwork::new(any(family), 0) else { continue };
        if !outcome.routes.iter().any(|route| route.dst == everywhere && route.gw.is_some()) {
            outcome.routes.push(Route::new(everywhere, first.gateway));
        }
    }
}

const fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

/// The gateways' addresses, with the lengths of their networks' prefixes.
fn gateway_networks(outcome: &Outcome) -> Result<Vec<IpNetwork>, Failure> {
    let mut networks = Vec::new();
    for (ip, gateway) in outcome.ips.iter().filter_map(|ip| Some((ip, ip.gateway?))) {
        let net = IpNetwork::new(gateway, ip.address.prefix()).map_err(|error| Failure::other(format!("gateway {gateway}: {error}")))?;
        if !networks.contains(&net) {
            networks.push(net);
        }
    }
    Ok(networks)
}

/// The interface that has the gateways' addresses: the bridge, or, with a VLAN, one of the host's own in it.
fn gateway_holder(host: &mut Connection, bridge: &Device, wanted: &BridgeConfig, config: &Config) -> Result<Device, Failure> {
    if wanted.vlan == 0 {
        return Ok(bridge.clone());
    }
    let name = format!("{}.{}", wanted.bridge, wanted.vlan);
    if device::find(host, &name).map_err(cannot("find interface", &name))?.is_none() {
        let own = Namespace::open("/proc/thread-self/ns/net").map_err(|error| inside::no_namespace(&error))?;
        let attachment = wanted.gateway_attachment();
        let kind = veth::Port { hairpin: false, isolated: false, vlan: wanted.vlan, keep_default_vlan: wanted.keep_default_vlan };
        pair(host, bridge, PortName::all(&config.name, &attachment), &name, (None, wanted.mtu), &own, kind)?;
    }
    let found = find(host, &name)?;
    if !found.link.up {
        veth::set_up(host, found.link.index, false).map_err(cannot("set up interface", &name))?;
    }
    find(host, &name)
}

/// Waits until packets pass a port.
fn wait_for(host: &mut Connection, name: &str) -> Result<Device, Failure> {
    let limit = Instant::now() + OPERATIONAL;
    let mut pause = Duration::from_micros(50);
    loop {
        let port = find(host, name)?;
        if port.operational() {
            return Ok(port);
        }
        if Instant::now() > limit {
            return Err(Failure::other(format!("bridge port in error state: {}", port.state_name())));
        }
        inside::nap(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Disconnects a container, as far as it is connected.
///
/// # Errors
/// Something of it stays. An address whose interface stays is not freed.
pub fn del(config: &Config, call: &Call) -> Result<(), Failure> {
    remove_interface(config, call)?;
    let mut failures = Failures::default();
    failures.note(match ipam::kind(config)?.as_str() {
        "" => Ok(()),
        HOST_LOCAL => ipam::store(config).and_then(|store| ipam::del(&store, &call.attachment)).map(|_| ()),
        _ => other_ipam(config, call, Verb::Del).map(|_| ()),
    });
    if is_masqueraded(config) {
        failures.note(masquerade::del(&config.name, &call.attachment.container));
    }
    failures.outcome()
}

/// Whether the configuration asks for masquerading. DEL does not depend on the other keys.
fn is_masqueraded(config: &Config) -> bool {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Keys {
        ip_masq: bool,
    }
    config.parse::<Keys>().is_ok_and(|keys| keys.ip_masq)
}

/// Removes the container's interface: by the host's end, which is known by its name; or, where this plugin did not make it, by its own
/// name in the namespace that the path leads to.
fn remove_interface(config: &Config, call: &Call) -> Result<(), Failure> {
    let name = call.attachment.interface.as_str();
    let mut host = Connection::route().map_err(cannot("open a socket for interface", name))?;
    let removed = remove_ports(&mut host, config, &call.attachment).map_err(cannot("delete the host's end of interface", name))?;
    if removed || call.netns.is_empty() {
        return Ok(());
    }
    let remove = || {
        let mut inside = Connection::route()?;
        let Some(found) = device::find(&mut inside, name)? else { return Ok(()) };
        if is_of_other(&mut host, config, &call.attachment, &found)? { Ok(()) } else { veth::delete(&mut inside, name).map(|_| ()) }
    };
    match Namespace::open(&call.netns).and_then(|pod| pod.within(remove)) {
        Ok(removed) => removed.map_err(cannot("delete the container's interface", name)),
        Err(NoNamespace::Gone(_)) => Ok(()),
        Err(NoNamespace::Other(cause)) => Err(Failure::other(format!("failed to open netns {:?}: {cause}", call.netns))),
    }
}

/// Removes the host's ends of an attachment, and with them the others; says whether there were any. Names are taken in turn, and few are
/// needed.
fn remove_ports(host: &mut Connection, config: &Config, attachment: &Attachment) -> Result<bool, Cause> {
    let mut removed = false;
    for port in PortName::all(&config.name, attachment) {
        match device::find(host, &port.name)? {
            Some(found) if found.link.mac == Some(port.mac) => removed |= veth::delete(host, &port.name)?,
            Some(_) => {}
            None => break,
        }
    }
    Ok(removed)
}

/// Whether a container's interface leads to a port that this plugin made for another attachment: then the path is another container's by
/// now.
fn is_of_other(host: &mut Connection, config: &Config, attachment: &Attachment, inside: &Device) -> Result<bool, Cause> {
    let leads_here = |port: &Device| Some(port.link.index) == inside.peer && port.peer == Some(inside.link.index);
    let port = device::all(host)?.into_iter().find(leads_here);
    Ok(port.is_some_and(|port| {
        port::is_ours(&config.name, &port.link.name, port.link.mac)
            && PortName::all(&config.name, attachment).all(|own| own.name != port.link.name)
    }))
}
