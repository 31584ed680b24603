//! Who sends what to whom, as people put it, and where that leads in the cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::cluster::ip::parse_ip;
use crate::cluster::{Family, Protocol, ServiceKey, ServicePort};
use crate::config::settings::DetectLocal;
use crate::rules::inputs::Inputs;

use super::packet::{Origin, Packet, Place};

/// A host that is nobody's (RFC 5737, RFC 3849).
const OUTSIDE: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(203, 0, 113, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// A question that has no answer as it is put.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// Neither an address nor a Service.
    #[error("{0:?} is neither IP:PORT nor svc/NAMESPACE/NAME[:PORT]")]
    Whom(String),
    /// A Service that no rules are for.
    #[error("there is no Service {0} that a node has rules for (headless ones have none, nor have those of type ExternalName)")]
    NoService(ServiceKey),
    /// It has several ports, or not that one.
    #[error("Service {service}: one of its ports has to be named: {ports}")]
    Port {
        /// The Service.
        service: ServiceKey,
        /// Its ports.
        ports: String,
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

/// Whom it is sent to, and how: `IP:PORT` or `svc/NAMESPACE/NAME[:PORT]`, with `/tcp`, `/udp` or `/sctp` behind it if need be.
///
/// # Errors
/// It is neither, or no such Service or port is there.
pub fn destination(text: &str, inputs: &Inputs) -> Result<(SocketAddr, Protocol), Unclear> {
    let (whom, protocol) = match text.rsplit_once('/') {
        Some((whom, protocol @ ("tcp" | "udp" | "sctp"))) if whom.contains([':', '/']) => {
            (whom, Protocol::from_api(Some(&protocol.to_uppercase())))
        }
        _ => (text, None),
    };
    let whom_else = || Unclear::Whom(text.to_owned());
    let Some(service) = whom.strip_prefix("svc/") else {
        return Ok((whom.parse().map_err(|_| whom_else())?, protocol.unwrap_or(Protocol::Tcp)));
    };
    let (name, port) = service.split_once(':').map_or((service, None), |(name, port)| (name, Some(port)));
    let (namespace, name) = name.split_once('/').ok_or_else(whom_else)?;
    let key = ServiceKey { namespace: namespace.into(), name: name.into() };
    let Some(service) = inputs.snapshot.service(&key) else { return Err(Unclear::NoService(key)) };
    let is_meant = |of: &ServicePort| {
        protocol.is_none_or(|protocol| protocol == of.protocol) && port.is_none_or(|port| *of.name == *port || port.parse() == Ok(of.port))
    };
    let meant: Vec<&ServicePort> = service.ports.iter().filter(|port| is_meant(port)).collect();
    let [one] = meant.as_slice() else {
        let name = |port: &ServicePort| format!("{} {}/{}", port.name, port.port, port.protocol.as_str()).trim_start().to_owned();
        return Err(Unclear::Port { service: key, ports: service.ports.iter().map(name).collect::<Vec<_>>().join(", ") });
    };
    match Family::ALL.into_iter().find_map(|family| service.cluster_ip(family)) {
        Some(ip) => Ok((SocketAddr::new(ip, one.port), one.protocol)),
        None => Err(Unclear::NoClusterIp(key)),
    }
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
