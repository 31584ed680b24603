//! What the rules of one family depend on besides Services: this node, the host, the settings, resolved for that family.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::cluster::Node;
use crate::cluster::host_facts::{HostFacts, NfacctCounters};
use crate::cluster::ip::{Family, host_net};
use crate::proxy::settings::{DetectLocal, NodePortAddresses, ProxySettings};

use super::render;

/// One family's view of this node.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// The family.
    pub family: Family,
    /// This node's name, as slices and hints spell it.
    pub node_name: &'a str,
    /// This node's zone; empty if unknown.
    pub zone: &'a str,
    /// This node's IP, loopback if unknown.
    pub node_ip: IpAddr,
    /// How to tell traffic of local pods; `None` where that cannot be told.
    pub local_traffic: Option<LocalTraffic>,
    /// Where NodePorts answer.
    pub node_ports: NodePorts,
    /// NodePorts answer on loopback too.
    pub localhost_node_ports: bool,
    /// Masquerade everything that goes to a cluster IP.
    pub masquerade_all: bool,
    /// The "masquerade" mark, as restore input spells it.
    pub mark: String,
    /// Whether `spec.externalIPs` produce rules.
    pub allow_external_ips: bool,
    /// MASQUERADE takes `--random-fully`.
    pub random_fully: bool,
    /// Packets of unknown connections are dropped.
    pub drop_invalid: bool,
    /// Usable nfacct counters.
    pub nfacct: NfacctCounters,
}

/// Matches that tell traffic of local pods (spec section 1.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalTraffic {
    /// iptables arguments that match it.
    pub if_local: String,
    /// iptables arguments that match everything else.
    pub if_not_local: String,
}

/// Where NodePorts answer (spec section 6.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePorts {
    /// On every local address.
    AllLocal,
    /// On these addresses of this node, sorted, without duplicates.
    Addresses(Vec<IpAddr>),
}

impl<'a> View<'a> {
    /// Resolves settings, host and Node for one family.
    #[must_use]
    pub fn new(settings: &ProxySettings, host: &HostFacts, node: Option<&'a Node>, node_name: &'a str, family: Family) -> Self {
        let cidrs = node_port_cidrs(settings, node, family);
        let localhost_node_ports = settings.localhost_node_ports && family == Family::V4 && contains_ipv4_loopback(&cidrs);
        Self {
            family,
            node_name,
            zone: node.map_or("", |node| &node.zone),
            node_ip: known_node_ip(settings, node, family).unwrap_or(family.loopback()),
            local_traffic: local_traffic(&settings.detect_local, node, family),
            node_ports: node_ports(&cidrs, &host.addresses, family, localhost_node_ports),
            localhost_node_ports,
            masquerade_all: settings.masquerade_all,
            mark: render::mark(settings.masquerade_bit),
            allow_external_ips: settings.allow_external_ips,
            random_fully: host.random_fully,
            drop_invalid: !host.tcp_be_liberal,
            nfacct: host.nfacct,
        }
    }

    /// The loopback block that NodePort rules leave out in this family, if any.
    #[must_use]
    pub const fn excluded_loopback(&self) -> Option<&'static str> {
        match self.family {
            Family::V6 => Some("::1/128"),
            Family::V4 if self.localhost_node_ports => None,
            Family::V4 => Some("127.0.0.0/8"),
        }
    }
}

/// Whether NodePorts answer on IPv4 loopback with these settings: what `route_localnet` is needed for (spec section 1.7).
#[must_use]
pub fn needs_route_localnet(settings: &ProxySettings, node: Option<&Node>) -> bool {
    settings.localhost_node_ports && contains_ipv4_loopback(&node_port_cidrs(settings, node, Family::V4))
}

/// Where the health checks of load balancers answer in one family: as NodePorts do, but on loopback, too, where the settings name it.
/// Everywhere if this host's addresses could not be listed (spec section 9.2).
#[must_use]
pub fn health_check_addresses(settings: &ProxySettings, addresses: Option<&[IpAddr]>, node: Option<&Node>, family: Family) -> NodePorts {
    addresses.map_or(NodePorts::AllLocal, |addresses| node_ports(&node_port_cidrs(settings, node, family), addresses, family, true))
}

