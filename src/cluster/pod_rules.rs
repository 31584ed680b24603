//! The input of the pod network's masquerade and forward rules. PURE.

use ipnetwork::IpNetwork;

use super::families::PerFamily;

/// The settings and ranges that the rules of the pod network are rendered from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRules {
    /// The ranges of each family.
    pub ranges: PerFamily<PodRanges>,
    /// `--ip-masq`: packets that leave the pod network get this node's address as their source.
    pub masquerade: bool,
    /// Masquerading chooses source ports at random if iptables supports it. `--ip-masq-fully-random-disable` turns this off.
    pub random_fully: bool,
    /// `--iptables-forward-rules`: forwarded packets from and to pods are accepted.
    pub forward: bool,
}

/// The ranges of one family that the rules match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRanges {
    /// The pod network.
    pub network: IpNetwork,
    /// This node's subnet.
    pub subnet: IpNetwork,
}
