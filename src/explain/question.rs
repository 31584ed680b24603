//! Parses the sender and the destination that the operator typed, and finds where in the cluster an address is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::cluster::ip::parse_ip;
use crate::cluster::{Family, Protocol, Service, ServiceKey, ServicePort};
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::settings::DetectLocal;

use super::packet::{LocalNode, Origin, Packet};

/// The largest number of Services with the same name that an error lists.
const SUGGESTIONS: usize = 5;
/// Addresses that are reserved for documentation, so no host has them (RFC 5737, RFC 3849).
const OUTSIDE: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(203, 0, 113, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// A sender or destination that cannot be used. The message says what to type instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuestionError {
    /// The destination is neither an address nor a Service.
    #[error("{0:?} is neither IP:PORT nor svc/NAMESPACE/NAME[:PORT], with /tcp, /udp or /sctp at the end or without")]
    Destination(String),
    /// The protocol is not one that Services have.
    #[error("{0:?} is not a protocol of Services: tcp, udp or sctp")]
    Protocol(String),
    /// The destination is an address without a port.
    #[error("{ip} needs a port: {}", if .choices.is_empty() { "IP:PORT".to_owned() } else { .choices.join(", ") })]
    NoPort {
        /// The address.
        ip: IpAddr,
        /// The ports of Services at this address.
        choices: Vec<String>,
    },
    /// The destination is a Service without a namespace.
    #[error("svc/{name} has no namespace: svc/NAMESPACE/NAME is needed{}", suggested(.choices))]
    NoNamespace {
        /// The name of the Service.
        name: String,
        /// Services with this name.
        choices: Vec<String>,
    },
    /// The Service does not exist, or has no rules.
    #[error(
        "there is no Service {service} with rules (headless Services and Services of type ExternalName have none){}",
        suggested(.choices)
    )]
    NoService {
        /// The Service.
        service: ServiceKey,
        /// Services with this name in other namespaces.
        choices: Vec<String>,
    },
    /// The Service does not have this port.
    #[error("Service {service} has no such port; it has: {}", .choices.join(", "))]
    NoSuchPort {
        /// The Service.
        service: ServiceKey,
        /// All ports of the Service.
        choices: Vec<String>,
    },
    /// Several ports of the Service match.
    #[error("Service {service} has several such ports; choose one: {}", .choices.join(", "))]
    Ambiguous {
        /// The Service.
        service: ServiceKey,
        /// The ports that match.
        choices: Vec<String>,
    },
    /// The Service has no cluster IP.
    #[error("Service {0} has no cluster IP")]
    NoClusterIp(ServiceKey),
    /// The sender has none of the known forms.
    #[error("{0:?} is none of IP, node, external, external/IP, pod/NAMESPACE/NAME")]
    Sender(String),
    /// The sender and the destination are of different IP families.
    #[error("{0} and {1} are not of the same IP family")]
    Families(IpAddr, SocketAddr),
}

fn suggested(choices: &[String]) -> String {
    if choices.is_empty() { String::new() } else { format!("; did you mean {}?", choices.join(" or ")) }
}

/// Reads a destination and its protocol: `IP:PORT` or `svc/NAMESPACE/NAME[:PORT]`, with or without `/tcp`, `/udp` or `/sctp` at the end. The
/// protocol may be in upper or lower case.
///
/// # Errors
/// Returns an error if the text has another form, if the Service or port does not exist, and if several ports match.
pub(crate) fn destination(text: &str, inputs: &Inputs) -> Result<(SocketAddr, Protocol), QuestionError> {
    let error = || QuestionError::Destination(text.to_owned());
    let Some(service) = text.strip_prefix("svc/") else {
        let (address, protocol) = text.split_once('/').map_or((text, None), |(address, protocol)| (address, Some(protocol)));
        let address = parse_address(address, inputs).map_err(|no_port| no_port.unwrap_or_else(error))?;
        return Ok((address, protocol.map_or(Ok(Protocol::Tcp), parse_protocol)?));
    };
    let parts: Vec<&str> = service.split('/').collect();
    let (namespace, name, protocol) = match parts.as_slice() {
        _ if parts.iter().any(|part| part.is_empty()) => return Err(error()),
        [namespace, name] => (*namespace, *name, None),
        [namespace, name, protocol] => (*namespace, *name, Some(parse_protocol(protocol)?)),
        [name] => {
            let name = name.split(':').next().unwrap_or(name);
            return Err(QuestionError::NoNamespace { name: name.to_owned(), choices: services_named(name, inputs) });
        }
        _ => return Err(error()),
    };
    let (name, port) = name.split_once(':').map_or((name, None), |(name, port)| (name, Some(port)));
    let key = ServiceKey { namespace: namespace.into(), name: name.into() };
    let Some(service) = inputs.snapshot.service(&key) else {
        return Err(QuestionError::NoService { choices: services_named(name, inputs), service: key });
    };
    let port = choose_port(&key, service, port, protocol)?;
    match Family::ALL.into_iter().find_map(|family| service.cluster_ip(family)) {
        Some(ip) => Ok((SocketAddr::new(ip, port.port), port.protocol)),
        None => Err(QuestionError::NoClusterIp(key)),
    }
}

