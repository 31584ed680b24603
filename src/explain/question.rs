//! The sender and the destination of a packet, as people name them, and where these are in the cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::cluster::ip::parse_ip;
use crate::cluster::{Family, Protocol, ServiceKey, ServicePort};
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::settings::DetectLocal;

use super::packet::{Origin, Packet, Place};

/// Services of the same name that an error lists.
const SUGGESTIONS: usize = 5;
/// An address that no host has (RFC 5737, RFC 3849).
const OUTSIDE: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(203, 0, 113, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// A question that cannot be answered as it is put, and how to put it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// Neither an address nor a Service.
    #[error("{0:?} is neither IP:PORT nor svc/NAMESPACE/NAME[:PORT], with /tcp, /udp or /sctp at the end or without")]
    Destination(String),
    /// A protocol that Services do not have.
    #[error("{0:?} is not a protocol of Services: tcp, udp or sctp")]
    Protocol(String),
    /// An address without a port.
    #[error("{ip} needs a port: {}", if .choices.is_empty() { "IP:PORT".to_owned() } else { .choices.join(", ") })]
    NoPort {
        /// The address.
        ip: IpAddr,
        /// The ports that Services have at it.
        choices: Vec<String>,
    },
    /// A Service without its namespace.
    #[error("svc/{name} has no namespace: svc/NAMESPACE/NAME is needed{}", suggested(.choices))]
    NoNamespace {
        /// The name.
        name: String,
        /// Services of this name.
        choices: Vec<String>,
    },
    /// A Service that no rules are for.
    #[error(
        "there is no Service {service} that a node has rules for (headless ones have none, nor have those of type ExternalName){}",
        suggested(.choices)
    )]
    NoService {
        /// The Service.
        service: ServiceKey,
        /// Services of this name in other namespaces.
        choices: Vec<String>,
    },
    /// A Service whose ports are others.
    #[error("Service {service} has no such port; it has: {}", .choices.join(", "))]
    NoSuchPort {
        /// The Service.
        service: ServiceKey,
        /// All its ports.
        choices: Vec<String>,
    },
    /// A Service with several ports that fit.
    #[error("Service {service} has several such ports; choose one: {}", .choices.join(", "))]
    Ambiguous {
        /// The Service.
        service: ServiceKey,
        /// The ports that fit.
        choices: Vec<String>,
    },
    /// A Service without the address that is needed.
    #[error("Service {0} has no cluster IP")]
    NoClusterIp(ServiceKey),
    /// Not a sender.
    #[error("{0:?} is none of IP, node, external, external/IP, pod/NAMESPACE/NAME")]
    Who(String),
    /// An address and another that do not go together.
    #[error("{0} and {1} are not of the same IP family")]
    Families(IpAddr, SocketAddr),
}

fn suggested(choices: &[String]) -> String {
    if choices.is_empty() { String::new() } else { format!("; did you mean {}?", choices.join(" or ")) }
}

/// The destination and the protocol: `IP:PORT` or `svc/NAMESPACE/NAME[:PORT]`, with `/tcp`, `/udp` or `/sctp`, in any case, at the end or
/// without.
///
/// # Errors
/// It is neither, or no such Service or port is there, or several ports fit.
pub fn destination(text: &str, inputs: &Inputs) -> Result<(SocketAddr, Protocol), Unclear> {
    let unclear = || Unclear::Destination(text.to_owned());
    let Some(service) = text.strip_prefix("svc/") else {
        let (address, protocol) = text.split_once('/').map_or((text, None), |(address, protocol)| (address, Some(protocol)));
        let address = parsed_address(address, inputs).map_err(|no_port| no_port.unwrap_or_else(unclear))?;
        return Ok((address, protocol.map_or(Ok(Protocol::Tcp), protocol_named)?));
    };
    let parts: Vec<&str> = service.split('/').collect();
    let (namespace, name, protocol) = match parts.as_slice() {
        _ if parts.iter().any(|part| part.is_empty()) => return Err(unclear()),
        [namespace, name] => (*namespace, *name, None),
        [namespace, name, protocol] => (*namespace, *name, Some(protocol_named(protocol)?)),
        [name] => {
            let name = name.split(':').next().unwrap_or(name);
            return Err(Unclear::NoNamespace { name: name.to_owned(), choices: services_named(name, inputs) });
        }
        _ => return Err(unclear()),
    };
    let (name, port) = name.split_once(':').map_or((name, None), |(name, port)| (name, Some(port)));
    let key = ServiceKey { namespace: namespace.into(), name: name.into() };
    let Some(service) = inputs.snapshot.service(&key) else {
        return Err(Unclear::NoService { choices: services_named(name, inputs), service: key });
    };
    let fits = |of: &&ServicePort| {
        protocol.is_none_or(|protocol| protocol == of.protocol)
            && port.is_none_or(|port| of.name.eq_ignore_ascii_case(port) || port.parse() == Ok(of.port))
    };
    let choice = |port: &ServicePort| {
        let name = if port.name.is_empty() { String::new() } else { format!(" ({})", port.name) };
        format!("svc/{key}:{}/{}{name}", port.port, port.protocol.as_str())
    };
    let fitting: Vec<&ServicePort> = service.ports.iter().filter(fits).collect();
    let one = match fitting.as_slice() {
        [one] => one,
        [] => {
            let choices = service.ports.iter().map(choice).collect();
            return Err(Unclear::NoSuchPort { choices, service: key });
        }
        several => {
            let choices = several.iter().map(|port| choice(port)).collect();
            return Err(Unclear::Ambiguous { choices, service: key });
        }
    };
    match Family::ALL.into_iter().find_map(|family| service.cluster_ip(family)) {
        Some(ip) => Ok((SocketAddr::new(ip, one.port), one.protocol)),
        None => Err(Unclear::NoClusterIp(key)),
    }
}

