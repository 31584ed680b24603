//! Settings of the service proxy: plain values that `config` fills in. PURE.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

/// Everything the proxy's rules and its pace depend on (spec section 1.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// How traffic from local pods is told apart.
    pub detect_local: DetectLocal,
    /// Which node addresses answer for NodePorts.
    pub node_port_addresses: NodePortAddresses,
    /// Masquerade all traffic to cluster IPs, not only what comes from outside the pods.
    pub masquerade_all: bool,
    /// The bit of the packet mark that means "masquerade", 0-31.
    pub masquerade_bit: u8,
    /// NodePorts answer on 127.0.0.0/8 too (IPv4 only).
    pub localhost_node_ports: bool,
    /// Feature gate `AllowServiceExternalIPs`.
    pub allow_external_ips: bool,
    /// `bindAddress`: overrides the node IP of its family unless unspecified.
    pub bind_address: Option<IpAddr>,
    /// How long to wait before trying again after a failed sync, at most.
    pub sync_period: Duration,
    /// Least time between the end of a sync and the start of the next, where one is asked for. If not, the pace follows from how long
    /// syncs take.
    pub min_sync_period: Option<Duration>,
}

impl ProxySettings {
    /// The default of `iptables.masqueradeBit`.
    pub const MASQUERADE_BIT: u8 = 14;
    /// The default of `iptables.localhostNodePorts`.
    pub const LOCALHOST_NODE_PORTS: bool = true;
    /// The default of `iptables.syncPeriod`.
    pub const SYNC_PERIOD: Duration = Duration::from_secs(30);
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            detect_local: DetectLocal::default(),
            node_port_addresses: NodePortAddresses::default(),
            masquerade_all: false,
            masquerade_bit: Self::MASQUERADE_BIT,
            localhost_node_ports: Self::LOCALHOST_NODE_PORTS,
            allow_external_ips: true,
            bind_address: None,
            sync_period: Self::SYNC_PERIOD,
            min_sync_period: None,
        }
    }
}

/// How traffic from local pods is told apart (spec section 1.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By source address: the first of these CIDRs of the family, if any.
    ClusterCidr(Vec<IpNetwork>),
    /// By source address: the first pod CIDR of the family of this Node.
    NodeCidr,
    /// By the bridge it comes in through.
    BridgeInterface(String),
    /// By the start of the name of the interface it comes in through.
    InterfaceNamePrefix(String),
}

impl Default for DetectLocal {
    fn default() -> Self {
        Self::ClusterCidr(Vec::new())
    }
}

/// Which node addresses answer for NodePorts (spec section 1.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Only the node's own primary addresses.
    Primary,
    /// Addresses within these CIDRs; none of a family means all of that family.
    Cidrs(Vec<IpNetwork>),
}

impl Default for NodePortAddresses {
    fn default() -> Self {
        Self::Cidrs(Vec::new())
    }
}
