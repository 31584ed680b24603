//! What the masquerade and forward rules of the pod network are made from (spec section 8); [`crate::rules::pod_network`] writes them.

use ipnetwork::IpNetwork;

use crate::cluster::Family;
use crate::config::netconf::NetConf;
use crate::config::network_settings::NetworkSettings;

use super::families::PerFamily;
use super::own_lease::OwnLease;

/// What the rules of the pod network are made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRules {
    /// By family: what packets are told by.
    pub ranges: PerFamily<PodRanges>,
    /// `--ip-masq`: what leaves the network has this node's address.
    pub masquerade: bool,
    /// Not `--ip-masq-fully-random-disable`: source ports are chosen at random, where iptables can.
    pub random_fully: bool,
    /// `--iptables-forward-rules`: what is forwarded from or to pods is accepted.
    pub forward: bool,
}

/// What packets of one family are told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRanges {
    /// The network.
    pub network: IpNetwork,
    /// This node's subnet.
    pub subnet: IpNetwork,
}

impl PodRules {
    /// What is asked for, for this node's subnets.
    #[must_use]
    pub fn new(settings: &NetworkSettings, conf: &NetConf, own: &OwnLease) -> Self {
        let of_family =
            |(family, network): (Family, &IpNetwork)| Some((family, PodRanges { network: *network, subnet: *own.subnets.get(family)? }));
        Self {
            ranges: conf.networks.iter().filter_map(of_family).collect(),
            masquerade: settings.masquerade,
            random_fully: settings.random_fully,
            forward: settings.forward_rules,
        }
    }
}
