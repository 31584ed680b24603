//! The settings of the service proxy: plain values that `config` fills in. PURE.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

/// The settings that the proxy's rules and its timing depend on [kube-proxy 1.4].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// How traffic of local pods is recognized.
    pub detect_local: DetectLocal,
    /// The node addresses on which NodePorts answer.
    pub node_port_addresses: NodePortAddresses,
    /// Masquerade all traffic to cluster IPs, not only traffic from outside the pods.
    pub masquerade_all: bool,
    /// The bit of the packet mark that means "masquerade", 0-31.
    pub masquerade_bit: u8,
    /// NodePorts also answer on 127.0.0.0/8 (IPv4 only).
    pub localhost_node_ports: bool,
    /// Feature gate `AllowServiceExternalIPs`.
    pub allow_external_ips: bool,
    /// `bindAddress`: overrides the node IP of its family, unless it is unspecified (`0.0.0.0` or `::`).
    pub bind_address: Option<IpAddr>,
    /// The longest wait before a failed sync is tried again, and the period of audits.
    pub sync_period: Duration,
    /// The shortest time between the end of a sync and the start of the next. `None` if the operator set none: then the pause depends on
    /// the duration of the sync.
    pub min_sync_period: Option<Duration>,
}

impl ProxySettings {
    /// The default of `iptables.masqueradeBit`.
    pub(crate) const MASQUERADE_BIT: u8 = 14;
    /// The default of `iptables.localhostNodePorts`.
    pub(crate) const LOCALHOST_NODE_PORTS: bool = true;
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

/// How traffic of local pods is recognized [kube-proxy 1.7].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By source address: the first of these CIDRs in the family, if any.
    ClusterCidr(Vec<IpNetwork>),
    /// By source address: the first pod CIDR of this Node in the family.
    NodeCidr,
    /// By input interface: this bridge.
    BridgeInterface(String),
    /// By input interface: every interface whose name has this prefix.
    InterfaceNamePrefix(String),
}

impl Default for DetectLocal {
    fn default() -> Self {
        Self::ClusterCidr(Vec::new())
    }
}

/// The node addresses on which NodePorts answer [kube-proxy 1.7].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Only the node's own primary addresses.
    Primary,
    /// Addresses within these CIDRs. If there is no CIDR of a family, all addresses of that family.
    Cidrs(Vec<IpNetwork>),
}

impl Default for NodePortAddresses {
    fn default() -> Self {
        Self::Cidrs(Vec::new())
    }
}
