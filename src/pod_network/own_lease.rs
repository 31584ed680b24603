//! This node's own part of the pod network: its subnets, its addresses, and the hardware addresses of its VXLAN links. PURE.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use sha2::{Digest, Sha256};

use super::net_conf::NetConf;
use crate::cluster::Family;

use super::node::NetworkNode;
use crate::cluster::families::PerFamily;
use crate::netlink::mac::Mac;

/// This node's own part of the pod network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnLease {
    /// This node's name.
    pub node: String,
    /// Its subnets, one of each enabled family.
    pub subnets: PerFamily<IpNetwork>,
    /// Source addresses of its outer packets: `--public-ip`, or the external interface's address.
    pub local: PerFamily<IpAddr>,
    /// The addresses that are published to other nodes: `local`, or those in the overwrite annotations.
    pub published: PerFamily<IpAddr>,
    /// Hardware addresses of its VXLAN links; empty for host-gw.
    pub macs: PerFamily<Mac>,
}

/// Why a Node has no usable subnets, in flannel's words and with a cure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSubnet {
    /// The Node has no pod CIDR yet.
    #[error(
        "node {0:?} pod cidr not assigned: does kube-controller-manager run with --allocate-node-cidrs=true and --cluster-cidr, and is a subnet left?"
    )]
    Unassigned(String),
    /// The pod CIDRs are invalid.
    #[error("{0}")]
    Bad(String),
    /// The Node has no pod CIDR in an enabled family.
    #[error(
        "failed to configure interface: {} is enabled but the lease has no {}: node {node:?} has no pod CIDR of that family. Give kube-controller-manager's --cluster-cidr one of each family, or switch the family off in net-conf.json",
        family.proper_name(), family.proper_name()
    )]
    Missing {
        /// The node.
        node: String,
        /// The family.
        family: Family,
    },
    /// The pod CIDR is outside the network.
    #[error(
        "subnet \"{network}\" specified in the flannel net config doesn't contain \"{subnet}\" {}PodCIDR of the \"{node}\" node",
        if *family == Family::V6 { "IPv6 " } else { "" }
    )]
    Outside {
        /// The node.
        node: String,
        /// The family.
        family: Family,
        /// The network.
        network: IpNetwork,
        /// The subnet.
        subnet: IpNetwork,
    },
}

/// The subnets that the cluster assigned to a Node: one of each enabled family, inside the pod network.
///
/// # Errors
/// A subnet is missing or invalid.
pub fn assigned_subnets(node: &NetworkNode, conf: &NetConf) -> Result<PerFamily<IpNetwork>, NoSubnet> {
    let name = || node.name.to_string();
    let cidrs = match &node.pod_cidrs {
        Ok(cidrs) => cidrs,
        Err(super::node::BadPodCidrs::Unassigned) => return Err(NoSubnet::Unassigned(name())),
        Err(bad) => return Err(NoSubnet::Bad(bad.of_node(&node.name))),
    };
    let of_family = |(family, network): (Family, &IpNetwork)| {
        let subnet = *cidrs.get(family).ok_or_else(|| NoSubnet::Missing { node: name(), family })?;
        if !is_inside(subnet, *network) {
            return Err(NoSubnet::Outside { node: name(), family, network: *network, subnet });
        }
        Ok((family, subnet))
    };
    conf.networks.iter().map(of_family).collect()
}

/// Returns true if a subnet is inside a network or equal to it.
#[must_use]
pub(crate) fn is_inside(subnet: IpNetwork, network: IpNetwork) -> bool {
    network.prefix() <= subnet.prefix() && network.contains(subnet.network())
}

/// Chooses the hardware address of this node's VXLAN link in a family: the published one, else that of the live link, else one that is derived
/// from the Node's UID. So it stays the same over restarts and reboots.
#[must_use]
pub fn choose_mac(published: Option<Mac>, of_link: Option<Mac>, node_uid: &str, family: Family) -> Mac {
    let derived = || {
        let hash = Sha256::digest(format!("{node_uid}/{family}"));
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&hash[..6]);
        Mac::local(bytes)
    };
    published.filter(|mac| mac.is_unicast()).or_else(|| of_link.filter(|mac| mac.is_unicast())).unwrap_or_else(derived)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod_network::annotations::Prefix;
    use crate::pod_network::node::NodeText;

    fn of(pod_cidrs: &[&str], conf: &str) -> Result<PerFamily<IpNetwork>, String> {
        let text = NodeText { name: "n1", pod_cidrs: pod_cidrs.to_vec(), ..NodeText::default() };
        let conf = NetConf::parse(conf).expect("a good one");
        assigned_subnets(&NetworkNode::new(&text, &Prefix::default()), &conf).map_err(|error| error.to_string())
    }

    #[test]
    fn a_nodes_subnets_are_inside_the_network() {
        let v4 = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
        let both = r#"{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd10:244::/32","Backend":{"Type":"vxlan"}}"#;
        let own = |v4: &str, v6: &str| Ok(PerFamily { v4: v4.parse().ok(), v6: v6.parse().ok() });
        assert_eq!(of(&["10.244.1.0/24"], v4), own("10.244.1.0/24", ""));
        assert_eq!(of(&["10.244.1.0/24", "fd10:244:1::/64"], v4), own("10.244.1.0/24", ""));
        assert_eq!(of(&["10.244.0.0/16", "fd10:244:1::/64"], both), own("10.244.0.0/16", "fd10:244:1::/64"));
        for (cidrs, conf, want) in [
            (&[][..], v4, "node \"n1\" pod cidr not assigned"),
            (&["10.244.1.0/24"], both, "failed to configure interface: IPv6 is enabled but the lease has no IPv6"),
            (
                &["10.245.1.0/24"],
                v4,
                "subnet \"10.244.0.0/16\" specified in the flannel net config doesn't contain \"10.245.1.0/24\" PodCIDR of the \"n1\" node",
            ),
            (&["10.0.0.0/8"], v4, "subnet \"10.244.0.0/16\" specified in the flannel net config doesn't contain \"10.0.0.0/8\" PodCIDR"),
            (
                &["10.244.1.0/24", "fd11::/64"],
                both,
                "subnet \"fd10:244::/32\" specified in the flannel net config doesn't contain \"fd11::/64\" IPv6 PodCIDR of the \"n1\" node",
            ),
            (&["10.244.1.0/24", "10.244.2.0/24"], v4, "node \"n1\" pod cidrs should be IPv4/IPv6 only or dualstack"),
        ] {
            let error = of(cidrs, conf).expect_err(want);
            assert!(error.starts_with(want), "{error}");
        }
    }

    #[test]
    fn the_hardware_address_stays() {
        let known = Mac([2, 0, 0, 0, 0, 1]);
        let derived = choose_mac(None, None, "uid", Family::V4);
        assert_eq!(choose_mac(Some(known), Some(derived), "uid", Family::V4), known);
        assert_eq!(choose_mac(None, Some(known), "uid", Family::V4), known);
        assert_eq!(choose_mac(Some(Mac::default()), Some(Mac([1; 6])), "uid", Family::V4), derived);
        assert!(derived.is_unicast() && derived.0[0] & 2 == 2);
        assert_ne!(derived, choose_mac(None, None, "uid", Family::V6));
        assert_ne!(derived, choose_mac(None, None, "other", Family::V4));
    }
}
