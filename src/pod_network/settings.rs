//! The settings of the pod network, parsed and complete. The keys of net-conf.json are in [`super::net_conf`]. PURE.

use std::path::PathBuf;

use super::allocation::LeaseTerms;
use super::annotations::{DEFAULT_PREFIX, Prefix};
use super::interface::InterfaceOptions;

/// All settings of the pod network that are not in net-conf.json.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Where this node's subnets come from.
    pub subnet_source: SubnetSource,
    /// How long leases of subnets last, with [`SubnetSource::Lease`].
    pub lease_terms: LeaseTerms,
    /// Path of net-conf.json.
    pub net_config_path: PathBuf,
    /// Path of subnet.env.
    pub subnet_file: PathBuf,
    /// Folder in which the CNI configuration is written when the network is ready; `None` writes none.
    pub cni_conf_dir: Option<PathBuf>,
    /// The options that select the external interface.
    pub interface: InterfaceOptions,
    /// Packets that leave the network get this node's address.
    pub masquerade: bool,
    /// Masquerading chooses a random source port, if iptables supports that.
    pub random_fully: bool,
    /// Forwarded packets from and to pods are accepted.
    pub forward_rules: bool,
    /// Packets to addresses of this node's subnet that no pod has are dropped by a blackhole route.
    pub blackhole_route: bool,
    /// The prefix of annotation names, as the operator typed it.
    pub annotation_prefix: String,
    /// The same prefix, completed.
    pub prefix: Prefix,
    /// The daemon writes the Node's condition `NetworkUnavailable`.
    pub set_network_unavailable: bool,
    /// Transmit checksum offload of VXLAN links; `None` leaves it unchanged.
    pub checksum_offload: Option<bool>,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            subnet_source: SubnetSource::Node,
            lease_terms: LeaseTerms::of(LeaseTerms::DURATION),
            net_config_path: "/etc/kube-flannel/net-conf.json".into(),
            subnet_file: "/run/flannel/subnet.env".into(),
            cni_conf_dir: None,
            interface: InterfaceOptions::default(),
            masquerade: false,
            random_fully: true,
            forward_rules: true,
            blackhole_route: false,
            annotation_prefix: DEFAULT_PREFIX.into(),
            prefix: Prefix::default(),
            set_network_unavailable: true,
            checksum_offload: None,
        }
    }
}

/// The source of a node's subnets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubnetSource {
    /// `spec.podCIDRs` of its Node, assigned by the cluster.
    #[default]
    Node,
    /// A Lease that the node takes itself.
    Lease,
}
