//! The input of the pod network's rules. PURE.

use ipnetwork::IpNetwork;

use super::families::PerFamily;

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