fn protocol_named(name: &str) -> Result<Protocol, Unclear> {
    let known = Some(name.to_uppercase()).filter(|name| !name.is_empty()).and_then(|name| Protocol::from_api(Some(&name)));
    known.ok_or_else(|| Unclear::Protocol(name.to_owned()))
}

/// An IP with its port. Of an IP alone the error names the ports that Services have at it.
fn parsed_address(text: &str, inputs: &Inputs) -> Result<SocketAddr, Option<Unclear>> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let ip: IpAddr = text.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| None)?;
    let family = Family::of(ip);
    let mut choices: Vec<String> = Vec::new();
    for (_, service) in inputs.snapshot.services() {
        let mut ips = service.cluster_ip(family).into_iter().chain(service.external_ips(family)).chain(service.load_balancer_vips(family));
        if ips.any(|other| other == ip) {
            choices.extend(service.ports.iter().map(|port| format!("{}/{}", SocketAddr::new(ip, port.port), port.protocol.as_str())));
        }
    }
    Err(Some(Unclear::NoPort { ip, choices }))
}

/// The Services of a name, as they can be asked for.
fn services_named(name: &str, inputs: &Inputs) -> Vec<String> {
    let mut found: Vec<String> =
        inputs.snapshot.services().filter(|(key, _)| &*key.name == name).map(|(key, _)| format!("svc/{key}")).collect();
    found.sort_unstable();
    found.truncate(SUGGESTIONS);
    found
}

/// What rules may ask about the node, with these addresses of the host besides the Node's.
#[must_use]
pub fn place(inputs: &Inputs, host: impl IntoIterator<Item = IpAddr>) -> Place {
    let node = inputs.snapshot.node();
    let addresses = node.map(|node| node.addresses.clone()).unwrap_or_default().into_iter().chain(host).collect();
    let subnets = node.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
    let pod_interface = match &inputs.settings.detect_local {
        DetectLocal::BridgeInterface(name) => name.clone(),
        DetectLocal::InterfaceNamePrefix(prefix) => format!("{prefix}0"),
        DetectLocal::ClusterCidr(_) | DetectLocal::NodeCidr => "cni0".to_owned(),
    };
    Place { addresses, subnets, pod_interface, external_interface: "eth0".to_owned() }
}

/// Addresses that are written about the host.
#[must_use]
pub fn written_addresses(inputs: &Inputs) -> Vec<IpAddr> {
    let texts = inputs.written_facts.iter().flat_map(|written| written.addresses.iter().flatten());
    texts.filter_map(|text| parse_ip(text.split('/').next().unwrap_or_default())).collect()
}

/// The packet that opens a connection from `who`: an IP, `node` (this node), `external` or `external/IP` (another host).
///
/// # Errors
/// It is none of these, or of another IP family than whom it is sent to.
pub fn packet(who: &str, (to, protocol): (SocketAddr, Protocol), inputs: &Inputs, place: &Place) -> Result<Packet, Unclear> {
    let family = Family::of(to.ip());
    let ip = |text: &str| text.parse::<IpAddr>().map_err(|_| Unclear::Who(who.to_owned()));
    let (source, origin) = match who {
        "node" => {
            let loopback: IpAddr = if family == Family::V4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            let own = inputs.snapshot.node().and_then(|node| node.ip(family));
            (if to.ip().is_loopback() { loopback } else { own.unwrap_or(loopback) }, Origin::Node)
        }
        "external" => (if family == Family::V4 { OUTSIDE.0.into() } else { OUTSIDE.1.into() }, Origin::Outside),
        _ => {
            if let Some(text) = who.strip_prefix("external/") {
                (ip(text)?, Origin::Outside)
            } else {
                let source = ip(who)?;
                (source, origin(source, place))
            }
        }
    };
    if Family::of(source) == family { Ok(Packet { source, to, protocol, origin }) } else { Err(Unclear::Families(source, to)) }
}

fn origin(source: IpAddr, place: &Place) -> Origin {
    if place.is_local(source) {
        Origin::Node
    } else if place.subnets.iter().any(|subnet| subnet.contains(source)) {
        Origin::Pod
    } else {
        Origin::Outside
    }
}

/// Where an address is, in words.
#[must_use]
pub fn whereabouts(ip: IpAddr, inputs: &Inputs, place: &Place) -> String {
    if place.is_local(ip) {
        return "this node itself".to_owned();
    }
    if place.subnets.iter().any(|subnet| subnet.contains(ip)) {
        return "a pod of this node".to_owned();
    }
    match node_of(ip, inputs) {
        Some(node) if node == inputs.node_name => "a pod of this node".to_owned(),
        Some(node) => format!("on node {node}"),
        None => "another host".to_owned(),
    }
}

/// The node that an endpoint's slice names.
fn node_of(ip: IpAddr, inputs: &Inputs) -> Option<String> {
    let snapshot = &inputs.snapshot;
    let slices = snapshot.services().flat_map(|(key, _)| snapshot.slices(key));
    let endpoint = slices.flat_map(|slice| &slice.endpoints).find(|endpoint| endpoint.ip == ip)?;
    (!endpoint.node.is_empty()).then(|| endpoint.node.to_string())
}
