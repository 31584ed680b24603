//! The settings of the service proxy: plain values that `config` fills in. PURE.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;
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
    /// The shortest time between the end of a sync and the start of the next. `None` if the operator set none: then
    /// `sync_share` decides.
    pub min_sync_period: Option<Duration>,
    /// The share of one core that writing rules can take under sustained changes.
    pub sync_share: CpuShare,
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
            sync_share: CpuShare::default(),
        }
    }
}

/// A share of one core, 1-100 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuShare(u8);

impl CpuShare {
    /// Returns the share as a number up to 1. `None` at 100 %: then a sync only waits for half of the duration of the last one.
    pub(crate) fn limit(self) -> Option<f64> {
        (self.0 < 100).then(|| f64::from(self.0) / 100.0)
    }
}

impl Default for CpuShare {
    fn default() -> Self {
        Self(10)
    }
}

impl FromStr for CpuShare {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Self).ok_or("not a whole number from 1 to 100")
    }
}

impl Display for CpuShare {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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