/// Returns the only port of a Service that matches a name or number and a protocol. If none or several match, returns an error.
fn choose_port<'s>(
    key: &ServiceKey,
    service: &'s Service,
    port: Option<&str>,
    protocol: Option<Protocol>,
) -> Result<&'s ServicePort, QuestionError> {
    let matches = |of: &&ServicePort| {
        protocol.is_none_or(|protocol| protocol == of.protocol)
            && port.is_none_or(|port| of.name.eq_ignore_ascii_case(port) || port.parse() == Ok(of.port))
    };
    let choice = |port: &ServicePort| {
        let name = if port.name.is_empty() { String::new() } else { format!(" ({})", port.name) };
        format!("svc/{key}:{}/{}{name}", port.port, port.protocol.as_str())
    };
    let matching: Vec<&ServicePort> = service.ports.iter().filter(matches).collect();
    match matching.as_slice() {
        [one] => Ok(one),
        [] => Err(QuestionError::NoSuchPort { choices: service.ports.iter().map(choice).collect(), service: key.clone() }),
        several => Err(QuestionError::Ambiguous { choices: several.iter().map(|port| choice(port)).collect(), service: key.clone() }),
    }
}

fn parse_protocol(name: &str) -> Result<Protocol, QuestionError> {
    let protocol = Some(name.to_uppercase()).filter(|name| !name.is_empty()).and_then(|name| Protocol::from_api(Some(&name)));
    protocol.ok_or_else(|| QuestionError::Protocol(name.to_owned()))
}

/// Reads an IP address with a port. If the port is missing, the error lists the ports of Services at this address.
fn parse_address(text: &str, inputs: &Inputs) -> Result<SocketAddr, Option<QuestionError>> {
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
    Err(Some(QuestionError::NoPort { ip, choices }))
}

/// Returns the Services with this name, in the form of destinations: `svc/NAMESPACE/NAME`.
fn services_named(name: &str, inputs: &Inputs) -> Vec<String> {
    let mut found: Vec<String> =
        inputs.snapshot.services().filter(|(key, _)| &*key.name == name).map(|(key, _)| format!("svc/{key}")).collect();
    found.sort_unstable();
    found.truncate(SUGGESTIONS);
    found
}

/// Collects the facts about this node that decide matches. Its addresses are those of the Node object and `host`.
#[must_use]
pub(crate) fn local_node(inputs: &Inputs, host: impl IntoIterator<Item = IpAddr>) -> LocalNode {
    let node = inputs.snapshot.node();
    let addresses = node.map(|node| node.addresses.clone()).unwrap_or_default().into_iter().chain(host).collect();
    let subnets = node.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
    let pod_interface = match &inputs.settings.detect_local {
        DetectLocal::BridgeInterface(name) => name.clone(),
        DetectLocal::InterfaceNamePrefix(prefix) => format!("{prefix}0"),
        DetectLocal::ClusterCidr(_) | DetectLocal::NodeCidr => "cni0".to_owned(),
    };
    LocalNode { addresses, subnets, pod_interface, external_interface: "eth0".to_owned() }
}

/// Returns the addresses of the host, from the host facts in the manifests.
#[must_use]
pub(crate) fn written_addresses(inputs: &Inputs) -> Vec<IpAddr> {
    let texts = inputs.written_facts.iter().flat_map(|written| written.addresses.iter().flatten());
    texts.filter_map(|text| parse_ip(text.split('/').next().unwrap_or_default())).collect()
}

/// Returns the first packet of a connection from `sender`: an IP, `node` (this node), `external` or `external/IP` (another host).
///
/// # Errors
/// Returns an error if the sender has another form, or if its IP family differs from that of the destination.
pub(crate) fn packet(
    sender: &str,
    (to, protocol): (SocketAddr, Protocol),
    inputs: &Inputs,
    node: &LocalNode,
) -> Result<Packet, QuestionError> {
    let family = Family::of(to.ip());
    let ip = |text: &str| text.parse::<IpAddr>().map_err(|_| QuestionError::Sender(sender.to_owned()));
    let (source, origin) = match sender {
        "node" => {
            let loopback: IpAddr = if family == Family::V4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            let own = inputs.snapshot.node().and_then(|object| object.ip(family));
            (if to.ip().is_loopback() { loopback } else { own.unwrap_or(loopback) }, Origin::Node)
        }
        "external" => (if family == Family::V4 { OUTSIDE.0.into() } else { OUTSIDE.1.into() }, Origin::Outside),
        _ => {
            if let Some(text) = sender.strip_prefix("external/") {
                (ip(text)?, Origin::Outside)
            } else {
                let source = ip(sender)?;
                (source, origin(source, node))
            }
        }
    };
    if Family::of(source) == family { Ok(Packet { source, to, protocol, origin }) } else { Err(QuestionError::Families(source, to)) }
}

fn origin(source: IpAddr, node: &LocalNode) -> Origin {
    if node.is_local(source) {
        Origin::Node
    } else if node.subnets.iter().any(|subnet| subnet.contains(source)) {
        Origin::Pod
    } else {
        Origin::Outside
    }
}

/// Describes where an address is: on this node, in a pod, on another node.
#[must_use]
pub(crate) fn location(ip: IpAddr, inputs: &Inputs, node: &LocalNode) -> String {
    if node.is_local(ip) {
        return "this node itself".to_owned();
    }
    if node.subnets.iter().any(|subnet| subnet.contains(ip)) {
        return "a pod of this node".to_owned();
    }
    match node_of(ip, inputs) {
        Some(node) if node == inputs.node_name => "a pod of this node".to_owned(),
        Some(node) => format!("on node {node}"),
        None => "another host".to_owned(),
    }
}

/// Returns the node of the endpoint with this address, from its EndpointSlice.
fn node_of(ip: IpAddr, inputs: &Inputs) -> Option<String> {
    let snapshot = &inputs.snapshot;
    let slices = snapshot.services().flat_map(|(key, _)| snapshot.slices(key));
    let endpoint = slices.flat_map(|slice| &slice.endpoints).find(|endpoint| endpoint.ip == ip)?;
    (!endpoint.node.is_empty()).then(|| endpoint.node.to_string())
}
