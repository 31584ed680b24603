//! Resolves Node, host facts and settings for one family. The rules depend on the result and on the Services.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::cluster::Node;
use crate::cluster::host_facts::{HostFacts, NfacctCounters};
use crate::cluster::ip::{Family, host_net};
use crate::proxy::settings::{DetectLocal, NodePortAddresses, ProxySettings};

use super::render;

/// The Node, host facts and settings of one family.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// The family.
    pub family: Family,
    /// This node's name, as in EndpointSlices and hints.
    pub node_name: &'a str,
    /// This node's zone, or empty if unknown.
    pub zone: &'a str,
    /// This node's IP, or the loopback address if unknown.
    pub node_ip: IpAddr,
    /// The matches for traffic of local pods. `None` if that traffic cannot be recognized.
    pub local_traffic: Option<LocalTraffic>,
    /// The addresses on which NodePorts answer.
    pub node_ports: NodePorts,
    /// NodePorts also answer on loopback.
    pub localhost_node_ports: bool,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// The packet mark that means "masquerade", in the spelling of iptables-restore.
    pub mark: String,
    /// Addresses in `spec.externalIPs` get rules.
    pub allow_external_ips: bool,
    /// MASQUERADE supports `--random-fully`.
    pub random_fully: bool,
    /// Drop packets with conntrack state INVALID.
    pub drop_invalid: bool,
    /// The nfacct counters that the kernel has.
    pub nfacct: NfacctCounters,
}

/// Matches for traffic of local pods [kube-proxy 1.7].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalTraffic {
    /// iptables arguments that match traffic of local pods.
    pub if_local: String,
    /// iptables arguments that match all other traffic.
    pub if_not_local: String,
}

/// The addresses on which NodePorts answer [kube-proxy 6.8].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePorts {
    /// Every local address.
    AllLocal,
    /// These addresses of this node, sorted, without duplicates.
    Addresses(Vec<IpAddr>),
}

impl<'a> View<'a> {
    /// Resolves settings, host facts and Node for one family.
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

    /// Returns the loopback block on which NodePorts of this family do not answer, if any.
    #[must_use]
    pub(crate) const fn excluded_loopback(&self) -> Option<&'static str> {
        match self.family {
            Family::V6 => Some("::1/128"),
            Family::V4 if self.localhost_node_ports => None,
            Family::V4 => Some("127.0.0.0/8"),
        }
    }
}

/// Returns true if NodePorts answer on IPv4 loopback, which needs the sysctl `route_localnet` [kube-proxy 1.7].
#[must_use]
pub(crate) fn needs_route_localnet(settings: &ProxySettings, node: Option<&Node>) -> bool {
    settings.localhost_node_ports && contains_ipv4_loopback(&node_port_cidrs(settings, node, Family::V4))
}

/// Returns the addresses on which health-check node ports answer in one family [kube-proxy 9.2]: those of NodePorts, and also loopback if
/// the settings contain it. All local addresses if this host's addresses could not be listed (`None`).
#[must_use]
pub(crate) fn health_check_addresses(
    settings: &ProxySettings,
    addresses: Option<&[IpAddr]>,
    node: Option<&Node>,
    family: Family,
) -> NodePorts {
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

/// Returns true if the CIDRs contain 127.0.0.0. No CIDR means every address. kube-proxy ignores CIDRs after a /0; the result is the same,
/// because a /0 contains loopback.
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
    fn health_checks_answer_on_loopback_if_the_settings_contain_it() {
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
