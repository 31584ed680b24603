//! What the operator asked for about the pod network, resolved: plain data, no parsing left to do. What is in net-conf.json is in
//! [`super::net_conf`].

use std::path::PathBuf;

use super::allocation::LeaseTerms;
use super::annotations::Prefix;
use super::interface::InterfaceOptions;

/// Everything about the pod network that is not in net-conf.json.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Where this node's subnets come from.
    pub subnet_source: SubnetSource,
    /// How long leases of subnets last, where this node takes one.
    pub lease_terms: LeaseTerms,
    /// net-conf.json.
    pub net_config_path: PathBuf,
    /// subnet.env.
    pub subnet_file: PathBuf,
    /// Where the CNI configuration is written once pods can have a network; `None` for nowhere.
    pub cni_conf_dir: Option<PathBuf>,
    /// What is asked for about the external interface.
    pub interface: InterfaceOptions,
    /// What leaves the network has this node's address.
    pub masquerade: bool,
    /// It has a random source port, where iptables can do that.
    pub random_fully: bool,
    /// What is forwarded from or to pods is accepted.
    pub forward_rules: bool,
    /// What no pod of this node has is swallowed.
    pub blackhole_route: bool,
    /// What names of annotations start with, as typed.
    pub annotation_prefix: String,
    /// The same, completed.
    pub prefix: Prefix,
    /// The Node's condition NetworkUnavailable says whether the network works.
    pub set_network_unavailable: bool,
    /// Transmit checksum offload of VXLAN links, if it is not to be left as it is.
    pub checksum_offload: Option<bool>,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            subnet_source: SubnetSource::Node,
            lease_terms: LeaseTerms::of(LeaseTerms::DURATION),
            net_config_path: defaults::NET_CONFIG_PATH.into(),
            subnet_file: defaults::SUBNET_FILE.into(),
            cni_conf_dir: None,
            interface: InterfaceOptions::default(),
            masquerade: defaults::MASQUERADE,
            random_fully: defaults::RANDOM_FULLY,
            forward_rules: defaults::FORWARD_RULES,
            blackhole_route: defaults::BLACKHOLE_ROUTE,
            annotation_prefix: defaults::ANNOTATION_PREFIX.into(),
            prefix: Prefix::default(),
            set_network_unavailable: defaults::SET_NETWORK_UNAVAILABLE,
            checksum_offload: None,
        }
    }
}

/// The defaults, which are also those of the flags.
#[allow(missing_docs, reason = "each has the name of its field in NetworkSettings")]
pub mod defaults {
    pub(crate) use crate::pod_network::annotations::DEFAULT_PREFIX as ANNOTATION_PREFIX;

    pub(crate) const NET_CONFIG_PATH: &str = "/etc/kube-flannel/net-conf.json";
    pub(crate) const SUBNET_FILE: &str = "/run/flannel/subnet.env";
    pub const MASQUERADE: bool = false;
    pub(crate) const RANDOM_FULLY: bool = true;
    pub(crate) const FORWARD_RULES: bool = true;
    pub(crate) const BLACKHOLE_ROUTE: bool = false;
    pub(crate) const SET_NETWORK_UNAVAILABLE: bool = true;
}

/// Where a node's subnets come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubnetSource {
    /// `spec.podCIDRs` of its Node, which the cluster assigns.
    #[default]
    Node,
    /// A Lease of its own, which it takes.
    Lease,
}