fn known_node_ip(settings: &ProxySettings, node: Option<&Node>, family: Family) -> Option<IpAddr> {
    let bound = settings.bind_address.filter(|ip| !ip.is_unspecified() && Family::of(*ip) == family);
    bound.or_else(|| node.and_then(|node| node.ip(family)))
}

fn node_port_cidrs(settings: &ProxySettings, node: Option<&Node>, family: Family) -> Vec<IpNetwork> {
    match &settings.node_port_addresses {
        NodePortAddresses::Primary => {
            known_node_ip(settings, node, family).filter(|ip| !ip.is_loopback()).map(host_net).into_iter().collect()
        }
        NodePortAddresses::Cidrs(cidrs) => cidrs.iter().copied().filter(|net| Family::of_net(*net) == family).collect(),
    }
}

/// No CIDR means every address. CIDRs after a /0 are not looked at, which makes no difference: it holds loopback anyway.
fn contains_ipv4_loopback(cidrs: &[IpNetwork]) -> bool {
    let start: IpAddr = IpAddr::from([127, 0, 0, 0]);
    cidrs.is_empty() || cidrs.iter().any(|net| net.network().is_loopback() || net.contains(start))
}

fn node_ports(cidrs: &[IpNetwork], addresses: &[IpAddr], family: Family, localhost: bool) -> NodePorts {
    if cidrs.is_empty() || cidrs.iter().any(|net| net.prefix() == 0) {
        return NodePorts::AllLocal;
    }
    let mut matching: Vec<_> = addresses
        .iter()
        .copied()
        .filter(|ip| Family::of(*ip) == family && cidrs.iter().any(|net| net.contains(*ip)) && (localhost || !ip.is_loopback()))
        .collect();
    matching.sort_unstable();
    matching.dedup();
    NodePorts::Addresses(matching)
}

fn local_traffic(detect: &DetectLocal, node: Option<&Node>, family: Family) -> Option<LocalTraffic> {
    let argument = match detect {
        DetectLocal::ClusterCidr(cidrs) => format!("-s {}", cidrs.iter().find(|net| Family::of_net(**net) == family)?),
        DetectLocal::NodeCidr => format!("-s {}", node?.pod_cidr(family)?),
        DetectLocal::BridgeInterface(name) => format!("-i {name}"),
        DetectLocal::InterfaceNamePrefix(prefix) => format!("-i {prefix}+"),
    };
    Some(LocalTraffic { if_not_local: format!("! {argument}"), if_local: argument })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_checks_answer_on_loopback_where_it_is_named() {
        let local: Vec<IpAddr> = ["127.0.0.1", "::1", "192.168.0.2", "10.0.0.1"].iter().map(|ip| ip.parse().expect("an address")).collect();
        let node = Node { addresses: vec![local[2]], ..Node::default() };
        let limited = |cidrs: &[&str]| ProxySettings {
            node_port_addresses: NodePortAddresses::Cidrs(cidrs.iter().map(|cidr| cidr.parse().expect("a CIDR")).collect()),
            ..ProxySettings::default()
        };
        let cases = [
            (limited(&[]), NodePorts::AllLocal),
            (limited(&["::/64"]), NodePorts::AllLocal),
            (limited(&["192.168.0.0/16", "0.0.0.0/0"]), NodePorts::AllLocal),
            (limited(&["127.0.0.0/8", "192.168.0.0/16"]), NodePorts::Addresses(vec![local[0], local[2]])),
            (limited(&["172.16.0.0/12"]), NodePorts::Addresses(vec![])),
            (
                ProxySettings { node_port_addresses: NodePortAddresses::Primary, ..ProxySettings::default() },
                NodePorts::Addresses(vec![local[2]]),
            ),
        ];
        for (settings, expected) in cases {
            assert_eq!(health_check_addresses(&settings, Some(&local), Some(&node), Family::V4), expected, "{settings:?}");
            assert_eq!(health_check_addresses(&settings, None, Some(&node), Family::V4), NodePorts::AllLocal, "{settings:?}");
        }
    }
}
